"""Chunked bodies: strict, bounded, and the same however the bytes come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.transport.chunks import ChunkDecoder, ChunkError


def encode(parts: list[bytes]) -> bytes:
    """Write a body in chunks."""
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part]
    return b"".join(chunks) + b"0\r\n\r\n"


def decode(pieces: list[bytes], max_bytes: int = 10_000, max_chunks: int = 100) -> ChunkDecoder:
    """Feed a decoder piece by piece, as long as it wants more."""
    decoder = ChunkDecoder(max_bytes, max_chunks)
    for index, piece in enumerate(pieces):
        if decoder.done:
            decoder.rest += b"".join(pieces[index:])
            break
        decoder.feed(piece)
    return decoder


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    """What a decoder says at the end: its result or its refusal."""
    try:
        decoder = decode(pieces, max_bytes=40, max_chunks=6)
    except ChunkError as exc:
        return (exc.status,)
    return (decoder.done, bytes(decoder.body), decoder.rest)


@st.composite
def cut(draw: st.DrawFn, wires: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Draw bytes and a way to cut them."""
    wire = draw(wires)
    at = sorted(draw(st.sets(st.integers(1, max(1, len(wire) - 1)))))
    bounds = [0, *(i for i in at if i < len(wire)), len(wire)]
    return wire, [wire[a:b] for a, b in itertools.pairwise(bounds)]


BODIES = st.builds(
    lambda parts, rest: encode(parts) + rest,
    st.lists(st.binary(max_size=12), max_size=7),
    st.binary(max_size=8),
)
NOISE = st.lists(
    st.sampled_from([b"0", b"5", b"a", b"\r", b"\n", b"\r\n", b";x", b"hello", b" ", b"\x00"]),
    max_size=25,
).map(b"".join)


@given(cut(BODIES | NOISE))
def test_how_the_bytes_come_makes_no_difference(drawn: tuple[bytes, list[bytes]]) -> None:
    """Any bytes in any pieces: the result, or the refusal, of the whole at once."""
    wire, pieces = drawn
    assert outcome(pieces) == outcome([wire])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(wire: bytes) -> None:
    """Nothing but ChunkError is raised."""
    outcome([wire])


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=20), st.binary(max_size=20))
def test_a_body_comes_back(parts: list[bytes], rest: bytes) -> None:
    """And what follows it is kept for the next request."""
    decoder = decode([encode(parts) + rest])
    assert decoder.done
    assert bytes(decoder.body) == b"".join(parts)
    assert decoder.rest == rest


@pytest.mark.parametrize(
    "wire",
    [
        b"5;name=value\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        b"5" * 30,
        b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_what_others_might_read_otherwise_is_refused(wire: bytes) -> None:
    """Extensions, signs, spaces, prefixes, bare line feeds, trailers: 400."""
    with pytest.raises(ChunkError) as caught:
        decode([wire])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "wire",
    [b"65\r\n", b"3\r\nabc\r\n62\r\n", b"ffffffffffffffff\r\n", b"1\r\nx\r\n" * 11],
)
def test_the_limits_hold_before_the_bytes_come(wire: bytes) -> None:
    """A size over the body limit, or a chunk over the count: 413 at its size line."""
    with pytest.raises(ChunkError) as caught:
        decode([wire], max_bytes=100, max_chunks=10)
    assert caught.value.status == 413


def test_upper_and_lower_case_sizes_are_read() -> None:
    """Hexadecimal has both."""
    assert bytes(decode([b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"]).body) == (
        b"0123456789" * 2
    )
