"""The head of an HTTP/1.1 request: strict parsing, and a cache for heads that come again.

A kept connection sends the same bytes as its head over and over; what was parsed once need not be
parsed again. llhttp (httptools) does the parsing; the checks that it leaves out are made here, on
the bytes, before it sees them. Not for bodies.
"""

from __future__ import annotations

import httptools

from muelle.config.sections import LimitsConfig
from muelle.core.ids import is_request_id

END = b"\r\n\r\n"
NO_BODY = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"})
MAX_CACHED_BYTES = 1024
MAX_CACHED_HEADS = 2048
SECRET_HEADERS = (b"authorization", b"cookie", b"proxy-authorization", b"x-api-key")


UNUSUAL_HEADERS = (b"expect", b"x-request-id", b"timeout-ms")
"""Headers that change how a prediction is read or answered."""
MAX_PLAIN_BODY = 64 * 1024
"""Larger bodies do not come in one piece anyway."""
JSON = b"application/json"


class HeadError(Exception):
    """A head that is refused; the connection closes after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head:
    """One parsed head. Immutable by agreement: it is shared by all requests that send its bytes."""

    __slots__ = (
        "chunked",
        "content_length",
        "expect_continue",
        "headers",
        "is_prediction",
        "json_bytes",
        "keep_alive",
        "method",
        "old",
        "path",
        "plain",
        "query",
        "request_id",
    )

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: dict[bytes, bytes],
        *,
        content_length: int,
        chunked: bool,
        keep_alive: bool,
        old: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        """As sent, percent signs and all."""
        self.query = query
        self.headers = headers
        """Lower-case names; repeated ones joined by `, `."""
        self.content_length = content_length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.old = old
        """HTTP/1.0: an answer of unknown length cannot be chunked."""
        self.expect_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self.is_prediction = method == b"POST" and b"content-encoding" not in headers
        """A hot endpoint may answer it; what is compressed takes the comfortable way."""
        self.request_id = _own_request_id(headers)
        """The caller's own request id, empty when there is none that can be echoed."""
        json_bytes = headers.get(b"inference-header-content-length", b"")
        self.json_bytes = 0
        """Length of the JSON part of a body with binary data behind it, when nothing else about
        the request is unusual; else 0."""
        usual = (
            self.is_prediction
            and keep_alive
            and not (chunked or query)
            and not any(name in headers for name in UNUSUAL_HEADERS)
        )
        if usual and json_bytes.isdigit() and len(json_bytes) <= 9:
            self.json_bytes = int(json_bytes)
        self.plain = (
            usual
            and not json_bytes
            and content_length <= MAX_PLAIN_BODY
            and headers.get(b"content-type", JSON).partition(b";")[0].strip().lower() == JSON
            and headers.get(b"accept", b"*/*") in (b"*/*", JSON)
        )
        """JSON in, JSON out, kept open, nothing else asked: the hottest way may take it."""


class HeadReader:
    """Parses heads and remembers the common ones. Owned by one server, event loop's thread only."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._cache: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Parse a head that ends with an empty line. Raise HeadError with the HTTP status."""
        head = self._cache.get(block)
        if head is not None:
            return head
        self._check_bytes(block)
        head = _parse(block)
        if len(block) <= MAX_CACHED_BYTES and not any(n in head.headers for n in SECRET_HEADERS):
            if len(self._cache) >= MAX_CACHED_HEADS:
                self._cache.clear()
            self._cache[block] = head
        return head

    def check_partial(self, size: int) -> None:
        """Raise HeadError when a head that has not ended yet is over the limit already."""
        if size > self._limits.header_bytes:
            raise HeadError(431, f"the head is over {self._limits.header_bytes} bytes")

    def _check_bytes(self, block: bytes) -> None:
        limits = self._limits
        self.check_partial(len(block))
        n_lines = block.count(b"\r\n")
        if n_lines - 2 > limits.header_count:
            raise HeadError(431, f"more than {limits.header_count} header fields")
        if block.count(b"\n") != n_lines or block.count(b"\r") != n_lines or b"\x00" in block:
            raise HeadError(400, "a bare line feed, carriage return or NUL in the head")
        if b"\r\n " in block or b"\r\n\t" in block:
            raise HeadError(400, "a folded header line (obs-fold)")
        if len(block) > limits.header_line_bytes and any(
            len(line) > limits.header_line_bytes for line in block.split(b"\r\n")
        ):
            raise HeadError(431, f"a header line is over {limits.header_line_bytes} bytes")


class _Collector:
    """What llhttp tells while it parses."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # RFC 9110 5.5: white space around a value is no part of it; llhttp leaves the trailing one.
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _parse(block: bytes) -> Head:
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass  # We speak nothing to upgrade to; RFC 9110 7.8 allows to go on as before.
    except httptools.HttpParserError as exc:
        raise HeadError(400, f"not HTTP/1.1: {_safe(str(exc))}") from None
    if not collector.complete:
        raise HeadError(400, "not HTTP/1.1: the head is incomplete")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise HeadError(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
    method = parser.get_method()
    headers: dict[bytes, bytes] = {}
    for name, value in collector.fields:
        if name in headers:
            if name in (b"host", b"content-length", b"transfer-encoding"):
                raise HeadError(400, f"more than one {name.decode()} header")
            headers[name] += b", " + value
        else:
            headers[name] = value
    if b"host" not in headers and version == "1.1":
        raise HeadError(400, "no Host header")
    content_length, chunked = _framing(method, version, headers)
    path, _, query = collector.url.partition(b"?")
    if not path.startswith(b"/") and not (method == b"OPTIONS" and path == b"*"):
        raise HeadError(400, "the request target must be a path")
    return Head(
        method,
        path,
        query,
        headers,
        content_length=content_length,
        chunked=chunked,
        keep_alive=_keep_alive(version, headers),
        old=version == "1.0",
    )


def _keep_alive(version: str, headers: dict[bytes, bytes]) -> bool:
    """Whether the connection stays (RFC 9112 9.3). llhttp forgets it when there is no body."""
    options = {option.strip() for option in headers.get(b"connection", b"").lower().split(b",")}
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


def _framing(method: bytes, version: str, headers: dict[bytes, bytes]) -> tuple[int, bool]:
    """Return (content length, chunked). What two parsers could read differently is refused."""
    length, encoding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if encoding is not None:
        if length is not None:
            raise HeadError(400, "Content-Length and Transfer-Encoding together")
        if version == "1.0" or encoding.lower() != b"chunked":
            raise HeadError(400, "only `Transfer-Encoding: chunked` is understood")
        return 0, True
    if length is None:
        if method in NO_BODY:
            return 0, False
        raise HeadError(411, "a body needs Content-Length or chunked encoding")
    if not length.isdigit() or len(length) > 18:
        raise HeadError(400, "Content-Length is not a number")
    return int(length), False


def _own_request_id(headers: dict[bytes, bytes]) -> str:
    sent = headers.get(b"x-request-id", b"").decode("latin-1")
    return sent if is_request_id(sent) else ""


def _safe(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
