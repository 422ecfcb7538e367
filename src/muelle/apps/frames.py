"""What the server and an application's process say to each other: frames on a stream socket.

Each frame is its length (4 bytes, little endian) and MessagePack. Ids are chosen by whoever asks:
requests by the server, predictions by the application. Not for sending them (`channel`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

CHANNEL_VARIABLE = "MUELLE_APP_CHANNEL"
"""Names the inherited descriptor; taken out of the environment when it has been read."""
CHUNK_BYTES = 256 * 1024
"""Bodies travel in pieces of at most this size, so that nothing else waits long behind one."""
WINDOW_BYTES = 1024 * 1024
"""What an application may send of one answer before the server has passed it on."""
HEAD_BYTES = 256 * 1024
"""Room for everything in a frame but a body."""
HELLO_LIMIT_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4

HeaderList: TypeAlias = list[tuple[bytes, bytes]]
Address: TypeAlias = tuple[str, int]


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all frames."""


# --- to the application ---


class Hello(Frame, frozen=True):
    """The first frame: what to load and how to run it."""

    target: str
    folder: str
    """What a relative file, and a module, are looked up in."""
    threads: int
    """Threads of a WSGI application."""
    memory_limit_bytes: int
    predict_limit_bytes: int
    """Largest body of a prediction that the server reads."""
    log_level: str
    log_json: bool


class Request(Frame, frozen=True):
    """An HTTP request, checked and whole; the body's further pieces follow as `More`."""

    id: int
    request_id: str
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: HeaderList
    client: Address | None
    server: Address | None
    root_path: str
    scheme: str
    body: bytes
    more: bool


class More(Frame, frozen=True):
    """A further piece of a request's body."""

    id: int
    chunk: bytes
    more: bool


class Leave(Frame, frozen=True):
    """Nobody waits for this answer any more: the client left, or its time ran out."""

    id: int
    late: bool
    """Whether its time ran out: then the work is cancelled, as far as that can be done."""


class Taken(Frame, frozen=True):
    """So many bytes of an answer's body have been passed on."""

    id: int
    nbytes: int


class Predicted(Frame, frozen=True):
    """The answer to `Predict` or `Describe`, as an HTTP client would see it."""

    id: int
    status: int
    headers: dict[str, str]
    body: bytes


class Ping(Frame, frozen=True):
    """Are you there?"""


class Stop(Frame, frozen=True):
    """Shut down: no more requests will come."""


# --- to the server ---


class Ready(Frame, frozen=True):
    """The application is loaded and has started. `kind` is `asgi` or `wsgi`."""

    kind: str


class LoadFailed(Frame, frozen=True):
    """It could not be loaded or started; a line for the user."""

    text: str


class Start(Frame, frozen=True):
    """An answer begins; `more` says whether `Body` frames follow."""

    id: int
    status: int
    headers: HeaderList
    chunk: bytes
    more: bool


class Body(Frame, frozen=True):
    """A further piece of an answer."""

    id: int
    chunk: bytes
    more: bool


class Failed(Frame, frozen=True):
    """The application raised, or ended without an answer. Its log has the reason."""

    id: int


class Ended(Frame, frozen=True):
    """The application is done with a request, background work included."""

    id: int


class Predict(Frame, frozen=True):
    """A v2 request with binary tensors, for a served model."""

    id: int
    model: str
    version: str | None
    headers: dict[str, str]
    """`inference-header-content-length`, perhaps `timeout-ms`."""
    body: bytes
    request_id: str
    """Of the HTTP request that it is part of, "" for none."""


class Describe(Frame, frozen=True):
    """What does a model take and give? Answered with its `ModelStatus` as JSON."""

    id: int
    model: str


class Forget(Frame, frozen=True):
    """Nobody waits for a prediction any more."""

    id: int


class Pong(Frame, frozen=True):
    """Here I am."""


ToApp: TypeAlias = Hello | Request | More | Leave | Taken | Predicted | Ping | Stop
FromApp: TypeAlias = (
    Ready | LoadFailed | Start | Body | Failed | Ended | Predict | Describe | Forget | Pong
)


class FrameError(Exception):
    """The other side does not keep to the form."""


class FrameReader:
    """Cuts a stream of bytes into frames. Owned by one channel."""

    def __init__(self, kind: object, limit_bytes: int) -> None:
        """`kind` is ToApp or FromApp; a frame over the limit is refused before it is gathered."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Take bytes and yield the frames that are whole. Raise FrameError."""
        buffer = self._buffer
        buffer += chunk
        at = 0
        try:
            while len(buffer) - at >= _LENGTH_BYTES:
                size = int.from_bytes(buffer[at : at + _LENGTH_BYTES], "little")
                if size > self._limit_bytes:
                    raise FrameError(f"a frame of {size} bytes, the limit is {self._limit_bytes}")
                end = at + _LENGTH_BYTES + size
                if len(buffer) < end:
                    break
                frame = self._read(bytes(memoryview(buffer)[at + _LENGTH_BYTES : end]))
                at = end
                yield frame
        finally:
            # One move for all frames of this piece, not one for each.
            del buffer[:at]

    def _read(self, payload: bytes) -> Frame:
        try:
            frame: Frame = self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise FrameError(f"a frame that cannot be read: {exc}") from exc
        return frame


_encode = msgspec.msgpack.Encoder().encode


def encode_frame(frame: Frame) -> bytes:
    """Return a frame with its length."""
    payload = _encode(frame)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


def pieces(body: bytes) -> Iterator[bytes]:
    """Cut a body into pieces of at most CHUNK_BYTES; one empty piece of an empty body."""
    view = memoryview(body)
    for start in range(0, max(1, len(body)), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])
