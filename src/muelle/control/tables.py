"""Which version answers what, as an immutable table: made anew after every change of the fleet.

Traffic moves to what is wanted once *all* of it can answer; until then what answered before goes
on. Starts and ends nothing (`fleet`). Used on the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from muelle.control.version import LiveVersion
from muelle.control.wanted import Key, Wanted, WantedModel
from muelle.core.events import Listener, TrafficMoved
from muelle.endpoints import PredictEndpoint
from muelle.inference import Served, Table
from muelle.routing.table import ModelRoute, RouteTable, default_version
from muelle.routing.weights import Split
from muelle.traffic import Shadow, SharedEndpoint


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who answers a model's unpinned requests."""

    split: Mapping[str, float]
    sticky: str = ""
    shadow: str = ""

    @property
    def versions(self) -> set[str]:
        """Every version that has a part in it."""
        return {*self.split, self.shadow} - {""}

    @property
    def default(self) -> str | None:
        """The version with the largest share; the newest among equals."""
        top = max(self.split.values(), default=0.0)
        return default_version(v for v, share in self.split.items() if share == top)

    def shares(self) -> dict[str, float]:
        """Version -> part of the requests, 0 to 1."""
        total = sum(self.split.values())
        return {version: weight / total for version, weight in self.split.items()}


class Tables:
    """Remembers whose traffic goes where, and makes tables of it. Owned by the fleet."""

    def __init__(
        self,
        lives: Mapping[Key, LiveVersion],
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        why_not_loaded: Callable[[Key], str],
    ) -> None:
        """`lives` is the fleet's own mapping, read at every `make`."""
        self._lives = lives
        self._loop = loop
        self._listener = listener
        self._why_not_loaded = why_not_loaded
        self._traffic: dict[str, Traffic] = {}
        self._told: dict[str, Traffic] = {}
        self.overrides: dict[str, Traffic] = {}
        """What a rollout wants instead of the source, by model."""

    def traffic(self, model: str) -> Traffic | None:
        """Who answers a model's unpinned requests now."""
        return self._traffic.get(model)

    def serving(self) -> list[Key]:
        """Return every version that has a share of some model's traffic now."""
        return [(name, v) for name, traffic in self._traffic.items() for v in traffic.split]

    def make(self, wanted: Wanted) -> Table:
        """Return the table of this moment, and tell whose traffic has moved."""
        models = {}
        for name, model in wanted.items():
            served = {version: self._served((name, version)) for version in model.versions}
            for key in self._lives:
                if key[0] == name and self._is_ready(*key):
                    served.setdefault(key[1], self._served(key))
            traffic = self._choose(name, model)
            default = traffic.default if traffic is not None else model.default
            front = self._front(name, traffic) if traffic is not None else None
            if front is None and default is not None:
                front = served.get(default)
            models[name] = ModelRoute(name, MappingProxyType(served), default, front)
        self._traffic = {name: t for name, t in self._traffic.items() if name in models}
        self._tell_moves()
        return RouteTable(MappingProxyType(models))

    # --- whose traffic ---

    def _choose(self, name: str, wanted: WantedModel) -> Traffic | None:
        """Take what is wanted once all of it can answer; keep what was there until then."""
        target = self.overrides.get(name) or Traffic(wanted.split, wanted.sticky, wanted.shadow)
        if target.split and all(self._is_ready(name, v) for v in target.versions):
            self._traffic[name] = target
            return target
        before = self._traffic.get(name)
        if before is not None and all(self._is_ready(name, v) for v in before.split):
            return before
        able = {v: share for v, share in target.split.items() if self._is_ready(name, v)}
        if not able and not wanted.labels:
            # Plain files: the newest that can answer does, as nobody said otherwise.
            newest = default_version(v for v in wanted.versions if self._is_ready(name, v))
            able = {newest: 1.0} if newest is not None else {}
        if not able:
            self._traffic.pop(name, None)
            return None
        self._traffic[name] = Traffic(able, target.sticky)
        return self._traffic[name]

    def _is_ready(self, name: str, version: str) -> bool:
        live = self._lives.get((name, version))
        return live is not None and live.stage == "ready"

    def _tell_moves(self) -> None:
        """Tell once whose traffic has moved since the last table."""
        for name in {*self._told, *self._traffic}:
            now = self._traffic.get(name)
            if self._told.get(name) != now:
                shares = now.shares() if now is not None else {}
                shadow = now.shadow if now is not None else ""
                self._listener(TrafficMoved(model=name, shares=shares, shadow=shadow))
        self._told = dict(self._traffic)

    # --- what takes it ---

    def _served(self, key: Key) -> Served:
        live = self._lives.get(key)
        if live is not None:
            return Served(live.endpoints, live.why_not)
        return Served({}, lambda: self._why_not_loaded(key))

    def _front(self, name: str, traffic: Traffic) -> Served:
        """Return what takes the unpinned requests: a version itself, or a share-out."""
        lives = {version: self._lives[name, version] for version in traffic.split}
        first = next(iter(lives.values()))
        if len(lives) == 1 and not traffic.shadow:
            return Served(first.endpoints, first.why_not)
        shadow = self._shadow(name, traffic)
        endpoints: dict[str, SharedEndpoint] = {}
        for protocol in first.endpoints:
            parts: dict[str, PredictEndpoint] = {
                version: live.endpoints[protocol] for version, live in lives.items()
            }
            endpoints[protocol] = SharedEndpoint(
                parts, Split(traffic.split), sticky=traffic.sticky, salt=name, shadow=shadow
            )
        return Served(endpoints, first.why_not)

    def _shadow(self, name: str, traffic: Traffic) -> Shadow | None:
        live = self._lives.get((name, traffic.shadow)) if traffic.shadow else None
        if live is None or live.pool is None or live.stage != "ready":
            return None
        record = live.artifact.record
        return Shadow(
            traffic.shadow,
            live.pool,
            live.metrics,
            loop=self._loop,
            now=time.monotonic,
            rtol=record.rtol if record is not None else 1e-3,
            atol=record.atol if record is not None else 1e-5,
        )
