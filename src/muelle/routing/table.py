"""Which version of which model answers: an immutable snapshot, swapped whole. Pure.

The data plane reads it and never awaits the control plane; management makes a new one for every
change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from muelle.core.errors import ModelNotFound, VersionNotFound

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelRoute(Generic[T]):
    """The versions of one model, and what answers when no version is asked for."""

    name: str
    versions: Mapping[str, T]
    default: str | None
    """The version that gets the largest share of the unpinned requests."""
    front: T | None = None
    """What takes unpinned requests: a version, or several that share them."""


@dataclass(frozen=True, slots=True)
class RouteTable(Generic[T]):
    """All models by name."""

    models: Mapping[str, ModelRoute[T]] = field(default_factory=lambda: MappingProxyType({}))

    def model(self, name: str) -> ModelRoute[T]:
        """Return a model's route. Raise ModelNotFound, which lists near names."""
        route = self.models.get(name)
        if route is None:
            raise ModelNotFound(_not_found(name, self.models))
        return route

    def version(self, name: str, version: str | None) -> T:
        """Return what answers. Raise ModelNotFound or VersionNotFound."""
        route = self.model(name)
        if version is None and route.front is not None:
            return route.front
        wanted = route.default if version is None else version
        if wanted is None or wanted not in route.versions:
            have = ", ".join(sorted(route.versions, key=_number)) or "none"
            raise VersionNotFound(f"{name}: no version {version or 'is ready'}; there is: {have}")
        return route.versions[wanted]


def default_version(versions: Iterable[str]) -> str | None:
    """Return the newest version: the highest number."""
    return max(versions, key=_number, default=None)


def _number(version: str) -> int:
    return int(version) if version.isdigit() else -1


def _not_found(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    shown = name[:80]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"no model {shown!r}; near: {', '.join(near)}"
    if len(known) > 8:
        return f"no model {shown!r}; {len(known)} models are served, see GET /models"
    return f"no model {shown!r}; served: {', '.join(known) or 'none'}"
