"""Where models come from: plain files and folders, or a store. They load nothing.

Everything here may block on a disk; the fleet calls it off the event loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from muelle.control.wanted import Artifact, Prepared, Wanted, WantedModel
from muelle.core.errors import ArtifactError, ConfigError
from muelle.core.records import STABLE, ModelSummary, VersionRecord
from muelle.repository.digest import digest_artifact
from muelle.repository.layout import Artifact as Found
from muelle.repository.layout import Listing
from muelle.repository.marks import Mark, Stillness, take_mark
from muelle.repository.store import Store
from muelle.routing.table import default_version

log = logging.getLogger("muelle.source")

SETTLE_S = 1.0
"""How long an artifact must lie still before it counts."""

Examine = Callable[[Path], tuple[str, str, str]]
"""Says of an artifact: runtime, format, and why it must not be loaded (or "")."""


class StoreSource:
    """Serves what the labels of a store say."""

    def __init__(
        self,
        store: Store,
        select: Sequence[str],
        *,
        refuse: Callable[[VersionRecord], str],
        find_python: Callable[[Path, str], str],
        check: Callable[[VersionRecord, Path], None] = lambda record, folder: None,
    ) -> None:
        """`select` holds `NAME` and `NAME@LABEL`, empty for all; `refuse` says why a version must
        not be loaded; `find_python` names the interpreter of an environment by its digest; `check`
        looks at a version's files just before they are loaded, and raises MuelleError."""
        self.store = store
        self.folder = store.folder
        self._select = selection(select)
        self._refuse = refuse
        self._find_python = find_python
        self._check = check
        self._generation = -1
        self._records: dict[tuple[str, int], VersionRecord] = {}
        self._problems: tuple[str, ...] = ()

    def read(self) -> Wanted:
        """Read labels and routes; records only of versions that are wanted. Raise MuelleError."""
        store = self.store
        generation = store.generation()
        problems: list[str] = []
        found = {}
        summaries = {summary.model: summary for summary in store.models()}
        for name in self._select:
            if name not in summaries:
                store.versions(name)  # raises, with near names
        for name, summary in summaries.items():
            if self._select and name not in self._select:
                continue
            model = self._model(store, summary, self._select.get(name, ""))
            if model.split:
                found[name] = model
            else:
                label = self._select.get(name) or STABLE
                problems.append(
                    f"{name}: no version is labelled {label}: muelle label {name}:N {label}"
                )
        self._problems = tuple(problems)
        self._generation = generation
        return MappingProxyType(found)

    def changed(self) -> bool:
        """Whether labels, routes or versions have changed since `read`."""
        return self.store.generation() != self._generation

    def prepare(self, artifact: Artifact) -> Prepared:
        """Lay the version's files out under their names."""
        record = artifact.record
        assert record is not None
        folder = self.store.checkout(record.files, record.digest)
        self._check(record, folder)
        python = self._find_python(self.folder, record.environment) if record.environment else ""
        path = folder / record.artifact if record.artifact else folder
        return Prepared(path, record.digest, python)

    @property
    def read_generation(self) -> int:
        """The store's generation at the last `read`."""
        return self._generation

    def selects(self, model: str) -> bool:
        """Whether a model of the store is served here."""
        return not self._select or model in self._select

    def problems(self) -> tuple[str, ...]:
        """Models that nobody labelled."""
        return self._problems

    def artifact(self, model: str, version: int) -> Artifact:
        """Return any version of the store. Raise ModelNotFound or VersionNotFound."""
        record = self._record(self.store, model, version)
        refused = self._refuse(record)
        return Artifact(
            model=model,
            version=str(version),
            path=self.folder,
            runtime=record.runtime,
            format=record.format,
            refused=refused,
            # What was refused is another artifact once the reason is gone (it was signed).
            mark=f"{record.digest} {refused}" if refused else record.digest,
            record=record,
            size=record.size,
        )

    def _model(self, store: Store, summary: ModelSummary, label: str) -> WantedModel:
        name = summary.model
        labels = {k: str(v) for k, v in summary.labels.items()}
        spec = None if label else summary.route
        split: dict[str, float] = {}
        sticky = shadow = ""
        if spec is not None:
            for target, weight in spec.weights.items():
                version = labels.get(target, target if target.isdigit() else "")
                if version and weight > 0:
                    split[version] = split.get(version, 0.0) + weight
            sticky = spec.sticky
            shadow = labels.get(spec.shadow, spec.shadow if spec.shadow.isdigit() else "")
        elif (label or STABLE) in labels:
            split = {labels[label or STABLE]: 1.0}
        wanted = {*split, shadow} - {""}
        if not label:
            wanted |= set(labels.values())
        versions = {v: self.artifact(name, int(v)) for v in sorted(wanted, key=int)}
        return WantedModel(
            name=name,
            versions=MappingProxyType(versions),
            split=MappingProxyType(split),
            sticky=sticky,
            shadow=shadow,
            labels=MappingProxyType(labels),
            spec=spec,
        )

    def _record(self, store: Store, model: str, version: int) -> VersionRecord:
        key = (model, version)
        # A version never changes: what was read once stays right.
        if key not in self._records:
            self._records[key] = store.record(model, version)
        return self._records[key]


def selection(select: Sequence[str]) -> dict[str, str]:
    """Return model -> label ("" for what the route says) of `fraud,churn@canary`.

    Raise ConfigError.
    """
    chosen = {}
    for word in (part.strip() for text in select for part in text.split(",")):
        name, sign, label = word.partition("@")
        if not name or (sign and not label):
            raise ConfigError(f"--models: {word!r} is neither NAME nor NAME@LABEL")
        chosen[name] = label
    return chosen


class NoModels:
    """No model at all: an application is served alone."""

    def read(self) -> Wanted:
        """Nothing."""
        return MappingProxyType({})

    def changed(self) -> bool:
        """Never."""
        return False

    def prepare(self, artifact: Artifact) -> Prepared:
        """Nothing to prepare. Raise ArtifactError."""
        raise ArtifactError(f"{artifact.model}: no models are served here")

    def problems(self) -> tuple[str, ...]:
        """None."""
        return ()


class FileSource:
    """Serves plain files and repository folders `<model>/<version>/<artifact>`.

    Used by one call at a time. An artifact counts only while it lies still, so that a half-copied
    one is never loaded; what was there before goes on counting until then.
    """

    def __init__(
        self,
        listing: Callable[[], Listing],
        examine: Examine,
        *,
        watched: bool,
        named: Container[Path] = (),
        look: Callable[[Path], Mark] | None = None,
        check: Callable[[Path], None] = lambda path: None,
        settle_s: float = SETTLE_S,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`watched`: whether `changed` will be asked; if not, everything that is there counts.

        `named` are artifacts that somebody named one by one: at the first look they count as they
        are, for whoever names a file has finished writing it. `look` tells one state of an artifact
        from another instead of `take_mark`; `check` looks at one just before it is loaded, and
        raises MuelleError.
        """
        self._listing = listing
        self._examine = examine
        self._watched = watched
        self._named = named
        self._mark_of = look
        self._check = check
        self._settle_s = settle_s
        self._now, self._wall, self._sleep = now, wall, sleep
        self._stillness = Stillness(settle_s)
        self._settled: dict[tuple[str, str], Artifact] = {}
        self._given: dict[tuple[str, str], Artifact] | None = None
        self._moving: tuple[str, ...] = ()
        self._problems: tuple[str, ...] = ()

    def read(self) -> Wanted:
        """List what is there; every version of it is wanted, the newest answers."""
        self._look()
        if self._given is None and self._moving:
            # At the start somebody waits for the server: a copy just made settles in a moment.
            self._sleep(self._settle_s)
            self._look()
        if not self._settled and self._moving:
            raise ArtifactError(f"{', '.join(self._moving)}: still being written; try again")
        self._given = dict(self._settled)
        versions: dict[str, dict[str, Artifact]] = {}
        for (model, number), artifact in self._given.items():
            versions.setdefault(model, {})[number] = artifact
        return MappingProxyType({name: _newest_first(name, v) for name, v in versions.items()})

    def changed(self) -> bool:
        """Whether an artifact came, went, or lies still with another content than before."""
        self._look()
        return self._settled != self._given

    def prepare(self, artifact: Artifact) -> Prepared:
        """Name its digest."""
        self._check(artifact.path)
        return Prepared(artifact.path, digest_artifact(artifact.path))

    def problems(self) -> tuple[str, ...]:
        """Folders that hold no version, and artifacts that somebody still writes."""
        return (*self._problems, *(f"{name}: still being written" for name in self._moving))

    def _look(self) -> None:
        listing = self._listing()
        problems = list(listing.problems)
        now, wall = self._now(), self._wall()
        settled: dict[tuple[str, str], Artifact] = {}
        moving = []
        for found in listing.artifacts:
            key = (found.model, str(found.version))
            before = self._settled.get(key)
            try:
                mark = (self._mark_of or take_mark)(found.path)
            except ArtifactError as exc:
                problems.append(exc.message)
                continue  # What was there goes on counting, below.
            if before is not None and before.mark == mark.text:
                settled[key] = before
            elif (
                not self._watched
                or self._stillness.is_still(found.path, mark, now, wall)
                or (self._given is None and found.path in self._named)
            ):
                settled[key] = self._new(found, mark.text)
            else:
                moving.append(f"{found.model}:{found.version}")
                if before is not None:
                    settled[key] = before
        for key, before in self._settled.items():
            if key not in settled and _may_be_there(before.path):
                settled[key] = before
        self._problems = tuple(problems)
        self._stillness.forget_others({found.path for found in listing.artifacts})
        self._settled, self._moving = settled, tuple(moving)

    def _new(self, found: Found, mark: str) -> Artifact:
        runtime, form, refused = self._examine(found.path)
        path = found.path.absolute()
        return Artifact(found.model, str(found.version), path, runtime, form, refused, mark)


def _may_be_there(path: Path) -> bool:
    """Whether an artifact that was not listed is there, or cannot be looked at: not surely gone."""
    try:
        return path.exists()
    except OSError:
        return True


def _newest_first(name: str, versions: Mapping[str, Artifact]) -> WantedModel:
    newest = default_version(versions)
    assert newest is not None
    return WantedModel(name, MappingProxyType(dict(versions)), MappingProxyType({newest: 1.0}))
