"""Strict decoding of `Transfer-Encoding: chunked`: no extensions, no trailers, exact line ends.

Lenient chunk parsing is how request smuggling begins; a client that needs extensions or trailers
gets a 400. Pure: bytes in, state out.
"""

from __future__ import annotations

MAX_SIZE_LINE = 16
_HEX = frozenset(b"0123456789abcdefABCDEF")


class ChunkError(ValueError):
    """The body is not well-formed chunked encoding, or over a limit."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ChunkDecoder:
    """Fed with bytes as they come; `body` grows; `rest` is what follows the body once `done`."""

    def __init__(self, max_bytes: int, max_chunks: int) -> None:
        self.body = bytearray()
        self.done = False
        self.rest = b""
        self._max_bytes = max_bytes
        self._max_chunks = max_chunks
        self._chunks = 0
        self._buffer = bytearray()
        self._left = -1
        """Bytes of the current chunk still to come, with its line end; -1 before a size line."""

    def feed(self, data: bytes) -> None:
        """Take more bytes. Raise ChunkError."""
        buffer = self._buffer
        buffer += data
        at = 0
        while not self.done:
            if self._left < 0:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    if len(buffer) - at > MAX_SIZE_LINE:
                        raise ChunkError(400, "chunk size line too long, or with extensions")
                    break
                self._begin_chunk(bytes(buffer[at:end]))
                at = end + 2
            if self._left > 2:
                part = buffer[at : at + self._left - 2]
                self.body += part
                at += len(part)
                self._left -= len(part)
                if self._left > 2:
                    break
            if len(buffer) - at < self._left:
                break
            if buffer[at : at + 2] != b"\r\n":
                raise ChunkError(400, "a chunk does not end where it said")
            at += 2
            if self._left == 0:  # pragma: no cover - a chunk always has its line end to come
                break
            self.done = self._last
            self._left = -1
        del buffer[:at]
        if self.done:
            self.rest = bytes(buffer)

    def _begin_chunk(self, line: bytes) -> None:
        if not line or len(line) > MAX_SIZE_LINE or not _HEX.issuperset(line):
            raise ChunkError(400, "chunk size is not a plain hexadecimal number")
        size = int(line, 16)
        self._chunks += 1
        if self._chunks > self._max_chunks:
            raise ChunkError(413, f"more than {self._max_chunks} chunks")
        if len(self.body) + size > self._max_bytes:
            raise ChunkError(413, f"the body is over {self._max_bytes} bytes")
        self._last = size == 0
        self._left = size + 2

    _last = False
