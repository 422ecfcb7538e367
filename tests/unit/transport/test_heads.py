"""Heads of requests: what is read, and what is refused with which status. Not for bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.config.sections import LimitsConfig
from muelle.transport.heads import MAX_CACHED_HEADS, Head, HeadError, HeadReader

LIMITS = LimitsConfig(header_bytes=2_000, header_line_bytes=500, header_count=10)


def read(block: bytes) -> Head:
    """Read with a fresh reader."""
    return HeadReader(LIMITS).read(block)


def head(*lines: bytes, line: bytes = b"POST /a HTTP/1.1") -> bytes:
    """Build a head with a Host."""
    return b"\r\n".join([line, b"Host: here", *lines]) + b"\r\n\r\n"


def test_a_head_is_read() -> None:
    """Method, path, query, lower-case names, joined repeats, length."""
    found = read(
        b"POST /a%20b?q=1&r HTTP/1.1\r\nHOST: h\r\nX-Y:  v \r\nx-y: w\r\n"
        b"content-length: 12\r\nExpect: 100-Continue\r\nx-request-id: my-id\r\n\r\n"
    )
    assert (found.method, found.path, found.query) == (b"POST", b"/a%20b", b"q=1&r")
    assert found.headers[b"x-y"] == b"v, w"
    assert (found.content_length, found.chunked, found.keep_alive) == (12, False, True)
    assert found.expect_continue
    assert found.request_id == "my-id"
    assert found.is_prediction and not found.plain


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (head(b"Host: there", b"Content-Length: 0"), 400),
        (head(b"Content-Length: 1", b"Content-Length: 1"), 400),
        (head(b"Content-Length: 1, 1"), 400),
        (head(b"Content-Length: +1"), 400),
        (head(b"Content-Length: -1"), 400),
        (head(b"Content-Length: 1_0"), 400),
        (head(b"Content-Length: 0x10"), 400),
        (head(b"Content-Length:"), 400),
        (head(b"Content-Length: 99999999999999999999"), 400),
        (head(b"Content-Length : 1"), 400),
        (head(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
        (head(b"Transfer-Encoding: chunked", b"Content-Length: 1"), 400),
        (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
        (head(b"Transfer-Encoding: gzip, chunked"), 400),
        (head(b"Transfer-Encoding: chunked, identity"), 400),
        (head(b"Transfer-Encoding: identity"), 400),
        (head(b"Transfer-Encoding: \x0bchunked"), 400),
        (head(b"Transfer-Encoding : chunked"), 400),
        (head(b"Transfer-Encoding:", b"Content-Length: 1"), 400),
        (head(b"Transfer-Encoding: chunked", line=b"POST /a HTTP/1.0"), 400),
        (head(b"Transfer\x00-Encoding: chunked"), 400),
        (head(b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 1"), 400),
        (head(b"X: a\rContent-Length: 1", b"Content-Length: 2"), 400),
        (head(b"X: a\r\n folded", b"Content-Length: 0"), 400),
        (head(b"X: a\r\n\tfolded", b"Content-Length: 0"), 400),
        (head(b" X: a", b"Content-Length: 0"), 400),
        (head(b"no colon", b"Content-Length: 0"), 400),
        (head(b": empty", b"Content-Length: 0"), 400),
        (head(b"a b: c", b"Content-Length: 0"), 400),
        (head(line=b"GET"), 400),
        (head(line=b"GET /"), 505),
        (head(line=b"G\xc3\xa9T / HTTP/1.1"), 400),
        (head(line=b"NONSENSE / HTTP/1.1"), 400),
        (head(line=b"GET http://elsewhere/ HTTP/1.1"), 400),
        (head(line=b"GET * HTTP/1.1"), 400),
        (head(b"Content-Length: 0", line=b"CONNECT elsewhere:443 HTTP/1.1"), 400),
        (head(line=b"GET / HTTP/1.1 "), 400),
        (head(line=b"GET / http/1.1"), 400),
        (head(line=b"\x16\x03\x01\x02\x00 / HTTP/1.1"), 400),
        (head(), 411),
        (head(line=b"PUT /a HTTP/1.1"), 411),
        (head(b"X: " + b"x" * 600, b"Content-Length: 0"), 431),
        (head(b"X" * 600 + b": x", b"Content-Length: 0"), 431),
        (head(line=b"GET /" + b"x" * 600 + b" HTTP/1.1"), 431),
        (head(*[b"X: " + b"x" * 400] * 6), 431),
        (head(*[b"X: x"] * 11), 431),
    ],
)
def test_a_bad_head_has_its_status(block: bytes, status: int) -> None:
    """What two parsers could read differently, and what is over a limit, is refused."""
    with pytest.raises(HeadError) as caught:
        read(block)
    assert caught.value.status == status
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/3.0"])
def test_other_versions_are_refused(version: bytes) -> None:
    """With 505, or with 400 where the parser does not know the version at all."""
    with pytest.raises(HeadError) as caught:
        read(head(line=b"GET / " + version))
    assert caught.value.status in (400, 505)


def test_the_limits_are_the_last_allowed_values() -> None:
    """One less is refused, the limit itself is not."""
    assert read(head(*[b"X: x"] * 9, line=b"GET / HTTP/1.1")).headers[b"x"]
    line = b"X: " + b"x" * 497
    assert read(head(line, line=b"GET / HTTP/1.1"))
    with pytest.raises(HeadError):
        read(head(line + b"x", line=b"GET / HTTP/1.1"))
    reader = HeadReader(LIMITS)
    reader.check_partial(2_000)
    with pytest.raises(HeadError):
        reader.check_partial(2_001)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE"])
def test_some_methods_need_no_body(method: bytes) -> None:
    """But they may have one."""
    assert read(head(line=method + b" / HTTP/1.1")).content_length == 0
    assert read(head(b"Content-Length: 3", line=method + b" / HTTP/1.1")).content_length == 3


@pytest.mark.parametrize(
    ("line", "connection", "expected"),
    [
        (b"GET / HTTP/1.1", b"x: y", True),
        (b"GET / HTTP/1.1", b"Connection: close", False),
        (b"GET / HTTP/1.1", b"Connection: x, Close", False),
        (b"GET / HTTP/1.1", b"Connection: keep-alive, close", False),
        (b"GET / HTTP/1.0", b"x: y", False),
        (b"GET / HTTP/1.0", b"Connection: keep-alive", True),
    ],
)
def test_who_stays_connected(line: bytes, connection: bytes, expected: bool) -> None:
    """As RFC 9112 9.3 says."""
    assert read(head(connection, line=line)).keep_alive is expected


@pytest.mark.parametrize(
    ("lines", "plain"),
    [
        ([b"Content-Length: 5"], True),
        ([b"Content-Length: 5", b"Content-Type: application/json; charset=utf-8"], True),
        ([b"Content-Length: 5", b"Accept: application/json"], True),
        ([b"Content-Length: 5", b"Content-Type: text/csv"], False),
        ([b"Content-Length: 5", b"Accept: text/csv"], False),
        ([b"Content-Length: 5", b"Content-Encoding: gzip"], False),
        ([b"Content-Length: 5", b"Connection: close"], False),
        ([b"Content-Length: 5", b"Timeout-Ms: 5"], False),
        ([b"Content-Length: 5", b"X-Request-Id: a"], False),
        ([b"Content-Length: 5", b"Inference-Header-Content-Length: 3"], False),
        ([b"Content-Length: 5", b"Expect: 100-continue"], False),
        ([b"Content-Length: 100000"], False),
        ([b"Transfer-Encoding: chunked"], False),
    ],
)
def test_only_what_is_common_is_plain(lines: list[bytes], plain: bool) -> None:
    """The hottest way takes JSON in and out with nothing special asked."""
    assert read(head(*lines)).plain is plain
    assert not read(head(*lines, line=b"POST /a?x=1 HTTP/1.1")).plain


@pytest.mark.parametrize("sent", [b"caf\xc3\xa9", b"x" * 129, b"a\tb", b""])
def test_an_id_that_cannot_be_logged_is_not_echoed(sent: bytes) -> None:
    """Another is made instead."""
    assert read(head(b"X-Request-Id: " + sent, line=b"GET / HTTP/1.1")).request_id == ""


def test_the_same_bytes_are_parsed_once() -> None:
    """Heads that come again are remembered; those with secrets never; the memory is bounded."""
    reader = HeadReader(LIMITS)
    common = head(line=b"GET / HTTP/1.1")
    assert reader.read(common) is reader.read(common)
    for secret in (b"Authorization: Bearer x", b"Cookie: a=b", b"X-Api-Key: k"):
        block = head(secret, line=b"GET / HTTP/1.1")
        assert reader.read(block) is not reader.read(block)
    for number in range(MAX_CACHED_HEADS + 10):
        reader.read(head(line=b"GET /%d HTTP/1.1" % number))
    assert len(reader._cache) <= MAX_CACHED_HEADS


NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"X", b"Connection", b""]
)
VALUES = st.sampled_from(
    [b"1", b"chunked", b"h", b"close", b"", b"\x00", b"a\nb", b"\xff", b"1, 2"]
)
LINES = st.builds(
    lambda name, colon, value: name + colon + value,
    NAMES,
    st.sampled_from([b": ", b":", b" : ", b""]),
    VALUES,
)


@given(
    st.binary(max_size=300)
    | st.lists(LINES, max_size=6).map(
        lambda lines: b"\r\n".join([b"POST / HTTP/1.1", *lines]) + b"\r\n\r\n"
    )
)
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    """Nothing but HeadError; what is read has one Host and one way to tell the body's end."""
    try:
        found = read(block)
    except HeadError as exc:
        assert exc.status in (400, 411, 431, 505)
        return
    lower = block.lower()
    assert not (found.chunked and found.content_length)
    assert b", " not in found.headers.get(b"host", b"")
    if found.chunked:
        assert b"content-length" not in lower
