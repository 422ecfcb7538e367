"""gRPC's length-prefixed messages: cut out of the bytes of a stream, unpacked and packed.

Pure. Every length is checked before anything of that size is kept. Source: "gRPC over HTTP2",
Length-Prefixed-Message; "Compression".
"""

from __future__ import annotations

import zlib

from muelle.transport.grpc import Status

PREFIX_BYTES = 5


class BadMessage(Exception):
    """A message that cannot be taken, with the status that its call ends with."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class MessageReader:
    """The messages of one stream, in order. Holds at most one incomplete one."""

    __slots__ = ("_left", "_limit", "_parts", "_prefix", "held_bytes")

    def __init__(self, limit: int) -> None:
        """`limit` is the most bytes of one message as sent."""
        self._limit = limit
        self._prefix = b""
        self._left = -1
        """Bytes of the present message still to come; -1 while its prefix is."""
        self._parts: list[bytes] = []
        self.held_bytes = 0
        """What is kept of an incomplete message."""

    @property
    def between(self) -> bool:
        """Whether no message has begun."""
        return self._left < 0 and not self._prefix

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Take bytes; return the messages that are whole now, each with its compressed flag.

        Raise BadMessage for a wrong flag or a length over the limit.
        """
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(chunk)
        while at < end or self._left == 0:
            if self._left < 0:
                take = min(PREFIX_BYTES - len(self._prefix), end - at)
                self._prefix += chunk[at : at + take]
                at += take
                if len(self._prefix) < PREFIX_BYTES:
                    break
                self._left = self._length()
            take = min(self._left, end - at)
            if take:
                self._parts.append(chunk[at : at + take] if take < end else chunk)
                self.held_bytes += take
                self._left -= take
                at += take
            if self._left == 0:
                parts = self._parts
                found.append((self._prefix[0], parts[0] if len(parts) == 1 else b"".join(parts)))
                self._parts, self._prefix, self._left, self.held_bytes = [], b"", -1, 0
        return found

    def _length(self) -> int:
        flag, length = self._prefix[0], int.from_bytes(self._prefix[1:], "big")
        if flag > 1:
            raise BadMessage(Status.INTERNAL, "a message's compressed flag is neither 0 nor 1")
        if length > self._limit:
            raise BadMessage(
                Status.RESOURCE_EXHAUSTED,
                f"the message has {length} bytes, the limit is {self._limit}",
            )
        return length


def unpack(encoding: bytes, message: bytes, limit: int) -> bytes:
    """Return a message whose compressed flag is set, decompressed. Raise BadMessage."""
    if encoding == b"identity":
        raise BadMessage(Status.INTERNAL, "a compressed message, but no grpc-encoding")
    if encoding not in (b"gzip", b"deflate"):
        raise BadMessage(
            Status.UNIMPLEMENTED,
            f"grpc-encoding {encoding[:40].decode('latin-1')!r}; known: gzip, deflate, identity",
        )
    inflater = zlib.decompressobj(31 if encoding == b"gzip" else 15)
    try:
        whole = inflater.decompress(message, limit + 1)
    except zlib.error:
        raise BadMessage(Status.INTERNAL, f"the message is not {encoding.decode()}") from None
    if len(whole) > limit:
        raise BadMessage(
            Status.RESOURCE_EXHAUSTED, f"the decompressed message is over {limit} bytes"
        )
    if not inflater.eof or inflater.unused_data:
        raise BadMessage(Status.INTERNAL, f"the {encoding.decode()} message is cut off")
    return whole


def pack(encoding: bytes, message: bytes) -> bytes:
    """Return a message compressed as its caller compressed its own."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == b"gzip" else 15)
    return packer.compress(message) + packer.flush()
