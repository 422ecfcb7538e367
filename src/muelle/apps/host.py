"""A hosted application as the server's transport sees it: its paths, and answers to requests there.

Not for its processes (`pool`) or for one request's life (`exchange`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from muelle.apps.doors import Doors
from muelle.apps.exchange import Cancel, Exchange, Reply, busy_answer, frames_of
from muelle.apps.frames import Hello
from muelle.apps.pool import AppPool
from muelle.apps.process import spawn_app
from muelle.apps.target import AppTarget
from muelle.config.sections import ServeConfig
from muelle.core.events import Listener
from muelle.protocols.http import HttpRequest
from muelle.telemetry.apps import AppMetrics

OUR_ROOT = "/muelle"
"""Where our own pages are when the application has taken `/`."""
OUR_PATHS = frozenset({"/live", "/livez", "/ready", "/readyz", "/healthz", "/metrics"})
OUR_FOLDERS = ("/v2", "/models", OUR_ROOT)


class AppHost:
    """Implements `transport.server.Hosted`; used on the event loop's thread only."""

    def __init__(
        self,
        config: ServeConfig,
        doors: Doors,
        *,
        env: Mapping[str, str],
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Raise ConfigError when the target is none."""
        app = config.app
        target = AppTarget.parse(app.target)
        self.shown = target.short
        self.metrics = AppMetrics()
        self._root = app.path.rstrip("/")
        self._scheme = "https" if config.listen.tls_cert else "http"
        self._timeout_s = app.timeout_s
        self._loop = loop
        self._ids = itertools.count(1)
        self._full = (
            f"the app works on {app.concurrency} requests in each of {app.workers} workers; "
            "try again, or raise app.concurrency"
        )
        hello = Hello(
            target=app.target,
            folder=str(Path.cwd()),
            threads=app.threads,
            memory_limit_bytes=app.memory_limit_mb * 1024 * 1024,
            predict_limit_bytes=config.limits.body_bytes,
            log_level=config.log_level,
            log_json=config.log_format == "json",
        )
        self.pool = AppPool(
            hello,
            shown=target.short,
            workers=app.workers,
            max_concurrency=app.concurrency,
            load_timeout_s=config.worker.load_timeout_s,
            spawn=partial(spawn_app, env),
            doors=doors,
            metrics=self.metrics,
            listener=listener,
            loop=loop,
        )

    @property
    def takes_root(self) -> bool:
        """Whether `/` is the application's, and our own pages have moved."""
        return not self._root

    def owns(self, path: str) -> bool:
        """Whether a request for this decoded path is the application's."""
        # `OPTIONS *` is about the server as a whole.
        return path.startswith("/") and _is_below(path, self._root) and not is_ours(path)

    def begin(self, request: HttpRequest, raw_path: bytes, done: Reply) -> Cancel | None:
        """Give a request to a process. Never raises."""
        link = self.pool.choose()
        if link is None:
            ok, reason = self.pool.ready()
            answer = busy_answer(self._full if ok else reason, request.request_id)
            self.metrics.answered(answer.status, 0.0)
            done(answer)
            return None
        number = next(self._ids)
        exchange = Exchange(
            number,
            request,
            done,
            link=link,
            metrics=self.metrics,
            loop=self._loop,
            timeout_s=self._timeout_s,
            is_late=partial(link.check, number),
        )
        link.exchanges[number] = exchange
        for frame in frames_of(number, request, raw_path, root=self._root, scheme=self._scheme):
            link.send(frame)
        return exchange.leave


def is_ours(path: str) -> bool:
    """Whether a decoded path is always answered by the server itself."""
    return path in OUR_PATHS or any(_is_below(path, folder) for folder in OUR_FOLDERS)


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")
