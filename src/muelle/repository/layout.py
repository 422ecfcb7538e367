"""Say which versions of which models a path holds. Not for formats: names and folders only.

A path is one of: an artifact (a file, or a folder that is one); a repository, whose layout is
`<model>/<version>/<artifact>` with positive whole numbers as versions; or one model's folder of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ArtifactError, ConfigError
from muelle.core.ids import is_model_name, to_model_name

FIRST_VERSION = 1
"""The version of an artifact that is named by itself."""

_VERSION = re.compile(r"[1-9]\d{0,17}\Z")
_HALF_COPIED = (".tmp", ".part", ".partial", ".crdownload", "~")
_SIGNATURE = ".sig"
"""The end of what lies beside an artifact and is signed over it: never an artifact."""
_LAYOUT = "<model>/<version>/<artifact>, for example fraud/1/model.onnx"
_SHOWN = 5

IsArtifact = Callable[[Path], bool]


@dataclass(frozen=True, slots=True, order=True)
class Artifact:
    """One version of a model, and where it lies."""

    model: str
    version: int
    path: Path


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found, by model and then version; and what was left out, one line each."""

    artifacts: tuple[Artifact, ...]
    problems: tuple[str, ...] = ()


def list_artifacts(
    specs: Sequence[str], *, is_artifact_folder: IsArtifact = lambda path: False
) -> Listing:
    """List what the specs `PATH` and `NAME=PATH` hold.

    `is_artifact_folder` tells whether a folder is itself an artifact (a format question, so the
    caller answers it). Raise ArtifactError when a spec holds nothing, ConfigError when two give
    the same version of the same model or a name cannot be one.
    """
    found: dict[tuple[str, int], Artifact] = {}
    problems: list[str] = []
    for spec in specs:
        listing = _list_one(spec, is_artifact_folder)
        problems.extend(listing.problems)
        for artifact in listing.artifacts:
            other = found.setdefault((artifact.model, artifact.version), artifact)
            if other is not artifact:
                raise ConfigError(
                    f"{other.path} and {artifact.path} are both version {artifact.version} of "
                    f"{artifact.model!r}; name one of them otherwise: NAME={artifact.path}"
                )
    return Listing(tuple(sorted(found.values())), tuple(problems))


def split_spec(spec: str) -> tuple[str | None, Path]:
    """Split `NAME=PATH`; a path that exists as it is written has no name in it."""
    name, sign, rest = spec.partition("=")
    if not sign or Path(spec).exists() or "/" in name:
        return None, Path(spec).expanduser()
    if not is_model_name(name):
        raise ConfigError(
            f"{spec}: {name!r} cannot be a model's name (a-z, 0-9, '.', '_' and '-', at most 63); "
            f"for example {to_model_name(name)}={rest}"
        )
    return name, Path(rest).expanduser()


def _list_one(spec: str, is_artifact_folder: IsArtifact) -> Listing:
    name, path = split_spec(spec)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or folder{_near(path)}")
    if path.is_file() or is_artifact_folder(path):
        stem = path.stem if path.is_file() else path.resolve().name
        return Listing((Artifact(name or to_model_name(stem), FIRST_VERSION, path),))
    if not path.is_dir():
        raise ArtifactError(f"{path}: neither a file nor a folder")
    if _versions(path):
        model = name or to_model_name(path.resolve().name)
        listing = _list_model(model, path, is_artifact_folder)
    elif name is not None:
        raise ArtifactError(
            f"{spec}: a repository names its models itself; give its path without {name}="
        )
    else:
        listing = _list_repository(path, is_artifact_folder)
    if not listing.artifacts:
        raise ArtifactError(_nothing_in(path, listing.problems))
    return listing


def _list_repository(folder: Path, is_artifact_folder: IsArtifact) -> Listing:
    artifacts: dict[str, tuple[Artifact, ...]] = {}
    problems: list[str] = []
    for child in _children(folder):
        if not child.is_dir():
            continue
        model = to_model_name(child.name)
        if model in artifacts:
            problems.append(f"{child}: another folder is already served as {model!r}; rename one")
            continue
        try:
            if not _versions(child):
                problems.append(f"{child}: no version in it; the layout is {_LAYOUT}")
                continue
            listing = _list_model(model, child, is_artifact_folder)
        except ArtifactError as exc:
            # One folder that cannot be read must not take the others away.
            problems.append(exc.message)
            continue
        artifacts[model] = listing.artifacts
        problems.extend(listing.problems)
    return Listing(tuple(a for found in artifacts.values() for a in found), tuple(problems))


def _list_model(model: str, folder: Path, is_artifact_folder: IsArtifact) -> Listing:
    artifacts, problems = [], []
    for version, place in _versions(folder):
        artifact = place if is_artifact_folder(place) else _artifact_in(place)
        if artifact is None:
            problems.append(_which_artifact(place))
        else:
            artifacts.append(Artifact(model, version, artifact))
    return Listing(tuple(artifacts), tuple(problems))


def _versions(folder: Path) -> list[tuple[int, Path]]:
    return sorted(
        (int(child.name), child)
        for child in _children(folder)
        if child.is_dir() and _VERSION.match(child.name)
    )


def _artifact_in(folder: Path) -> Path | None:
    """Return the one artifact of a version: the only file, the one called `model`, or the only
    folder. None when that is not clear."""
    children = [c for c in _children(folder) if not c.name.endswith(_SIGNATURE)]
    files = [c for c in children if c.is_file()]
    named = [f for f in files if f.stem == "model"]
    folders = [c for c in children if c.is_dir()]
    for choice in (files, named, [] if files else folders):
        if len(choice) == 1:
            return choice[0]
    return None


def _which_artifact(folder: Path) -> str:
    children = _children(folder)
    if not children:
        return f"{folder}: it is empty; put the version's artifact into it"
    names = _names(children)
    return f"{folder}: which of {names} is the artifact? keep one, or call it model.<ending>"


def _children(folder: Path) -> list[Path]:
    """List a folder without what is hidden or still being copied."""
    try:
        children = sorted(folder.iterdir())
    except OSError as exc:
        raise ArtifactError(f"{folder}: cannot be read: {exc.strerror}") from exc
    return [c for c in children if not is_unfinished(c.name)]


def is_unfinished(name: str) -> bool:
    """Whether a file name says that it is hidden, or a copy that has not come to its end."""
    return name.startswith((".", "__pycache__")) or name.lower().endswith(_HALF_COPIED)


def _nothing_in(folder: Path, problems: Iterable[str]) -> str:
    files = [c for c in _children(folder) if c.is_file()]
    if files:
        return (
            f"{folder}: it holds files ({_names(files)}), a repository's layout is {_LAYOUT}; "
            "to serve the files, name them one by one"
        )
    reasons = "; ".join(problems) or "it is empty"
    return f"{folder}: no model in it: {reasons}; a repository's layout is {_LAYOUT}"


def _near(path: Path) -> str:
    """Return `; near it is: model.onnx` for a name that was probably mistyped."""
    if not path.parent.is_dir():
        return ""
    names = [c.name for c in _children(path.parent)]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    near = near or [n for n in names if Path(n).stem == path.stem][:3]
    return f"; near it is: {', '.join(near)}" if near else ""


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(p.name for p in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
