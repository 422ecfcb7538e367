"""Store, source and fleet together against a few lines that say what they should do.

The store is real, versions are puppets: some of them never load.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muelle.config.sections import LifecycleConfig, ServeConfig
from muelle.control.sources import StoreSource
from muelle.core.errors import Conflict, MuelleError
from muelle.core.records import RouteSpec, VersionRecord
from muelle.repository.store import Store
from tests.unit.control.puppets import Harbour, Puppet

LABELS = st.sampled_from(["stable", "canary"])


class Lifecycle(RuleBasedStateMachine):
    """One model. `expected` is who must answer its unpinned requests."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store.open(Path(self.folder.name, "store"), create=True)
        source = StoreSource(
            self.store, (), refuse=lambda record: "", find_python=lambda root, digest: ""
        )
        config = ServeConfig(lifecycle=LifecycleConfig(keep_warm_s=1e9))

        async def begin() -> Harbour:
            harbour = Harbour(source, config)
            await harbour.fleet.start()
            return harbour

        self.harbour = self.loop.run_until_complete(begin())
        self.good: dict[str, bool] = {}
        self.present: set[str] = set()
        self.labels: dict[str, str] = {}
        self.moves: dict[str, list[str]] = {}
        self.route: dict[str, float] | None = None
        self.expected: dict[str, float] = {}
        self.fresh = 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.harbour.fleet.stop(0))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.store.close()
        self.folder.cleanup()

    # --- what is done ---

    @rule(label=st.sampled_from(["", "stable", "canary"]), good=st.booleans())
    def push(self, label: str, good: bool) -> None:
        self.fresh += 1
        file = Path(self.folder.name, "model.bin")
        file.write_bytes(b"content %d" % self.fresh)
        files = self.store.add_files(file)
        Puppet.script[("m", str(self.fresh))] = "ok" if good else "it does not load"
        record, _ = self.store.publish(
            VersionRecord(
                model="m",
                version=0,
                digest=f"sha256:{files[0].sha256}",
                artifact="model.bin",
                runtime="r",
                format="f",
                files=files,
            ),
            label=label,
            who="test",
        )
        version = str(record.version)
        self.good[version] = good
        self.present.add(version)
        if label:
            self.labels[label] = version
        self.follow()

    @precondition(lambda self: self.present)
    @rule(label=LABELS, data=st.data())
    def set_label(self, label: str, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.present)))
        self.store.set_label("m", label, int(version), who="test")
        self.labels[label] = version
        self.follow()

    @precondition(lambda self: self.present)
    @rule(label=LABELS)
    def rollback(self, label: str) -> None:
        try:
            change = self.store.rollback("m", label, who="test")
        except MuelleError:
            return
        assert change.version is not None
        assert str(change.version) in self.present
        self.labels[label] = str(change.version)
        self.follow()

    @precondition(lambda self: set(self.labels) == {"stable", "canary"})
    @rule(weights=st.tuples(st.integers(1, 99), st.integers(1, 99)))
    def share(self, weights: tuple[int, int]) -> None:
        self.route = {"stable": float(weights[0]), "canary": float(weights[1])}
        self.store.set_route("m", RouteSpec(weights=self.route), who="test")
        self.follow()

    @precondition(lambda self: self.route is not None)
    @rule()
    def clear_route(self) -> None:
        self.route = None
        self.store.set_route("m", None, who="test")
        self.follow()

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.present)))
        try:
            self.store.remove("m", int(version), who="test")
        except Conflict:
            assert version in self.labels.values()
            return
        assert version not in self.labels.values()
        self.present.discard(version)

    # --- what must come of it ---

    def follow(self) -> None:
        """Let the server follow, and say what its traffic must be now."""
        self.loop.run_until_complete(self.harbour.fleet.follow())
        target: dict[str, float] = {}
        for label, weight in (self.route or {"stable": 1.0}).items():
            if label in self.labels:
                version = self.labels[label]
                target[version] = target.get(version, 0.0) + weight
        if all(self.good[v] for v in target):
            self.expected = target
        elif not self.expected:
            self.expected = {v: w for v, w in target.items() if self.good[v]}

    @invariant()
    def traffic_is_as_the_labels_say(self) -> None:
        """The wanted split once all of it can serve, what was there before until then."""
        assert self.harbour.split("m") == self.expected

    @invariant()
    def no_bad_version_has_traffic(self) -> None:
        """Whatever happened: a version that did not load answers nobody."""
        assert all(self.good[version] for version in self.harbour.split("m"))

    @invariant()
    def labels_agree(self) -> None:
        """The store says what was last said."""
        if self.present:
            found = {k: str(v) for k, v in self.store.labels("m").items()}
            assert found == self.labels


Lifecycle.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLifecycle = Lifecycle.TestCase
