"""Decide which distributions an image or a bundle needs, and lay their wheels ready, by hash.

What is locked is what is installed here: the libraries with which the versions were tried. Not for
fetching (`wheels`) nor for building images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from muelle.core.errors import ArtifactError, ConfigError
from muelle.core.records import VersionRecord
from muelle.packaging.targets import Target
from muelle.packaging.wheels import (
    LockedWheel,
    Pin,
    cache_folder,
    fetch,
    find_wheels,
    locked,
    repack,
)
from muelle.runtimes.libraries import library
from muelle.runtimes.registry import BUILT_IN, GROUP, Registry

OURS = "muelle"
LOCK, REQUIREMENTS, WHEELS = "pylock.toml", "requirements.txt", "wheels"
"""What a folder of `muelle lock` holds."""
INSTALLED = "installed"
"""As --wheels: pack what is installed here, ask no index."""

Progress = Callable[[str, int, int], None]
"""(phase, done, total): `wheels` counts those that lie ready; `fetching` comes with pip's lines."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The wheels that one target needs: for the server, and for each environment of a version."""

    target: Target
    wheels: tuple[LockedWheel, ...]
    pip: LockedWheel | None = None
    """The installer itself: not installed, but run where a wheel folder is installed from."""
    environments: Mapping[str, tuple[LockedWheel, ...]] = field(default_factory=dict)
    """Digest of an environment -> its wheels."""

    def pylock(self) -> bytes:
        """Return the lock as `pylock.toml` (PEP 751): names, versions, hashes; no address."""
        tomli_w = library("tomli_w", "build")
        packages = [
            {
                "name": wheel.name,
                "version": wheel.version,
                "wheels": [
                    {
                        "name": wheel.file,
                        "path": f"{WHEELS}/{wheel.file}",
                        "size": wheel.size,
                        "hashes": {"sha256": wheel.sha256},
                    }
                ],
            }
            for wheel in self.wheels
        ]
        text: str = tomli_w.dumps(
            {
                "lock-version": "1.0",
                "created-by": OURS,
                "requires-python": f"=={self.target.python}.*",
                "environments": [
                    f"sys_platform == 'linux' and platform_machine == '{self.target.machine}'"
                ],
                "packages": packages,
            }
        )
        return text.encode()

    def requirements(self, environment: str = "") -> bytes:
        """Return the same for pip: `name==version --hash=sha256:…`, a line per wheel."""
        wheels = self.environments[environment] if environment else self.wheels
        lines = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels]
        return "".join(lines).encode()

    def all_wheels(self) -> tuple[LockedWheel, ...]:
        """Return every wheel once, pip's too, by file name."""
        sets = [self.wheels, *self.environments.values()]
        found = {wheel.file: wheel for wheels in sets for wheel in wheels}
        if self.pip is not None:
            found[self.pip.file] = self.pip
        return tuple(found[name] for name in sorted(found))


def lock_for(
    records: Sequence[VersionRecord],
    *,
    target: Target,
    wheels: Path | str | None = None,
    more: Sequence[str] = (),
    environments: Mapping[str, Mapping[str, str]] | None = None,
    env: Mapping[str, str] | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Lock:
    """Return the lock of a server for these versions, every wheel on this disk.

    `wheels`: a folder to take them from (no index is asked), `installed` to pack what is here, None
    for the index that pip is configured for. `more`: requirements beside them (an app's).
    `environments`: digest -> distribution -> version, of versions with their own. Raise
    ArtifactError, which names what is missing.
    """
    cache = cache_folder(os.environ if env is None else env) / WHEELS
    pins = closure([*roots_of(records), *more], target)
    gather = _Gather(target, wheels, cache, progress)
    found = gather.take(pins)
    own = {
        digest: gather.take([Pin(canonicalize_name(n), v) for n, v in sorted(versions.items())])
        for digest, versions in (environments or {}).items()
    }
    (pip,) = gather.take([Pin("pip", _version_here("pip"))])
    return Lock(target, found, pip, own)


def roots_of(records: Iterable[VersionRecord]) -> list[str]:
    """Return what a server of these versions needs at the top: `muelle[onnx,sklearn]`."""
    registry = Registry()
    extras: set[str] = set()
    others: set[str] = set()
    for record in records:
        if record.environment:
            continue  # Its libraries lie in its own environment.
        if record.runtime not in BUILT_IN:
            others.add(_holder(record.runtime))
            continue
        runtime = registry.by_name(record.runtime)
        extra = runtime.extras_by_format.get(record.format, runtime.extra)
        extras |= {part for part in extra.split(",") if part}
    return [f"{OURS}[{','.join(sorted(extras))}]" if extras else OURS, *sorted(others)]


def closure(requirements: Sequence[str], target: Target) -> list[Pin]:
    """Return all that is needed, pinned to what is installed here, by name. Ours is among it.

    Raise ArtifactError when something is not here, or is here in another version than asked for.
    """
    environment = target.markers()
    pending = [(_parsed(text), "what was asked for") for text in requirements]
    pins: dict[str, Pin] = {}
    seen: set[tuple[str, str]] = set()
    while pending:
        wanted, by = pending.pop()
        name = canonicalize_name(wanted.name)
        found = _here(name, wanted, by)
        pins[name] = Pin(name, found.version)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in found.requires or ():
                needed = _parsed(text)
                if needed.marker is None:
                    if not extra:
                        pending.append((needed, name))
                elif needed.marker.evaluate({**environment, "extra": extra}):
                    pending.append((needed, name))
    return [pins[name] for name in sorted(pins)]


def _here(name: str, wanted: Requirement, by: str) -> metadata.Distribution:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError as exc:
        raise ArtifactError(
            f"{wanted} is needed by {by} and not installed here; install it first, so that what "
            f"goes into the image is what was tried: pip install '{wanted}'"
        ) from exc
    if not wanted.specifier.contains(found.version, prereleases=True):
        raise ArtifactError(
            f"{by} needs {wanted.name}{wanted.specifier}, here is {found.version}; install a "
            "version that fits, so that what goes into the image is what was tried"
        )
    return found


def _parsed(text: str) -> Requirement:
    try:
        found = Requirement(text)
    except InvalidRequirement as exc:
        raise ConfigError(f"{text!r} is no requirement such as name==1.2: {exc}") from exc
    if found.url is not None:
        raise ConfigError(f"{text!r}: an address is not taken; name a version")
    return found


def _version_here(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _holder(runtime: str) -> str:
    """Return the distribution that brings a runtime which is not ours."""
    for point in metadata.entry_points(group=GROUP):
        if point.name == runtime and point.dist is not None:
            return f"{point.dist.name}=={point.dist.version}"
    raise ArtifactError(f"no runtime is named {runtime!r} here")


class _Gather:
    """Takes wheels from where they may come from, and hashes them. Used by one lock."""

    def __init__(
        self, target: Target, source: Path | str | None, cache: Path, progress: Progress
    ) -> None:
        self._target, self._source, self._cache = target, source, cache
        self._progress = progress

    def take(self, pins: Sequence[Pin]) -> tuple[LockedWheel, ...]:
        """Return the wheel of each pin, in order of names."""
        theirs = [pin for pin in pins if pin.name != OURS]
        paths = self._find(theirs)
        if len(theirs) < len(pins):
            ours = repack(OURS, self._cache / "own")
            paths[next(pin for pin in pins if pin.name == OURS)] = ours
        found = []
        for i, pin in enumerate(pins):
            self._progress("wheels", i, len(pins))
            found.append(locked(paths[pin]))
        self._progress("wheels", len(pins), len(pins))
        return tuple(sorted(found, key=lambda wheel: wheel.name))

    def _find(self, pins: Sequence[Pin]) -> dict[Pin, Path]:
        source, target = self._source, self._target
        if source == INSTALLED:
            return {pin: self._repacked(pin) for pin in pins}
        if source is not None:
            folder = Path(source)
            if not folder.is_dir():
                raise ArtifactError(f"{folder}: no such folder of wheels")
            inside = folder / WHEELS
            found, missing = find_wheels(pins, [folder, inside], target)
            if missing:
                names = ", ".join(str(pin) for pin in missing[:5])
                more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
                raise ArtifactError(
                    f"{folder}: no wheel for {target.platform}, Python {target.python}, of "
                    f"{names}{more}; fetch where there is an index: muelle lock … -o DIR"
                )
            return found
        found, missing = find_wheels(pins, [self._cache], target)
        if missing:
            fetch(missing, self._cache, target, lambda line: self._progress("fetching", 0, 0))
            more_found, missing = find_wheels(missing, [self._cache], target)
            found |= more_found
        if missing:
            raise ArtifactError(f"{missing[0]}: pip fetched no wheel of it that fits {target}")
        return found

    def _repacked(self, pin: Pin) -> Path:
        if not self._target.is_here:
            raise ArtifactError(
                f"--wheels {INSTALLED} packs what is installed on this machine, which is not "
                f"{self._target.platform} with Python {self._target.python}"
            )
        here = _version_here(pin.name)
        if here != pin.version:
            raise ArtifactError(f"{pin} is not installed here (here is {here or 'none'})")
        return repack(pin.name, self._cache / "installed")


def read_environments(root: Path, records: Iterable[VersionRecord]) -> dict[str, dict[str, str]]:
    """Return digest -> distribution -> version of the environments that the versions have."""
    from muelle.packaging.environments import installed

    return {r.environment: installed(root, r.environment) for r in records if r.environment}


def write_lock(lock: Lock, folder: Path, link: Callable[[Path, Path], Any]) -> None:
    """Write `pylock.toml`, `requirements.txt` and the wheels; `link(source, target)` copies one."""
    (folder / WHEELS).mkdir(parents=True, exist_ok=True)
    for wheel in lock.all_wheels():
        link(wheel.path, folder / WHEELS / wheel.file)
    (folder / REQUIREMENTS).write_bytes(lock.requirements())
    (folder / LOCK).write_bytes(lock.pylock())
