"""The body of a streamed answer: in the framing that was announced, or visibly broken."""

from __future__ import annotations

from typing import Any

import pytest

from muelle.transport.streams import BodyStream


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, piece: bytes) -> None:
        """Keep it."""
        self.written += piece

    def abort(self) -> None:
        """Broken."""
        self.aborted = True

    def is_closing(self) -> bool:
        """Whether the client is gone."""
        return self.aborted


def streams(**how: Any) -> tuple[BodyStream, Transport, list[str]]:
    """A stream, its transport, and a list that gets a word at its good end."""
    transport, ends = Transport(), []
    settings: dict[str, Any] = {"with_body": True, "chunked": False, "length": None, **how}
    stream = BodyStream(
        transport,  # type: ignore[arg-type]
        lags=lambda n: False,
        ended=lambda: ends.append("ended"),
        **settings,
    )
    return stream, transport, ends


def test_chunks() -> None:
    """RFC 9112 7.1; an empty piece is no last chunk."""
    stream, transport, ends = streams(chunked=True)
    stream.write(b"")
    stream.write(b"x" * 26)
    stream.end()
    stream.end()
    assert transport.written == b"1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
    assert ends == ["ended"]


def test_a_known_length() -> None:
    """The bytes as they are."""
    stream, transport, ends = streams(length=4)
    stream.write(b"ab")
    stream.write(b"cd")
    stream.end()
    assert (transport.written, ends) == (b"abcd", ["ended"])


@pytest.mark.parametrize("pieces", [(b"abcde",), (b"ab", b"cde"), (b"abc",), ()])
def test_another_length_than_announced_breaks_the_connection(pieces: tuple[bytes, ...]) -> None:
    """The client must not take the next answer for the rest of this one."""
    stream, transport, ends = streams(length=4)
    for piece in pieces:
        stream.write(piece)
    stream.end()
    assert (transport.aborted, ends) == (True, [])


@pytest.mark.parametrize("how", [{"chunked": True}, {"length": 10}])
def test_head_has_no_body(how: dict[str, Any]) -> None:
    """Whatever is written, and however long it was to be."""
    stream, transport, ends = streams(with_body=False, **how)
    stream.write(b"ab")
    stream.end()
    assert (transport.written, ends) == (b"", ["ended"])


def test_nothing_is_written_after_the_end() -> None:
    """Good or bad."""
    for end in (BodyStream.end, BodyStream.abort):
        stream, transport, _ = streams(chunked=True)
        end(stream)
        before = transport.written
        stream.write(b"late")
        stream.end()
        assert transport.written == before


def test_who_lags_is_told() -> None:
    """The writer waits then, and the connection knows how much more there is to read."""
    transport, told = Transport(), []

    def lags(n_bytes: int) -> bool:
        told.append(n_bytes)
        return True

    stream = BodyStream(
        transport,  # type: ignore[arg-type]
        lags=lags,
        ended=lambda: None,
        with_body=True,
        chunked=True,
        length=None,
    )
    assert stream.write(b"x") is False
    assert sum(told) == len(transport.written)
