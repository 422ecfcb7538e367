"""The schema-less walk over Protocol Buffers messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.runtimes.protobuf import BYTES, FIXED32, FIXED64, VARINT, MalformedMessage, fields


def walk(message: bytes) -> list[tuple[int, int, int, bytes]]:
    """All fields of a message: number, wire type, value, content."""
    found = fields(lambda offset, n: message[offset : offset + n], 0, len(message))
    return [(f.number, f.wire, f.value, message[f.start : f.stop]) for f in found]


def test_each_wire_type_is_read() -> None:
    """Varint, fixed and length-delimited fields come with their values and places."""
    message = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d\x01\x02\x03\x04" + b"\x21" + b"8" * 8

    assert walk(message) == [
        (1, VARINT, 150, b"\x96\x01"),
        (2, BYTES, 0, b"hi"),
        (3, FIXED32, 0, b"\x01\x02\x03\x04"),
        (4, FIXED64, 0, b"8" * 8),
    ]


@pytest.mark.parametrize(
    "message",
    [
        b"\x08",  # a tag without a value
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # eleven bytes of varint
        b"\x12\x05hi",  # five bytes declared, two there
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # nearly 2**63 bytes declared
        b"\x1d\x01",  # a short fixed field
        b"\x0b",  # a group
        b"\x00\x00",  # field number 0
    ],
)
def test_a_lie_is_malformed(message: bytes) -> None:
    """No declared length is believed beyond the bytes that are there."""
    with pytest.raises(MalformedMessage):
        walk(message)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_fields_or_an_error(message: bytes) -> None:
    """Whatever the bytes, the walk ends, and every field lies inside the message, in order."""
    try:
        found = list(fields(lambda o, n: message[o : o + n], 0, len(message)))
    except MalformedMessage:
        return
    places = [(f.start, f.stop) for f in found]
    assert places == sorted(places)
    assert all(0 < start <= stop <= len(message) for start, stop in places)
    assert (places[-1][1] if places else 0) == len(message)
