"""The control plane's door: which models there are, what state they are in, and how to change it.

A label is moved only after its new version answers (so that an acknowledged change is a true one),
and everything that a caller may do is here, whichever way it comes. Not for predictions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from muelle.config.sections import ServeConfig
from muelle.control.fleet import Fleet
from muelle.control.rollouts import Rollouts
from muelle.control.sources import StoreSource
from muelle.control.wanted import Artifact, Source
from muelle.core.admin import (
    LabelAnswer,
    Rollback,
    RolloutStatus,
    ServerStatus,
    SetLabel,
    StartRollout,
)
from muelle.core.errors import BadRequest, Unsupported, VersionNotFound
from muelle.core.events import Listener
from muelle.core.records import RouteSpec
from muelle.core.status import ModelStatus
from muelle.inference import InferenceService
from muelle.telemetry.metrics import VersionMetrics

T = TypeVar("T")


class ManagementService:
    """Owns the fleet. Used on the event loop's thread only."""

    def __init__(
        self,
        config: ServeConfig,
        inference: InferenceService,
        source: Source,
        *,
        version: str,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        table_changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._inference = inference
        self._source = source
        self._loop = loop
        self._version = version
        self._began = time.monotonic()
        self.fleet = Fleet(
            config,
            source,
            inference,
            loop=loop,
            listener=listener,
            table_changed=table_changed,
            server_bytes=_own_bytes,
        )
        self._rollouts = Rollouts(
            self.fleet, loop=loop, promote=self._promote, tell=self._rollout_ended
        )
        self.rollout_ended: Callable[[RolloutStatus], None] = _unheard
        """Told how each rollout ended: nobody's request is there to be answered with it."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._started = False
        self.draining = False
        self.also_ready: Callable[[], tuple[bool, str]] = _yes
        """What else must be there for the server to be ready: a hosted application."""
        self.url = ""
        """Where predictions are answered, once the server listens."""

    # --- life ---

    async def start(self) -> None:
        """Load what the source wants, and wait until each version answers or has failed."""
        await self.fleet.start()
        self._started = True

    async def stop(self) -> None:
        """Answer what waits and end every worker."""
        self._rollouts.stop()
        await self.fleet.stop(self._config.drain_s)

    # --- what there is ---

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every model with its versions, by name."""
        return tuple(self.model(name) for name in sorted(self._inference.table.models))

    def model(self, name: str) -> ModelStatus:
        """Return one model. Raise ModelNotFound with near names."""
        return self.fleet.status(name)

    def metrics(self) -> tuple[VersionMetrics, ...]:
        """Return every version's counters."""
        return self.fleet.metrics()

    def live(self) -> bool:
        """Whether the server runs: its loop turns, or this would not be called."""
        return True

    def ready(self) -> tuple[bool, str]:
        """Whether every model's traffic has a serving worker; else what is missing."""
        if self.draining:
            return False, "the server is shutting down"
        if not self._started:
            return False, "models are being loaded"
        lifecycle = self._config.lifecycle
        lazy = lifecycle.on_demand or lifecycle.control == "explicit"
        for name, route in self._inference.table.models.items():
            if route.default is None:
                return False, f"{name}: no version"
            live = self.fleet.live(name, route.default)
            if live is None:
                if lazy:
                    continue
                return False, f"{name}: version {route.default} is not loaded"
            if not live.serving or live.pool is None:
                return False, f"{name}: {live.why_not()}"
            if not live.pool.serving:
                return False, f"{name}: its worker restarts"
        return self.also_ready()

    def failures(self) -> list[tuple[Artifact, str]]:
        """Return the versions that will not answer, with the reasons."""
        return self.fleet.failures()

    def waiting(self) -> int:
        """Requests that wait, over all versions."""
        return self.fleet.waiting()

    async def status(self) -> ServerStatus:
        """Return the whole server at a glance."""
        ok, reason = self.ready()
        store = self._source if isinstance(self._source, StoreSource) else None
        wanted = self.fleet.wanted
        return ServerStatus(
            muelle=self._version,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._began,
            ready=ok,
            reason=reason or self.fleet.problem,
            store=str(store.folder) if store is not None else "",
            control=self._config.lifecycle.control,
            url=self.url,
            rss_bytes=_own_bytes() + self.fleet.memory_bytes(),
            memory_limit_bytes=self._config.lifecycle.memory_limit_mb * 1024 * 1024,
            models=self.models(),
            routes={name: model.spec for name, model in wanted.items() if model.spec is not None},
        )

    # --- labels and routes ---

    async def set_label(self, model: str, change: SetLabel, who: str) -> LabelAnswer:
        """Let a label name a version, once that version answers. Raise MuelleError: nothing moved.

        The label moves after the version has loaded and given its stored answers, and this returns
        after the routing table was swapped: no later connection gets the version before.
        """
        began = time.monotonic()
        source = self._store()
        async with self._changing(model):
            self._rollouts.supersede(model, f"label {change.label} was moved by hand")
            artifact = await self._blocking(lambda: source.artifact(model, change.version))
            previous = (await self._blocking(lambda: source.store.labels(model))).get(change.label)
            if not self._is_selected(model):
                # Not served here: there is nothing to wait for.
                await self._move(model, change.label, change.version, who, change.note, "label")
            else:
                await self.fleet.ensure(artifact, _text(previous))
                try:
                    await self._move(model, change.label, change.version, who, change.note, "label")
                finally:
                    self.fleet.release(artifact)
        return self._answer(artifact, change.label, previous, began)

    async def remove_label(self, model: str, label: str, who: str) -> None:
        """Take a label away."""
        source = self._store()
        async with self._changing(model):
            await self._blocking(lambda: source.store.remove_label(model, label, who=who))
            await self.fleet.refresh()

    async def rollback(self, model: str, change: Rollback, who: str) -> LabelAnswer:
        """Let a label name again what it named before; instant while that version is still warm."""
        began = time.monotonic()
        source = self._store()
        async with self._changing(model):
            self._rollouts.supersede(model, "the model was rolled back by hand")
            target = await self._blocking(lambda: source.store.rollback_target(model, change.label))
            previous = (await self._blocking(lambda: source.store.labels(model))).get(change.label)
            artifact = await self._blocking(lambda: source.artifact(model, target))
            selected = self._is_selected(model)
            if selected:
                await self.fleet.ensure(artifact, _text(previous))
            try:
                reason = _reason("rollback", change.note)
                await self._blocking(
                    lambda: source.store.rollback(model, change.label, who=who, reason=reason)
                )
                await self.fleet.refresh()
            finally:
                if selected:
                    self.fleet.release(artifact)
        return self._answer(artifact, change.label, previous, began)

    async def route(self, model: str) -> RouteSpec | None:
        """Return how a model's unpinned requests are shared, None when its label decides."""
        source = self._store()
        return await self._blocking(lambda: source.store.route(model))

    async def set_route(self, model: str, spec: RouteSpec | None, who: str) -> RouteSpec | None:
        """Share a model's unpinned requests anew, once every version in it answers."""
        source = self._store()
        async with self._changing(model):
            self._rollouts.supersede(model, "the route was changed by hand")
            artifacts = []
            if spec is not None:
                targets = {*spec.weights, spec.shadow} - {""}
                labels = await self._blocking(lambda: source.store.labels(model))
                for target in sorted(targets):
                    number = labels.get(target, int(target) if target.isdigit() else None)
                    if number is None:
                        known = ", ".join(sorted(labels)) or "none"
                        raise VersionNotFound(f"{model}: no label {target!r}; there is: {known}")
                    artifacts.append(
                        await self._blocking(lambda n=number: source.artifact(model, n))  # type: ignore[misc]
                    )
            async with contextlib.AsyncExitStack() as held:
                for artifact in artifacts if self._is_selected(model) else []:
                    await self.fleet.ensure(artifact)
                    held.callback(self.fleet.release, artifact)
                await self._blocking(lambda: source.store.set_route(model, spec, who=who))
                await self.fleet.refresh()
        return spec

    # --- rollouts ---

    async def start_rollout(self, model: str, spec: StartRollout, who: str) -> RolloutStatus:
        """Begin to shift traffic to a version step by step."""
        source = self._store()
        async with self._changing(model):
            artifact = await self._blocking(lambda: source.artifact(model, spec.version))
            if not self._is_selected(model):
                raise BadRequest(f"{model}: this server does not serve it")
            return self._rollouts.start(model, artifact, spec, who)

    async def rollout(self, model: str) -> RolloutStatus:
        """Return where the newest rollout of a model stands. Raise VersionNotFound: none."""
        self._inference.table.model(model)
        return self._rollouts.status(model)

    async def abort_rollout(self, model: str, who: str) -> RolloutStatus:
        """Give all traffic back to the version before."""
        self._inference.table.model(model)
        return self._rollouts.abort(model, f"aborted by {who}")

    # --- loading by hand ---

    async def load(self, model: str, version: int | None, who: str) -> ModelStatus:
        """Load versions of a model (explicit control), and wait for them."""
        self.fleet.load(model, None if version is None else str(version))
        await self.fleet.settled()
        return self.model(model)

    async def unload(self, model: str, version: int | None, who: str) -> ModelStatus:
        """Unload versions of a model (explicit control); what they accepted is answered."""
        if self._config.lifecycle.control != "explicit" and not self._config.lifecycle.on_demand:
            raise Unsupported(
                "versions come and go with the labels here; unloading by hand needs "
                "--control explicit"
            )
        self.fleet.unload(model, None if version is None else str(version))
        return self.model(model)

    async def sync(self, who: str) -> dict[str, Any]:
        """Look at the source now, and wait until what it says is true here."""
        began = time.monotonic()
        await self.fleet.follow()
        generation = 0
        if isinstance(self._source, StoreSource):
            generation = self._source.read_generation
        return {"generation": generation, "seconds": time.monotonic() - began}

    # --- below ---

    def _store(self) -> StoreSource:
        if not isinstance(self._source, StoreSource):
            raise Unsupported(
                "this server serves plain files, which have no labels; push them to a store and "
                "serve that: muelle push FILE --name NAME; muelle serve"
            )
        return self._source

    def _is_selected(self, model: str) -> bool:
        return self._store().selects(model)

    async def _move(
        self, model: str, label: str, version: int, who: str, note: str, what: str
    ) -> None:
        source = self._store()
        await self._blocking(
            lambda: source.store.set_label(
                model, label, version, who=who, reason=_reason(what, note)
            )
        )
        await self.fleet.refresh()

    async def _promote(self, model: str, version: int, label: str, note: str) -> None:
        """A rollout came to its good end: the label follows the traffic."""
        async with self._changing(model):
            await self._move(model, label, version, "rollout", note, "rollout")

    def _rollout_ended(self, status: RolloutStatus) -> None:
        self.rollout_ended(status)

    def _answer(
        self, artifact: Artifact, label: str, previous: int | None, began: float
    ) -> LabelAnswer:
        assert artifact.record is not None
        return LabelAnswer(
            model=artifact.model,
            label=label,
            version=artifact.record.version,
            previous=previous,
            digest=artifact.record.digest,
            seconds=time.monotonic() - began,
            changed=previous != artifact.record.version,
        )

    @contextlib.asynccontextmanager
    async def _changing(self, model: str) -> AsyncIterator[None]:
        """One change of a model at a time: each is checked against what it will replace."""
        async with self._locks.setdefault(model, asyncio.Lock()):
            yield

    def _blocking(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return self._loop.run_in_executor(None, call)


def _yes() -> tuple[bool, str]:
    """Nothing else is there."""
    return True, ""


def _unheard(status: RolloutStatus) -> None:
    """Nobody listens yet."""


def _text(version: int | None) -> str | None:
    return None if version is None else str(version)


def _reason(what: str, note: str) -> str:
    return f"{what}: {note}" if note else what


def _own_bytes() -> int:
    """Resident memory of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0
