"""Turn versions of a store and an app's folder into an image's plan. Not for building it.

Blocking: wheels may have to be fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from muelle.core.records import VersionRecord
from muelle.packaging.images import (
    AppPart,
    ImagePlan,
    VersionPart,
    environment_home,
    epoch_of,
)
from muelle.packaging.lock import Lock, lock_for, read_environments
from muelle.packaging.oci import ImageName
from muelle.packaging.sbom import NAME, BasePart, ModelPart, Part, build_sbom
from muelle.packaging.sbom_wheels import wheel_part
from muelle.packaging.signing import read_signatures
from muelle.packaging.targets import Target
from muelle.packaging.wheels import LockedWheel
from muelle.publishing.app_files import AppFiles
from muelle.repository.shipped import ShippedIndex, index_of, shipped_files
from muelle.repository.store import Reference, Store

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Versions of a store, and how they were named."""

    store: Store | None
    versions: tuple[tuple[Reference, VersionRecord], ...] = ()

    @property
    def records(self) -> list[VersionRecord]:
        """The versions' records, each once, in the order that they were named."""
        return list({(r.model, r.version): r for _, r in self.versions}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an image should be like. Every field has the default of the command line."""

    target: Target
    name: ImageName
    base: str
    base_digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str]


def choose(store: Store, references: Sequence[str]) -> Chosen:
    """Resolve `fraud`, `fraud:3`, `fraud@stable`. Raise ModelNotFound, VersionNotFound, …"""
    found = []
    for text in references:
        reference = Reference.parse(text)
        found.append((reference, store.record(*store.resolve(reference))))
    return Chosen(store, tuple(found))


def lock_chosen(
    chosen: Chosen,
    target: Target,
    *,
    wheels: Path | str | None,
    app: AppFiles | None = None,
    env: Mapping[str, str],
    progress: Progress,
) -> Lock:
    """Lay the wheels ready that a service of these versions needs. Raise ArtifactError."""
    environments = {}
    if chosen.store is not None:
        environments = read_environments(chosen.store.folder / "environments", chosen.records)
    return lock_for(
        chosen.records,
        target=target,
        wheels=wheels,
        more=app.requirements if app is not None else (),
        environments=environments,
        env=env,
        progress=progress,
    )


def index_for(chosen: Chosen) -> ShippedIndex:
    """Return which version answers, and where environments will lie."""
    store = chosen.store
    homes = {r.environment: environment_home(r.environment) for r in chosen.records}
    return index_of(
        chosen.versions,
        store.labels if store is not None else lambda model: {},
        {digest: home for digest, home in homes.items() if digest},
    )


def plan_image(chosen: Chosen, lock: Lock, wish: Wish, app: AppFiles | None = None) -> ImagePlan:
    """Return the plan of an image with these versions. Raise StoreError when a file is gone."""
    store = chosen.store
    index: Mapping[str, bytes] = {}
    parts: tuple[VersionPart, ...] = ()
    if store is not None and chosen.versions:
        laid = [(r, store.checkout(r.files, r.digest)) for r in chosen.records]
        index, files = shipped_files(
            index_for(chosen), laid, lambda digest: read_signatures(store.folder, digest)
        )
        parts = tuple(VersionPart(r, files[f"{r.model}/{r.version}"]) for r in chosen.records)
    epoch = epoch_of(chosen.records, wish.env)
    base = BasePart(wish.base, wish.base_digest)
    # Not pip, which only makes environments.
    installed = [wheel for one in (lock.wheels, *lock.environments.values()) for wheel in one]
    return ImagePlan(
        documents={
            NAME: sbom_of(chosen, installed, name=str(wish.name), epoch=epoch, bases=[base])
        },
        name=wish.name,
        base=wish.base,
        base_digest=wish.base_digest,
        lock=lock,
        versions=parts,
        index=index,
        epoch=epoch,
        app=AppPart(app.target, app.files) if app is not None else None,
        labels=wish.labels,
    )


def sbom_of(
    chosen: Chosen,
    wheels: Iterable[LockedWheel],
    *,
    name: str,
    epoch: int,
    bases: Sequence[BasePart] = (),
) -> bytes:
    """Return the list of parts: every package, every model, the base."""
    models = (ModelPart.of(record) for record in chosen.records)
    parts: list[Part] = [*map(wheel_part, wheels), *models, *bases]
    return build_sbom(parts, name=name, epoch=epoch)
