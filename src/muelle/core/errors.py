"""Errors that a caller may see: a code, and what was wrong, where, and what to do.

Not for statuses: each protocol has one total table from code to status (`protocols.status`).
Texts never carry a path, a memory address or a traceback.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.Enum):
    """What kind of trouble it is, whichever protocol the caller speaks."""

    BAD_REQUEST = "bad_request"
    UNPROCESSABLE = "unprocessable"
    MODEL_NOT_FOUND = "model_not_found"
    VERSION_NOT_FOUND = "version_not_found"
    ROUTE_NOT_FOUND = "route_not_found"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    LENGTH_REQUIRED = "length_required"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    HEADERS_TOO_LARGE = "headers_too_large"
    HTTP_VERSION = "http_version"
    NOT_ACCEPTABLE = "not_acceptable"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline_exceeded"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model_failed"
    UNSUPPORTED = "unsupported"
    CONFLICT = "conflict"
    BAD_GATEWAY = "bad_gateway"
    INTERNAL = "internal"


class MuelleError(Exception):
    """Base of every error with a code. `field` names the member of the request at fault."""

    code = ErrorCode.INTERNAL

    def __init__(
        self, message: str, *, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class BadRequest(MuelleError):
    """The request does not say what the protocol wants; sending it again will not help."""

    code = ErrorCode.BAD_REQUEST


class Unprocessable(MuelleError):
    """The request is well formed, but its values cannot be used by this model."""

    code = ErrorCode.UNPROCESSABLE


class ModelNotFound(MuelleError):
    """No model of that name is served."""

    code = ErrorCode.MODEL_NOT_FOUND


class VersionNotFound(MuelleError):
    """The model is served, but not that version of it."""

    code = ErrorCode.VERSION_NOT_FOUND


class RouteNotFound(MuelleError):
    """No endpoint has that path."""

    code = ErrorCode.ROUTE_NOT_FOUND


class Unauthenticated(MuelleError):
    """Who asks is not known."""

    code = ErrorCode.UNAUTHENTICATED


class Forbidden(MuelleError):
    """Who asks is known, and may not."""

    code = ErrorCode.FORBIDDEN


class MethodNotAllowed(MuelleError):
    """The path exists, but not with that method."""

    code = ErrorCode.METHOD_NOT_ALLOWED


class TooLarge(MuelleError):
    """More bytes than the limit allows."""

    code = ErrorCode.TOO_LARGE


class UnsupportedMedia(MuelleError):
    """The body is of a type (or an encoding) that this endpoint does not read."""

    code = ErrorCode.UNSUPPORTED_MEDIA


class NotAcceptable(MuelleError):
    """No form of the answer that the caller accepts can carry it."""

    code = ErrorCode.NOT_ACCEPTABLE


class QueueFull(MuelleError):
    """The model's queue is at its limit. The same request may succeed later."""

    code = ErrorCode.OVERLOADED

    def __init__(self, model: str, limit: int) -> None:
        super().__init__(
            f"{model}: {limit} requests already wait; retry, or raise max_queue", retry_after_s=1.0
        )


class Unavailable(MuelleError):
    """The model cannot answer now: it loads, restarts, is quarantined, or the server drains."""

    code = ErrorCode.UNAVAILABLE


class DeadlineExceeded(MuelleError):
    """The request's time ran out before its answer was there."""

    code = ErrorCode.DEADLINE


class Cancelled(MuelleError):
    """The caller left; nobody reads this."""

    code = ErrorCode.CANCELLED


class ModelFailed(MuelleError):
    """The model's own code failed on this request."""

    code = ErrorCode.MODEL_FAILED


class BadGateway(MuelleError):
    """A hosted application's process ended while it had the request."""

    code = ErrorCode.BAD_GATEWAY


class Internal(MuelleError):
    """A fault of Muelle itself. The log has the details under the request id."""

    code = ErrorCode.INTERNAL


class Unsupported(MuelleError):
    """What is asked for exists, but not as this server is set up. The message says how it would."""

    code = ErrorCode.UNSUPPORTED


class ArtifactError(MuelleError):
    """A model file cannot be used: not found, not a known format, broken, or not trusted."""

    code = ErrorCode.UNPROCESSABLE


class SignatureInvalid(ArtifactError):
    """A signature is not one of an accepted key over exactly these files, or there is none."""


class Conflict(MuelleError):
    """What is asked goes against what else is in force: a label, a route, a server, a push."""

    code = ErrorCode.CONFLICT


class StoreError(MuelleError):
    """The store cannot be read or written now: a full disk, a failing one, or it is damaged."""

    code = ErrorCode.UNAVAILABLE


class MissingLibrary(ArtifactError):
    """The library that runs a format is not installed. The message names the extra to install."""


class ImageError(MuelleError):
    """An image, a layer or a base cannot be read or written. The message says what to do."""

    code = ErrorCode.UNPROCESSABLE


class RegistryError(MuelleError):
    """An image registry refuses, is away, or does not keep to its protocol."""

    code = ErrorCode.UNAVAILABLE


class ConfigError(MuelleError):
    """A setting is wrong. The message says which, where it came from, and what is allowed."""

    code = ErrorCode.BAD_REQUEST
