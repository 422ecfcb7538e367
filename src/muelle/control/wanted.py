"""What a source of models wants served: plain values. Not how it becomes true (`fleet`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from muelle.core.records import RouteSpec, VersionRecord
from muelle.core.settings import ModelSettings

Key = tuple[str, str]
"""Model and version."""


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version to serve, as the repository found it."""

    model: str
    version: str
    path: Path
    """For a version of a store: its folder there, made when it is first needed."""
    runtime: str
    format: str
    refused: str = ""
    """Why it must not be loaded (no trust, missing library); empty when it may."""
    mark: str = ""
    """Changes when the content does: the same version with another mark is another artifact."""
    record: VersionRecord | None = None
    """What the store knows of it; None for a plain file."""
    settings: ModelSettings | None = None
    """The model's own configuration, when it comes with one."""
    size: int = 0
    """Bytes on disk, for a first guess at its memory."""


@dataclass(frozen=True, slots=True)
class WantedModel:
    """What one model should look like."""

    name: str
    versions: Mapping[str, Artifact]
    """Every version that may be asked for by its number."""
    split: Mapping[str, float]
    """Version -> share of the unpinned requests. Never empty, unless no version is wanted."""
    sticky: str = ""
    shadow: str = ""
    """The version that gets a copy of the traffic."""
    labels: Mapping[str, str] = field(default_factory=_empty)
    """Label -> version."""
    spec: RouteSpec | None = None
    """The route as it was written, when there is one."""

    @property
    def default(self) -> str | None:
        """The version with the largest share; the newest among equals."""
        return max(self.split, key=lambda v: (self.split[v], _number(v)), default=None)


Wanted = Mapping[str, WantedModel]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An artifact that lies ready to be loaded."""

    path: Path
    digest: str
    python: str = ""
    """The interpreter of the version's own environment, "" for the server's."""


class Source(Protocol):
    """Where models come from. `read` and `prepare` may block: they run off the event loop."""

    def read(self) -> Wanted:
        """Say what should be served now. Raise MuelleError or OSError when that cannot be told."""

    def changed(self) -> bool:
        """Whether `read` may say something new. Cheap: it is asked every second."""

    def prepare(self, artifact: Artifact) -> Prepared:
        """Make the artifact's files ready and name their digest. Raise MuelleError."""

    def problems(self) -> tuple[str, ...]:
        """What was left out and why, one line each."""


def _number(version: str) -> int:
    return int(version) if version.isdigit() else -1
