"""One total table per protocol: error code -> HTTP status. A test wants a row for each code."""

from __future__ import annotations

from types import MappingProxyType

from muelle.core.errors import ErrorCode as E

HTTP_STATUS: MappingProxyType[E, int] = MappingProxyType(
    {
        E.BAD_REQUEST: 400,
        E.UNPROCESSABLE: 422,
        E.MODEL_NOT_FOUND: 404,
        E.VERSION_NOT_FOUND: 404,
        E.ROUTE_NOT_FOUND: 404,
        E.UNAUTHENTICATED: 401,
        E.FORBIDDEN: 403,
        E.METHOD_NOT_ALLOWED: 405,
        E.REQUEST_TIMEOUT: 408,
        E.LENGTH_REQUIRED: 411,
        E.TOO_LARGE: 413,
        E.UNSUPPORTED_MEDIA: 415,
        E.HEADERS_TOO_LARGE: 431,
        E.HTTP_VERSION: 505,
        E.NOT_ACCEPTABLE: 406,
        E.OVERLOADED: 503,
        E.UNAVAILABLE: 503,
        E.DEADLINE: 504,
        E.CANCELLED: 499,
        E.MODEL_FAILED: 500,
        E.UNSUPPORTED: 501,
        E.CONFLICT: 409,
        E.BAD_GATEWAY: 502,
        E.INTERNAL: 500,
    }
)
"""The native protocol."""

GRPC_STATUS: MappingProxyType[E, int] = MappingProxyType(
    {
        E.BAD_REQUEST: 3,
        E.UNPROCESSABLE: 3,
        E.MODEL_NOT_FOUND: 3,
        E.VERSION_NOT_FOUND: 5,
        E.ROUTE_NOT_FOUND: 12,
        E.UNAUTHENTICATED: 16,
        E.FORBIDDEN: 7,
        E.METHOD_NOT_ALLOWED: 12,
        E.REQUEST_TIMEOUT: 4,
        E.LENGTH_REQUIRED: 3,
        E.TOO_LARGE: 8,
        E.UNSUPPORTED_MEDIA: 3,
        E.HEADERS_TOO_LARGE: 8,
        E.HTTP_VERSION: 12,
        E.NOT_ACCEPTABLE: 3,
        E.OVERLOADED: 14,
        E.UNAVAILABLE: 14,
        E.DEADLINE: 4,
        E.CANCELLED: 1,
        E.MODEL_FAILED: 13,
        E.UNSUPPORTED: 12,
        E.CONFLICT: 9,
        E.BAD_GATEWAY: 14,
        E.INTERNAL: 13,
    }
)
"""gRPC status codes by number, as Triton answers: a model in no repository is INVALID_ARGUMENT."""

V2_STATUS: MappingProxyType[E, int] = MappingProxyType(
    {
        **HTTP_STATUS,
        # Triton answers 400 to a model that is in no repository, and 400 to a body it cannot use.
        E.MODEL_NOT_FOUND: 400,
        E.UNPROCESSABLE: 400,
    }
)
"""Open Inference Protocol v2 as Triton speaks it (spec page, section 21)."""
