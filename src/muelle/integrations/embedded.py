"""The server's inner parts without its listener: models, workers, batching, in a loop of others.

What the FastAPI router and the Flask blueprint share. Not for connections: the host has those.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from muelle import __version__
from muelle.api.doors import ApiDoors
from muelle.app_sources import new_source
from muelle.client.local import Asked, OverLoop, ServedModel
from muelle.config.merge import resolve
from muelle.config.sections import ServeConfig
from muelle.core.errors import ArtifactError, MuelleError
from muelle.core.events import Event
from muelle.inference import InferenceService
from muelle.management import ManagementService
from muelle.protocols import native
from muelle.protocols.http import Answer, HttpRequest
from muelle.telemetry.metrics import render

log = logging.getLogger("muelle")


def settings_of(models: Sequence[str], settings: Mapping[str, Any]) -> ServeConfig:
    """Return the settings of `muelle serve` from arguments: `trust=True, workers=2, store="…"`.

    Neither variables nor a file are read: the host's own settings are its own. Raise ConfigError.
    """
    config: ServeConfig
    config, _ = resolve({"models": tuple(models), **settings}, {}, None)
    return config


class Embedded:
    """Loads and serves the models of one host. Used on one event loop's thread."""

    def __init__(self, config: ServeConfig) -> None:
        """Nothing is loaded yet: `start` does it, on the loop that will serve."""
        self.config = config
        self.loop: asyncio.AbstractEventLoop
        self._management: ManagementService | None = None
        self._inference: InferenceService | None = None

    async def start(self) -> None:
        """Load the models and their workers. Raise ArtifactError or ConfigError when one fails."""
        self.loop = loop = asyncio.get_running_loop()
        source = new_source(self.config)
        inference = InferenceService(body_limit_bytes=self.config.limits.body_bytes, loop=loop)
        management = ManagementService(
            self.config,
            inference,
            source,
            version=__version__,
            loop=loop,
            listener=_heard,
            table_changed=lambda: None,
        )
        await management.start()
        if failures := management.failures():
            await management.stop()
            raise ArtifactError("; ".join(f"{a.model}: {why}" for a, why in failures))
        self._inference, self._management = inference, management

    async def stop(self) -> None:
        """End the workers."""
        if self._management is not None:
            self._management.draining = True
            await self._management.stop()
            self._management = self._inference = None

    def doors(self) -> ApiDoors:
        """Return what the API asks; before `start` there is no model and nothing is ready."""
        return ApiDoors(
            models=lambda: self._management.models() if self._management is not None else (),
            model=lambda name: self._started.model(name),
            live=lambda: True,
            ready=lambda: (
                self._management.ready()
                if self._management is not None
                else (False, "models are being loaded")
            ),
            metrics=self._metrics,
            answer=self.answer,
            server_name="muelle",
            server_version=__version__,
            json_nan=self.config.json_nan,
        )

    async def answer(self, request: HttpRequest) -> Answer:
        """Answer a prediction in any protocol, errors too. Never raises."""
        if self._inference is None:
            error = MuelleError("the models are not loaded: the host has not been started")
            return native.encode_error(error, request.request_id)
        return await self._inference.answer(request)

    def model(self, name: str, version: str | int | None = None) -> ServedModel:
        """Return one model, for the host's own endpoints: `await model.predict_async(rows)`."""
        return ServedModel(name, None if version is None else str(version), OverLoop(name, self))

    # --- client.local.Channel ---

    async def ask(
        self, method: str, path: str, headers: tuple[tuple[bytes, bytes], ...], body: bytes
    ) -> Asked:
        """Answer what a `ServedModel` asks, in this process."""
        request = HttpRequest(method.encode(), unquote(path), b"", dict(headers), body)
        if method == "GET":
            from muelle.api import answers

            try:
                answer = answers.model(self._started.model(request.path.rpartition("/")[2]))
            except MuelleError as exc:
                answer = native.encode_error(exc, "")
        else:
            answer = await self.answer(request)
        return Asked(answer.status, tuple(answer.all_headers()), answer.body)

    @property
    def _started(self) -> ManagementService:
        if self._management is None:
            raise ArtifactError("the models are not loaded: the host has not been started")
        return self._management

    def _metrics(self) -> bytes:
        if self._management is None:
            return b""
        return render(self._management.models(), self._management.metrics(), __version__)


def _heard(event: Event) -> None:
    """The host's log is the only place to tell it."""
    log.debug("%s", event)
