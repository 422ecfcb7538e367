"""Every call that a client can make, as a value: how it is asked, how its answer is read. Pure.

`sync` and `aio` only carry these out; whatever is decided about HTTP is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from muelle.client.tensors import HEADER_LENGTH, decode_answer
from muelle.core import errors
from muelle.core.admin import (
    AuditEntry,
    LabelAnswer,
    Rollback,
    RolloutStatus,
    ServerStatus,
    SetLabel,
    StartRollout,
)
from muelle.core.errors import ErrorCode, MuelleError
from muelle.core.records import STABLE, RouteSpec
from muelle.core.signature import Signature
from muelle.core.status import ModelStatus

T = TypeVar("T")

Headers = Mapping[str, str]


class ServerUnreachable(MuelleError):
    """No connection to the server could be made, or it ended in the middle."""

    code = ErrorCode.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `read` makes the result of a good answer."""

    method: str
    path: str
    read: Callable[[Reply], T]
    body: bytes | None = None
    headers: Headers = field(default_factory=dict)
    repeatable: bool = True
    """Whether doing it twice does no harm."""
    accepts: tuple[int, ...] = ()
    """Statuses of errors that are answers here."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request, and who gave it."""

    outputs: dict[str, np.ndarray[Any, Any]]
    """Output name -> array; BYTES as object arrays of bytes."""
    model: str
    version: str
    digest: str
    request_id: str

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.outputs[name]

    def array(self) -> np.ndarray[Any, Any]:
        """Return the only output. Raise BadRequest when there are several."""
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs)
            raise errors.BadRequest(f"the model has several outputs: {names}; name one")
        return next(iter(self.outputs.values()))


_BY_CODE = {
    kind.code.value: kind
    for kind in (
        errors.BadRequest,
        errors.Unprocessable,
        errors.ModelNotFound,
        errors.VersionNotFound,
        errors.RouteNotFound,
        errors.MethodNotAllowed,
        errors.TooLarge,
        errors.UnsupportedMedia,
        errors.NotAcceptable,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.ModelFailed,
        errors.Unsupported,
        errors.Conflict,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.Internal,
    )
}
_BY_STATUS: Mapping[int, type[MuelleError]] = {
    400: errors.BadRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.RouteNotFound,
    413: errors.TooLarge,
    422: errors.Unprocessable,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


def error_of(reply: Reply) -> MuelleError:
    """Return an error answer as an exception: problem details, v2's `error`, or plain text."""
    try:
        problem = msgspec.json.decode(reply.body)
    except msgspec.MsgspecError:
        problem = None
    text = reply.body[:200].decode("utf-8", "replace")
    code = field_name = ""
    if isinstance(problem, dict):
        text = str(problem.get("detail") or problem.get("error") or text)
        code, field_name = str(problem.get("code", "")), str(problem.get("field", ""))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(reply.status, errors.Internal)
    return kind(
        text or f"status {reply.status}", field=field_name, retry_after_s=retry_after_of(reply)
    )


def retry_after_of(reply: Reply) -> float | None:
    """Return the seconds that the server asks to wait, None when it does not."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else None


def _struct(kind: Any) -> Callable[[Reply], Any]:
    decoder = msgspec.json.Decoder(kind)

    def read(reply: Reply) -> Any:
        try:
            return decoder.decode(reply.body)
        except msgspec.MsgspecError as exc:
            raise errors.Internal(f"the server's answer cannot be read: {exc}") from exc

    return read


def _nothing(reply: Reply) -> None:
    return None


def _is_ok(reply: Reply) -> bool:
    return reply.status == 200


def _name(model: str) -> str:
    return quote(model, safe="")


def signature_of(status: ModelStatus, version: str | None) -> Signature:
    """Return what a version takes and gives. Raise VersionNotFound, or Unavailable: not loaded."""
    wanted = version if version is not None else status.default
    found = next((v for v in status.versions if v.version == wanted), None)
    if found is None:
        have = ", ".join(v.version for v in status.versions) or "none"
        raise errors.VersionNotFound(f"{status.name}: no version {wanted}; there is: {have}")
    if found.signature is None:
        raise errors.Unavailable(f"{status.name}:{wanted}: {found.reason}", retry_after_s=1.0)
    return found.signature


# --- predictions and what is served ---


def predict(
    model: str,
    version: str | None,
    body: bytes,
    headers: Headers,
    timeout_s: float | None,
) -> Call[Prediction]:
    """POST a v2 request."""
    pinned = f"/versions/{quote(version, safe='')}" if version is not None else ""
    sent = dict(headers)
    if timeout_s is not None:
        sent["timeout-ms"] = f"{timeout_s * 1e3:.0f}"

    def read(reply: Reply) -> Prediction:
        return Prediction(
            outputs=decode_answer(reply.body, reply.headers.get(HEADER_LENGTH)),
            model=reply.headers.get("muelle-model", model),
            version=reply.headers.get("muelle-version", ""),
            digest=reply.headers.get("muelle-digest", ""),
            request_id=reply.headers.get("x-request-id", ""),
        )

    return Call("POST", f"/v2/models/{_name(model)}{pinned}/infer", read, body, sent)


class _Models(msgspec.Struct):
    models: tuple[ModelStatus, ...]


def models(*, managed: bool) -> Call[tuple[ModelStatus, ...]]:
    """GET /models, or /v1/models where management listens."""
    if managed:
        return Call("GET", "/v1/models", _struct(tuple[ModelStatus, ...]))
    read = _struct(_Models)
    return Call("GET", "/models", lambda reply: read(reply).models)


def model(name: str, *, managed: bool) -> Call[ModelStatus]:
    """GET /models/{name}, or /v1/models/{name} where management listens."""
    prefix = "/v1" if managed else ""
    return Call("GET", f"{prefix}/models/{_name(name)}", _struct(ModelStatus))


def live() -> Call[bool]:
    """GET /live."""
    return Call("GET", "/live", _is_ok, accepts=(503,))


def ready() -> Call[bool]:
    """GET /ready."""
    return Call("GET", "/ready", _is_ok, accepts=(503,))


def metrics() -> Call[str]:
    """GET /metrics."""
    return Call("GET", "/metrics", lambda reply: reply.body.decode())


# --- management ---


def _change(method: str, path: str, read: Callable[[Reply], T], body: Any = None) -> Call[T]:
    encoded = msgspec.json.encode(body) if body is not None else b""
    headers = {"content-type": "application/json"}
    return Call(method, path, read, encoded, headers, repeatable=False)


def status() -> Call[ServerStatus]:
    """GET /v1/status."""
    return Call("GET", "/v1/status", _struct(ServerStatus))


def set_label(name: str, label: str, version: int, note: str) -> Call[LabelAnswer]:
    """POST /v1/models/{m}/labels."""
    body = SetLabel(label=label, version=version, note=note)
    return _change("POST", f"/v1/models/{_name(name)}/labels", _struct(LabelAnswer), body)


def remove_label(name: str, label: str) -> Call[None]:
    """DELETE /v1/models/{m}/labels/{label}."""
    path = f"/v1/models/{_name(name)}/labels/{quote(label, safe='')}"
    return _change("DELETE", path, _nothing)


def rollback(name: str, label: str = STABLE, note: str = "") -> Call[LabelAnswer]:
    """POST /v1/models/{m}/rollback."""
    body = Rollback(label=label, note=note)
    return _change("POST", f"/v1/models/{_name(name)}/rollback", _struct(LabelAnswer), body)


def route(name: str) -> Call[RouteSpec | None]:
    """GET /v1/models/{m}/route."""
    return Call("GET", f"/v1/models/{_name(name)}/route", _struct(RouteSpec | None))


def set_route(name: str, spec: RouteSpec | None) -> Call[RouteSpec | None]:
    """PUT or DELETE /v1/models/{m}/route."""
    path = f"/v1/models/{_name(name)}/route"
    if spec is None:
        return _change("DELETE", path, _struct(RouteSpec | None))
    return _change("PUT", path, _struct(RouteSpec | None), spec)


def start_rollout(name: str, spec: StartRollout) -> Call[RolloutStatus]:
    """POST /v1/models/{m}/rollout."""
    return _change("POST", f"/v1/models/{_name(name)}/rollout", _struct(RolloutStatus), spec)


def rollout(name: str) -> Call[RolloutStatus]:
    """GET /v1/models/{m}/rollout."""
    return Call("GET", f"/v1/models/{_name(name)}/rollout", _struct(RolloutStatus))


def abort_rollout(name: str) -> Call[RolloutStatus]:
    """DELETE /v1/models/{m}/rollout."""
    return _change("DELETE", f"/v1/models/{_name(name)}/rollout", _struct(RolloutStatus))


def load(name: str, version: int | None) -> Call[ModelStatus]:
    """POST /v1/models/{m}/load."""
    body = {"version": version}
    return _change("POST", f"/v1/models/{_name(name)}/load", _struct(ModelStatus), body)


def unload(name: str, version: int | None) -> Call[ModelStatus]:
    """POST /v1/models/{m}/unload."""
    body = {"version": version}
    return _change("POST", f"/v1/models/{_name(name)}/unload", _struct(ModelStatus), body)


def sync() -> Call[dict[str, float]]:
    """POST /v1/sync."""
    return _change("POST", "/v1/sync", _struct(dict[str, float]))


def audit(after: int, limit: int) -> Call[tuple[AuditEntry, ...]]:
    """GET /v1/audit."""
    return Call("GET", f"/v1/audit?after={after}&limit={limit}", _struct(tuple[AuditEntry, ...]))
