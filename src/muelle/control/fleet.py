"""Every version of this server: makes true what the source wants, and says which of them answer.

The shell around the pure plan (`lifecycle.versions`): it starts and ends what the plan says, and
makes a new routing table after every change. Traffic moves to a version only once it has loaded,
warmed up and given its stored answers; until then what answered before goes on answering. Used on
the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from muelle.config.sections import ServeConfig
from muelle.control.tables import Tables, Traffic
from muelle.control.version import LiveVersion
from muelle.control.wanted import Artifact, Key, Prepared, Source, Wanted
from muelle.core.errors import ArtifactError, MuelleError, Unavailable, VersionNotFound
from muelle.core.events import Listener, VersionFailed, VersionUnloaded
from muelle.core.status import ModelStatus, VersionStatus
from muelle.inference import InferenceService
from muelle.lifecycle import versions as plans
from muelle.telemetry.metrics import VersionMetrics

log = logging.getLogger("muelle.fleet")

TICK_S = 1.0
GUESS_BASE_BYTES = 60 * 1024 * 1024
GUESS_FACTOR = 2
"""A worker that nobody has measured yet is guessed at: its library, and twice its file."""

T = TypeVar("T")


class Fleet:
    """Owns every LiveVersion."""

    def __init__(
        self,
        config: ServeConfig,
        source: Source,
        inference: InferenceService,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        table_changed: Callable[[], None],
        server_bytes: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
        new_version: type[LiveVersion] = LiveVersion,
    ) -> None:
        self._config = config
        self._now = now
        self._new_version = new_version
        self._source = source
        self._inference = inference
        self._loop = loop
        self._listener = listener
        self._table_changed = table_changed
        self._server_bytes = server_bytes
        self._wanted: Wanted = {}
        self._live: dict[Key, LiveVersion] = {}
        self._replacing: dict[Key, LiveVersion] = {}
        self._leaving: set[LiveVersion] = set()
        self._metrics: dict[Key, VersionMetrics] = {}
        self._bytes: dict[Key, int] = {}
        self._refused: dict[Key, str] = {}
        self._tables = Tables(
            self._live, loop=loop, listener=listener, why_not_loaded=self._why_not_loaded
        )
        self._held: Counter[Key] = Counter()
        self._extra: dict[Key, Artifact] = {}
        self._yielding: dict[Key, Key] = {}
        self._asked: set[Key] = set()
        self._tasks: dict[LiveVersion, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._following = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._closing = False
        self._problem = ""
        inference.asked = self._on_asked

    # --- life ---

    async def start(self) -> None:
        """Read the source, load what it wants, wait until each version answers or has failed."""
        await self._read()
        self._reconcile()
        await self._settle()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    async def stop(self, timeout_s: float) -> None:
        """Answer what waits and end every worker."""
        self._closing = True
        for timer in (self._timer, self._wake):
            if timer is not None:
                timer.cancel()
        for task in list(self._background):
            task.cancel()
        every = [*self._live.values(), *self._replacing.values(), *self._leaving]
        await asyncio.gather(*(live.unload(timeout_s) for live in every))
        for task in list(self._tasks.values()):
            task.cancel()

    async def refresh(self) -> None:
        """Look at the source anew. Traffic moves before this returns, where its versions are here;
        what has to be loaded first goes on loading."""
        await self._read()
        self._reconcile()

    async def follow(self) -> None:
        """Look at the source anew and make true what it wants; wait for versions that load."""
        await self.refresh()
        await self._settle()

    async def ensure(self, artifact: Artifact, instead_of: str | None = None) -> LiveVersion:
        """Load a version beside what is served, for whoever wants to give it traffic.

        It stays until `release` is called as often. Where versions fit only once (resource
        preserving), the version that it will replace is let go first. Raise MuelleError when it
        cannot serve.
        """
        key = (artifact.model, artifact.version)
        self._held[key] += 1
        self._extra.setdefault(key, artifact)
        if instead_of is not None and self._config.lifecycle.update == "resource":
            self._yielding[key] = (artifact.model, instead_of)
        self._forget_failure(key)
        try:
            self._reconcile()
            while (live := self._live.get(key)) is None or live.stage == "loading":
                if key in self._refused:
                    raise Unavailable(f"{artifact.model}:{artifact.version}: {self._refused[key]}")
                if live is not None:
                    await asyncio.wait({self._tasks[live]})
                elif not await self._next_end():
                    raise Unavailable(f"{artifact.model}:{artifact.version} does not load now")
            if live.stage != "ready":
                raise ArtifactError(f"{artifact.model}:{artifact.version}: {live.why_not()}")
        except BaseException:
            self.release(artifact)
            raise
        return live

    def release(self, artifact: Artifact) -> None:
        """Undo one `ensure`."""
        key = (artifact.model, artifact.version)
        self._held[key] -= 1
        if self._held[key] <= 0:
            del self._held[key]
            self._extra.pop(key, None)
            self._yielding.pop(key, None)
            self._reconcile()

    def override(self, model: str, traffic: Traffic | None) -> None:
        """Share a model's traffic otherwise than the source says, until told None (a rollout)."""
        if traffic is None:
            self._tables.overrides.pop(model, None)
        else:
            self._tables.overrides[model] = traffic
        self._reconcile()

    def load(self, model: str, version: str | None) -> None:
        """Want versions of a model loaded that nobody asked for yet (explicit control)."""
        for key in self._keys_of(model, version):
            self._asked.add(key)
            self._forget_failure(key)
        self._reconcile()

    def unload(self, model: str, version: str | None) -> None:
        """Want them away again."""
        for key in self._keys_of(model, version):
            self._asked.discard(key)
        self._reconcile()

    async def settled(self) -> None:
        """Wait until nothing loads any more."""
        await self._settle()

    # --- what is wanted, and what is ---

    async def _read(self) -> None:
        async with self._following:
            try:
                self._wanted = await self._blocking(self._source.read)
                self._problem = ""
            except (MuelleError, OSError) as exc:
                if not self._live and not self._wanted:
                    raise
                # What is served goes on; the source may come back.
                self._problem = str(exc)
                log.warning("the source of models cannot be read: %s", exc)
        for key, live in list(self._live.items()):
            artifact = self._artifact(key)
            coming = self._replacing.get(key)
            newest = coming.artifact if coming is not None else live.artifact
            if artifact is not None and artifact.mark != newest.mark:
                self._replace(key, artifact)

    def _artifact(self, key: Key) -> Artifact | None:
        model = self._wanted.get(key[0])
        found = model.versions.get(key[1]) if model is not None else None
        return found or self._extra.get(key)

    def _keys_of(self, model: str, version: str | None) -> list[Key]:
        wanted = self._wanted.get(model)
        if wanted is None:
            self._inference.table.model(model)  # raises, with near names
            return []
        if version is not None and version not in wanted.versions:
            have = ", ".join(wanted.versions) or "none"
            raise VersionNotFound(f"{model}: no version {version}; there is: {have}")
        return [(model, v) for v in wanted.versions if version in (None, v)]

    def _reconcile(self, *, swap: bool = True) -> None:
        """Swap the table (`swap` False: nothing has changed that it shows), do what the plan says,
        and swap again where that changed it."""
        if self._closing:
            return
        if swap:
            # First of all: whoever loses its traffic now stays warm from now on.
            self._swap()
        now = self._now()
        wanted: dict[Key, bool] = {}
        demand = self._config.lifecycle.on_demand or self._config.lifecycle.control == "explicit"
        for name, model in self._wanted.items():
            # Who is asked for already is to follow its labels, and nobody asks for the new version
            # as long as the old one answers.
            in_use = self._config.lifecycle.on_demand and self._tables.traffic(name) is not None
            needed = {*model.split, model.shadow} if in_use else set()
            for version in model.versions:
                asked = (name, version) in self._asked or version in needed
                wanted[name, version] = asked or not demand
        for name, traffic in self._tables.overrides.items():
            wanted.update(((name, version), True) for version in traffic.versions)
        wanted.update((key, False) for key in self._yielding.values() if key in wanted)
        wanted.update((key, True) for key in self._held)
        limit = self._config.lifecycle.memory_limit_mb * 1024 * 1024
        actions = plans.plan(
            tuple(plans.Wanted(version=key, required=required) for key, required in wanted.items()),
            {key: self._actual(key, live) for key, live in self._live.items()},
            plans.Policy(
                kind=self._config.lifecycle.update,
                keep_warm_s=self._config.lifecycle.keep_warm_s,
                memory_limit_bytes=max(limit - self._server_bytes(), 1) if limit else 0,
                on_demand=self._config.lifecycle.on_demand,
            ),
            now,
            estimates={key: self._estimate(key) for key in {*wanted, *self._live}},
            leaving=[(v.artifact.model, v.artifact.version) for v in self._leaving],
            leaving_bytes=sum(live.memory_bytes() for live in self._leaving),
            serving=self._tables.serving(),
        )
        self._refused = {}
        for action in actions:
            match action:
                case plans.Load(key):
                    self._begin_load(key)
                case plans.Unload(key, reason):
                    if self._config.lifecycle.on_demand:
                        # It comes back when somebody asks again, not by itself.
                        self._asked.discard(key)
                    self._begin_unload(key, reason)
                case plans.Refuse(key, reason):
                    if self._config.lifecycle.on_demand:
                        self._asked.discard(key)
                    self._refused[key] = reason
                case plans.Wait(until):
                    self._wake_at(until)
        if any(not isinstance(action, plans.Wait) for action in actions):
            self._swap()

    def _actual(self, key: Key, live: LiveVersion) -> plans.Actual:
        return plans.Actual(
            version=key,
            state=live.stage,
            bytes=self._bytes.get(key, 0) if live.stage == "ready" else 0,
            last_used=live.last_used,
            since=live.since,
            leased=live.leased,
        )

    def _estimate(self, key: Key) -> int:
        known = self._bytes.get(key)
        if known:
            return known
        artifact = self._artifact(key)
        size = artifact.size if artifact is not None else 0
        return (GUESS_BASE_BYTES + GUESS_FACTOR * size) * self._config.worker.workers

    def _forget_failure(self, key: Key) -> None:
        live = self._live.get(key)
        if live is not None and live.stage == "failed":
            self._begin_unload(key, "to be tried again")

    # --- loading and unloading ---

    def _new(self, key: Key, artifact: Artifact) -> LiveVersion:
        metrics = self._metrics.setdefault(key, VersionMetrics(*key))
        return self._new_version(
            artifact, self._config, metrics, loop=self._loop, listener=self._listener
        )

    def _begin_load(self, key: Key) -> None:
        artifact = self._artifact(key)
        if artifact is None or key in self._live:
            return
        live = self._live[key] = self._new(key, artifact)
        self._run_load(key, live, one_try=self._tables.traffic(key[0]) is not None)

    def _run_load(self, key: Key, live: LiveVersion, *, one_try: bool) -> None:
        async def run() -> None:
            prepared: asyncio.Future[Prepared] = asyncio.ensure_future(
                self._blocking(partial(self._source.prepare, live.artifact))
            )
            await live.load(prepared, one_try=one_try)
            if not prepared.done():
                prepared.cancel()
            if live.stage == "ready":
                self._bytes[key] = live.memory_bytes()
            elif live.stage == "failed":
                log.warning("%s %s will not answer: %s", *key, live.why_not())

        task = self._loop.create_task(run())
        self._tasks[live] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(live, None)
            if self._replacing.get(key) is live:
                self._finish_replacing(key, live)
            if not self._closing:
                self._reconcile()

        task.add_done_callback(ended)

    def _begin_unload(self, key: Key, reason: str) -> None:
        live = self._live.pop(key, None)
        if live is not None:
            self._swap()
            self._retire(live, reason)

    def _retire(self, live: LiveVersion, reason: str) -> None:
        """Let it answer what it has accepted, then end its workers."""
        self._leaving.add(live)
        failed = live.stage == "failed"

        async def run() -> None:
            await live.unload(self._config.drain_s)
            self._leaving.discard(live)
            if not failed:
                model, version = live.artifact.model, live.artifact.version
                self._listener(VersionUnloaded(model=model, version=version, reason=reason))
            if not self._closing:
                self._reconcile()

        self._in_background(run())

    def _replace(self, key: Key, artifact: Artifact) -> None:
        """Load another content of the same version; the old one serves until the new one can."""
        under_way = self._replacing.pop(key, None)
        if under_way is not None:
            self._retire(under_way, "its files changed again")
        live = self._replacing[key] = self._new(key, artifact)
        self._run_load(key, live, one_try=True)

    def _finish_replacing(self, key: Key, live: LiveVersion) -> None:
        del self._replacing[key]
        old = self._live.get(key)
        if live.stage == "ready" or old is None or old.stage != "ready":
            self._live[key] = live
            self._swap()
            if old is not None:
                self._retire(old, "its files were replaced")
            return
        # The old content goes on; the bad one is not tried again until it changes.
        self._listener(VersionFailed(model=key[0], version=key[1], reason=live.why_not()))
        old.artifact = live.artifact
        self._retire(live, "it failed")

    async def _settle(self) -> None:
        """Wait until nothing loads any more; a load that ends may begin another."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # let the callbacks plan what comes next

    async def _next_end(self) -> bool:
        """Wait for some version to have loaded or gone. False when nothing is on its way."""
        tasks = {*self._tasks.values(), *self._background}
        if not tasks:
            return False
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        return True

    # --- the table ---

    def _swap(self) -> None:
        """Make the new routing table and let transport see it."""
        before = self._tables.serving()
        self._inference.table = self._tables.make(self._wanted)
        for key in set(before).difference(self._tables.serving()):
            live = self._live.get(key)
            if live is not None:
                live.last_used = self._now()  # Its time to stay warm begins now.
        self._table_changed()

    def _why_not_loaded(self, key: Key) -> str:
        return self._refused.get(key) or "it is not loaded now; retry"

    # --- time ---

    def _tick(self) -> None:
        now = self._now()
        for key, live in self._live.items():
            live.touch(now)
            if live.stage == "ready":
                self._bytes[key] = live.memory_bytes() or self._bytes.get(key, 0)
        self._reconcile_if_due()
        self._timer = self._loop.call_later(TICK_S, self._tick)
        if self._config.lifecycle.control == "poll" and not self._following.locked():
            self._in_background(self._poll())

    def _reconcile_if_due(self) -> None:
        lifecycle = self._config.lifecycle
        if lifecycle.memory_limit_mb or lifecycle.on_demand:
            self._reconcile(swap=False)

    async def _poll(self) -> None:
        try:
            changed = await self._blocking(self._source.changed)
        except (MuelleError, OSError) as exc:
            if str(exc) != self._problem:
                self._problem = str(exc)
                log.warning("the source of models cannot be looked at: %s", exc)
            return
        if changed and not self._closing:
            await self._read()
            self._reconcile()

    def _wake_at(self, until: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay = max(until - self._now(), 0.01)
        self._wake = self._loop.call_later(delay, self._reconcile)

    def _on_asked(self, model: str, version: str | None) -> None:
        """Somebody wants a version that is not loaded."""
        if not self._config.lifecycle.on_demand:
            return
        wanted = self._wanted.get(model)
        if wanted is None:
            return
        versions: Iterable[str] = wanted.split if version is None else (version,)
        keys = {(model, v) for v in versions if v in wanted.versions}
        if not keys <= self._asked or any(k not in self._live for k in keys):
            self._asked |= keys
            self._loop.call_soon(self._reconcile)

    # --- what there is ---

    @property
    def wanted(self) -> Wanted:
        """What the source says now."""
        return self._wanted

    @property
    def problem(self) -> str:
        """Why the source cannot be read, empty while it can."""
        return self._problem

    def traffic(self, model: str) -> Traffic | None:
        """Who answers a model's unpinned requests now."""
        return self._tables.traffic(model)

    def live(self, model: str, version: str) -> LiveVersion | None:
        """Return a version that is here."""
        return self._live.get((model, version))

    def loaded(self) -> tuple[Key, ...]:
        """Return every version that has workers."""
        return tuple(key for key, live in self._live.items() if live.stage != "failed")

    def metrics(self) -> tuple[VersionMetrics, ...]:
        """Return the counters of every version that is here."""
        return tuple(live.metrics for live in self._live.values())

    def failures(self) -> list[tuple[Artifact, str]]:
        """Return the versions that will not answer, with the reasons."""
        return [(v.artifact, v.why_not()) for v in self._live.values() if v.stage == "failed"]

    def waiting(self) -> int:
        """Requests that wait, over all versions."""
        every = [*self._live.values(), *self._leaving]
        return sum(live.pool.queue_depth for live in every if live.pool is not None)

    def memory_bytes(self) -> int:
        """Resident memory of all workers, as last measured."""
        return sum(self._bytes.get(key, 0) for key in self._live)

    def status(self, name: str) -> ModelStatus:
        """Return one model. Raise ModelNotFound with near names."""
        route = self._inference.table.model(name)
        wanted = self._wanted[name]
        traffic = self._tables.traffic(name)
        shares = traffic.shares() if traffic is not None else {}
        numbers = {*wanted.versions, *(v for m, v in self._live if m == name)}
        statuses: list[VersionStatus] = []
        for version in sorted(numbers, key=_number, reverse=True):
            labels = tuple(sorted(k for k, v in wanted.labels.items() if v == version))
            shadow = traffic is not None and traffic.shadow == version
            share = shares.get(version, 0.0)
            statuses.append(self._status((name, version), labels, share, shadow))
        return ModelStatus(name=name, default=route.default, versions=tuple(statuses))

    def _status(
        self, key: Key, labels: tuple[str, ...], share: float, shadow: bool
    ) -> VersionStatus:
        live = self._live.get(key)
        if live is not None:
            return live.status(labels, share, shadow)
        artifact = self._artifact(key)
        assert artifact is not None
        record = artifact.record
        return VersionStatus(
            version=key[1],
            state="UNLOADED",
            reason=self._refused.get(key) or "not loaded",
            digest=record.digest if record is not None else "",
            format=artifact.format,
            runtime=artifact.runtime,
            signature=record.signature if record is not None else None,
            example=None,
            info={},
            workers=(),
            queue_depth=0,
            isolation="none" if self._config.worker.isolation == "none" else "process",
            max_batch_size=self._config.batching.max_batch_size,
            labels=labels,
            share=share,
            shadow=shadow,
        )

    # --- below ---

    def _blocking(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return self._loop.run_in_executor(None, call)

    def _in_background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _number(version: str) -> int:
    return int(version) if version.isdigit() else -1
