"""Composition root, third part: the hosted application, from its settings."""

from __future__ import annotations

import asyncio

from muelle.apps.pool import AppPool, AppSpec, AskServer
from muelle.apps.target import AppTarget
from muelle.config.sections import ServeConfig


def new_hosted(
    config: ServeConfig, ask: AskServer, url: str, loop: asyncio.AbstractEventLoop
) -> AppPool | None:
    """Return the application's pool, None where none is named. Raise ConfigError."""
    app = config.app
    if not app.target:
        return None
    target = AppTarget.parse(app.target)
    spec = AppSpec(
        target=str(target),
        workers=app.workers,
        threads=app.threads,
        timeout_s=app.timeout_s,
        max_concurrency=app.concurrency,
        memory_limit_bytes=app.memory_limit_mb * 1024 * 1024,
        body_limit_bytes=config.limits.output_bytes,
        scheme="https" if config.listen.tls_cert else "http",
    )
    # For what an application asks outside its own requests' contexts: over HTTP, as anybody.
    env = {"MUELLE_URL": url} if url.startswith("http:") else {}
    return AppPool(spec, ask=ask, loop=loop, env=env)
