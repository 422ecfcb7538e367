"""Errors in the form of the protocol that a path belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from muelle.core.errors import MuelleError
from muelle.protocols import v2
from muelle.protocols.http import Answer
from muelle.protocols.status import HTTP_STATUS

ErrorEncoder = Callable[[Exception, str], Answer]


def error_encoder(path: str) -> ErrorEncoder:
    """Return what writes errors on a path: v2's form under `/v2`, RFC 9457 elsewhere."""
    return v2.encode_error if path == "/v2" or path.startswith("/v2/") else native_error


def native_error(error: Exception, request_id: str) -> Answer:
    """Write problem details (RFC 9457). An error without a code tells nothing but the id."""
    known = isinstance(error, MuelleError)
    status = HTTP_STATUS[error.code] if isinstance(error, MuelleError) else 500
    body = {
        "type": "about:blank",
        "title": "Error",
        "status": status,
        "detail": str(error) if known else "internal error",
        "code": error.code.value if isinstance(error, MuelleError) else "internal",
        "request_id": request_id,
    }
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, MuelleError) and error.retry_after_s is not None:
        headers = ((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    return Answer(status, b"application/problem+json", msgspec.json.encode(body), headers)
