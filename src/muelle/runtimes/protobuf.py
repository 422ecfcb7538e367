"""Walk Protocol Buffers messages without a schema, to look before a native library reads.

Not a parser of whole models: it yields fields and lets the caller skip what it does not want.
Source: Protocol Buffers encoding guide, "Message Structure".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Reader = Callable[[int, int], bytes]
"""(offset, n_bytes) -> at most n_bytes. A file is never read as a whole."""

_LONGEST_HEAD = 20
"""Bytes of a tag and a varint at their longest (10 each)."""


class MalformedMessage(ValueError):
    """The bytes are no Protocol Buffers message."""


class Field(NamedTuple):
    """One field: its number, wire type, varint value, and where its content lies."""

    number: int
    wire: int
    value: int
    start: int
    stop: int


def fields(read: Reader, start: int, stop: int) -> Iterator[Field]:
    """Yield the fields of the message in bytes start..stop. MalformedMessage ends it.

    Every declared length is checked against `stop` before it is used; groups (unused since
    proto3, and never by ONNX) are refused.
    """
    at = start
    while at < stop:
        head = read(at, min(_LONGEST_HEAD, stop - at))
        tag, n_tag = _varint(head, 0)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise MalformedMessage("field number 0")
        at += n_tag
        if wire == VARINT:
            value, used = _varint(head, n_tag)
            yield Field(number, wire, value, at, at + used)
            at += used
            continue
        if wire == BYTES:
            size, used = _varint(head, n_tag)
            at += used
        elif wire == FIXED64:
            size = 8
        elif wire == FIXED32:
            size = 4
        else:
            raise MalformedMessage(f"wire type {wire}")
        if at + size > stop:
            raise MalformedMessage("a length beyond the end")
        yield Field(number, wire, 0, at, at + size)
        at += size


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """Return the value at head[at:] and the number of bytes it takes."""
    value = shift = 0
    for used, byte in enumerate(head[at : at + 10], 1):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, used
        shift += 7
    raise MalformedMessage("a varint without an end")
