"""The management API: an ASGI app over `AdminDoors`. Not for what an action does.

Every route declares its right (`read` or `change`) in one table, or it does not exist. Every
change, also one that failed or was denied, goes to the audit log. The log is tried before a change
begins: while it cannot be written, changes are refused (fail closed). Importing this imports
FastAPI.

Who asks is known by the Unix socket (the kernel tells the user of the other end; root and the
server's own user may) or, over TCP, by a bearer token, compared by its SHA-256 in constant time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from muelle.api.admin_doors import AdminDoors
from muelle.core.admin import Rollback, SetLabel, StartRollout
from muelle.core.errors import (
    BadRequest,
    Forbidden,
    Internal,
    MethodNotAllowed,
    MuelleError,
    RouteNotFound,
    Unauthenticated,
    Unavailable,
)
from muelle.core.ids import is_request_id, new_request_id
from muelle.core.records import RouteSpec
from muelle.protocols import native
from muelle.protocols.http import JSON

log = logging.getLogger("muelle.admin")

MAX_BODY_BYTES = 64 * 1024
DENIALS_PER_S = 10
"""Denied requests are written down one by one up to this rate, then counted: whoever hammers at the
door must not fill the disk."""

Right: TypeAlias = Literal["read", "change"]
Call: TypeAlias = Callable[[AdminDoors, Request, Any, str], Awaitable[Any]]


class LoadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version to load or unload; None for all of the model."""

    version: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table."""

    method: str
    path: str
    right: Right
    action: str
    """As the audit log names it."""
    body: Any
    """Type of the body, None when there is none."""
    call: Call
    status: int = 200


def _model(request: Request) -> str:
    return str(request.path_params["model"])


def _limit(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name}: not a whole number", field=name)
    return min(int(text), most)


async def _audit(doors: AdminDoors, request: Request, body: Any, who: str) -> Any:
    after, limit = _limit(request, "after", 0, 2**62), _limit(request, "limit", 100, 1_000)
    return await asyncio.to_thread(doors.read_audit, after, limit)


async def _remove_label(doors: AdminDoors, request: Request, body: Any, who: str) -> Any:
    await doors.remove_label(_model(request), str(request.path_params["label"]), who)
    return {}


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/v1/status", "read", "status", None, lambda d, r, b, w: d.status()),
    Operation("GET", "/v1/models", "read", "models", None, lambda d, r, b, w: d.models()),
    Operation(
        "GET", "/v1/models/{model}", "read", "model", None, lambda d, r, b, w: d.model(_model(r))
    ),
    Operation(
        "POST", "/v1/models/{model}/labels", "change", "label", SetLabel,
        lambda d, r, b, w: d.set_label(_model(r), b, w),
    ),
    Operation(
        "DELETE", "/v1/models/{model}/labels/{label}", "change", "label", None, _remove_label
    ),
    Operation(
        "POST", "/v1/models/{model}/rollback", "change", "rollback", Rollback,
        lambda d, r, b, w: d.rollback(_model(r), b, w),
    ),
    Operation(
        "GET", "/v1/models/{model}/route", "read", "route", None,
        lambda d, r, b, w: d.route(_model(r)),
    ),
    Operation(
        "PUT", "/v1/models/{model}/route", "change", "route", RouteSpec,
        lambda d, r, b, w: d.set_route(_model(r), b, w),
    ),
    Operation(
        "DELETE", "/v1/models/{model}/route", "change", "route", None,
        lambda d, r, b, w: d.set_route(_model(r), None, w),
    ),
    Operation(
        "POST", "/v1/models/{model}/rollout", "change", "rollout", StartRollout,
        lambda d, r, b, w: d.start_rollout(_model(r), b, w), status=202,
    ),
    Operation(
        "GET", "/v1/models/{model}/rollout", "read", "rollout", None,
        lambda d, r, b, w: d.rollout(_model(r)),
    ),
    Operation(
        "DELETE", "/v1/models/{model}/rollout", "change", "rollout", None,
        lambda d, r, b, w: d.abort_rollout(_model(r), w),
    ),
    Operation(
        "POST", "/v1/models/{model}/load", "change", "load", LoadBody,
        lambda d, r, b, w: d.load(_model(r), b.version, w),
    ),
    Operation(
        "POST", "/v1/models/{model}/unload", "change", "unload", LoadBody,
        lambda d, r, b, w: d.unload(_model(r), b.version, w),
    ),
    Operation("POST", "/v1/sync", "change", "sync", None, lambda d, r, b, w: d.sync(w)),
    Operation("GET", "/v1/audit", "read", "audit", None, _audit),
)  # fmt: skip


def build_admin_app(
    doors: AdminDoors,
    *,
    token_hashes: Sequence[str] = (),
    uids: frozenset[int] | None = None,
    version: str = "",
    now: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the app. `token_hashes` are SHA-256 in hex; `uids` may use the Unix socket (default:
    root and this process' user)."""
    app = FastAPI(
        title="Muelle management",
        version=version or "1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refused},
    )
    gate = _Gate(doors, tuple(token_hashes), uids or frozenset({0, os.getuid()}), now)
    for operation in OPERATIONS:
        app.router.routes.append(
            Route(operation.path, _endpoint(operation, doors, gate), methods=[operation.method])
        )
    return app


class _Gate:
    """Says who asks, or turns them away. Used on the event loop's thread only."""

    def __init__(
        self,
        doors: AdminDoors,
        token_hashes: tuple[str, ...],
        uids: frozenset[int],
        now: Callable[[], float],
    ) -> None:
        self._doors = doors
        self._token_hashes = token_hashes
        self._uids = uids
        self._now = now
        self._denied: list[float] = []
        self._unwritten = 0

    def who(self, request: Request) -> str:
        """Return who asks. Raise Unauthenticated or Forbidden."""
        peer = request.scope.get("extensions", {}).get("muelle.peer")
        if peer is not None:
            uid = int(peer["uid"])
            if uid in self._uids:
                return f"uid:{uid}({_account(uid)})"
            raise Forbidden(f"user {uid} may not manage this server; its own user and root may")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("the management API asks for a token: Authorization: Bearer …")
        found = hashlib.sha256(token.strip().encode()).hexdigest()
        # All are compared, so that the time tells nothing about which one was near.
        matches = [hmac.compare_digest(found, known) for known in self._token_hashes]
        if not any(matches):
            raise Unauthenticated("the token is not the one that this server knows")
        return f"token:{found[:8]}"

    async def note_denied(self, request: Request, error: MuelleError) -> None:
        """Write a denial down, unless there are too many of them."""
        now = self._now()
        self._denied = [moment for moment in self._denied if moment > now - 1.0]
        if len(self._denied) >= DENIALS_PER_S:
            self._unwritten += 1
            return
        self._denied.append(now)
        detail: dict[str, Any] = {"method": request.method, "path": request.url.path[:200]}
        if self._unwritten:
            detail["not_written_before"] = self._unwritten
        peer = request.scope.get("extensions", {}).get("muelle.peer")
        who = f"uid:{peer['uid']}" if peer is not None else "unknown"
        try:
            await asyncio.to_thread(
                self._doors.write_audit, who, "denied", "", None, "", error.message, detail
            )
            self._unwritten = 0
        except Exception as exc:
            log.error("a denial could not be written to the audit log", exc_info=exc)


def _endpoint(
    operation: Operation, doors: AdminDoors, gate: _Gate
) -> Callable[[Request], Awaitable[Response]]:
    decoder = msgspec.json.Decoder(operation.body) if operation.body is not None else None

    async def endpoint(request: Request) -> Response:
        request_id = _request_id(request)
        try:
            who = gate.who(request)
        except MuelleError as exc:
            await gate.note_denied(request, exc)
            return _error(exc, request_id)
        try:
            body = _decoded(decoder, await request.body())
            if operation.right == "read":
                value = await operation.call(doors, request, body, who)
            else:
                value = await _change(operation, doors, request, body, who)
        except Exception as exc:
            if not isinstance(exc, MuelleError):
                log.error("admin request failed", exc_info=exc, extra={"request_id": request_id})
            return _error(exc, request_id)
        return _answer(msgspec.json.encode(value), operation.status, request_id)

    return endpoint


async def _change(
    operation: Operation, doors: AdminDoors, request: Request, body: Any, who: str
) -> Any:
    """Do a change and write down how it ended, before it is acknowledged."""
    try:
        await asyncio.to_thread(doors.check_audit)
    except Exception as exc:
        raise Unavailable(f"the audit log cannot be written, nothing was changed: {exc}") from exc
    outcome, value = "interrupted", None
    try:
        value = await operation.call(doors, request, body, who)
        outcome = "ok"
    except MuelleError as exc:
        outcome = " ".join(exc.message.split())
        raise
    except Exception:
        outcome = "internal error"
        raise
    finally:
        version, digest, detail = _facts(body, value)
        detail |= {k: str(v) for k, v in request.path_params.items() if k != "model"}
        if request.method == "DELETE":
            detail["removed"] = True
        entry = (
            who,
            operation.action,
            request.path_params.get("model", ""),
            version,
            digest,
            outcome,
            detail,
        )
        await _write(doors, entry)
    return value


async def _write(doors: AdminDoors, entry: tuple[Any, ...]) -> None:
    """Write an entry, also when the request is being cancelled: the change was made."""
    writing = asyncio.ensure_future(asyncio.to_thread(doors.write_audit, *entry))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise
    except Exception as exc:
        raise Internal("the change was made, but the audit log could not be written") from exc


def _facts(body: Any, value: Any) -> tuple[int | None, str, dict[str, Any]]:
    """Return version, digest and further facts of a change, for the log."""
    asked = msgspec.to_builtins(body) if isinstance(body, msgspec.Struct) else {}
    version = asked.pop("version", None)
    if version is None:
        version = getattr(value, "version", None)
    detail = {
        k: v
        if isinstance(v, str | int | float | bool) or v is None
        else msgspec.json.encode(v).decode()
        for k, v in asked.items()
        if v not in ("", None)
    }
    return version, str(getattr(value, "digest", "")), detail


def _decoded(decoder: Any, raw: bytes) -> Any:
    if decoder is None:
        return None
    if len(raw) > MAX_BODY_BYTES:
        raise BadRequest(f"the body has {len(raw)} bytes; no request needs over {MAX_BODY_BYTES}")
    try:
        return decoder.decode(raw or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"request body: {exc}") from exc


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    allowed = (exc.headers or {}).get("Allow", "")
    error: MuelleError
    if exc.status_code == 405:
        error = MethodNotAllowed(f"this path takes {allowed}")
    else:
        error = RouteNotFound("no such path; GET /openapi.json and docs/versions.md tell them")
    return _error(error, _request_id(request))


def _error(error: Exception, request_id: str) -> Response:
    answer = native.encode_error(error, request_id)
    headers = [(name.decode(), value.decode()) for name, value in answer.headers]
    if isinstance(error, Unauthenticated):
        headers.append(("www-authenticate", "Bearer"))
    response = Response(answer.body, answer.status, media_type=answer.content_type.decode())
    for name, value in headers:
        response.headers[name] = value
    response.headers["x-request-id"] = request_id
    return response


def _answer(body: bytes, status: int, request_id: str) -> Response:
    headers = {"x-request-id": request_id, "cache-control": "no-store"}
    return Response(body, status, headers=headers, media_type=JSON.decode())


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if is_request_id(given) else new_request_id()


def _account(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"
