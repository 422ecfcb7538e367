"""One HTTP/1.1 connection: bytes in, whole requests out, answers back in order.

The same code gathers requests for both ways (hot endpoints and the ASGI app), so that every limit
holds on both alike. Not for what a request means: `Site` decides who answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from types import MappingProxyType
from typing import Protocol, cast
from urllib.parse import unquote

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import JSON, Answer, HttpRequest, StreamedAnswer
from muelle.transport.chunks import ChunkDecoder, ChunkError
from muelle.transport.heads import END, Head, HeadError, HeadReader
from muelle.transport.http2.connection import Http2Connection
from muelle.transport.http2.frames import PREFACE
from muelle.transport.state import State, unix_peer, unsent_bytes
from muelle.transport.streams import BodyStream

STATUS_LINES = MappingProxyType(
    {s.value: b"HTTP/1.1 %d %s\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
)
FIXED_LINES = b"x-content-type-options: nosniff\r\n"
"""In every answer: a browser must not guess that JSON is a page."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_S = 2.0
MAX_PENDING_BYTES = 256 * 1024

Reply = Callable[[Answer], None]
Cancel = Callable[[], None]


class Endpoint(Protocol):
    """Something that answers a hot path."""

    head_lines: bytes
    """Header lines of its own, in every answer."""
    hot_head: bytes
    """The head of a plain answer, with `%d` for its length and `%08x` for its number."""

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Make what is ready beforehand anew (the date moved): `make_head(answer, length)`."""

    def take(self, connection: HttpConnection, body: bytes) -> Cancel | bool | None:
        """Start to answer a plain body by `connection.reply_plain`, the hottest way.

        Return False when the body is not plain: then `begin` is asked.
        """

    def begin(self, request: HttpRequest, done: Reply) -> Cancel | None:
        """Start to answer; `done` is called once (perhaps before this returns). Never raises.

        The returned function, if any, is called when the client leaves first.
        """


class Site(Protocol):
    """What a connection needs to know of the server it belongs to."""

    limits: LimitsConfig
    heads: HeadReader
    hot: dict[bytes, Endpoint]
    draining: bool
    date_line: bytes

    def begin(self, request: HttpRequest, raw_path: bytes, done: Reply) -> Cancel | None:
        """Answer a request that is not hot."""

    def refusal(self, path: bytes, status: int, message: str, request_id: str) -> Answer:
        """Return the answer to a request that transport itself refuses."""

    def next_number(self) -> int:
        """Return the next request's number."""

    def request_id(self, number: int) -> str:
        """Return the id of a request by its number."""

    def opened(self, connection: HttpConnection) -> bool:
        """Count a connection in. False: there are too many."""

    def closed(self, connection: HttpConnection) -> None:
        """Count it out."""

    def http2(self, loop: asyncio.AbstractEventLoop) -> Http2Connection:
        """Return what takes over a connection that speaks HTTP/2."""


IDLE, HEAD, BUSY = State.IDLE, State.HEAD, State.BUSY


class HttpConnection(asyncio.Protocol):
    """Owned by its transport; used on the event loop's thread only."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_cancel",
        "_chunks",
        "_fresh",
        "_head",
        "_hot_block",
        "_hot_endpoint",
        "_hot_head",
        "_hot_size",
        "_hot_table",
        "_loop",
        "_number",
        "_peer",
        "_pending",
        "_reading",
        "_request_id",
        "_site",
        "_stream",
        "_transport",
        "_unsent_bytes",
        "since",
        "stalled_since",
        "state",
    )

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site = site
        self._loop = loop
        self._hot_size = -1
        self._hot_block = b""
        self._hot_head: Head | None = None
        self._hot_endpoint: Endpoint | None = None
        self._hot_table: dict[bytes, Endpoint] | None = None
        self._number = 0
        self._fresh = True
        """Whether nothing was asked yet."""
        self._transport: asyncio.Transport | None = None
        self._peer: tuple[int, int] | None = None
        self._pending = b""
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._chunks: ChunkDecoder | None = None
        self._cancel: Cancel | None = None
        self._reading = True
        self._request_id = ""
        self._stream: BodyStream | None = None
        self.state = State.IDLE
        self.since = time.monotonic()
        """When the present state began: for the sweeper."""
        self.stalled_since: float | None = None
        """Since when the client does not read what we write, or too little of it."""
        self._unsent_bytes = 0
        """What there was to write then."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected. It must send a whole head within the limit."""
        # uvloop's transports have the interface without the base class.
        self._transport = cast(asyncio.Transport, transport)
        self.state = State.HEAD
        self._peer = unix_peer(transport)
        if not self._site.opened(self):
            self._refuse(b"", 503, "too many connections; retry later")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it asked for is dropped before it runs."""
        self.state = State.CLOSED
        self._transport = None
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
        self._site.closed(self)

    def eof_received(self) -> bool:
        """The client left. (A client that only stops sending cannot be told from one that left;
        the commoner case wins, so that its work is dropped before it runs.)"""
        return False

    def pause_writing(self) -> None:
        """The client does not read: it gets no more answers, so that they do not pile up here.

        The sweeper ends this after a while.
        """
        self.stalled_since = time.monotonic()
        if self._transport is not None:
            self._unsent_bytes = unsent_bytes(self._transport)
        self._pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.stalled_since = None
        if self.state is State.LINGER:
            self.since = time.monotonic()  # What is left of a large answer has its time, too.
        if self._stream is not None:
            self._loop.call_soon(self._stream.resumed)
        self._loop.call_soon(self._go_on)

    def data_received(self, data: bytes) -> None:
        """Take bytes. The first lines are the hot way: the same head as before, a whole body."""
        if (
            len(data) == self._hot_size
            and self.state <= HEAD
            and not self._pending
            and self._hot_table is self._site.hot
            and data.startswith(self._hot_block)
        ):
            self._head = self._hot_head
            self._take(self._hot_endpoint, data[len(self._hot_block) :])
            return
        self._feed(data)

    def _take(self, endpoint: Endpoint | None, body: bytes) -> None:
        assert endpoint is not None
        self.state = BUSY
        cancel = endpoint.take(self, body)
        if cancel is False:
            assert self._head is not None
            self._dispatch(self._head, body)
        elif self.state is BUSY:
            self._cancel = cancel  # type: ignore[assignment]  # False went the other way

    # --- reading ---

    def _feed(self, data: bytes) -> None:
        state = self.state
        if state is State.BODY:
            self._feed_body(data)
        elif state is State.HEAD or (state is State.IDLE and not self._pending):
            self._feed_head(data)
        elif state <= State.BUSY:
            # Busy, or about to go on with what was pipelined before this.
            self._pending += data
            if len(self._pending) > MAX_PENDING_BYTES:
                # Pipelining is allowed, but not without end.
                self._pause_reading()

    def _feed_head(self, data: bytes) -> None:
        if self.state is State.IDLE:
            self.state = State.HEAD
            self.since = time.monotonic()
        block = self._pending + data if self._pending else data
        if block.startswith(b"\r\n"):
            block = block[2:]  # RFC 9112 2.2: one empty line before a request is ignored.
        if block.startswith(b"P") and PREFACE.startswith(block[: len(PREFACE)]) and self._fresh:
            self._other_version(block)
            return
        end = block.find(END)
        try:
            if end < 0:
                self._site.heads.check_partial(len(block))
                self._pending = block
                return
            self._pending = b""
            self._fresh = False
            head = self._site.heads.read(block[: end + 4])
        except HeadError as exc:
            self._refuse(_path_of(block), exc.status, exc.message)
            return
        if head.plain:
            endpoint = self._site.hot.get(head.path)
            if endpoint is not None:
                self._hot_table = self._site.hot
                self._hot_endpoint = endpoint
                self._hot_block = block[: end + 4]
                self._hot_head = head
                self._hot_size = end + 4 + head.content_length
        self._begin_body(head, block[end + 4 :])

    def _other_version(self, block: bytes) -> None:
        """The first bytes are those of HTTP/2: another connection takes over. (RFC 9113 3.4)"""
        transport = self._transport
        if len(block) < len(PREFACE) or transport is None:
            self._pending = block
            return
        self._pending = b""
        self.state = State.CLOSED
        self._transport = None
        self._site.closed(self)
        successor = self._site.http2(self._loop)
        transport.set_protocol(successor)
        successor.connection_made(transport)
        successor.data_received(block)

    def _begin_body(self, head: Head, rest: bytes) -> None:
        limits = self._site.limits
        if head.content_length > limits.body_bytes:
            self._refuse(
                head.path,
                413,
                f"the body has {head.content_length} bytes, the limit is {limits.body_bytes}",
            )
            return
        self._head = head
        self._body = []
        self._body_bytes = 0
        self._chunks = ChunkDecoder(limits.body_bytes, limits.chunks) if head.chunked else None
        if not head.chunked and len(rest) >= head.content_length:
            self._pending = rest[head.content_length :]
            self._dispatch(head, rest[: head.content_length])
            return
        self.state = State.BODY
        self.since = time.monotonic()
        if head.expect_continue and self._transport is not None:
            self._transport.write(CONTINUE)
        if rest:
            self._feed_body(rest)

    def _feed_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        self._body_bytes += len(data)
        if self._chunks is not None:
            try:
                self._chunks.feed(data)
            except ChunkError as exc:
                self._refuse(head.path, exc.status, str(exc))
                return
            if self._chunks.done:
                self._pending = self._chunks.rest
                body = bytes(self._chunks.body)
                self._chunks = None
                self._dispatch(head, body)
            return
        self._body.append(data)
        if self._body_bytes >= head.content_length:
            whole = b"".join(self._body)
            self._body = []
            self._pending = whole[head.content_length :]
            if self._pending:
                whole = whole[: head.content_length]
            self._dispatch(head, whole)

    # --- answering ---

    def _dispatch(self, head: Head, body: bytes) -> None:
        """Find who answers a whole request, and begin."""
        self.state = BUSY
        self._head = head
        site = self._site
        number = self._number = site.next_number()
        request_id = self._request_id = head.request_id or site.request_id(number)
        endpoint = site.hot.get(head.path) if head.is_prediction else None
        if endpoint is not None:
            request = HttpRequest(head.method, "", head.query, head.headers, body, request_id)
            cancel = endpoint.begin(request, self.reply)
        else:
            path = unquote(head.path.decode("latin-1"), errors="replace")
            request = HttpRequest(head.method, path, head.query, head.headers, body, request_id)
            request.peer = self._peer
            request.client = self._client_address()
            cancel = site.begin(request, head.path, self.reply)
        if self.state is BUSY and self._number == number:
            self._cancel = cancel

    def take_request_id(self) -> str:
        """Give the request under way an id, for an answer that is not plain."""
        self._request_id = self._site.request_id(self._site.next_number())
        return self._request_id

    def reply_ready(self, whole: bytes, n_numbers: int) -> None:
        """Write an answer that lies ready but for its number, which it has so many times."""
        transport = self._transport
        if transport is None or self.state is not BUSY:
            return
        self._cancel = None
        transport.write(whole % ((self._site.next_number(),) * n_numbers))
        self.state = IDLE
        self.since = time.monotonic()
        if self._pending:
            self._loop.call_soon(self._go_on)

    def reply_plain(self, endpoint: Endpoint, body: bytes, now: float) -> None:
        """Write a plain answer of a hot endpoint: status 200, JSON, nothing special."""
        transport = self._transport
        if transport is None or self.state is not BUSY:
            return
        site = self._site
        if site.draining:
            self._request_id = site.request_id(site.next_number())
            answer = Answer(200, JSON, body)
            answer.head_lines = endpoint.head_lines
            self.reply(answer)
            return
        self._cancel = None
        transport.write(endpoint.hot_head % (len(body), site.next_number()) + body)
        self.state = IDLE
        self.since = now
        if self._pending:
            self._loop.call_soon(self._go_on)

    def reply(self, answer: Answer) -> None:
        transport, head = self._transport, self._head
        if transport is None or head is None or self.state is not State.BUSY:
            return
        if isinstance(answer, StreamedAnswer):
            self._reply_streamed(answer, head, transport)
            return
        keep = head.keep_alive and not self._site.draining
        transport.write(self._render(answer, keep=keep, with_body=head.method != b"HEAD"))
        self._answered(keep)

    def _reply_streamed(
        self, answer: StreamedAnswer, head: Head, transport: asyncio.Transport
    ) -> None:
        """Write the head; the body comes by and by. Until its end this connection is busy.

        RFC 9112 6.3 and 7.1: a length that is known, else chunks, else the connection's end.
        """
        chunked = answer.length is None and not head.old
        keep = head.keep_alive and not self._site.draining and not (head.old and not chunked)
        if answer.length is not None:
            framing = b"content-length: %d\r\n" % answer.length
        else:
            framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        transport.write(self._render_head(answer, framing, keep=keep))
        stream = BodyStream(
            transport,
            lags=self._lags,
            ended=lambda: self._answered(keep),
            with_body=head.method != b"HEAD",
            chunked=chunked,
            length=answer.length,
        )
        self._stream = stream
        answer.begin(stream)

    def _lags(self, n_bytes: int) -> bool:
        """Whether the client lags behind a stream. So many bytes of it have just been written."""
        if self.stalled_since is None:
            return False
        self._unsent_bytes += n_bytes  # They are not bytes that it failed to read.
        return True

    def _answered(self, keep: bool) -> None:
        """An answer is out; wait for the next request, or for the client to leave."""
        self._cancel = None
        self._stream = None
        self._head = None
        if not keep:
            self._linger()
            return
        self.state = State.IDLE
        self.since = time.monotonic()
        if self._pending:
            self._loop.call_soon(self._go_on)

    def _render(self, answer: Answer, *, keep: bool, with_body: bool) -> bytes:
        # RFC 9110 8.6: an answer that never has a body does not tell its length.
        bodiless = answer.status in (204, 304)
        framing = b"" if bodiless else b"content-length: %d\r\n" % len(answer.body)
        head = self._render_head(answer, framing, keep=keep)
        return head + answer.body if with_body and not bodiless else head

    def _render_head(self, answer: Answer, framing: bytes, *, keep: bool) -> bytes:
        parts = [
            STATUS_LINES.get(answer.status) or b"HTTP/1.1 %d Unknown\r\n" % answer.status,
            b"content-type: %s\r\n" % answer.content_type if answer.content_type else b"",
            framing,
            b"x-request-id: %s\r\n" % self._request_id.encode(),
            FIXED_LINES,
            self._site.date_line,
            answer.head_lines,
        ]
        for name, value in answer.headers:
            parts.append(b"%s: %s\r\n" % (name, value))
        parts.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
        return b"".join(parts)

    def _client_address(self) -> tuple[str, int] | None:
        address = self._transport.get_extra_info("peername") if self._transport else None
        if not isinstance(address, tuple) or len(address) < 2:
            return None
        return str(address[0]), int(address[1])

    def _go_on(self) -> None:
        """Take what was pipelined behind the request that has just been answered."""
        if self.stalled_since is not None:
            return
        if self.state is State.IDLE:
            data, self._pending = self._pending, b""
            if data:
                self._feed(data)
        # Taking a request may have answered it, and that answer may be the one too many.
        if len(self._pending) <= MAX_PENDING_BYTES and self.stalled_since is None:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if self._reading and self._transport is not None:
            self._transport.pause_reading()
            self._reading = False

    def _resume_reading(self) -> None:
        if not self._reading and self._transport is not None:
            self._transport.resume_reading()
            self._reading = True

    def _refuse(self, path: bytes, status: int, message: str) -> None:
        """Answer with an error of transport's own, and close: framing can no longer be trusted."""
        if self._transport is None or self.state >= State.LINGER:
            return
        self._request_id = self._site.request_id(self._site.next_number())
        answer = self._site.refusal(path, status, message, self._request_id)
        self._transport.write(self._render(answer, keep=False, with_body=True))
        self._linger()

    def _linger(self) -> None:
        """Close after the client had time to read: closing at once could reset unread bytes."""
        self.state = State.LINGER
        self.since = time.monotonic()
        self._pending = b""
        self._body = []
        self._chunks = None
        transport = self._transport
        if transport is None:
            return
        self._resume_reading()
        try:
            transport.write_eof()
        except (OSError, NotImplementedError, RuntimeError):
            transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- time ---

    def sweep(self, now: float) -> None:
        """End what takes too long. Called every fraction of a second, never on the hot way."""
        limits, age = self._site.limits, now - self.since
        transport = self._transport
        if transport is None:
            return
        if self.stalled_since is not None and now - self.stalled_since > limits.write_stall_s:
            # A slow reader of a large answer goes on; the least rate is the one of bodies.
            unsent = unsent_bytes(transport)
            least = limits.body_rate_bytes_per_s * limits.write_stall_s
            if self._unsent_bytes - unsent < least:
                transport.abort()
                return
            self.stalled_since, self._unsent_bytes = now, unsent
        match self.state:
            case State.HEAD:
                if age > limits.header_s:
                    if self._pending:
                        self._refuse(b"", 408, f"no whole head within {limits.header_s:g} s")
                    else:
                        transport.close()
            case State.IDLE:
                if age > limits.idle_s or (self._site.draining and age > 0.2):
                    transport.close()
            case State.BODY:
                slow = age > limits.body_grace_s and (
                    self._body_bytes < limits.body_rate_bytes_per_s * age
                )
                if slow or age > limits.body_s:
                    path = self._head.path if self._head else b""
                    self._refuse(path, 408, "the body came too slowly")
            case State.LINGER:
                # While much still waits for a client that reads, the time above counts.
                if self.stalled_since is None and age > LINGER_S:
                    transport.abort()
            case _:
                pass


def _path_of(block: bytes) -> bytes:
    """Return the path of a head that could not be parsed, as far as it can be seen."""
    words = block[:256].split(b" ", 2)
    return words[1] if len(words) > 1 else b""
