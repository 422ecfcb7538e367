"""Decide whether a version needs an environment of its own, and have it built. Not for building."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from muelle.core.errors import ArtifactError

_ALSO = {
    "mlflow": ("mlflow-skinny",),
    "onnxruntime": ("onnxruntime-gpu",),
    "xgboost": ("xgboost-cpu",),
}
"""Distribution -> others that hold the same library."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a version is loaded: the server's own environment, unless `environment` names one."""

    environment: str = ""
    """The environment's digest."""
    python: str = ""
    """Its interpreter."""
    python_version: str = ""
    libraries: dict[str, str] | None = None
    """Distribution -> version, when it is an environment of its own."""
    lines: tuple[str, ...] = ()
    """The requirements that it was built from."""
    remarks: tuple[str, ...] = ()


class Environments:
    """The environments of one store, for the time of one push."""

    def __init__(
        self, root: Path, wheels: Path | None, progress: Callable[[str], None] | None
    ) -> None:
        """`wheels` is a folder to build from without an index; `progress` gets pip's lines."""
        self._root, self._wheels, self._progress = root, wheels, progress

    def choose(
        self,
        asked: Path | None,
        beside: Path | None,
        ignored: Collection[str] = (),
        *,
        trusted: bool,
    ) -> Surroundings:
        """Return where the version runs. Raise ArtifactError when its environment cannot be built.

        What was asked for by name is always built. Requirements that lie beside the artifact are
        built only when this environment does not meet them; `ignored` distributions do not count.
        They came with the model, and a wheel can hold code that runs when an interpreter starts: so
        they need the same trust as a format that runs code.
        """
        if asked is not None:
            return self.build(_read(asked))
        if beside is not None:
            lines = _read(beside)
            missing = unmet(lines, ignored)
            if missing and not trusted:
                raise ArtifactError(
                    f"{beside.name} beside the model asks for what is not here "
                    f"({'; '.join(missing[:3])}); the libraries that it names would run their "
                    "code: if you trust where it comes from, add --trust; else name your own with "
                    "--requirements FILE, or load it with what is here: --no-environment"
                )
            if missing:
                remark = f"it gets an environment of its own: {'; '.join(missing[:5])}"
                return self.build(lines, (remark,))
        return Surroundings(python_version=platform.python_version())

    def build(self, lines: tuple[str, ...], remarks: tuple[str, ...] = ()) -> Surroundings:
        """Build the environment of these requirements, or find it. Raise ArtifactError."""
        from muelle.packaging.environments import build_environment, installed

        built = build_environment(self._root, lines, wheels=self._wheels, progress=self._progress)
        return Surroundings(
            environment=built.digest,
            python=str(built.python),
            # A virtual environment has the interpreter that it was made with: ours.
            python_version=platform.python_version(),
            libraries=dict(sorted(installed(self._root, built.digest).items())),
            lines=tuple(built.lines),
            remarks=remarks,
        )


def _read(file: Path) -> tuple[str, ...]:
    from muelle.packaging.environments import read_requirements

    return read_requirements(file)


def unmet(lines: Sequence[str], ignored: Collection[str] = ()) -> list[str]:
    """Return which requirements this environment does not meet: `numpy<2, here is 2.1.0`.

    A hash says where a wheel came from, which cannot be seen afterwards: it does not count.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = []
    for line in lines:
        wanted = Requirement(line.partition(" --hash")[0])
        name = canonicalize_name(wanted.name)
        if name in ignored or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        here = _version_here(name)
        if not here:
            found.append(f"{wanted} is not here")
            continue
        if not wanted.specifier.contains(here, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier}, here is {here}")
    return found


def _version_here(name: str) -> str:
    """Return the version that is installed, "" for none."""
    for one in (name, *_ALSO.get(name, ())):
        try:
            return metadata.version(one)
        except metadata.PackageNotFoundError:
            continue
    return ""
