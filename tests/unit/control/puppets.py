"""Versions without processes, whose loads end when and how a test says. Not for product code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from muelle.config.sections import ServeConfig
from muelle.control.fleet import Fleet
from muelle.control.version import LiveVersion
from muelle.control.wanted import Artifact, Prepared, Wanted, WantedModel
from muelle.core.status import VersionStatus
from muelle.inference import InferenceService


class Puppet(LiveVersion):
    """A version that loads when `script` says so: "ok", "wait", or the reason of a failure."""

    script: ClassVar[dict[tuple[str, str], str]] = {}
    made: ClassVar[list[Puppet]] = []

    def __init__(self, artifact: Artifact, *args: Any, **named: Any) -> None:
        super().__init__(artifact, *args, **named)
        self.unloaded = False
        self.go = asyncio.Event()
        self.outcome = Puppet.script.get((artifact.model, artifact.version), "ok")
        self.busy = False
        self.memory = 10
        Puppet.made.append(self)

    async def load(self, prepared: asyncio.Future[Prepared], *, one_try: bool) -> None:
        await prepared
        if self.outcome == "wait":
            await self.go.wait()
        if self.stage != "loading":
            return
        if self.outcome in ("ok", "wait"):
            self.stage, self.reason = "ready", ""
            self.endpoints = MappingProxyType({})
        else:
            self.stage, self.reason = "failed", self.outcome

    async def unload(self, timeout_s: float) -> None:
        self.stage = "unloading"
        self.unloaded = True
        self.go.set()

    @property
    def leased(self) -> bool:
        return self.busy

    def memory_bytes(self) -> int:
        return self.memory

    def status(self, labels: tuple[str, ...], share: float, shadow: bool) -> VersionStatus:
        raise AssertionError("puppets have no status")


class ListedSource:
    """A source that wants what a test last said."""

    def __init__(self) -> None:
        self.wanted: Wanted = {}

    def want(self, name: str, *versions: str, mark: str = "", **more: Any) -> None:
        """Want these versions of a model; the first answers, unless `split` says otherwise."""
        artifacts = {v: Artifact(name, v, Path("/x"), "r", "f", mark=mark) for v in versions}
        split = more.pop("split", {versions[0]: 1.0} if versions else {})
        model = WantedModel(name, artifacts, split, labels={"stable": versions[0]}, **more)
        self.wanted = {**self.wanted, name: model}

    def read(self) -> Wanted:
        return self.wanted

    def changed(self) -> bool:
        return True

    def prepare(self, artifact: Artifact) -> Prepared:
        return Prepared(artifact.path, f"sha256:{artifact.version}")

    def problems(self) -> tuple[str, ...]:
        return ()


class Harbour:
    """A fleet of puppets, and what its tables say."""

    def __init__(
        self,
        source: Any,
        config: ServeConfig | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        Puppet.script, Puppet.made = {}, []
        loop = asyncio.get_running_loop()
        self.swaps = 0
        self.inference = InferenceService(body_limit_bytes=1, loop=loop)
        self.fleet = Fleet(
            config or ServeConfig(),
            source,
            self.inference,
            loop=loop,
            listener=lambda event: None,
            table_changed=self._swapped,
            server_bytes=lambda: 0,
            now=now,
            new_version=Puppet,
        )

    def _swapped(self) -> None:
        self.swaps += 1

    def split(self, model: str) -> dict[str, float]:
        """Who answers a model's unpinned requests."""
        traffic = self.fleet.traffic(model)
        return dict(traffic.split) if traffic is not None else {}

    def loaded(self) -> set[tuple[str, str]]:
        """Which versions are here."""
        return set(self.fleet.loaded())
