"""Composition root, second part: the management API's listeners, its log, the server's lease."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from muelle.config.sections import AdminConfig, LimitsConfig
from muelle.control.sources import StoreSource
from muelle.core.admin import RolloutStatus
from muelle.core.errors import ConfigError, Internal
from muelle.core.records import ServerLease
from muelle.management import ManagementService
from muelle.protocols import native
from muelle.protocols.http import Answer
from muelle.repository.store.leases import LeaseFile
from muelle.telemetry.audit import AuditLog
from muelle.transport.asgi import App, AsgiHost
from muelle.transport.ports import bind_or_explain, bind_unix
from muelle.transport.server import HttpServer

log = logging.getLogger("muelle.admin")

P = ParamSpec("P")
T = TypeVar("T")

NONE = "none"
MIN_TOKEN_CHARS = 16


def audit_path(store: Path | None, env: Mapping[str, str]) -> Path:
    """Return where admin actions are logged: in the store, else in the user's state folder."""
    if store is not None:
        return store / "audit.db"
    state = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "/")) / ".local/state")
    return Path(state) / "muelle" / "audit.db"


class Admin:
    """The management side of one running server. Used on the event loop's thread only."""

    def __init__(
        self,
        config: AdminConfig,
        limits: LimitsConfig,
        management: ManagementService,
        source: StoreSource | None,
        *,
        refusal: Callable[[bytes, int, str, str], Answer],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._management = management
        self._source = source
        self._loop = loop
        self._token = _read_token(config)
        self._asgi = AsgiHost(self._build, loop)
        self._http = HttpServer(
            limits,
            asgi=self._asgi,
            direct={},
            refusal=refusal,
            internal_error=_internal_error,
            loop=loop,
        )
        self._path = ""
        self._lease: LeaseFile | None = None
        self._id = secrets.token_hex(8)
        self._writing: asyncio.Future[None] | None = None
        self._stale = False
        self._stopping = False

    async def start(self) -> None:
        """Listen. Raise ConfigError when an address that was asked for cannot be had."""
        config = self._config
        if config.socket != NONE:
            sock = self._bind_unix()
            if sock is not None:
                await self._http.start(sock)
        if config.listen:
            host, _, port = config.listen.rpartition(":")
            if not port.isdigit() or int(port) > 65535:
                raise ConfigError(f"admin.listen: {config.listen!r} is not [HOST:]PORT")
            if self._token is None:
                raise ConfigError("admin.listen needs a token: --admin-token-file FILE")
            # Only this machine, unless an address is named.
            await self._http.start(bind_or_explain(host.strip("[]") or "127.0.0.1", int(port)))
        if self._source is not None:
            self._lease = self._source.store.lease(self._new_lease())

    def warm(self) -> None:
        """Import what the API needs, before somebody waits for it."""
        if self._path or self._config.listen:
            self._asgi.warm()

    def versions_changed(self) -> None:
        """Let the store know what this server has loaded: such versions are not removed."""
        if self._lease is None:
            return
        if self._writing is not None and not self._writing.done():
            self._stale = True  # One write at a time; the last word is written after it.
            return
        self._stale = False
        update = partial(self._lease.update, self._new_lease())
        self._writing = self._loop.run_in_executor(None, update)
        self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        problem = writing.exception() if not writing.cancelled() else None
        if problem is not None:
            log.warning("the store does not know what this server has loaded: %s", problem)
        if self._stale and not self._stopping:
            self.versions_changed()

    async def stop(self) -> None:
        """Answer what was asked, and take the socket away."""
        self._stopping = True
        await self._http.drain(1.0)
        if self._writing is not None:
            await asyncio.wait({self._writing})
        if self._lease is not None:
            self._lease.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)

    @property
    def socket_path(self) -> str:
        """Where the Unix socket is, "" when there is none."""
        return self._path

    def _new_lease(self) -> ServerLease:
        loaded = self._management.fleet.loaded()
        return ServerLease(
            id=self._id,
            pid=os.getpid(),
            host=socket.gethostname(),
            socket=self._path,
            url=self._management.url,
            versions=tuple((model, int(version)) for model, version in loaded),
        )

    def _bind_unix(self) -> socket.socket | None:
        asked = bool(self._config.socket)
        try:
            path = Path(self._config.socket).expanduser() if asked else _default_socket(os.environ)
            sock = bind_unix(path)
        except OSError as exc:
            if asked:
                raise ConfigError(
                    f"admin.socket: cannot listen on {self._config.socket}: {exc.strerror or exc}"
                ) from None
            log.warning("no admin socket: %s; name one with --admin-socket", exc.strerror or exc)
            return None
        self._path = str(path)
        return sock

    def _build(self) -> App:
        from muelle.api.admin import build_admin_app
        from muelle.api.admin_doors import AdminDoors

        management = self._management
        store = self._source.folder if self._source is not None else None
        path = audit_path(store, os.environ)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        audit = AuditLog.open(path)

        def rollout_ended(status: RolloutStatus) -> None:
            facts: dict[str, str | int | float | bool | None] = {
                "requests": status.requests,
                "error_rate": status.error_rate,
                "p99_ms": status.p99_ms,
                "step_percent": status.steps[status.step],
            }
            outcome = f"{status.state}: {status.reason}" if status.reason else status.state
            write = partial(
                audit.write, "rollout", "rollout", status.model, status.version, "", outcome, facts
            )
            self._loop.run_in_executor(None, write)

        management.rollout_ended = rollout_ended
        app: App = build_admin_app(
            AdminDoors(
                status=management.status,
                models=_later(management.models),
                model=_later(management.model),
                set_label=management.set_label,
                remove_label=management.remove_label,
                rollback=management.rollback,
                route=management.route,
                set_route=management.set_route,
                start_rollout=management.start_rollout,
                rollout=management.rollout,
                abort_rollout=management.abort_rollout,
                load=management.load,
                unload=management.unload,
                sync=management.sync,
                write_audit=audit.write,
                check_audit=audit.check,
                read_audit=audit.read,
            ),
            token_hashes=(self._token,) if self._token is not None else (),
        )
        return app


def _read_token(config: AdminConfig) -> str | None:
    """Return the SHA-256 (hex) of the token, None when no file is named. Raise ConfigError."""
    if not config.token_file:
        return None
    path = Path(config.token_file).expanduser()
    try:
        token = path.read_text("utf-8").partition("\n")[0].strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"admin.token_file: {path} cannot be read: {exc}") from None
    if len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(
            f"admin.token_file: the token in {path} is shorter than {MIN_TOKEN_CHARS} characters; "
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        log.warning("%s can be read by other users; chmod 600", path)
    return hashlib.sha256(token.encode()).hexdigest()


def _default_socket(env: Mapping[str, str]) -> Path:
    """Return a path of this server's own in a folder that only this user can enter."""
    base = env.get("XDG_RUNTIME_DIR", "")
    if base and os.access(base, os.W_OK):
        folder = Path(base) / "muelle"
    else:
        folder = Path(tempfile.gettempdir()) / f"muelle-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(1, f"{folder} belongs to another user or is open to others")
    return folder / f"{os.getpid()}.sock"


def _later(call: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Return an async function that calls a plain one."""

    async def called(*args: P.args, **named: P.kwargs) -> T:
        return call(*args, **named)

    return called


def _internal_error(path: bytes, request_id: str) -> Answer:
    return native.encode_error(Internal("internal error"), request_id)
