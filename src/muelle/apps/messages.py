"""What the server and an application's worker say to each other: frames of MessagePack.

A frame is a length (4 bytes, little endian) and one message. Both ends check what they read: the
worker runs the user's code, so the server believes nothing that it says. Never pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 1024**3
CHUNK_BYTES = 256 * 1024
"""An answer's body comes in pieces of at most this size."""

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages."""


class Request(Frame, frozen=True):
    """Server to worker: answer this request."""

    id: int
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    scheme: str = "http"


class Cancelled(Frame, frozen=True):
    """Server to worker: nobody waits for that answer any more."""

    id: int


class Answered(Frame, frozen=True):
    """Server to worker: what a model, or the server, answered."""

    id: int
    status: int
    headers: Headers
    body: bytes


class Ping(Frame, frozen=True):
    """Server to worker: is your loop alive?"""


class Stop(Frame, frozen=True):
    """Server to worker: finish what runs and end."""


class Ready(Frame, frozen=True):
    """Worker to server: the application is loaded and started."""

    kind: str
    """`ASGI` or `WSGI`."""


class LoadFailed(Frame, frozen=True):
    """Worker to server: it cannot be loaded, and why."""

    reason: str


class Start(Frame, frozen=True):
    """Worker to server: status and headers of an answer."""

    id: int
    status: int
    headers: Headers


class Body(Frame, frozen=True):
    """Worker to server: a piece of an answer's body."""

    id: int
    chunk: bytes
    more: bool


class Failed(Frame, frozen=True):
    """Worker to server: the application raised, or gave no answer."""

    id: int


class Ask(Frame, frozen=True):
    """Worker to server: ask a model, or about one."""

    id: int
    method: str
    path: str
    headers: Headers
    body: bytes


class Pong(Frame, frozen=True):
    """Worker to server: it is."""


ToWorker = Request | Cancelled | Answered | Ping | Stop
FromWorker = Ready | LoadFailed | Start | Body | Failed | Ask | Pong


class BadFrame(Exception):
    """The other end does not keep to the form."""


def pack(message: Frame) -> bytes:
    """Return a message as a frame."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Cuts what arrives into whole messages. Owned by one connection."""

    def __init__(self, kind: object, max_bytes: int = MAX_FRAME_BYTES) -> None:
        """`kind` is the union that may come: `ToWorker` or `FromWorker`."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._max_bytes = max_bytes
        self._parts = bytearray()

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """Take bytes and yield the messages that are whole now. Raise BadFrame."""
        parts = self._parts
        parts += piece
        at = 0
        try:
            while len(parts) - at >= LENGTH.size:
                (size,) = LENGTH.unpack_from(parts, at)
                if size > self._max_bytes:
                    raise BadFrame(f"a frame of {size} bytes; at most {self._max_bytes} are taken")
                end = at + LENGTH.size + size
                if len(parts) < end:
                    break
                with memoryview(parts) as view:
                    message = self._read(view[at + LENGTH.size : end])
                at = end
                yield message
        finally:
            del parts[:at]

    def _read(self, view: memoryview) -> Frame:
        try:
            found: Frame = self._decode(view)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise BadFrame(str(exc)) from exc
        finally:
            view.release()
        return found
