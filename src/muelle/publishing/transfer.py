"""Take versions out of a store and bring them in again: `muelle export` and `muelle pull`.

What comes in is believed nothing: files are hashed and their format is found anew. Nothing is
loaded here; a server checks the examples before a version takes traffic.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from muelle.core.errors import ArtifactError, BadRequest, Conflict, SignatureInvalid, StoreError
from muelle.core.records import VersionRecord
from muelle.packaging.signing import (
    ENDING,
    add_signature,
    files_of,
    read_signature,
    read_signatures,
    write_signature,
)
from muelle.packaging.signing_files import SIGNATURES
from muelle.packaging.signing_format import read_bundle
from muelle.publishing.requirements import Environments
from muelle.repository.digest import digest_of_files
from muelle.repository.store import Reference, Store
from muelle.repository.store.sources import check_names
from muelle.runtimes.registry import find_format

if TYPE_CHECKING:
    from muelle.packaging.signing_policy import SignaturePolicy

RECORD = "muelle.json"
"""The record in an export, beside the files (`plain`) or beside the version's folder (`triton`)."""

Layout = Literal["plain", "triton"]


def export(store: Store, record: VersionRecord, folder: Path, layout: Layout = "plain") -> Path:
    """Write a version's files and its record into a folder; return where the files are.

    `triton` writes `<folder>/<model>/<version>/<file>`, a lone file as `model.<ending>`. Raise
    Conflict when something is in the way, StoreError when the disk fails.
    """
    source = store.checkout(record.files, record.digest)
    if layout == "plain":
        target, card = folder, folder / RECORD
    else:
        target = folder / record.model / str(record.version)
        card = target.parent / f"{record.version}.{RECORD}"
    names = _names(record, layout)
    if layout == "plain" and RECORD in names.values():
        raise Conflict(f"{RECORD}: the version has a file of that name; use --layout triton")
    for place in (card, *(target / name for name in names.values())):
        if place.exists() or place.is_symlink():
            raise Conflict(f"{place}: it exists already; choose an empty folder")
    try:
        for path, name in names.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(source / path, target / name)
        for signature in read_signatures(store.folder, record.digest):
            write_signature(_signature_of(card, signature), signature, replace=False)
        # The record comes last: an export without it was not finished.
        card.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    except OSError as exc:
        raise StoreError(f"{exc.filename or folder}: cannot be written: {exc.strerror}") from exc
    return target


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version that came in, and where it came from."""

    record: VersionRecord
    created: bool
    origin: str


def pull(
    store: Store,
    source: Path,
    reference: str = "",
    *,
    who: str,
    name: str = "",
    trust: bool = False,
    wheels: Path | None = None,
    require: SignaturePolicy | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> tuple[Pulled, ...]:
    """Bring in the versions of an export, or one of another store. No label moves.

    A version keeps its number where that is free, and brings its signatures along; `require` asks
    for one of them. Raise ArtifactError when something is not as its record says, would run code
    and is not trusted, or (SignatureInvalid) is not signed as required.
    """
    try:
        with _records(source, reference) as records:
            if not records:
                raise ArtifactError(
                    f"{source}: neither a store nor an export: no store.db, no {RECORD} in it"
                )
            incoming = [Incoming(store, record, files, trust) for record, files, _ in records]
            if require is not None:
                for record, _, signatures in records:
                    where = f"{record.model}:{record.version}"
                    require.check_files(files_of(record), signatures, where)
            # All are looked at before the first is published.
            for one in incoming:
                one.copy(progress)
            drafts = [one.draft(name, wheels, progress) for one in incoming]
        pulled = []
        for (record, _, signatures), draft in zip(records, drafts, strict=True):
            for signature in signatures:
                # What is there already was not brought in by strangers: it stays.
                add_signature(store.folder, draft.digest, signature, replace=False)
            kept, created = store.publish(draft, label="", who=who, number=record.version)
            pulled.append(Pulled(kept, created, f"{record.model}:{record.version}"))
    finally:
        store.abandon()
    return tuple(pulled)


class Incoming:
    """One version on its way in."""

    def __init__(
        self, store: Store, record: VersionRecord, files: dict[str, Path], trust: bool
    ) -> None:
        self._store, self._record, self._files, self._trust = store, record, files, trust
        self._folder: Path | None = None

    def copy(self, progress: Callable[[str, int, int], None]) -> None:
        """Take in the files. Raise ArtifactError when one is not what the record says."""
        record = self._record
        done = 0
        for file in record.files:
            step = within(progress, done, record.size)
            (got,) = self._store.add_files(self._files[file.path], step)
            if (got.sha256, got.size) != (file.sha256, file.size):
                raise ArtifactError(
                    f"{file.path}: its content is not the one that was exported (SHA-256 "
                    f"{got.sha256[:16]}…, expected {file.sha256[:16]}…); copy it again"
                )
            done += file.size
        self.settle()

    def settle(self) -> None:
        """Lay the files out, all in the store now. Raise ArtifactError: another digest."""
        record = self._record
        digest = digest_of_files([(file.path, file.sha256) for file in record.files])
        if digest != record.digest:
            raise ArtifactError(f"{record.model}: the record's digest is not that of its files")
        self._folder = self._store.checkout(record.files, record.digest)

    def draft(
        self, name: str, wheels: Path | None, progress: Callable[[str, int, int], None]
    ) -> VersionRecord:
        """Return the record to publish, with what this machine finds out for itself."""
        record = self._record
        assert self._folder is not None
        runtime, form = find_format(_inside(self._folder, record.artifact))
        if (runtime.name, form.name) != (record.runtime, record.format):
            raise ArtifactError(
                f"{record.model}: the record says {record.format}, the file is {form.name}"
            )
        if form.runs_code and not self._trust:
            raise ArtifactError(
                f"{record.model}: {form.name} runs code from the file when it is loaded; if you "
                "trust where it comes from, add --trust"
            )
        environment = ""
        if record.environment and not self._trust:
            raise ArtifactError(
                f"{record.model}: it comes with requirements, and the libraries that they name "
                "would run their code; if you trust where it comes from, add --trust"
            )
        if record.environment:
            environments = Environments(
                self._store.folder / "environments",
                wheels,
                lambda line: progress("environment", 0, 0),
            )
            environment = environments.build(record.requirements).environment
        return msgspec.structs.replace(
            record,
            model=name or record.model,
            runs_code=form.runs_code,
            environment=environment,
        )


def within(
    progress: Callable[[str, int, int], None], before: int, total: int
) -> Callable[[int, int], None]:
    """Return the progress of one file as a part of all."""
    return lambda done, _: progress("copying", before + done, total)


_Record: TypeAlias = tuple[VersionRecord, dict[str, Path], tuple[bytes, ...]]
"""A record, the path of each file by its name in the record, and the version's signatures."""


@contextmanager
def _records(source: Path, reference: str) -> Iterator[list[_Record]]:
    """Yield what comes in."""
    if (source / "store.db").is_file():
        other = Store.open(source)
        try:
            yield [_of_store(other, reference)]
        finally:
            other.close()
        return
    wanted = Reference.parse(reference) if reference else None
    found = [_of_export(card) for card in _cards(source)]
    chosen = [
        one
        for one in found
        if wanted is None
        or (one[0].model == wanted.model and wanted.version in (None, one[0].version))
    ]
    if found and not chosen:
        there = ", ".join(f"{record.model}:{record.version}" for record, _, _ in found)
        raise ArtifactError(f"{source}: {reference} is not in it; there is: {there}")
    yield chosen


def _of_store(other: Store, reference: str) -> _Record:
    if not reference:
        names = ", ".join(summary.model for summary in other.models()) or "nothing"
        raise BadRequest(f"{other.folder}: name what to pull from this store; it has {names}")
    record = other.record(*other.resolve(Reference.parse(reference)))
    folder = other.checkout(record.files, record.digest)
    signatures = read_signatures(other.folder, record.digest)
    return record, {file.path: folder / file.path for file in record.files}, signatures


def _cards(source: Path) -> list[Path]:
    """Return the records of an export: of one version, of a model's folder, or of a repository."""
    if (source / RECORD).is_file():
        return [source / RECORD]
    return sorted([*source.glob(f"*.{RECORD}"), *source.glob(f"*/*.{RECORD}")])


def _of_export(card: Path) -> _Record:
    try:
        record = msgspec.json.decode(card.read_bytes(), type=VersionRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"{card}: not a version's record: {exc}") from exc
    # The names come from a file that anybody may have written.
    check_names(file.path for file in record.files)
    plain = card.name == RECORD
    folder = card.parent if plain else card.with_name(card.name.removesuffix(f".{RECORD}"))
    names = _names(record, "plain" if plain else "triton")
    beside = sorted(card.parent.glob(f"{glob.escape(card.name)}.*{ENDING}"))
    signatures = tuple(_signature_at(path) for path in beside[:SIGNATURES])
    return record, {path: folder / name for path, name in names.items()}, signatures


def _signature_at(path: Path) -> bytes:
    """Read a signature of an export. Raise SignatureInvalid when it is not even the form of one."""
    signature = read_signature(path)
    try:
        read_bundle(signature)
    except SignatureInvalid as exc:
        raise SignatureInvalid(f"{path}: {exc.message}; copy it again, or remove it") from exc
    return signature


def _signature_of(card: Path, signature: bytes) -> Path:
    """Return where a signature lies in an export: beside the record, named by its key."""
    return card.with_name(f"{card.name}.{read_bundle(signature).key_id[:16] or 'key'}{ENDING}")


def _names(record: VersionRecord, layout: Layout) -> dict[str, str]:
    """Return the name in the export of each file of the record."""
    if layout == "triton" and len(record.files) == 1 and "/" not in record.files[0].path:
        (file,) = record.files
        return {file.path: f"model{Path(file.path).suffix}"}
    return {file.path: file.path for file in record.files}


def _inside(folder: Path, artifact: str) -> Path:
    """Return the artifact's place. Raise ArtifactError when it is outside its version."""
    if artifact:
        check_names([artifact])
    return folder / artifact if artifact else folder


def _copy(source: Path, target: Path) -> None:
    """Copy one file; never a link: what is exported must not change the store."""
    with open(source, "rb") as read, open(target, "xb") as write:
        shutil.copyfileobj(read, write, 1024 * 1024)
        write.flush()
        os.fsync(write.fileno())
