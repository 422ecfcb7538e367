"""Frames on a stream: whole again whatever the pieces, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.apps.frames import (
    CHUNK_BYTES,
    Body,
    Describe,
    Ended,
    Failed,
    Forget,
    Frame,
    FrameError,
    FrameReader,
    FromApp,
    Leave,
    LoadFailed,
    More,
    Ping,
    Pong,
    Predict,
    Predicted,
    Ready,
    Request,
    Start,
    Stop,
    Taken,
    ToApp,
    encode_frame,
    pieces,
)

ids = st.integers(min_value=0, max_value=2**63)
headers = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3)
text = st.text(max_size=9)
to_app = st.one_of(
    st.builds(
        Request,
        id=ids, request_id=text, method=text, path=text, raw_path=st.binary(max_size=9),
        query=st.binary(max_size=9), headers=headers,
        client=st.none() | st.tuples(text, st.integers(0, 65_535)),
        server=st.none() | st.tuples(text, st.integers(0, 65_535)),
        root_path=text, scheme=text, body=st.binary(max_size=99), more=st.booleans(),
    ),
    st.builds(More, id=ids, chunk=st.binary(max_size=99), more=st.booleans()),
    st.builds(Leave, id=ids, late=st.booleans()),
    st.builds(Taken, id=ids, nbytes=st.integers(0, 2**40)),
    st.builds(
        Predicted, id=ids, status=st.integers(200, 599),
        headers=st.dictionaries(text, text, max_size=2), body=st.binary(max_size=99),
    ),
    st.just(Ping()),
    st.just(Stop()),
)  # fmt: skip
from_app = st.one_of(
    st.builds(Ready, kind=text),
    st.builds(LoadFailed, text=text),
    st.builds(
        Start, id=ids, status=st.integers(0, 999), headers=headers,
        chunk=st.binary(max_size=99), more=st.booleans(),
    ),
    st.builds(Body, id=ids, chunk=st.binary(max_size=99), more=st.booleans()),
    st.builds(Failed, id=ids),
    st.builds(Ended, id=ids),
    st.builds(
        Predict, id=ids, model=text, version=st.none() | text,
        headers=st.dictionaries(text, text, max_size=2), body=st.binary(max_size=99),
        request_id=text,
    ),
    st.builds(Describe, id=ids, model=text),
    st.builds(Forget, id=ids),
    st.just(Pong()),
)  # fmt: skip


def read_in_pieces(kind: object, stream: bytes, sizes: list[int]) -> list[Frame]:
    """Feed a stream cut at these sizes, over and over."""
    reader = FrameReader(kind, 1_000_000)
    found: list[Frame] = []
    at, turn = 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    return found


sizes = st.lists(st.integers(1, 64), min_size=1, max_size=5)


@given(st.lists(to_app, max_size=6), sizes)
def test_frames_to_an_app_come_as_they_were_sent(frames: list[Frame], sizes: list[int]) -> None:
    """Wherever the stream is cut."""
    stream = b"".join(map(encode_frame, frames))
    assert read_in_pieces(ToApp, stream, sizes) == frames


@given(st.lists(from_app, max_size=6), sizes)
def test_frames_to_the_server_come_as_they_were_sent(frames: list[Frame], sizes: list[int]) -> None:
    """Wherever the stream is cut."""
    stream = b"".join(map(encode_frame, frames))
    assert read_in_pieces(FromApp, stream, sizes) == frames


@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_a_frame_error(noise: bytes) -> None:
    """An application that talks nonsense raises one error, whatever it says."""
    reader = FrameReader(FromApp, 1_000)
    try:
        list(reader.feed(noise))
    except FrameError:
        pass


def test_a_frame_of_the_wrong_direction_is_refused() -> None:
    """An application cannot send what only a server may."""
    with pytest.raises(FrameError):
        list(FrameReader(FromApp, 1_000).feed(encode_frame(Stop())))


def test_a_frame_over_the_limit_is_refused_before_it_is_there() -> None:
    """Its length alone is enough; one at the limit is taken."""
    frame = Body(1, b"x" * 100, False)
    size = len(encode_frame(frame)) - 4
    assert list(FrameReader(FromApp, size).feed(encode_frame(frame))) == [frame]
    with pytest.raises(FrameError, match="the limit is"):
        list(FrameReader(FromApp, size - 1).feed(encode_frame(frame)[:4]))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_bodies_are_cut_and_whole_again(size: int) -> None:
    """No piece is too large, none is empty but that of an empty body."""
    body = bytes(size)
    cut = list(pieces(body))
    assert b"".join(cut) == body
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in cut) or cut == [b""]
