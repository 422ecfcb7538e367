"""The store against a plain dict: whatever is done in whatever order, both say the same.

Every other rule opens the store again, so that what is compared is what lies on the disk.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muelle.core.errors import Conflict, MuelleError
from muelle.core.records import RouteSpec, ServerLease, VersionRecord
from muelle.repository.store import Reference, Store

MODELS = st.sampled_from(["churn", "fraud"])
LABELS = st.sampled_from(["canary", "stable"])
NUMBERS = st.integers(1, 5)
CONTENTS = st.sampled_from(["a", "b", "c", "d" * 100])


@dataclass
class Model:
    """What one model should look like."""

    versions: dict[int, str] = field(default_factory=dict)
    """Number -> content."""
    last: int = 0
    """The highest number ever given."""
    labels: dict[str, int] = field(default_factory=dict)
    trail: dict[str, list[int]] = field(default_factory=dict)
    """Label -> what it named, so far as a rollback can return to it; the last is the newest."""
    route: RouteSpec | None = None
    n_changes: int = 0

    def move(self, label: str, version: int) -> None:
        if self.labels.get(label) != version:
            self.labels[label] = version
            self.n_changes += 1
            trail = self.trail.setdefault(label, [])
            if trail[-1:] != [version]:
                trail.append(version)

    def target(self, label: str) -> int | None:
        """Where a rollback should go."""
        for version in reversed(self.trail.get(label, [])):
            if version != self.labels.get(label) and version in self.versions:
                return version
        return None


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and the dict side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.models: dict[str, Model] = {"churn": Model(), "fraud": Model()}
        self.leased: set[tuple[str, int]] = set()

    @initialize()
    def make(self) -> None:
        self.store = Store.open(self.folder / "store", create=True)
        self.held = self.store.lease(self.lease())
        self.generation = 0

    def lease(self) -> ServerLease:
        versions = tuple(sorted(self.leased))
        return ServerLease(id="one", pid=1, host="h", socket="", url="", versions=versions)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.held.close()
            self.store.close()
        shutil.rmtree(self.folder)

    @rule(
        name=MODELS, content=CONTENTS, label=st.one_of(st.none(), st.just(""), LABELS),
        force=st.booleans(),
    )  # fmt: skip
    def push(self, name: str, content: str, label: str | None, force: bool) -> None:
        model = self.models[name]
        source = self.folder / "model.bin"
        source.write_text(content)
        files = self.store.add_files(source)
        draft = VersionRecord(
            model=name,
            version=0,
            digest=f"sha256:{files[0].sha256}",
            artifact="model.bin",
            runtime="r",
            format="f",
            files=files,
        )
        if label is None and not model.versions:
            label = "stable"
        same = [number for number, other in model.versions.items() if other == content]
        expected = max(same) if same and not force else model.last + 1

        record, created = self.store.publish(draft, label=label, who="ana", force=force)

        assert (record.version, created) == (expected, expected > model.last)
        model.versions[expected] = content
        model.last = max(model.last, expected)
        if label:
            model.move(label, expected)

    @rule(name=MODELS, label=LABELS, number=NUMBERS)
    def set_label(self, name: str, label: str, number: int) -> None:
        model = self.models[name]
        if number in model.versions:
            self.store.set_label(name, label, number, who="ana")
            model.move(label, number)
        else:
            self.refused(lambda: self.store.set_label(name, label, number, who="ana"))

    @rule(name=MODELS, label=LABELS)
    def remove_label(self, name: str, label: str) -> None:
        model = self.models[name]
        routed = model.route is not None and label in model.route.weights
        if label in model.labels and not routed:
            self.store.remove_label(name, label, who="ana")
            del model.labels[label]
            model.n_changes += 1
        else:
            self.refused(lambda: self.store.remove_label(name, label, who="ana"))

    @rule(name=MODELS, label=LABELS)
    def rollback(self, name: str, label: str) -> None:
        model = self.models[name]
        target = model.target(label)
        if target is None or not model.versions:
            self.refused(lambda: self.store.rollback(name, label, who="ana"))
            return
        assert self.store.rollback_target(name, label) == target
        assert self.store.rollback(name, label, who="ana").version == target
        model.labels[label] = target
        model.n_changes += 1
        while model.trail[label][-1] != target:
            model.trail[label].pop()

    @rule(name=MODELS, names=st.lists(st.sampled_from(["canary", "stable", "1", "2"]), max_size=3))
    def set_route(self, name: str, names: list[str]) -> None:
        model = self.models[name]
        spec = RouteSpec(weights=dict.fromkeys(names, 1.0)) if names else None
        there = {*model.labels, *map(str, model.versions)}
        if model.versions and set(names) <= there:
            self.store.set_route(name, spec, who="ana")
            model.route = spec
        else:
            self.refused(lambda: self.store.set_route(name, spec, who="ana"))

    @rule(name=MODELS, number=NUMBERS)
    def load(self, name: str, number: int) -> None:
        self.leased ^= {(name, number)}
        self.held.update(self.lease())

    @rule(name=MODELS, number=NUMBERS)
    def remove(self, name: str, number: int) -> None:
        model = self.models[name]
        routed = model.route is not None and str(number) in model.route.weights
        used = number in model.labels.values() or routed or (name, number) in self.leased
        if number in model.versions and not used:
            self.store.remove(name, number, who="ana")
            del model.versions[number]
        else:
            self.refused(lambda: self.store.remove(name, number, who="ana"))

    @rule(name=MODELS, number=NUMBERS)
    def checkout(self, name: str, number: int) -> None:
        if number in self.models[name].versions:
            record = self.store.record(name, number)
            place = self.store.checkout(record.files, record.digest)
            assert (place / "model.bin").read_text() == self.models[name].versions[number]

    @rule()
    def gc(self) -> None:
        self.store.gc(grace_s=0)
        contents = {text for model in self.models.values() for text in model.versions.values()}
        assert len(list(self.store.folder.glob("blobs/sha256/*/*"))) == len(contents)
        assert self.store.gc(grace_s=0).removed == ()

    @rule(content=CONTENTS)
    def push_that_fails(self, content: str) -> None:
        """A push that ends before it publishes leaves nothing that can be seen."""
        source = self.folder / "other.bin"
        source.write_text(content)
        self.store.add_files(source)
        try:
            self.store.gc(grace_s=0)
            raise AssertionError("gc ran in the middle of a push")
        except Conflict:
            self.store.abandon()

    @rule()
    @precondition(lambda self: hasattr(self, "store"))
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store")

    def refused(self, call: object) -> None:
        """A call fails with an error of ours, and nothing has changed."""
        before = self.store.generation()
        try:
            call()  # type: ignore[operator]
        except MuelleError:
            assert self.store.generation() == before
        else:
            raise AssertionError("it should have been refused")

    @invariant()
    def they_say_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        there = {name: model for name, model in self.models.items() if model.versions}
        assert {
            s.model: (s.n_versions, s.newest, s.labels, s.route) for s in self.store.models()
        } == {
            name: (len(m.versions), max(m.versions), m.labels, m.route) for name, m in there.items()
        }
        for name, model in there.items():
            assert [row.version for row in self.store.versions(name)] == sorted(
                model.versions, reverse=True
            )
            assert len(self.store.history(name) if model.n_changes else ()) == model.n_changes
            expected = model.labels.get("stable", max(model.versions))
            assert self.store.resolve(Reference(name)) == (name, expected)
        generation = self.store.generation()
        assert generation >= self.generation
        self.generation = generation
        assert self.store.verify().problems == ()


StoreMachine.TestCase.settings = settings(
    max_examples=settings.default.max_examples // 4, stateful_step_count=30
)
TestStore = StoreMachine.TestCase
