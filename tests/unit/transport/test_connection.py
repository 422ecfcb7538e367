"""A connection over a real socket to a server whose endpoint is a puppet. Not for models."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import JSON, Answer, HttpRequest
from muelle.transport.asgi import AsgiHost
from muelle.transport.connection import Cancel, HttpConnection, Reply
from muelle.transport.server import HttpServer, bind

BOUND_S = 20.0
"""Nothing here may take so long; a test that does fails instead of hanging."""


class Puppet:
    """An endpoint that answers when told to, or at once with the body it got."""

    head_lines = b"muelle-model: puppet\r\n"
    hot_head = b""

    def __init__(self) -> None:
        self.hold = False
        self.held: list[tuple[HttpRequest, Reply]] = []
        self.cancelled = 0
        self.came = asyncio.Event()
        self.left = asyncio.Event()

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Keep the head of plain answers."""
        plain = Answer(200, JSON, b"")
        plain.head_lines = self.head_lines
        self.hot_head = make_head(plain, b"%d")

    def take(self, connection: HttpConnection, body: bytes) -> Cancel | bool | None:
        """Answer plain bodies the hottest way."""
        if self.hold or body.startswith(b"slow"):
            return False
        connection.reply_plain(self, body, 0.0)
        return None

    def begin(self, request: HttpRequest, done: Reply) -> Cancel | None:
        """Answer at once, or hold."""
        if self.hold:
            self.held.append((request, done))
            self.came.set()
            return self._cancel
        answer = echo(request)
        answer.head_lines = self.head_lines
        done(answer)
        return None

    def _cancel(self) -> None:
        self.cancelled += 1
        self.left.set()


def echo(request: HttpRequest) -> Answer:
    """The answer that holds the request's body."""
    return Answer(200, JSON, request.body)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The comfortable way: tells the path, or fails."""
    if scope["path"] == "/broken":
        raise RuntimeError("secret /path")
    body = (await receive())["body"]
    text = scope["path"].encode() + b" " + body
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class Server:
    """A listening server and what belongs to it."""

    def __init__(self, **limits: Any) -> None:
        loop = asyncio.get_running_loop()
        self.puppet = Puppet()

        def refusal(path: bytes, status: int, message: str, request_id: str) -> Answer:
            return Answer(status, b"text/plain", message.encode())

        self.http = HttpServer(
            LimitsConfig(**limits),
            asgi=AsgiHost(lambda: app, loop),
            direct={b"/live": lambda: Answer(200, b"text/plain", b"alive")},
            refusal=refusal,
            internal_error=lambda path, request_id: Answer(500, b"text/plain", b"internal"),
            loop=loop,
        )
        self.http.set_hot({b"/hot": self.puppet})

    async def connect(self) -> Client:
        """Return a new client."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._sock.getsockname()[1]  # type: ignore[no-any-return]

    async def start(self) -> None:
        """Listen on a free port."""
        self._sock = bind("127.0.0.1", 0)
        await self.http.start(self._sock)


class Client:
    """A raw socket: it sends what it is told and reads whole answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *parts: bytes) -> None:
        """Send the parts, each on its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self, *, with_body: bool = True) -> tuple[int, dict[bytes, bytes], bytes]:
        """Read one answer."""
        async with asyncio.timeout(BOUND_S):
            block = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = block[:-4].split(b"\r\n")
            headers = dict(x.split(b": ", 1) for x in lines)
            assert len(headers) == len(lines), "a header came twice"
            length = int(headers.get(b"content-length", 0)) if with_body else 0
            return int(line.split()[1]), headers, await self.reader.readexactly(length)

    async def ask(self, *parts: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Send, then read one answer."""
        await self.send(*parts)
        return await self.answer()

    async def closed(self) -> bool:
        """Wait until the server has closed; whether nothing more came before."""
        async with asyncio.timeout(BOUND_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


def post(body: bytes, path: bytes = b"/hot", *lines: bytes) -> bytes:
    """A POST with a length."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: h", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Server]:
    """Run a server with such limits; at the end no connection is left."""
    server = Server(**limits)
    await server.start()
    try:
        yield server
    finally:
        await server.http.drain(0.0)
        async with asyncio.timeout(BOUND_S):
            while server.http.n_connections:
                await asyncio.sleep(0)


async def test_requests_follow_on_one_connection() -> None:
    """Hot, plain, direct and comfortable ways share it; every answer has a new id and one date."""
    async with serving() as server:
        client = await server.connect()
        ids = set()
        for body in (b"one", b"two", b"two", b"three"):
            status, headers, answer = await client.ask(post(body))
            assert (status, answer, headers[b"muelle-model"]) == (200, body, b"puppet")
            ids.add(headers[b"x-request-id"])
        status, headers, answer = await client.ask(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (status, answer) == (200, b"alive")
        ids.add(headers[b"x-request-id"])
        status, headers, answer = await client.ask(post(b"x", b"/a%20b"))
        assert (status, answer) == (201, b"/a b x")
        ids.add(headers[b"x-request-id"])
        assert len(ids) == 6
        assert {b"date", b"x-content-type-options"} <= set(headers)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_a_body_may_come_in_any_pieces(size: int) -> None:
    """Whole, cut, or byte by byte at its edges: the same answer."""
    body = bytes(i % 251 for i in range(size))
    wire = post(body)
    head = len(wire) - size
    async with serving() as server:
        client = await server.connect()
        for cuts in ((), (1,), (head - 2,), (head,), (head + size // 2,), (5, head - 1, head + 1)):
            bounds = [0, *cuts, len(wire)]
            parts = [wire[a:b] for a, b in itertools.pairwise(bounds)]
            assert (await client.ask(*parts))[2] == body


async def test_a_chunked_body_is_the_same_request() -> None:
    """And what follows it on the connection is the next one."""
    async with serving() as server:
        client = await server.connect()
        head = b"POST /hot HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head, b"3\r\nab", b"c\r\n2\r\nde\r\n0\r\n", b"\r\n" + post(b"next"))
        assert (await client.answer())[2] == b"abcde"
        assert (await client.answer())[2] == b"next"


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Also when an early one is slow, and when they take unequal ways."""
    async with serving() as server:
        client = await server.connect()
        server.puppet.hold = True
        await client.send(post(b"slow") + post(b"2", b"/other") + post(b"3") + post(b"4"))
        await server.puppet.came.wait()
        server.puppet.hold = False
        [(request, done)] = server.puppet.held
        done(echo(request))
        answers = [(await client.answer())[2] for _ in range(4)]
        assert answers == [b"slow", b"/other 2", b"3", b"4"]


async def test_a_flood_behind_a_slow_request_is_held_and_kept() -> None:
    """More than the pipeline buffer behind an open request: reading stops, nothing is lost."""
    async with serving() as server:
        client = await server.connect()
        server.puppet.hold = True
        await client.send(post(b"slow"))
        await server.puppet.came.wait()
        body = b"x" * 50_000
        client.writer.write(post(body) * 40)
        server.puppet.hold = False
        [(request, done)] = server.puppet.held
        done(echo(request))
        assert (await client.answer())[2] == b"slow"
        for _ in range(40):
            assert (await client.answer())[2] == body


async def test_an_answer_given_twice_is_written_once() -> None:
    """A late second answer does not reach the next request."""
    async with serving() as server:
        client = await server.connect()
        server.puppet.hold = True
        await client.send(post(b"first"))
        await server.puppet.came.wait()
        [(_request, done)] = server.puppet.held
        done(Answer(200, JSON, b"right"))
        done(Answer(200, JSON, b"again"))
        server.puppet.hold = False
        assert (await client.answer())[2] == b"right"
        assert (await client.ask(post(b"next")))[2] == b"next"


async def test_expect_is_answered_before_the_body() -> None:
    """100 Continue comes when the body is wanted; not when it was refused."""
    async with serving(body_bytes=100) as server:
        client = await server.connect()
        wire = post(b"hello", b"/hot", b"Expect: 100-continue")
        await client.send(wire[:-5])
        assert (await client.answer())[0] == 100
        assert (await client.ask(wire[-5:]))[2] == b"hello"
        await client.send(post(b"x" * 101, b"/hot", b"Expect: 100-continue")[:-101])
        assert (await client.answer())[0] == 413
        assert await client.closed()


async def test_head_has_the_length_and_no_body() -> None:
    """And the connection stays in step."""
    async with serving() as server:
        client = await server.connect()
        await client.send(b"HEAD /live HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, _ = await client.answer(with_body=False)
        assert (status, headers[b"content-length"]) == (200, b"5")
        assert (await client.ask(post(b"next")))[2] == b"next"


@pytest.mark.parametrize(
    "wire",
    [
        b"GET /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET /live HTTP/1.0\r\n\r\n",
        post(b"x", b"/hot", b"Connection: close"),
    ],
)
async def test_who_asks_to_close_is_closed(wire: bytes) -> None:
    """After the answer, which says so."""
    async with serving() as server:
        client = await server.connect()
        status, headers, _ = await client.ask(wire)
        assert (status, headers[b"connection"]) == (200, b"close")
        assert await client.closed()


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (post(b"5\r\nhello\r\n0\r\n\r\n", b"/hot", b"Transfer-Encoding: chunked"), 400),
        (b"POST /hot HTTP/1.1\r\nHost: h\r\n\r\n", 411),
        (b"GET /live HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /live HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 100_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"POST /hot HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    ],
)
async def test_hostile_heads_are_refused_and_closed(wire: bytes, status: int) -> None:
    """One readable answer, then the end; what is pipelined behind is never run."""
    async with serving() as server:
        client = await server.connect()
        found, headers, _ = await client.ask(wire + post(b"smuggled"))
        assert (found, headers[b"connection"]) == (status, b"close")
        assert await client.closed()
        assert not server.puppet.held


async def test_a_413_can_be_read_by_a_client_that_still_sends() -> None:
    """The answer is not lost to a reset, though the client pushes megabytes after it."""
    async with serving(body_bytes=1_000) as server:
        client = await server.connect()
        client.writer.write(post(b"x" * 4_000_000))
        status, _, body = await client.answer()
        assert status == 413 and b"the limit is 1000" in body
        assert await client.closed()


async def test_a_64_mib_header_line_is_cut_off() -> None:
    """The server answers 431 early and keeps none of it."""
    async with serving() as server:
        client = await server.connect()
        await client.send(b"GET /live HTTP/1.1\r\nX: ")
        chunk = b"x" * 2**20
        try:
            for _ in range(64):
                await client.send(chunk)
        except ConnectionError:
            pass  # It had read enough.
        [connection] = server.http._connections or {None}
        assert connection is None or len(connection._pending) < 2**16


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"", None),
        (b"GET /live HT", 408),
        (post(b"x" * 100)[:-1], 408),
    ],
    ids=["silent", "slow head", "slow body"],
)
async def test_slow_clients_are_ended(first: bytes, status: int | None) -> None:
    """No byte, half a head, half a body: told with 408 where something came, then closed."""
    async with serving(header_s=0.2, body_grace_s=0.2, body_s=0.4) as server:
        client = await server.connect()
        await client.send(first)
        if status is not None:
            assert (await client.answer())[0] == status
        assert await client.closed()


async def test_a_dripping_body_is_ended() -> None:
    """Bytes keep coming, but under the least rate."""
    async with serving(body_grace_s=0.3, body_rate_bytes_per_s=1_000) as server:
        client = await server.connect()
        await client.send(post(b"x" * 10_000)[:-10_000])

        async def drip() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.ensure_future(drip())
        try:
            assert (await client.answer())[0] == 408
        finally:
            dripping.cancel()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    """The idle limit counts from the last answer; a request that computes is left alone."""
    async with serving(idle_s=0.3, header_s=5.0) as server:
        idle, busy = await server.connect(), await server.connect()
        server.puppet.hold = True
        await busy.send(post(b"busy"))
        await server.puppet.came.wait()
        [(request, done)] = server.puppet.held
        assert (await idle.ask(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n"))[0] == 200
        assert await idle.closed()
        done(echo(request))
        assert (await busy.answer())[2] == b"busy"


async def test_a_client_that_does_not_read_is_ended() -> None:
    """Answers pile up only for the stall limit."""
    async with serving(write_stall_s=0.3) as server:
        client = await server.connect()
        body = b"x" * 60_000
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(post(body) * 400)
        async with asyncio.timeout(BOUND_S):
            while server.http.n_connections:
                await asyncio.sleep(0.01)
        client.writer.transport.abort()


async def test_a_client_that_leaves_is_cancelled_once() -> None:
    """Its request is dropped; a late answer to it goes nowhere."""
    async with serving() as server:
        client = await server.connect()
        server.puppet.hold = True
        await client.send(post(b"x"))
        await server.puppet.came.wait()
        client.writer.transport.abort()
        async with asyncio.timeout(BOUND_S):
            await server.puppet.left.wait()
        [(request, done)] = server.puppet.held
        done(echo(request))
        assert server.puppet.cancelled == 1


async def test_an_app_that_fails_tells_nothing() -> None:
    """500 without the exception's text, and the connection goes on."""
    async with serving() as server:
        client = await server.connect()
        status, _, body = await client.ask(b"GET /broken HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (status, body) == (500, b"internal")
        assert (await client.ask(post(b"next")))[2] == b"next"


async def test_too_many_connections_are_told() -> None:
    """The one over the limit reads 503; those before it go on."""
    async with serving(connections=2) as server:
        first, second = await server.connect(), await server.connect()
        assert (await first.ask(post(b"1")))[0] == 200
        assert (await second.ask(post(b"2")))[0] == 200
        third = await server.connect()
        assert (await third.answer())[0] == 503
        assert await third.closed()
        assert (await first.ask(post(b"3")))[2] == b"3"


async def test_draining_answers_what_was_accepted() -> None:
    """What is under way is answered and closed; idle connections end; no new ones come."""
    async with serving() as server:
        busy, idle = await server.connect(), await server.connect()
        assert (await idle.ask(post(b"x")))[0] == 200
        server.puppet.hold = True
        await busy.send(post(b"busy"))
        await server.puppet.came.wait()
        draining = asyncio.ensure_future(server.http.drain(BOUND_S))
        assert await idle.closed()
        [(request, done)] = server.puppet.held
        done(echo(request))
        _, headers, body = await busy.answer()
        assert (body, headers[b"connection"]) == (b"busy", b"close")
        assert await busy.closed()
        busy.writer.close()
        idle.writer.close()
        async with asyncio.timeout(BOUND_S):
            await draining
        with pytest.raises(OSError):
            await server.connect()
