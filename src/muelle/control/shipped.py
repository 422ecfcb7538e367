"""Serves a folder of versions that came in an image or a bundle. It never changes while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType

from muelle.control.sources import selection
from muelle.control.wanted import Artifact, Prepared, Wanted, WantedModel
from muelle.core.errors import ArtifactError, ModelNotFound, VersionNotFound
from muelle.core.records import VersionRecord
from muelle.repository.digest import digest_artifact, digest_of_files
from muelle.repository.shipped import ShippedIndex, ShippedModel, read_index, read_record
from muelle.repository.store.references import near

Refuse = Callable[[VersionRecord, Path], str]
"""Says of a version and its artifact why it must not be loaded, "" when it may."""


class ShippedSource:
    """The versions of one folder. Used by one call at a time."""

    def __init__(
        self,
        folder: Path,
        select: Sequence[str],
        *,
        refuse: Refuse,
        check: Callable[[VersionRecord, Path], None] = lambda record, folder: None,
    ) -> None:
        """`select` holds `NAME` and `NAME@LABEL`, empty for all; `check` looks at a version's
        folder just before it is loaded, and raises MuelleError."""
        self.folder = folder.absolute()
        self._select = selection(select)
        self._refuse = refuse
        self._check = check
        self._environments: dict[str, str] = {}

    def read(self) -> Wanted:
        """Return every version of the folder. Raise ArtifactError, ModelNotFound, …"""
        index = read_index(self.folder)
        self._environments = index.environments
        for name in self._select:
            if name not in index.models:
                raise ModelNotFound(f"{name}: not in {self.folder}{near(name, index.models)}")
        return MappingProxyType(
            {
                name: self._model(index, name, model)
                for name, model in index.models.items()
                if not self._select or name in self._select
            }
        )

    def changed(self) -> bool:
        """Never: an image is made anew, not changed."""
        return False

    def prepare(self, artifact: Artifact) -> Prepared:
        """Hash the version's files: what is served is what was shipped. Raise ArtifactError."""
        record = artifact.record
        assert record is not None
        folder = self.folder / record.model / str(record.version)
        self._check(record, folder)
        digest = digest_of_files(
            [
                (file.path, digest_artifact(folder / file.path).rpartition(":")[2])
                for file in record.files
            ]
        )
        if digest != record.digest:
            raise ArtifactError(
                f"{record.model}:{record.version}: its files are not those that were shipped "
                f"(digest {digest[:19]}…, expected {record.digest[:19]}…); copy them again"
            )
        return Prepared(artifact.path, digest, self._python(record))

    def problems(self) -> tuple[str, ...]:
        """None that would not already have been raised."""
        return ()

    def _model(self, index: ShippedIndex, name: str, model: ShippedModel) -> WantedModel:
        label = self._select.get(name, "")
        if label and label not in model.labels:
            known = ", ".join(model.labels) or "none"
            raise VersionNotFound(f"{name}@{label}: no such label in {self.folder}; there: {known}")
        default = str(model.labels[label] if label else model.default)
        versions = {str(v): self._artifact(index, name, v) for v in model.versions}
        return WantedModel(
            name=name,
            versions=MappingProxyType(versions),
            split=MappingProxyType({default: 1.0}),
            labels=MappingProxyType({k: str(v) for k, v in model.labels.items()}),
        )

    def _artifact(self, index: ShippedIndex, model: str, version: int) -> Artifact:
        record = read_record(self.folder, index, model, version)
        folder = self.folder / model / str(version)
        place = folder / record.artifact if record.artifact else folder
        return Artifact(
            model=model,
            version=str(version),
            path=place,
            runtime=record.runtime,
            format=record.format,
            refused=self._refuse(record, place),
            mark=record.digest,
            record=record,
            size=record.size,
        )

    def _python(self, record: VersionRecord) -> str:
        if not record.environment:
            return ""
        folder = Path(self._environments.get(record.environment, ""))
        python = folder / "bin" / "python3"
        if not folder.is_absolute() or not python.exists():
            raise ArtifactError(
                f"{record.model}:{record.version}: its environment is not at {folder}; it works "
                f"in the image that it was built for only (this is {sys.executable})"
            )
        return str(python)
