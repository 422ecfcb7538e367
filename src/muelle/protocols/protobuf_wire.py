"""The wire format of protobuf, as far as large fields are taken out of a message without a copy.

Pure. Not a parser: messages are parsed by the protobuf library. Source: "Encoding", protobuf.dev.
"""

from __future__ import annotations

from muelle.core.errors import BadRequest

Span = tuple[int, int]


def varint(value: int) -> bytes:
    """Return an unsigned integer in base 128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint and where it ends. Raise BadRequest."""
    value = shift = 0
    end = len(data)
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            break
    raise BadRequest("the message is no protobuf: a number is cut off or too long")


def take_out(data: bytes, number: int) -> tuple[bytes, list[Span]]:
    """Return the message without one length-delimited field, and where its contents lie.

    Fields before and behind stay as they are, so that the rest parses as the whole would. Raise
    BadRequest when it is no protobuf.
    """
    spans: list[Span] = []
    kept: list[bytes] = []
    at = begin = 0
    end = len(data)
    while at < end:
        start = at
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = read_varint(data, at)
        elif kind == 2:
            length, at = read_varint(data, at)
            if tag >> 3 == number:
                kept.append(data[begin:start])
                spans.append((at, at + length))
                begin = at + length
            at += length
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        else:
            raise BadRequest("the message is no protobuf: groups are not used here")
        if at > end:
            raise BadRequest("the message is no protobuf: a field is cut off")
    kept.append(data[begin:])
    return b"".join(kept), spans
