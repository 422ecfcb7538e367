"""A folder of versions that travels: in an image, or copied to a machine. Read only, once written.

`<model>/<version>/<files>` and `<model>/<version>.muelle.json` (the record), with an index at the
top that says which version answers. Not a store: nothing is pushed here and no label moves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from muelle.core.errors import ArtifactError, ModelNotFound, VersionNotFound
from muelle.core.ids import is_model_name
from muelle.core.records import STABLE, VersionRecord
from muelle.repository.store.references import Reference, near
from muelle.repository.store.sources import check_names

T = TypeVar("T")

INDEX = "muelle-models.json"
RECORD_ENDING = ".muelle.json"
FORMAT = 1


class ShippedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the folder."""

    versions: tuple[int, ...]
    default: int
    """The version that answers when none is named."""
    labels: dict[str, int] = {}


class ShippedIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the folder holds."""

    format: int = FORMAT
    models: dict[str, ShippedModel]
    environments: dict[str, str] = {}
    """Digest of a version's own environment -> folder of it, as it will be where this is served."""


def is_shipped(folder: Path) -> bool:
    """Whether a folder is one of these."""
    return (folder / INDEX).is_file()


def index_of(
    chosen: Sequence[tuple[Reference, VersionRecord]],
    labels: Callable[[str], Mapping[str, int]],
    environments: Mapping[str, str],
) -> ShippedIndex:
    """Return the index of versions as they were named; `labels` tells a model's labels.

    What answers is the version that was named first without a number, or by a label; else the one
    that is stable; else the newest.
    """
    models = {}
    for name in dict.fromkeys(record.model for _, record in chosen):
        mine = [(ref, record) for ref, record in chosen if record.model == name]
        versions = tuple(sorted({record.version for _, record in mine}))
        known = {label: v for label, v in labels(name).items() if v in versions}
        named = [record.version for ref, record in mine if ref.version is None]
        default = (*named, *([known[STABLE]] if STABLE in known else []), versions[-1])[0]
        models[name] = ShippedModel(versions=versions, default=default, labels=known)
    return ShippedIndex(models=models, environments=dict(environments))


def shipped_files(
    index: ShippedIndex,
    records: Iterable[tuple[VersionRecord, Path]],
    signatures: Callable[[str], Sequence[bytes]] = lambda digest: (),
) -> tuple[dict[str, bytes], dict[str, dict[str, Path | bytes]]]:
    """Return what to write: (index and the like, per `model/version` its files), by relative path.

    `records` come with the folder of their files; `signatures` tells those of a digest. The files
    of a version stay apart, so that they can become a layer of their own.
    """
    top = {INDEX: msgspec.json.format(msgspec.json.encode(index, order="sorted"), indent=2)}
    parts: dict[str, dict[str, Path | bytes]] = {}
    for record, folder in records:
        name = f"{record.model}/{record.version}"
        files: dict[str, Path | bytes] = {
            f"{name}/{file.path}": folder / file.path for file in record.files
        }
        files[f"{name}{RECORD_ENDING}"] = msgspec.json.encode(record)
        for i, signature in enumerate(signatures(record.digest)):
            files[f"{name}.{i}.sig"] = signature
        parts[name] = files
    return top, parts


def read_index(folder: Path) -> ShippedIndex:
    """Read the index. Raise ArtifactError when it is not one, or names what cannot be a model."""
    index = _read(folder / INDEX, ShippedIndex)
    if index.format != FORMAT:
        raise ArtifactError(
            f"{folder / INDEX}: format {index.format}, this Muelle reads {FORMAT}; update it"
        )
    for name, model in index.models.items():
        known = set(model.versions)
        if not is_model_name(name) or {model.default, *model.labels.values()} - known:
            raise ArtifactError(f"{folder / INDEX}: {name!r} does not fit its versions")
    return index


def read_record(folder: Path, index: ShippedIndex, model: str, version: int) -> VersionRecord:
    """Read one version's record. Raise ModelNotFound, VersionNotFound or ArtifactError."""
    shipped = index.models.get(model)
    if shipped is None:
        raise ModelNotFound(f"{model}: not in {folder}{near(model, index.models)}")
    if version not in shipped.versions:
        raise VersionNotFound(f"{model}:{version}: not in {folder}")
    path = folder / model / f"{version}{RECORD_ENDING}"
    record = _read(path, VersionRecord)
    if (record.model, record.version) != (model, version):
        raise ArtifactError(f"{path}: it is the record of {record.model}:{record.version}")
    # The names come from a file that anybody may have written.
    check_names([file.path for file in record.files])
    if record.artifact:
        check_names([record.artifact])
    return record


def _read(path: Path, kind: type[T]) -> T:
    try:
        with open(path, "rb") as stream:
            return msgspec.json.decode(stream.read(), type=kind)
    except OSError as exc:
        raise ArtifactError(f"{path}: cannot be read: {os.strerror(exc.errno or 0)}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"{path}: not what Muelle writes: {exc}") from exc
