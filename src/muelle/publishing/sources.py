"""Say what a pushed path holds: an artifact, or the versions of a repository. Loads nothing."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ArtifactError, BadRequest
from muelle.core.ids import is_model_name, to_model_name
from muelle.repository.layout import is_unfinished, list_artifacts
from muelle.runtimes.interface import Format, Runtime
from muelle.runtimes.registry import Registry

REQUIREMENTS = "requirements.txt"
_OLD_MLFLOW = ("MLmodel", "conda.yaml")
"""Folders that an old MLflow saved say only there what the model needs."""


@dataclass(frozen=True, slots=True)
class Found:
    """One version to be: which files belong to it, and which of them is loaded."""

    model: str
    source: Path
    """The file, or the folder whose files all belong to the version."""
    artifact: str
    """The artifact in the version's folder: a relative path, "" for the folder itself."""
    runtime: Runtime
    format: Format
    number: int = 0
    """The version's number in the folder it comes from, 0 when it has none."""

    @property
    def requirements(self) -> Path | None:
        """The requirements that lie beside the artifact, if any."""
        beside = self.source / REQUIREMENTS
        if self.source.is_dir() and not beside.is_file():
            mark, beside = (self.source / name for name in _OLD_MLFLOW)
            return beside if mark.is_file() and beside.is_file() else None
        return beside if self.source.is_dir() else None


def find(path: Path, *, name: str = "", artifact: str = "") -> tuple[Found, ...]:
    """Return the versions that a path holds, by model and then number.

    `name` is the model's name, "" for the one that the path gives; `artifact` names the file of a
    folder that is to be loaded. Raise ArtifactError (nothing, or nothing clear, is there) or
    BadRequest (a name that cannot be one).
    """
    if name and not is_model_name(name):
        raise BadRequest(
            f"--name {name!r}: a-z, 0-9, '.', '_' and '-', at most 63; perhaps "
            f"{to_model_name(name)!r}"
        )
    path = Path(os.path.normpath(path.absolute()))
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or folder{_near(path)}")
    registry = Registry()
    model = name or to_model_name(path.stem if path.is_file() else path.name)
    if path.is_file():
        return (_one(model, path, path.name, registry),)
    if artifact or _is_artifact_folder(path, registry):
        return (_in_folder(model, path, artifact, registry),)
    if not _holds_versions(path) and _files(path):
        return (_in_folder(model, path, "", registry),)
    return _versions(path, name, registry)


def _one(model: str, source: Path, artifact: str, registry: Registry, number: int = 0) -> Found:
    """Recognise the artifact of one version. Raise ArtifactError."""
    place = source / artifact if source.is_dir() and artifact else source
    runtime, form = registry.find_format(place)
    return Found(model, source, artifact, runtime, form, number)


def _in_folder(model: str, folder: Path, artifact: str, registry: Registry) -> Found:
    if artifact:
        inside = os.path.normpath(folder / artifact)
        if not Path(inside).exists() or not Path(inside).is_relative_to(folder):
            raise ArtifactError(f"{artifact}: no such file in {folder}")
        relative = Path(inside).relative_to(folder).as_posix()
        return _one(model, folder, "" if relative == "." else relative, registry)
    if _is_artifact_folder(folder, registry):
        return _one(model, folder, "", registry)
    return _one(model, folder, _main_file(folder, registry), registry)


def _main_file(folder: Path, registry: Registry) -> str:
    """Return the one file of a folder that is a model: by its content, then by its name."""
    known = [file for file in _files(folder) if _is_known(file, registry)]
    named = [file for file in known if file.stem == "model"]
    for choice in (known, named):
        if len(choice) == 1:
            return choice[0].name
    if known:
        names = ", ".join(file.name for file in known)
        raise ArtifactError(
            f"{folder}: which of {names} is the model? name it: --artifact {known[0].name}"
        )
    names = ", ".join(file.name for file in _files(folder)[:5])
    raise ArtifactError(
        f"{folder}: no file of a known format in it ({names}); known are {registry.formats_text()}"
    )


def _versions(path: Path, name: str, registry: Registry) -> tuple[Found, ...]:
    """Return the versions of a folder laid out as Triton's and TF Serving's are."""

    def is_artifact(folder: Path) -> bool:
        return _is_artifact_folder(folder, registry)

    spec = f"{name}={path}" if name and _holds_versions(path) else str(path)
    listing = list_artifacts([spec], is_artifact_folder=is_artifact)
    models = {artifact.model for artifact in listing.artifacts}
    if name and len(models) > 1:
        raise BadRequest(
            f"--name {name}: {path} holds several models ({', '.join(sorted(models)[:5])}); push "
            "the folder of one"
        )
    if listing.problems:
        raise ArtifactError("; ".join(listing.problems))
    found = []
    for one in listing.artifacts:
        folder, artifact = one.path.parent, one.path.name
        if one.path.name == str(one.version) and is_artifact(one.path):
            folder, artifact = one.path, ""
        elif one.path.is_file() and len(_visible(folder)) == 1:
            folder = one.path  # a lone file: its digest is the version's
        found.append(_one(name or one.model, folder, artifact, registry, one.version))
    return tuple(found)


def _is_artifact_folder(path: Path, registry: Registry) -> bool:
    """Whether a folder as a whole is of a known format."""
    return path.is_dir() and any(
        form.is_folder and form.sniff(b"", path)
        for runtime in registry.runtimes()
        for form in runtime.formats
    )


def _is_known(file: Path, registry: Registry) -> bool:
    try:
        registry.find_format(file)
    except ArtifactError:
        return False
    return True


def _holds_versions(folder: Path) -> bool:
    return any(p.is_dir() and p.name.isdigit() and p.name[0] != "0" for p in _visible(folder))


def _files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_file()]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_unfinished(path.name))
    except OSError as exc:
        raise ArtifactError(f"{folder}: cannot be read: {exc.strerror}") from exc


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [child.name for child in _visible(path.parent)]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; near it is: {', '.join(near)}" if near else ""
