"""One stream: a gRPC call, or a plain HTTP request. Owned by its connection.

Implements `transport.grpc.Call`, and what hot endpoints want of a connection. Not for frames of
the connection itself, and not for what a method means.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from muelle.protocols.http import Answer, StreamedAnswer
from muelle.transport.grpc import Cancel, Method, Status, Stream
from muelle.transport.http2 import frames as f
from muelle.transport.http2.blocks import RequestHead, header_block
from muelle.transport.http2.messages import BadMessage, MessageReader, pack, unpack

if TYPE_CHECKING:
    from muelle.transport.http2.connection import Http2Connection

STREAM_WINDOW = 1024 * 1024
COPY_BELOW = 65_536
"""Larger answers are written where they lie, smaller ones in one piece with their frames."""
COMPRESS_FROM = 256
"""Smaller messages only grow."""

_GRPC_HEAD = b"\x88" + header_block([(b"content-type", b"application/grpc")])
_TRAILERS_OK = header_block([(b"grpc-status", b"0")])
_TRAILER_A = f.frame_head(len(_TRAILERS_OK), f.HEADERS, f.END_HEADERS | f.END_STREAM, 0)[:5]
ACCEPT_ENCODING = header_block([(b"grpc-accept-encoding", b"identity,deflate,gzip")])
LAG_BYTES = 256 * 1024
"""What may lie here of a streamed body before its writer has to wait."""
SLOW_TEXT = "the message came too slowly"


class Http2Stream:
    """One request and its answer. Used on the event loop's thread only."""

    # What most calls never touch stands here once: making a stream is a part of each call's cost.
    method: Method | None = None
    service: Stream | None = None
    reader: MessageReader | None = None
    held = False
    remote_closed = False
    ended = False
    """Whether our side is finished: nothing more is accepted from a service."""
    cancelled = False
    deadline: float | None = None
    slow_since = 0.0
    """When the present message began to come; 0 between messages."""
    unread_bytes = 0
    """What lay here of the answers when it last changed, and since when."""
    unread_since = 0.0
    waiting: deque[bytes] | None = None
    """Messages that came while the service held the call."""
    outbox_bytes = 0
    _outbox: deque[memoryview] | None = None
    _trailers = b""
    _head_sent = False
    _cancel: Cancel | None = None
    _body: list[bytes] | None = None
    _request_id = ""
    _sink: Http2Body | None = None

    def __init__(self, connection: Http2Connection, id: int, head: RequestHead) -> None:
        self.connection = connection
        self.id = id
        self.head = head
        self.send_window = connection.peer_window
        self.granted = STREAM_WINDOW
        """What the peer may still send before it needs a WINDOW_UPDATE."""
        self.began = connection.heard_at

    # --- transport.grpc.Call ---

    @property
    def path(self) -> bytes:
        return self.head.path

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        return self.head.metadata

    @property
    def request_id(self) -> str:
        """Made when first asked for."""
        if not self._request_id:
            self.take_request_id()
        return self._request_id

    @property
    def peer(self) -> tuple[int, int] | None:
        return self.connection.peer

    @property
    def unsent_bytes(self) -> int:
        return self.outbox_bytes

    def reply(self, message: bytes, metadata: bytes = b"") -> None:
        """Send the one answer with status OK."""
        if self.ended:
            return
        connection = self.connection
        n = len(message) + 5
        if (
            n > connection.peer_frame_size
            or n > self.send_window
            or n > connection.send_window
            or self.head.encoding != b"identity"
            or connection.paused
            or n > COPY_BELOW
        ):
            self._send_head(metadata)
            self._queue(message)
            self._end(_TRAILERS_OK)
            return
        connection.send_window -= n
        stream = self.id.to_bytes(4, "big")
        connection.write_last(
            self,
            b"".join(
                (
                    _head_start(len(metadata)),
                    stream,
                    _GRPC_HEAD,
                    metadata,
                    n.to_bytes(3, "big"),
                    b"\0\0",
                    stream,
                    (n - 5).to_bytes(5, "big"),
                    message,
                    _TRAILER_A,
                    stream,
                    _TRAILERS_OK,
                )
            ),
        )

    def send(self, message: bytes) -> None:
        """Send one of several answers."""
        if not self.ended:
            self._send_head(b"")
            self._queue(message)

    def finish(self, status: Status, text: str = "") -> None:
        """End the call with a status; without any answer sent, in one block (Trailers-Only)."""
        if self.ended:
            return
        fields = [(b"grpc-status", b"%d" % status)]
        if text:
            # Percent encoding of what is not printable ASCII, and of % itself.
            safe = "".join(chr(c) for c in range(0x20, 0x7F) if c != 0x25)
            fields.append((b"grpc-message", quote(text[:2000], safe=safe).encode()))
        if status is not Status.OK:
            fields.append((b"x-request-id", self.request_id.encode()))
        block = header_block(fields)
        if not self._head_sent and not self._outbox:
            self._head_sent = True
            if status is Status.UNIMPLEMENTED:
                block += ACCEPT_ENCODING
            self._end(_GRPC_HEAD + block)
        else:
            self._end(block)

    def hold(self, held: bool) -> None:
        """Keep messages back, and the peer from sending more than the window that it has."""
        if held == self.held:
            return
        self.held = held
        if held:
            return
        while self.waiting and not self.held and self.service is not None and not self.ended:
            self.service.message(self.waiting.popleft())
        if not self.held:
            self.connection.grant(self)
            if self.remote_closed and not self.waiting and self.service is not None:
                self.service.half_closed()

    # --- what hot endpoints want ---

    def take_request_id(self) -> str:
        """Give the request an id."""
        site = self.connection.site
        self._request_id = site.request_id(site.next_number())
        return self._request_id

    def reply_plain(self, endpoint: Any, body: bytes, now: float) -> None:
        """Write a plain answer of a hot endpoint."""
        self.reply(body, self.connection.site.call_head(endpoint.head_lines))

    def reply_ready(self, whole: bytes, n_numbers: int) -> None:
        """The queue is full: a request that is shed must cost as little as can be."""
        self.finish(Status.UNAVAILABLE, "Exceeds maximum queue size; retry later")

    def reply_answer(self, answer: Answer) -> None:
        """Write an endpoint's answer to a call: its status is one of gRPC."""
        if answer.status == 0:
            self.reply(answer.body, self.connection.site.call_head(answer.head_lines))
        else:
            self.finish(Status(answer.status), answer.body.decode("utf-8", "replace"))

    # --- what comes in ---

    def begin_call(self, method: Method) -> None:
        """Begin a gRPC call."""
        self.method = method
        if self.head.timeout_s is not None:
            self.deadline = self.began + self.head.timeout_s
        if method.stream is not None:
            self.service = method.stream(self)

    def call_whole(self, message: bytes) -> None:
        """A unary call whose only message came in one piece: the hottest way."""
        self.remote_closed = True
        if self.ended:
            return
        assert self.method is not None and self.method.unary is not None
        cancel = self.method.unary(self, message)
        if not self.ended:
            self._cancel = cancel

    def receive(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self._body is not None:
            self._body.append(chunk)
            return
        if self.ended:
            return
        limit = self.connection.message_limit
        if self.reader is None:
            self.reader = MessageReader(limit)
        try:
            for flag, raw in self.reader.feed(chunk):
                message = unpack(self.head.encoding, raw, limit) if flag else raw
                self._message(message)
        except BadMessage as exc:
            self.finish(exc.status, str(exc))
            self.cancel()
            return
        if self.reader.between:
            self.slow_since = 0.0
        elif not self.slow_since:
            self.slow_since = time.monotonic()

    def _message(self, message: bytes) -> None:
        if self.ended:
            return
        if self.service is not None:
            if self.held:
                self.waiting = self.waiting if self.waiting is not None else deque()
                self.waiting.append(message)
            else:
                self.service.message(message)
        elif self.waiting is None:
            self.waiting = deque((message,))
        else:
            self.finish(Status.UNIMPLEMENTED, "this method takes one message")

    def end_of_request(self) -> None:
        """The caller sends no more."""
        self.remote_closed = True
        self.slow_since = 0.0
        if self._body is not None:
            body, self._body = b"".join(self._body), None
            if self.head.content_length is not None and self.head.content_length != len(body):
                self.connection.reset(self, f.ErrorCode.PROTOCOL_ERROR)
                return
            self.connection.dispatch(self, body)
            return
        if self.ended:
            return
        if self.reader is not None and not self.reader.between:
            self.finish(Status.INTERNAL, "the last message is cut off")
            self.cancel()
        elif self.service is not None:
            if not self.held and not self.waiting:
                self.service.half_closed()
        elif not self.waiting:
            self.finish(Status.INTERNAL, "this method takes one message, none came")
        else:
            assert self.method is not None and self.method.unary is not None
            cancel = self.method.unary(self, self.waiting.popleft())
            if not self.ended:
                self._cancel = cancel

    def held_bytes(self) -> int:
        """What lies here of messages that are not whole, or not taken yet."""
        held = self.reader.held_bytes if self.reader is not None else 0
        if self.waiting:
            held += sum(map(len, self.waiting))
        if self._body is not None:
            held += sum(map(len, self._body))
        return held

    def body_bytes(self) -> int:
        """How much of a plain request's body has come."""
        return sum(map(len, self._body)) if self._body is not None else 0

    def begin_body(self) -> None:
        """A plain HTTP request: its body is gathered first."""
        self._body = []
        self.slow_since = self.began

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.ended = True
        self.cancelled = True
        cancel, self._cancel = self._cancel, None
        service, self.service = self.service, None
        self.waiting = None
        self._outbox = None
        if cancel is not None:
            cancel()
        if service is not None:
            service.cancelled()

    def set_cancel(self, cancel: Cancel | None) -> None:
        """Say what to call when the caller leaves."""
        self._cancel = cancel

    # --- what goes out ---

    def answer_http(self, answer: Answer) -> None:
        """Write the answer to a plain HTTP request."""
        if self.ended:
            return
        with_body = self.head.method != b"HEAD"
        streamed = isinstance(answer, StreamedAnswer)
        bodiless = answer.status in (204, 304)
        length = answer.length if isinstance(answer, StreamedAnswer) else len(answer.body)
        fields = [(b":status", b"%d" % answer.status)]
        if answer.content_type:
            fields.append((b"content-type", answer.content_type))
        if length is not None and not bodiless:
            fields.append((b"content-length", b"%d" % length))
        fields += (
            (b"x-request-id", self.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *self.connection.site.date_field(),
            *((name.lower(), value) for name, value in answer.all_headers()),
        )
        block = header_block(fields)
        self._head_sent = True
        if bodiless or not with_body or not (streamed or answer.body):
            self._end(block)
            if isinstance(answer, StreamedAnswer):
                answer.begin(_Unread())
            return
        self.connection.write(f.frame(f.HEADERS, f.END_HEADERS, self.id, block))
        if isinstance(answer, StreamedAnswer):
            self._sink = Http2Body(self, answer.length)
            leave, before = answer.leave, self._cancel
            if before is None:
                self._cancel = leave
            answer.begin(self._sink)
            return
        self._append(memoryview(answer.body))
        self._end(b"")

    def append(self, chunk: bytes) -> bool:
        """Send a piece of a body. False: the peer lags behind."""
        self._append(memoryview(chunk))
        return self.outbox_bytes <= LAG_BYTES

    def end_body(self) -> None:
        """The body is whole."""
        if self._outbox:
            self._end(b"")
            return
        # Its last piece is out: an empty frame says that it was the last.
        self.ended = True
        self.connection.write(f.frame(f.DATA, f.END_STREAM, self.id))
        self._over()

    def break_off(self) -> None:
        """The body will never be whole: the peer must see that."""
        if not self.ended:
            self.connection.reset(self, f.ErrorCode.INTERNAL_ERROR)

    def _send_head(self, metadata: bytes) -> None:
        if self._head_sent:
            return
        self._head_sent = True
        block = _GRPC_HEAD + metadata
        if self._compresses():
            block += header_block([(b"grpc-encoding", self.head.encoding)])
        self.connection.write(f.frame(f.HEADERS, f.END_HEADERS, self.id, block))

    def _compresses(self) -> bool:
        """Whether answers are compressed: as the caller compressed, if it takes that back."""
        encoding = self.head.encoding
        return encoding in (b"gzip", b"deflate") and encoding in self.head.accepts

    def _queue(self, message: bytes) -> None:
        flag = b"\0"
        if len(message) >= COMPRESS_FROM and self._compresses():
            message, flag = pack(self.head.encoding, message), b"\1"
        prefix = flag + len(message).to_bytes(4, "big")
        if len(message) < 4096:
            self._append(memoryview(prefix + message))
        else:
            self._append(memoryview(prefix))
            self._append(memoryview(message))

    def _append(self, view: memoryview) -> None:
        if self._outbox is None:
            self._outbox = deque()
        self._outbox.append(view)
        self.outbox_bytes += len(view)
        self.connection.send_data(self)

    def _end(self, trailers: bytes) -> None:
        """Nothing more will be queued. An empty block ends the stream with its last data."""
        self.ended = True
        self._trailers = trailers
        self._cancel = None
        self.service = None
        self.connection.send_data(self)

    def pump(self) -> bool:
        """Write what the windows allow. Return whether something waits for a window."""
        connection = self.connection
        outbox = self._outbox
        last_is_data = self.ended and not self._trailers
        while outbox:
            room = min(self.send_window, connection.send_window, connection.peer_frame_size)
            if room <= 0 or connection.paused:
                return True
            parts: list[bytes | memoryview] = []
            size = 0
            while outbox and size < room:
                view = outbox[0]
                if len(view) <= room - size:
                    parts.append(outbox.popleft())
                    size += len(view)
                else:
                    parts.append(view[: room - size])
                    outbox[0] = view[room - size :]
                    size = room
            flags = f.END_STREAM if last_is_data and not outbox else 0
            self.send_window -= size
            connection.send_window -= size
            self.outbox_bytes -= size
            connection.write(f.frame_head(size, f.DATA, flags, self.id))
            for part in parts:
                connection.write(part)
        if self._sink is not None and not self.ended and self.outbox_bytes <= LAG_BYTES // 2:
            self._sink.caught_up()
        if self.ended:
            if self._trailers:
                flags = f.END_HEADERS | f.END_STREAM
                connection.write(f.frame(f.HEADERS, flags, self.id, self._trailers))
            self._over()
        return False

    def _over(self) -> None:
        self.connection.over(self)


class Http2Body:
    """The body of a streamed answer. Implements `protocols.http.BodySink`."""

    def __init__(self, stream: Http2Stream, length: int | None) -> None:
        self.resumed: Callable[[], None] = _nothing
        self._stream = stream
        self._left = length
        self._lags = False

    def write(self, chunk: bytes) -> bool:
        """Send a piece. False: the client lags behind, so wait for `resumed`."""
        if not chunk or self._stream.ended:
            return True
        if self._left is not None:
            if len(chunk) > self._left:
                self.abort()
                return True
            self._left -= len(chunk)
        self._lags = not self._stream.append(chunk)
        return not self._lags

    def end(self) -> None:
        """The body is whole. One that is shorter than announced is broken off instead."""
        if self._left:
            self.abort()
        elif not self._stream.ended:
            self._stream.end_body()

    def abort(self) -> None:
        """It will never be whole."""
        self._stream.break_off()

    def caught_up(self) -> None:
        """The peer has read what lay here."""
        if self._lags:
            self._lags = False
            self.resumed()


class _Unread:
    """Takes a body that nobody asked for (the answer to HEAD)."""

    def __init__(self) -> None:
        self.resumed: Callable[[], None] = _nothing

    def write(self, chunk: bytes) -> bool:
        """Drop it."""
        return True

    def end(self) -> None:
        """Nothing to end."""

    def abort(self) -> None:
        """Nothing to break off."""


def _nothing() -> None:
    """Nobody waits."""


@lru_cache(maxsize=256)
def _head_start(n_metadata: int) -> bytes:
    return f.frame_head(len(_GRPC_HEAD) + n_metadata, f.HEADERS, f.END_HEADERS, 0)[:5]
