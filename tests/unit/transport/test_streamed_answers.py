"""Streamed answers over a real socket: by an endpoint, by an ASGI app. Not for framing alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import Answer, BodySink, HttpRequest, StreamedAnswer
from muelle.transport.asgi import AsgiHost
from muelle.transport.connection import Cancel, HttpConnection, Reply
from muelle.transport.server import HttpServer, bind
from muelle.transport.state import State

BOUND_S = 20.0
HTTP = b" HTTP/1.1\r\nHost: h\r\n"
PIECE = b"x" * 50_000


class Streamer:
    """An endpoint whose test holds the sink of every answer."""

    head_lines = b""
    hot_head = b""

    def __init__(self) -> None:
        self.sinks: asyncio.Queue[BodySink] = asyncio.Queue()
        self.left = asyncio.Event()
        self.n_left = 0
        self.length: int | None = None

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Nothing lies ready."""

    def take(self, connection: HttpConnection, body: bytes) -> Cancel | bool | None:
        """Nothing is plain."""
        return False

    def begin(self, request: HttpRequest, done: Reply) -> Cancel | None:
        """Begin a stream, or answer `whole`."""
        if request.body.startswith(b"whole"):
            done(Answer(200, b"text/plain", request.body))
            return None
        done(StreamedAnswer(200, b"text/plain", (), self.length, self.sinks.put_nowait))
        return self._leave

    def _leave(self) -> None:
        self.n_left += 1
        self.left.set()


class App:
    """An ASGI app that answers in pieces, as its path says."""

    def __init__(self) -> None:
        self.written = 0
        self.cancelled = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await receive()
        headers = [(b"content-type", b"text/plain"), (b"transfer-encoding", b"chunked")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for n in range(10_000 if scope["path"] == "/endless" else 3):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.written += len(PIECE)
                if scope["path"] == "/breaks" and n == 1:
                    raise RuntimeError("secret")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await send({"type": "http.response.body", "body": b""})


class Site:
    """A listening server, its endpoint and its app."""

    def __init__(self, **limits: Any) -> None:
        loop = asyncio.get_running_loop()
        self.streamer, self.app = Streamer(), App()
        self.http = HttpServer(
            LimitsConfig(**limits),
            asgi=AsgiHost(lambda: self.app, loop),
            direct={},
            refusal=lambda path, status, message, id: Answer(status, b"", message.encode()),
            internal_error=lambda path, id: Answer(500, b"text/plain", b"internal"),
            loop=loop,
        )
        self.http.set_hot({b"/hot": self.streamer})
        self._sock = bind("127.0.0.1", 0)

    async def start(self) -> None:
        """Listen on a free port."""
        await self.http.start(self._sock)

    async def ask(self, wire: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send bytes on a connection of their own."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._sock.getsockname()[1], limit=64 * 1024
        )
        writer.write(wire)
        return reader, writer

    @property
    def connection(self) -> HttpConnection:
        """The only connection."""
        (found,) = self.http._connections
        return found


@asynccontextmanager
async def site(**limits: Any) -> AsyncIterator[Site]:
    """Run a server; nothing here may take longer than the bound."""
    server = Site(**limits)
    await server.start()
    try:
        async with asyncio.timeout(BOUND_S):
            yield server
    finally:
        await server.http.drain(0.0)


def post(body: bytes, version: bytes = b"1.1") -> bytes:
    """A prediction."""
    return b"POST /hot HTTP/%b\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
        version, len(body), body,
    )  # fmt: skip


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """Read a head, in lower case."""
    return (await reader.readuntil(b"\r\n\r\n")).lower()


async def chunked(reader: asyncio.StreamReader) -> list[bytes]:
    """Read a chunked body to its end."""
    found = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return found


async def test_pieces_arrive_as_they_come_and_the_connection_goes_on() -> None:
    """Each piece is there before the next is written; a request behind the stream is answered."""
    async with site() as server:
        reader, writer = await server.ask(post(b"stream") + post(b"whole"))
        sink = await server.streamer.sinks.get()
        assert b"transfer-encoding: chunked" in await head_of(reader)
        for piece in (b"one", b"three"):
            assert sink.write(piece)
            assert await reader.readuntil(b"\r\n") == b"%x\r\n" % len(piece)
            assert await reader.readexactly(len(piece) + 2) == piece + b"\r\n"
        sink.end()
        assert await chunked(reader) == []
        assert b"content-length: 5" in await head_of(reader)
        assert await reader.readexactly(5) == b"whole"
        assert server.streamer.n_left == 0
        writer.close()


@pytest.mark.parametrize("length", [None, 6])
async def test_an_old_client_gets_no_chunks(length: int | None) -> None:
    """HTTP/1.0: a known length, or the connection's end."""
    async with site() as server:
        server.streamer.length = length
        reader, writer = await server.ask(post(b"stream", b"1.0"))
        sink = await server.streamer.sinks.get()
        head = await head_of(reader)
        assert b"transfer-encoding" not in head
        assert (b"content-length: 6" in head) is (length is not None)
        sink.write(b"abc")
        sink.write(b"def")
        sink.end()
        assert await reader.read() == b"abcdef"
        writer.close()


@pytest.mark.parametrize("how", ["abort", "close", "half"])
async def test_who_leaves_a_stream_is_cancelled_once(how: str) -> None:
    """Whether with a reset or politely; writing on goes nowhere."""
    async with site() as server:
        reader, writer = await server.ask(post(b"stream"))
        sink = await server.streamer.sinks.get()
        await head_of(reader)
        if how == "half":
            writer.write_eof()
        else:
            getattr(writer.transport, how)()
        await server.streamer.left.wait()
        sink.write(b"late")
        sink.end()
        assert server.streamer.n_left == 1
        writer.close()


async def test_a_stream_that_breaks_off_is_no_whole_answer() -> None:
    """The last chunk is missing."""
    async with site() as server:
        reader, writer = await server.ask(post(b"stream"))
        sink = await server.streamer.sinks.get()
        await head_of(reader)
        sink.write(b"half")
        sink.abort()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await chunked(reader)
        writer.close()


async def test_who_writes_is_told_to_wait_and_to_go_on() -> None:
    """A client that does not read is seen; it reads on, and the writer hears of it."""
    async with site() as server:
        reader, writer = await server.ask(post(b"stream"))
        sink = await server.streamer.sinks.get()
        resumed = asyncio.Event()
        sink.resumed = resumed.set
        n_pieces = 1
        while sink.write(PIECE):
            n_pieces += 1
            assert n_pieces < 1_000, "50 MB went somewhere"
            await asyncio.sleep(0)
        assert not resumed.is_set()
        await head_of(reader)
        reading = asyncio.ensure_future(chunked(reader))
        await resumed.wait()
        sink.end()
        assert b"".join(await reading) == PIECE * n_pieces
        writer.close()


async def test_what_is_written_to_who_lags_does_not_count_against_it() -> None:
    """A client that read enough is not ended, though as much again was written meanwhile."""
    async with site(write_stall_s=5.0, body_rate_bytes_per_s=10_000) as server:
        _, writer = await server.ask(post(b"stream"))
        sink = await server.streamer.sinks.get()
        while sink.write(PIECE):
            await asyncio.sleep(0)
        connection = server.connection
        before = connection._unsent_bytes
        sink.write(PIECE)
        assert connection._unsent_bytes == before + len(PIECE) + len(b"c350\r\n\r\n")
        connection._unsent_bytes += 50_000  # As if it had read so much.
        connection.sweep(time.monotonic() + 6.0)
        assert connection.state is State.BUSY
        connection.sweep(time.monotonic() + 20.0)
        await server.streamer.left.wait()  # It has read nothing since.
        writer.close()


async def test_a_large_answer_outlives_the_lingering() -> None:
    """A client that reads slowly gets the whole of an answer that ends the connection."""
    async with site() as server:
        body = b"whole" * 4_000_000
        reader, writer = await server.ask(post(body, b"1.0"))
        head = await head_of(reader)
        connection = server.connection
        assert connection.state is State.LINGER
        connection.sweep(time.monotonic() + 10.0)
        assert b"content-length: 20000000" in head
        assert len(await reader.read()) == len(body)
        writer.close()


# --- through an ASGI app ---


async def test_an_app_answers_in_pieces() -> None:
    """What it sends leaves as chunks; its own framing header is not doubled."""
    async with site() as server:
        reader, writer = await server.ask(b"GET /three" + HTTP + b"\r\n")
        head = await head_of(reader)
        assert head.count(b"transfer-encoding: chunked") == 1
        assert b"".join(await chunked(reader)) == PIECE * 3
        writer.close()


async def test_an_app_that_fails_in_the_middle_is_seen_to_fail() -> None:
    """No last chunk, and nothing of the exception."""
    async with site() as server:
        reader, writer = await server.ask(b"GET /breaks" + HTTP + b"\r\n")
        await head_of(reader)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await chunked(reader)
        writer.close()


async def test_an_app_waits_for_who_does_not_read_and_is_cancelled_when_it_leaves() -> None:
    """500 MB do not pile up for a client that reads nothing; when it leaves, the app hears it."""
    async with site() as server:
        _, writer = await server.ask(b"GET /endless" + HTTP + b"\r\n")
        seen = -1
        while seen != server.app.written or not seen:
            seen = server.app.written
            for _ in range(200):
                await asyncio.sleep(0)
        assert 0 < server.app.written < 50_000_000
        writer.transport.abort()
        await server.app.cancelled.wait()


async def test_a_stream_under_way_ends_before_the_server_does() -> None:
    """Draining waits for it, and ends its connection."""
    async with site() as server:
        reader, writer = await server.ask(post(b"stream"))
        sink = await server.streamer.sinks.get()
        await head_of(reader)
        draining = asyncio.ensure_future(server.http.drain(BOUND_S))
        await asyncio.sleep(0)
        assert sink.write(b"last words")
        sink.end()
        assert await chunked(reader) == [b"last words"]
        assert await reader.read() == b""
        await draining
        writer.close()
