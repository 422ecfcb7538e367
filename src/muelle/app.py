"""Composition root of `muelle serve`: builds the server from a ServeConfig and runs it.

The only file that knows all the parts of the server. Not for deciding anything.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

from muelle import __version__
from muelle.app_admin import Admin
from muelle.app_sources import new_source
from muelle.apps.doors import Doors
from muelle.apps.host import OUR_ROOT, AppHost
from muelle.config.sections import ServeConfig
from muelle.control.sources import StoreSource
from muelle.control.wanted import Source
from muelle.core.errors import ArtifactError, ConfigError, ErrorCode, Internal, MuelleError
from muelle.core.events import Draining, Listener, Listening
from muelle.inference import InferenceService, error_encoder
from muelle.management import ManagementService
from muelle.protocols.http import JSON, Answer
from muelle.rpc.infer import InferCalls
from muelle.telemetry import logs
from muelle.telemetry.metrics import render
from muelle.transport.asgi import App, AsgiHost
from muelle.transport.ports import bind_or_explain, bind_unix_or_explain, tls_context
from muelle.transport.server import HttpServer

log = logging.getLogger("muelle")

WARM_APP_AFTER_S = 0.5
"""The API's imports take half a second of CPU: they wait until the first predictions are out."""

GC_OBJECTS = 20_000

_CODES = {
    400: ErrorCode.BAD_REQUEST,
    408: ErrorCode.REQUEST_TIMEOUT,
    411: ErrorCode.LENGTH_REQUIRED,
    413: ErrorCode.TOO_LARGE,
    431: ErrorCode.HEADERS_TOO_LARGE,
    503: ErrorCode.OVERLOADED,
    505: ErrorCode.HTTP_VERSION,
}


class Refused(MuelleError):
    """A request that transport refused before anyone read it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, retry_after_s=1.0 if status == 503 else None)
        self.code = _CODES.get(status, ErrorCode.BAD_REQUEST)


def serve(config: ServeConfig, listener: Listener) -> int:
    """Serve until a signal ends it. Return the exit status: 0 after a clean end, 1 otherwise.

    Raise MuelleError (ArtifactError, ConfigError) when it cannot start; the text is for the user.
    """
    logs.setup(config.log_level, sys.stderr, json=config.log_format == "json")
    source = new_source(config)
    source.read()  # Every cheap reason to stop, before the port is taken.
    for problem in source.problems():
        log.warning("%s", problem)
    tls = _tls(config)
    socks = _bind(config)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Server(config, source, socks, listener, tls).run())
    finally:
        for sock in socks:
            sock.close()
        if config.listen.unix_socket:
            Path(config.listen.unix_socket).unlink(missing_ok=True)


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    listen = config.listen
    if listen.tls_key and not listen.tls_cert:
        raise ConfigError("--tls-key: name the certificate too: --tls-cert FILE")
    return tls_context(listen.tls_cert, listen.tls_key) if listen.tls_cert else None


def _bind(config: ServeConfig) -> list[socket.socket]:
    """Return the sockets to listen on, the main one first."""
    listen = config.listen
    if listen.unix_socket:
        socks = [bind_unix_or_explain(Path(listen.unix_socket))]
    else:
        socks = [bind_or_explain(listen.host, listen.port)]
    try:
        if listen.grpc_port:
            socks.append(bind_or_explain(listen.host, listen.grpc_port))
    except BaseException:
        socks[0].close()
        raise
    return socks


class Server:
    """All parts of one running server."""

    def __init__(
        self,
        config: ServeConfig,
        source: Source,
        socks: list[socket.socket],
        listener: Listener,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._config = config
        self._source = source
        self._sock = socks[0]
        self._socks = socks
        self._listener = listener
        self._ended = asyncio.Event()
        self._interrupts = 0

    async def run(self) -> int:
        """Load, listen, wait for a signal, drain."""
        loop = asyncio.get_running_loop()
        config = self._config
        self.inference = InferenceService(body_limit_bytes=config.limits.body_bytes, loop=loop)
        self.management = ManagementService(
            config,
            self.inference,
            self._source,
            version=__version__,
            loop=loop,
            listener=self._listener,
            table_changed=self._table_changed,
        )
        self.asgi = AsgiHost(self._build_api, loop)
        doors = Doors(self.inference, self.management.model)
        self.host: AppHost | None = None
        root = ""
        if config.app.target:
            self.host = AppHost(config, doors, env=os.environ, listener=self._listener, loop=loop)
            self.management.also_ready = self.host.pool.ready
            if self.host.takes_root:
                root = OUR_ROOT
        self.http = HttpServer(
            config.limits,
            asgi=self.asgi,
            direct=self._direct(),
            refusal=_refusal,
            internal_error=_internal_error,
            loop=loop,
            hosted=self.host,
            root=root,
        )
        self.http.methods = InferCalls(self.inference).methods()
        self.admin = Admin(
            config.admin,
            config.limits,
            self.management,
            self._source if isinstance(self._source, StoreSource) else None,
            refusal=_refusal,
            loop=loop,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        for sock in self._socks:
            await self.http.start(sock, self._tls)
        self.management.url = self._url()
        await self.admin.start()
        loading = loop.create_task(self._load(doors))
        ended = loop.create_task(self._ended.wait())
        await asyncio.wait({loading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            if loading.exception() is not None:
                await self._end(0.0)
            loading.result()
            failures = self.management.failures()
            if failures and not isinstance(self._source, StoreSource):
                # Files were named on the command line: whoever did it waits for an answer.
                await self._end(0.0)
                raise ArtifactError("; ".join(f"{a.model}: {reason}" for a, reason in failures))
            self._announce()
            await ended
        else:
            loading.cancel()
        self._listener(Draining(waiting=self.management.waiting()))
        await self._end(config.drain_s)
        return 0

    async def _load(self, doors: Doors) -> None:
        """Load models and application at the same time; one may ask the other while it starts."""
        if self.host is None:
            await self.management.start()
            return
        starting = asyncio.ensure_future(self.host.pool.start())
        models = asyncio.ensure_future(self.management.start())
        try:
            await asyncio.wait({starting, models}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # An app that cannot be loaded need not wait for the models.
            await models
            if self.management.failures() and not isinstance(self._source, StoreSource):
                return
            doors.open()
            await starting
        finally:
            starting.cancel()
            models.cancel()

    async def _end(self, timeout_s: float) -> None:
        self.management.draining = True
        began = time.monotonic()
        await self.http.drain(timeout_s)
        if self.host is not None:
            # While it finishes its work it may still ask the models.
            await self.host.pool.stop(max(1.0, timeout_s - (time.monotonic() - began)))
        await self.management.stop()
        await self.admin.stop()

    def _announce(self) -> None:
        # What was made so far lives as long as the server; collections need not walk it again.
        gc.collect()
        gc.freeze()
        # Requests make no cycles: looking for some after each few hundred objects is for nothing.
        gc.set_threshold(GC_OBJECTS, 20, 20)
        moved = self.host is not None and self.host.takes_root
        app = self.host.shown if self.host is not None else ""
        self._listener(
            Listening(url=self._url(), models=self.management.models(), app=app, moved=moved)
        )
        loop = asyncio.get_running_loop()
        loop.call_later(WARM_APP_AFTER_S, self.asgi.warm)
        loop.call_later(2 * WARM_APP_AFTER_S, self.admin.warm)

    def _url(self) -> str:
        if self._sock.family == socket.AF_UNIX:
            return f"unix:{self._sock.getsockname()}"
        host, port = self._sock.getsockname()[:2]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _signalled(self, number: int) -> None:
        """The first signal drains; SIGINT twice ends at once."""
        self.management.draining = True
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(130)
        self._ended.set()

    def _table_changed(self) -> None:
        self.http.set_hot(dict(self.inference.hot_paths()))
        self.admin.versions_changed()

    # --- what costs nothing is answered without the app ---

    def _direct(self) -> dict[bytes, Callable[[], Answer]]:
        def live() -> Answer:
            return Answer(200, JSON, b'{"live":true}')

        def ready() -> Answer:
            return _ready_answer(*self.management.ready(), 503)

        def v2_ready() -> Answer:
            return _ready_answer(*self.management.ready(), 400)

        moved: dict[bytes, Callable[[], Answer]] = {}
        if self.host is not None and self.host.takes_root:
            # Relative, so that it also works behind a proxy that adds a prefix.
            location = ((b"location", b"muelle/docs"),)
            moved[OUR_ROOT.encode()] = lambda: Answer(307, b"text/plain", b"see docs\n", location)
        return moved | {
            b"/live": live,
            b"/ready": ready,
            b"/v2/health/live": live,
            b"/v2/health/ready": v2_ready,
            b"/metrics": lambda: Answer(
                200, b"text/plain; version=0.0.4; charset=utf-8", self._metrics()
            ),
        }

    def _metrics(self) -> bytes:
        text = render(self.management.models(), self.management.metrics(), __version__)
        return text if self.host is None else text + self.host.metrics.render()

    def _build_api(self) -> App:
        from muelle.api.app import ApiDoors, build_app

        management = self.management
        return build_app(
            ApiDoors(
                models=management.models,
                model=management.model,
                live=management.live,
                ready=management.ready,
                metrics=self._metrics,
                answer=self.inference.answer,
                server_name="muelle",
                server_version=__version__,
                json_nan=self._config.json_nan,
            )
        )


def _ready_answer(ok: bool, reason: str, failing: int) -> Answer:
    import msgspec

    if ok:
        return Answer(200, JSON, b'{"ready":true}')
    body = msgspec.json.encode({"ready": False, "reason": reason})
    return Answer(failing, JSON, body, ((b"retry-after", b"1"),))


def _refusal(path: bytes, status: int, message: str, request_id: str) -> Answer:
    encode = error_encoder(path.decode("latin-1"))
    return encode(Refused(status, message), request_id)


def _internal_error(path: bytes, request_id: str) -> Answer:
    return error_encoder(path.decode("latin-1"))(Internal("internal error"), request_id)
