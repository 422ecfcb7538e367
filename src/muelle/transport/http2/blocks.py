"""Header blocks: requests read with a cache, answers written without any table.

Most requests of a connection repeat one block byte for byte, and a block that only refers to the
table changes nothing there: it is decoded once. Source: RFC 7541; RFC 9113, section 8; "gRPC over
HTTP2". Not for what a request means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from muelle.transport.http2.frames import ConnectionFault, ErrorCode

CACHED_BLOCKS = 64
_RESERVED = frozenset({b"te", b"content-type", b"user-agent", b"content-length", b"host"})
_FORBIDDEN = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_UNITS = MappingProxyType({b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9})
_STATIC = MappingProxyType({b":status": 8, b"content-type": 31, b"content-length": 28, b"date": 33})


class Malformed(Exception):
    """A request that HTTP/2 does not allow: its stream is reset with PROTOCOL_ERROR."""


class TooLargeHead(Exception):
    """More header fields, or larger ones, than the limits allow: status 431."""


class RequestHead:
    """The header fields of one request, looked at once for all requests that repeat them."""

    __slots__ = (
        "accepts",
        "authority",
        "content_length",
        "encoding",
        "headers",
        "is_grpc",
        "metadata",
        "method",
        "path",
        "timeout_s",
    )

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise Malformed."""
        pseudo: dict[bytes, bytes] = {}
        headers: dict[bytes, bytes] = {}
        for name, value in fields:
            _check_field(name, value)
            if name.startswith(b":"):
                if headers or name in pseudo or name not in _PSEUDO:
                    raise Malformed(f"pseudo-header {name[:40]!r}: unknown, repeated or too late")
                pseudo[name] = value
            elif name in headers:
                # A cookie may be cut up: RFC 9113 8.2.3.
                glue = b"; " if name == b"cookie" else b", "
                headers[name] = headers[name] + glue + value
            else:
                headers[name] = value
        self.method = pseudo.get(b":method", b"")
        self.path = pseudo.get(b":path", b"")
        self.authority = pseudo.get(b":authority", headers.get(b"host", b""))
        if not self.method or b":scheme" not in pseudo or not self.path.startswith((b"/", b"*")):
            raise Malformed("a request needs :method, :scheme and :path")
        if headers.get(b"te", b"trailers") != b"trailers":
            raise Malformed("te: only `trailers` is allowed")
        self.headers: Mapping[bytes, bytes] = MappingProxyType(headers)
        self.content_length = _length(headers.get(b"content-length"))
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip()
        self.is_grpc = kind == b"application/grpc" or kind.startswith(b"application/grpc+")
        self.timeout_s: float | None = None
        self.encoding = headers.get(b"grpc-encoding", b"identity").strip()
        accepts = headers.get(b"grpc-accept-encoding", b"")
        self.accepts = frozenset(word.strip() for word in accepts.split(b","))
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None and self.is_grpc:
            self.timeout_s = _timeout(timeout)
        self.metadata: Mapping[bytes, bytes] = MappingProxyType(
            {
                name: value
                for name, value in headers.items()
                if name not in _RESERVED and not name.startswith(b"grpc-")
            }
        )


_PSEUDO = frozenset({b":method", b":path", b":scheme", b":authority"})


class HeadReader:
    """Reads the header blocks of one connection: each must come here, in order."""

    def __init__(self, *, max_bytes: int, max_count: int) -> None:
        """Decoded fields over max_bytes (name, value and 32 each) or max_count are refused; over
        twice the bytes the connection ends, for the table cannot be kept then."""
        self._decoder = Decoder(max_header_list_size=2 * max_bytes)
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._known: dict[bytes, RequestHead] = {}
        self.epoch = 0
        """Changes with the table: what was known of a block before holds no longer."""

    def read(self, block: bytes) -> RequestHead:
        """Return a request's head. Raise Malformed, TooLargeHead, or ConnectionFault."""
        known = self._known.get(block)
        if known is not None:
            return known
        head = RequestHead(self.fields(block))
        if not touches_table(block) and len(self._known) < CACHED_BLOCKS:
            self._known[block] = head
        return head

    def known(self, block: bytes) -> RequestHead | None:
        """Return a head that was read before and still means the same."""
        return self._known.get(block)

    def fields(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Decode a block. Raise TooLargeHead or ConnectionFault."""
        try:
            found = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as exc:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "headers too large") from exc
        except (HPACKError, IndexError, ValueError) as exc:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block") from exc
        if touches_table(block):
            self._known.clear()
            self.epoch += 1
        size = sum(len(name) + len(value) + 32 for name, value in found)
        if size > self._max_bytes or len(found) > self._max_count:
            raise TooLargeHead(f"{len(found)} header fields of {size} bytes")
        return [(bytes(name), bytes(value)) for name, value in found]


def touches_table(block: bytes) -> bool:
    """Whether decoding a block changes the dynamic table. True also for what cannot be read."""
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        if first & 0x80:
            at = _skip_integer(block, at, 0x7F)
        elif first & 0x60:
            return True  # Literal with indexing, or a new size.
        else:
            named = first & 0x0F
            at = _skip_integer(block, at, 0x0F)
            if not named:
                at = _skip_string(block, at)
            at = _skip_string(block, at)
        if at > end:
            return True
    return False


def _skip_integer(block: bytes, at: int, mask: int) -> int:
    if block[at] & mask != mask:
        return at + 1
    at += 1
    while at < len(block) and block[at] & 0x80:
        at += 1
    return at + 1


def _skip_string(block: bytes, at: int) -> int:
    if at >= len(block):
        return at + 1
    length = block[at] & 0x7F
    if length < 0x7F:
        return at + 1 + length
    shift = 0
    at += 1
    while at < len(block):
        length += (block[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not block[at - 1] & 0x80:
            return at + length
        if shift > 28:
            break
    return len(block) + 1


def header_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return fields as a block that no table is needed for (literals without indexing)."""
    parts: list[bytes] = []
    for name, value in fields:
        index = _STATIC.get(name)
        if index is not None:
            parts.append(_integer(index, 0x0F, 0x00))
        else:
            parts += (b"\x00", _integer(len(name), 0x7F, 0x00), name)
        parts += (_integer(len(value), 0x7F, 0x00), value)
    return b"".join(parts)


def _integer(value: int, mask: int, pattern: int) -> bytes:
    """Write an integer with a prefix. Source: RFC 7541, section 5.1."""
    if value < mask:
        return bytes((pattern | value,))
    out = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_field(name: bytes, value: bytes) -> None:
    if not name or name != name.lower() or name in _FORBIDDEN:
        raise Malformed(f"header field {name[:40]!r} is not allowed")
    body = name[1:] if name.startswith(b":") else name
    if not body or any(c <= 0x20 or c >= 0x7F or c == 0x3A for c in body):
        raise Malformed("a header field's name has a character that is not allowed")
    if any(c in value for c in (0, 10, 13)) or value != value.strip(b" \t"):
        raise Malformed(f"header field {name[:40].decode('latin-1')}: its value is not allowed")


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise Malformed("content-length: not a number")
    return int(value)


def _timeout(value: bytes) -> float:
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not number.isdigit() or len(number) > 8:
        raise Malformed("grpc-timeout: not a number of at most 8 digits and a unit")
    return int(number) * _UNITS[unit]
