"""One HTTP/2 connection: frames in, calls and requests out, answers back as windows allow.

Everything a peer can make us keep is bounded: header blocks, streams, messages that are not whole,
answers that are not read; and what it can make us do for nothing is counted (`_spend`). Source:
RFC 9113. Not for what a request means: `Site` and the methods that it has decide that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import unquote

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import Answer, HttpRequest
from muelle.transport.grpc import Method, Methods, Status
from muelle.transport.http2 import frames as f
from muelle.transport.http2.blocks import (
    HeadReader,
    Malformed,
    RequestHead,
    TooLargeHead,
    header_block,
)
from muelle.transport.http2.frames import ConnectionFault, ErrorCode
from muelle.transport.http2.streams import SLOW_TEXT, STREAM_WINDOW, Http2Stream
from muelle.transport.state import State, unix_peer, unsent_bytes

CONNECTION_WINDOW = 16 * 1024 * 1024
OUR_FRAME_SIZE = 1024 * 1024
MAX_STREAMS = 256
WRITE_BUFFER_BYTES = 1024 * 1024
PING_TIMEOUT_S = 20.0
BUDGET = 2_000.0
BUDGET_PER_S = 400.0
"""What a peer may make us do without asking for anything: frames that cost us and bring nothing.
Each answer gives some back, and so does time."""
BUDGET_PER_CALL = 4.0
BUDGET_PER_BYTE = 1.0 / 512
OUR_PING = b"muelle\0\0"
DRAIN_PING = b"muelle\0\1"
LINGER_S = 1.0


class Site(Protocol):
    """What a connection needs to know of the server it belongs to."""

    limits: LimitsConfig
    methods: Methods
    draining: bool

    def begin(
        self, request: HttpRequest, raw_path: bytes, done: Callable[[Answer], None]
    ) -> Callable[[], None] | None:
        """Answer a plain request."""

    def refusal(self, path: bytes, status: int, message: str, request_id: str) -> Answer:
        """Return the answer to a request that transport itself refuses."""

    def next_number(self) -> int:
        """Return the next request's number."""

    def request_id(self, number: int) -> str:
        """Return the id of a request by its number."""

    def opened(self, connection: Http2Connection) -> bool:
        """Count a connection in. False: there are too many."""

    def closed(self, connection: Http2Connection) -> None:
        """Count it out."""

    def date_field(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the date as a header field."""

    def call_head(self, head_lines: bytes) -> bytes:
        """Return, as a header block, what of an endpoint's header lines goes into calls."""


class _Hot:
    """A call that came before: what its bytes have around its contents."""

    __slots__ = (
        "block",
        "data_at",
        "data_bytes",
        "data_start",
        "epoch",
        "head",
        "method",
        "prefix",
        "size",
        "start",
        "unary",
    )

    def __init__(
        self,
        data: bytes,
        block: bytes,
        data_at: int,
        data_bytes: int,
        head: RequestHead,
        method: Method,
        epoch: int,
    ) -> None:
        assert method.unary is not None
        self.start = data[:5]
        self.block = block
        self.data_at = data_at
        self.data_bytes = data_bytes
        self.data_start = data[data_at : data_at + 5]
        self.prefix = data[data_at + 9 : data_at + 14]
        self.size = data_at + 9 + data_bytes
        self.head = head
        self.method = method
        self.unary = method.unary
        self.epoch = epoch


class Http2Connection(asyncio.Protocol):
    """Owned by its transport; used on the event loop's thread only."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self.site = site
        self.peer: tuple[int, int] | None = None
        self.paused = False
        self.peer_frame_size = f.LEAST_FRAME_SIZE
        self.send_window = f.DEFAULT_WINDOW
        self.message_limit = site.limits.body_bytes
        self.state = State.HEAD
        self.since = time.monotonic()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._heads = HeadReader(
            max_bytes=site.limits.header_bytes, max_count=site.limits.header_count
        )
        self._streams: dict[int, Http2Stream] = {}
        self._blocked: dict[int, Http2Stream] = {}
        """Streams whose answers wait for a window, in order."""
        self._hot: _Hot | None = None
        self._hot_tries = 64
        self._last_stream = 0
        self.peer_window = f.DEFAULT_WINDOW
        """The initial window of the peer's streams, for what we send."""
        self._received = 0
        """Bytes of DATA since the connection's window was last given back."""
        self._open_window = CONNECTION_WINDOW
        """What the peer may still send on the connection."""
        self._buffer = b""
        self._data_stream: Http2Stream | None = None
        self._data_left = 0
        """Payload of a DATA frame still to come, and what to do at its end."""
        self._data_padding = 0
        self._data_ends = False
        self._data_id = 0
        self._block: list[bytes] = []
        self._block_stream = 0
        """The stream whose header block goes on in CONTINUATION frames, 0 for none."""
        self._block_ends = False
        self._saw_preface = False
        self._saw_settings = False
        self._out: list[bytes | memoryview] = []
        self._flush_scheduled = False
        self._budget = BUDGET
        self._goaway_sent = 0
        """0: none, 1: told that the end is near, 2: told which stream is the last."""
        self._pinged_at: float | None = None
        self.heard_at = self.since
        self._stalled_since: float | None = None
        self._unsent = 0

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected, or its first bytes told that it speaks HTTP/2."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = unix_peer(transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.write(
            f.settings(
                {
                    f.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                    f.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    f.MAX_FRAME_SIZE: OUR_FRAME_SIZE,
                    f.MAX_HEADER_LIST_SIZE: self.site.limits.header_bytes,
                }
            )
            + f.window_update(0, CONNECTION_WINDOW - f.DEFAULT_WINDOW)
        )
        if not self.site.opened(self):
            self._end(ErrorCode.ENHANCE_YOUR_CALM, "too many connections; retry later")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it asked for is dropped before it runs."""
        self.state = State.CLOSED
        self._transport = None
        self._drop_streams()
        self.site.closed(self)

    def eof_received(self) -> bool:
        """The client left, or it will not send more: calls are ended by frames, not so."""
        return False

    def pause_writing(self) -> None:
        """The client does not read: nothing more is written, and nothing more is asked of us."""
        self.paused = True
        self._stalled_since = time.monotonic()
        if self._transport is not None:
            self._unsent = unsent_bytes(self._transport)
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.paused = False
        self._stalled_since = None
        if self._transport is not None:
            self._transport.resume_reading()
        self._loop.call_soon(self._pump)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self.state >= State.LINGER:
            return
        self.heard_at = time.monotonic()
        try:
            hot = self._hot
            at = self._take_hot(hot, data) if hot is not None and data[:5] == hot.start else 0
            if at < len(data):
                self._take(data[at:] if at else data)
        except ConnectionFault as exc:
            self._end(exc.code, str(exc))
        if self._out:
            self._flush()

    # --- frames in ---

    def _take_hot(self, hot: _Hot, data: bytes) -> int:
        """Begin the calls at the front of some bytes that repeat a known one but for its contents.

        Return where they end: the rest goes the general way, which knows every form.
        """
        at, end, size = 0, len(data), hot.size
        if (
            self._buffer
            or self._data_left
            or self._block_stream
            or self._goaway_sent == 2
            or hot.epoch != self._heads.epoch
        ):
            return 0
        while end - at >= size and data[at : at + 5] == hot.start:
            data_at = at + hot.data_at
            name = data[at + 5 : at + 9]
            number = int.from_bytes(name, "big")
            if (
                not data.startswith(hot.block, at + 9)
                or data[data_at : data_at + 5] != hot.data_start
                or data[data_at + 5 : data_at + 9] != name
                or not data.startswith(hot.prefix, data_at + 9)
                or number <= self._last_stream
                or not number & 1
                or len(self._streams) >= MAX_STREAMS
                or self._open_window < hot.data_bytes
            ):
                break
            self._last_stream = number
            self._count_data(hot.data_bytes)
            stream = self._streams[number] = Http2Stream(self, number, hot.head)
            stream.method = hot.method
            stream.remote_closed = True
            at += size
            cancel = hot.unary(stream, data[data_at + 14 : at])
            if not stream.ended:
                stream.set_cancel(cancel)
        if at:
            self.state = State.BUSY if self._streams else State.IDLE
        return at

    def _learn_hot(self, data: bytes) -> None:
        """Remember a call that came whole in one piece, whose block touches no table."""
        high, low, kind, flags, _ = f.HEAD.unpack_from(data)
        length = high << 8 | low
        data_at = 9 + length
        if kind != f.HEADERS or flags != f.END_HEADERS or len(data) < data_at + 14:
            return
        block = data[9:data_at]
        head = self._heads.known(block)
        method = self.site.methods.get(head.path) if head is not None else None
        high, low, kind, flags, _ = f.HEAD.unpack_from(data, data_at)
        length = high << 8 | low
        if (
            head is None
            or method is None
            or method.unary is None
            or kind != f.DATA
            or flags != f.END_STREAM
            or length < 5
            or length > STREAM_WINDOW
            or not head.is_grpc
            or head.method != b"POST"
            or head.timeout_s is not None
            or data[data_at + 9 : data_at + 14] != (length - 5).to_bytes(5, "big")
        ):
            return
        self._hot = _Hot(data, block, data_at, length, head, method, self._heads.epoch)

    def _take(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        at, end = 0, len(data)
        if not self._saw_preface:
            if end < len(f.PREFACE):
                if not f.PREFACE.startswith(data):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface")
                self._buffer = data
                return
            if not data.startswith(f.PREFACE):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface")
            self._saw_preface = True
            at = len(f.PREFACE)
        unpack_head = f.HEAD.unpack_from
        while True:
            if self._data_left:
                at = self._more_data(data, at, end)
                if self._data_left:
                    return
            if end - at < f.HEAD_BYTES:
                break
            high, low, kind, flags, stream = unpack_head(data, at)
            length = high << 8 | low
            stream &= f.STREAM_MASK
            if length > OUR_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = at + f.HEAD_BYTES
            if kind == f.DATA:
                at = self._begin_data(data, start, end, length, flags, stream)
                if at < 0:
                    # The padding's length is not here yet.
                    at = start - f.HEAD_BYTES
                    break
                continue
            stop = start + length
            if stop > end:
                break
            at = stop
            self._frame(kind, flags, stream, data[start:stop])
            if self.state >= State.LINGER:
                return
        if at < end:
            self._buffer = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if not self._saw_settings and kind != f.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        if self._block_stream and (kind != f.CONTINUATION or stream != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        match kind:
            case f.HEADERS:
                self._headers(flags, stream, payload)
            case f.WINDOW_UPDATE:
                self._window_update(stream, payload)
            case f.PING:
                self._ping(flags, stream, payload)
            case f.SETTINGS:
                self._settings(flags, stream, payload)
            case f.RST_STREAM:
                self._rst_stream(stream, payload)
            case f.CONTINUATION:
                self._continuation(flags, stream, payload)
            case f.PRIORITY:
                self._priority(stream, payload)
            case f.GOAWAY:
                if stream or len(payload) < 8:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY")
                self._spend(1)
            case f.PUSH_PROMISE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client must not push")
            case _:
                self._spend(1)  # Unknown frames are ignored, but not without end.

    # --- DATA ---

    def _begin_data(
        self, data: bytes, start: int, end: int, length: int, flags: int, number: int
    ) -> int:
        """Begin a DATA frame; return where its payload begins (-1: wait for more bytes)."""
        if not self._saw_settings or self._block_stream or not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA where it must not be")
        padding = 0
        left = length
        if flags & f.PADDED:
            if not length:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PADDED without a length")
            if start >= end:
                return -1
            padding = data[start]
            if padding >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
            start += 1
            left = length - 1
        self._count_data(length)
        stream = self._streams.get(number)
        ends = bool(flags & f.END_STREAM)
        if stream is None or stream.remote_closed:
            self._data_without_stream(number, stream)
            stream = None
        else:
            stream.granted -= length
            if stream.granted < 0:
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
                stream = None
            elif length <= padding and not ends:
                self._spend(1)  # Nothing in it, and it ends nothing.
        if ends and stream is not None and end - start >= left > 4 and not padding:
            method = stream.method
            if method is not None and method.unary is not None and stream.reader is None:
                # The hottest way: the only message in one piece.
                stop = start + left
                prefix = (left - 5).to_bytes(5, "big")
                if data.startswith(prefix, start):
                    if self._hot_tries and data[3] == f.HEADERS:
                        self._hot_tries -= 1
                        self._learn_hot(data)
                    stream.call_whole(data[start + 5 : stop])
                    return stop
        self._data_stream, self._data_id = stream, number
        self._data_left, self._data_padding, self._data_ends = left, padding, ends
        if not left:
            self._data_over()
        return start

    def _count_data(self, length: int) -> None:
        """Count DATA against the connection's window, and give it back now and then."""
        self._open_window -= length
        if self._open_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window")
        self._received += length
        if self._received >= CONNECTION_WINDOW // 2:
            self.write(f.window_update(0, self._received))
            self._open_window += self._received
            self._received = 0

    def _data_without_stream(self, number: int, stream: Http2Stream | None) -> None:
        if number > self._last_stream or not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on a stream that is not open")
        self._spend(1)
        if stream is not None:
            self.reset(stream, ErrorCode.STREAM_CLOSED)

    def _more_data(self, data: bytes, at: int, end: int) -> int:
        """Give the stream what is here of its DATA; return where that ends."""
        take = min(self._data_left, end - at)
        self._data_left -= take
        stream = self._data_stream
        if stream is not None:
            # Padding is at the end: what of this piece is not padding?
            content = take - max(0, self._data_padding - self._data_left)
            if content > 0:
                whole = at == 0 and content == end
                self._give(stream, data if whole else data[at : at + content])
        if not self._data_left:
            self._data_over()
        return at + take

    def _give(self, stream: Http2Stream, chunk: bytes) -> None:
        if stream.method is None and not stream.ended:
            limit = self.site.limits.body_bytes
            if stream.body_bytes() + len(chunk) > limit:
                text = f"the body has more than {limit} bytes"
                self._refuse(stream, 413, text)
                return
        stream.receive(chunk)

    def _data_over(self) -> None:
        stream, self._data_stream = self._data_stream, None
        if stream is None:
            return
        if self._data_ends:
            stream.end_of_request()
        elif stream.granted < STREAM_WINDOW // 2:
            self.grant(stream)

    def grant(self, stream: Http2Stream) -> None:
        """Let the peer send more on a stream, unless too much of it lies here."""
        if stream.held or stream.remote_closed or stream.id not in self._streams:
            return
        increment = STREAM_WINDOW - stream.granted
        if increment <= 0:
            return
        held = sum(s.held_bytes() for s in self._streams.values())
        if held > self.message_limit + CONNECTION_WINDOW:
            # The oldest goes on, so that it comes to its end; the others wait for it.
            oldest = next(s for s in self._streams.values() if s.held_bytes())
            if oldest is not stream:
                return
        stream.granted += increment
        self.write(f.window_update(stream.id, increment))

    # --- HEADERS ---

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on an even stream")
        if flags & f.PADDED:
            payload = f.unpadded(payload)
        if flags & f.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS: priority cut off")
            if int.from_bytes(payload[:4], "big") & f.STREAM_MASK == number:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
            payload = payload[5:]
        ends = bool(flags & f.END_STREAM)
        if not flags & f.END_HEADERS:
            self._block = [payload]
            self._block_stream, self._block_ends = number, ends
            self._check_block()
            return
        self._block_whole(number, payload, ends)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if not self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block.append(payload)
        self._check_block()
        self._spend(1)
        if flags & f.END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._block_stream = 0
            self._block_whole(number, block, self._block_ends)

    def _check_block(self) -> None:
        if sum(map(len, self._block)) > self.site.limits.header_bytes or len(self._block) > 64:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")

    def _block_whole(self, number: int, block: bytes, ends: bool) -> None:
        if len(block) > self.site.limits.header_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if number <= self._last_stream:
            self._trailers(number, block, ends)
            return
        self._last_stream = number
        if self._goaway_sent == 2 or len(self._streams) >= MAX_STREAMS:
            # Decoded all the same: the table must stay what the peer thinks it is.
            self._skip_block(block)
            self._spend(4)
            self.write(f.rst_stream(number, ErrorCode.REFUSED_STREAM))
            return
        try:
            head = self._heads.read(block)
        except Malformed:
            self._spend(4)
            self.write(f.rst_stream(number, ErrorCode.PROTOCOL_ERROR))
            return
        except TooLargeHead:
            self._spend(4)
            self._too_large(number, ends)
            return
        stream = Http2Stream(self, number, head)
        if ends:
            stream.remote_closed = True
        self._streams[number] = stream
        self.state = State.BUSY
        if head.is_grpc:
            self._begin_call(stream, ends)
        elif ends:
            self.dispatch(stream, b"")
        else:
            stream.begin_body()

    def _skip_block(self, block: bytes) -> None:
        try:
            self._heads.fields(block)
        except TooLargeHead:
            pass

    def _trailers(self, number: int, block: bytes, ends: bool) -> None:
        """Header fields after a body: gRPC clients send none, HTTP allows them."""
        stream = self._streams.get(number)
        self._skip_block(block)
        if stream is None:
            self._spend(4)  # Our RST_STREAM may be on its way to the peer.
            return
        if stream.remote_closed:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if not ends:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.end_of_request()

    def _too_large(self, number: int, ends: bool) -> None:
        """Answer 431 without having read the head."""
        block = header_block([(b":status", b"431"), (b"content-length", b"0")])
        self.write(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, number, block))
        if not ends:
            self.write(f.rst_stream(number, ErrorCode.NO_ERROR))

    # --- requests ---

    def _begin_call(self, stream: Http2Stream, ends: bool) -> None:
        head = stream.head
        if head.method != b"POST":
            self._refuse(stream, 405, "gRPC calls are POST requests")
            return
        method = self.site.methods.get(head.path)
        if method is None:
            path = head.path[:200].decode("latin-1")
            stream.finish(Status.UNIMPLEMENTED, f"no method {path}")
            return
        stream.begin_call(method)
        if ends:
            stream.end_of_request()

    def dispatch(self, stream: Http2Stream, body: bytes) -> None:
        """A plain HTTP request is whole: let the site answer it."""
        head = stream.head
        raw_path, _, query = head.path.partition(b"?")
        path = unquote(raw_path.decode("latin-1"), errors="replace")
        headers = {b"host": head.authority, **head.headers}
        request = HttpRequest(head.method, path, query, headers, body, stream.request_id)
        request.peer = self.peer
        cancel = self.site.begin(request, raw_path, stream.answer_http)
        if not stream.ended:
            stream.set_cancel(cancel)

    def _refuse(self, stream: Http2Stream, status: int, text: str) -> None:
        answer = self.site.refusal(stream.head.path, status, text, stream.request_id)
        stream.answer_http(answer)

    # --- control frames ---

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & f.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: ACK with content")
            return
        if self._saw_settings:
            self._spend(5)
        self._saw_settings = True
        for key, value in f.read_settings(payload):
            if key == f.INITIAL_WINDOW_SIZE:
                self._move_windows(value - self.peer_window)
                self.peer_window = value
            elif key == f.MAX_FRAME_SIZE:
                self.peer_frame_size = value
        self.write(f.frame(f.SETTINGS, f.ACK, 0))
        if self._blocked:
            self._pump()

    def _move_windows(self, change: int) -> None:
        for stream in self._streams.values():
            stream.send_window += change
            if stream.send_window > f.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window")

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of another size than 8")
        if flags & f.ACK:
            self._pinged_at = None
            if payload == DRAIN_PING and self._goaway_sent == 1:
                # What the peer sent before it knew has arrived by now.
                self._goaway_sent = 2
                self.write(f.goaway(self._last_stream, ErrorCode.NO_ERROR))
                self._close_if_done()
            return
        self._spend(2)
        self.write(f.frame(f.PING, f.ACK, 0, payload))

    def _rst_stream(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")
        if not number or number > self._last_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM of an idle stream")
        # Opening and resetting makes us begin work for nothing.
        self._spend(10)
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._blocked.pop(number, None)
            stream.cancel()
            self._less_streams()

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & f.STREAM_MASK
        self._spend(0.5)
        if not number:
            self.send_window += increment
            if not increment or self.send_window > f.MAX_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFault(code, "WINDOW_UPDATE of the connection")
        else:
            stream = self._streams.get(number)
            if stream is None:
                if number > self._last_stream:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE: idle stream")
                return
            stream.send_window += increment
            if not increment or stream.send_window > f.MAX_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                self.reset(stream, code)
                return
        if self._blocked:
            self._pump()

    def _priority(self, number: int, payload: bytes) -> None:
        """Priorities are ignored (RFC 9113 5.3.2), but not their form."""
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY")
        self._spend(1)

    def _spend(self, cost: float) -> None:
        """Count what brings nothing. Raise ConnectionFault when it was too much."""
        self._budget -= cost
        if self._budget < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames for nothing")

    # --- out ---

    def write(self, data: bytes | memoryview) -> None:
        """Write once this turn of the loop is over, in one go with everything else."""
        self._out.append(data)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def write_last(self, stream: Http2Stream, data: bytes) -> None:
        """Write a whole answer. At once, when no other stream could add to it this turn."""
        transport = self._transport
        if len(self._streams) > 1 or self._out or transport is None:
            self.write(data)
        else:
            self._budget += len(data) * BUDGET_PER_BYTE
            transport.write(data)
        self.over(stream)

    def send_data(self, stream: Http2Stream) -> None:
        """A stream has something to send, or has come to its end."""
        if stream.id in self._blocked:
            return
        if stream.pump():
            self._blocked[stream.id] = stream

    def over(self, stream: Http2Stream) -> None:
        """A stream's answer is out."""
        stream.ended = True
        stream.set_cancel(None)
        self._streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if not stream.remote_closed:
            # The peer need not send the rest.
            self.write(f.rst_stream(stream.id, ErrorCode.NO_ERROR))
        budget = self._budget + BUDGET_PER_CALL
        self._budget = budget if budget < BUDGET else BUDGET
        if not self._streams:
            self._less_streams()

    def reset(self, stream: Http2Stream, code: ErrorCode) -> None:
        """End one stream with an error."""
        self._spend(4)
        self._streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        self.write(f.rst_stream(stream.id, code))
        stream.cancel()
        self._less_streams()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _pump(self) -> None:
        """Let streams send that waited for a window: each in turn, oldest first."""
        for number, stream in list(self._blocked.items()):
            if self.send_window <= 0 or self.paused:
                return
            if not stream.pump():
                self._blocked.pop(number, None)

    def _flush(self) -> None:
        self._flush_scheduled = False
        out, transport = self._out, self._transport
        if not out:
            return
        self._out = []
        if transport is None:
            return
        size = sum(map(len, out))
        budget = self._budget + size * BUDGET_PER_BYTE
        self._budget = budget if budget < BUDGET else BUDGET
        if len(out) == 1:
            transport.write(out[0])
        elif size < 65_536:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)

    def _less_streams(self) -> None:
        if self._streams:
            return
        if self.state is State.BUSY:
            self.state = State.IDLE
            self.since = time.monotonic()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._goaway_sent == 2 and not self._streams and self.state < State.LINGER:
            self.state = State.LINGER
            self.since = time.monotonic()
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def _end(self, code: ErrorCode, text: str) -> None:
        """Tell why, and close."""
        if self.state >= State.LINGER:
            return
        self.state = State.LINGER
        self.since = time.monotonic()
        self._drop_streams()
        self.write(f.goaway(self._last_stream, code, text))
        self._flush()
        self._buffer = b""
        if self._transport is not None:
            self._transport.close()

    def _drop_streams(self) -> None:
        streams, self._streams = list(self._streams.values()), {}
        self._blocked.clear()
        for stream in streams:
            stream.cancel()

    # --- time ---

    def sweep(self, now: float) -> None:
        """End what takes too long. Called every fraction of a second, never on the hot way."""
        transport, limits = self._transport, self.site.limits
        if transport is None:
            return
        self._budget = min(BUDGET, self._budget + BUDGET_PER_S * 0.25)
        if self.state is State.LINGER:
            if now - self.since > LINGER_S:
                transport.abort()
            return
        if self._stalled_since is not None and now - self._stalled_since > limits.write_stall_s:
            unsent = unsent_bytes(transport)
            if self._unsent - unsent < limits.body_rate_bytes_per_s * limits.write_stall_s:
                transport.abort()
                return
            self._stalled_since, self._unsent = now, unsent
        if not self._saw_settings or self._block_stream:
            if now - self.heard_at > limits.header_s or (
                not self._saw_settings and now - self.since > limits.header_s
            ):
                self._end(ErrorCode.PROTOCOL_ERROR, "no whole head in time")
            return
        for stream in list(self._streams.values()):
            self._sweep_stream(stream, now)
        self._keep_alive(now)
        if self.site.draining:
            self._drain()
        self._flush()

    def _sweep_stream(self, stream: Http2Stream, now: float) -> None:
        limits = self.site.limits
        if stream.deadline is not None and now >= stream.deadline and not stream.ended:
            stream.finish(Status.DEADLINE_EXCEEDED, "no answer within the caller's time")
            stream.cancel()
            return
        begun = stream.slow_since
        if begun:
            age = now - begun
            slow = age > limits.body_grace_s and (
                stream.held_bytes() < limits.body_rate_bytes_per_s * age
            )
            if (slow or age > limits.body_s) and not stream.held:
                self._too_slow(stream)
        elif (
            not stream.remote_closed
            and stream.service is None
            and not stream.ended
            and now - stream.began > limits.body_s
        ):
            self._too_slow(stream)
        elif stream.outbox_bytes:
            self._unread(stream, now)

    def _too_slow(self, stream: Http2Stream) -> None:
        if stream.head.is_grpc:
            stream.finish(Status.DEADLINE_EXCEEDED, SLOW_TEXT)
        else:
            self._refuse(stream, 408, SLOW_TEXT)
        stream.cancel()

    def _unread(self, stream: Http2Stream, now: float) -> None:
        """The peer gives this stream no window: its answers must not lie here for ever."""
        if stream.outbox_bytes != stream.unread_bytes:
            stream.unread_bytes, stream.unread_since = stream.outbox_bytes, now
        elif now - stream.unread_since > self.site.limits.write_stall_s:
            self.reset(stream, ErrorCode.CANCEL)

    def _keep_alive(self, now: float) -> None:
        """A peer that says nothing is asked whether it is there."""
        if self._pinged_at is not None:
            if self.heard_at >= self._pinged_at:
                self._pinged_at = None
            elif now - self._pinged_at > PING_TIMEOUT_S:
                self.abort()
        elif now - self.heard_at > self.site.limits.idle_s and not self.paused:
            self._pinged_at = now
            self.write(f.frame(f.PING, 0, 0, OUR_PING))

    def _drain(self) -> None:
        """Say that the end is near; what the peer has sent until it knows is still answered."""
        if self._goaway_sent == 0:
            self._goaway_sent = 1
            self.since = time.monotonic()
            self.write(f.goaway(f.STREAM_MASK, ErrorCode.NO_ERROR, "the server is shutting down"))
            self.write(f.frame(f.PING, 0, 0, DRAIN_PING))
        elif self._goaway_sent == 1 and time.monotonic() - self.since > LINGER_S:
            # It does not answer our PING: it gets no longer.
            self._goaway_sent = 2
            self.write(f.goaway(self._last_stream, ErrorCode.NO_ERROR))
        self._close_if_done()
