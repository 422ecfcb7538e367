"""What goes into a bundle from a store, and how it comes into another: `muelle bundle`, `import`.

What comes in is believed nothing: contents are hashed and formats are found anew, as `transfer`
does. Not for the file itself (`packaging.bundle`), nor for loading: a server checks the examples
before a version takes traffic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from muelle.core.errors import ArtifactError, StoreError
from muelle.core.records import STABLE, StoredFile, VersionRecord
from muelle.packaging.bundle import BundleHeader, Member, code_members
from muelle.packaging.bundle_docs import documents, readme
from muelle.packaging.bundle_format import BundledVersion, BundleIndex, Entry
from muelle.packaging.bundle_read import copy_member, open_member, read_member
from muelle.packaging.lock import LOCK, REQUIREMENTS, WHEELS, Lock
from muelle.packaging.signing import add_signature, files_of, read_signatures
from muelle.packaging.signing_policy import SignaturePolicy
from muelle.publishing.transfer import Incoming, within
from muelle.repository.store import Store
from muelle.repository.store.checks import check_draft

SBOM = "sbom.cdx.json"
Steps = Callable[[str, int, int], None]
"""(phase, done, total): `copying` counts bytes, the others are shown by their name."""


# --- out ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What else goes in. `image`: an OCI archive, or a layout's folder; `deploy`: a folder."""

    lock: Lock | None = None
    sbom: bytes | None = None
    image: Path | None = None
    deploy: Path | None = None


def gather(
    store: Store, records: Sequence[VersionRecord], extras: Extras, *, epoch: int
) -> tuple[list[Member], BundleHeader]:
    """Return the members of a bundle with these versions, in order, and its header.

    Raise ArtifactError when a content is missing, or a folder to take in cannot be read.
    """
    lock = extras.lock
    header = BundleHeader(
        epoch=epoch,
        platform=lock.target.platform if lock is not None else "",
        python=lock.target.python if lock is not None else "",
        versions=tuple(_bundled(store, record) for record in records),
    )
    members = [Member("README.md", "doc", readme(header))]
    members += code_members()
    members += [Member(f"docs/{n}", "doc", text) for n, text in documents(records).items()]
    if extras.sbom is not None:
        members.append(Member(SBOM, "sbom", extras.sbom))
    if lock is not None:
        members += _lock_members(lock)
    members += _version_members(store, records)
    members += _signature_members(store, records)
    members += _tree("image", extras.image)
    members += _tree("deploy", extras.deploy)
    return members, header


def _bundled(store: Store, record: VersionRecord) -> BundledVersion:
    labels = store.labels(record.model).items()
    mine = sorted(label for label, version in labels if version == record.version)
    return BundledVersion(record.model, record.version, record.digest, tuple(mine))


def _lock_members(lock: Lock) -> list[Member]:
    requirements = lock.requirements()
    if lock.environments and lock.pip is not None:
        # Versions with libraries of their own get their environment at the import: by pip.
        pip = lock.pip
        requirements += f"{pip.name}=={pip.version} --hash=sha256:{pip.sha256}\n".encode()
    members = [
        Member(LOCK, "lock", lock.pylock()),
        Member(REQUIREMENTS, "lock", requirements),
    ]
    return members + [Member(f"{WHEELS}/{w.file}", "wheel", w.path) for w in lock.all_wheels()]


def _version_members(store: Store, records: Sequence[VersionRecord]) -> list[Member]:
    cards, blobs = [], {}
    for record in records:
        name = f"versions/{record.model}/{record.version}.json"
        text = msgspec.json.format(msgspec.json.encode(record), indent=1)
        cards.append(Member(name, "record", text))
        folder = store.checkout(record.files, record.digest)
        for file in record.files:
            blobs[file.sha256] = folder / file.path
    return cards + [Member(_blob(sha), "model", path) for sha, path in sorted(blobs.items())]


def _signature_members(store: Store, records: Sequence[VersionRecord]) -> list[Member]:
    found = {}
    for record in records:
        for n, signature in enumerate(read_signatures(store.folder, record.digest)):
            found[f"{_signatures(record.digest)}{n}.sig"] = signature
    return [Member(name, "signature", content) for name, content in sorted(found.items())]


def _tree(name: str, source: Path | None) -> list[Member]:
    """Return a file, or a folder's files, below `name/`."""
    if source is None:
        return []
    kind = name
    if source.is_file():
        return [Member(f"{name}/{source.name}", kind, source)]
    if not source.is_dir():
        raise ArtifactError(f"{source}: no such file or folder")
    found = sorted(path for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    if bad := next((p for p in found if p.is_symlink() or not p.is_file()), None):
        raise ArtifactError(f"{bad}: neither a file nor a folder; put the file itself there")
    return [Member(f"{name}/{p.relative_to(source).as_posix()}", kind, p) for p in found]


def _blob(sha256: str) -> str:
    return f"blobs/sha256/{sha256}"


def _signatures(digest: str) -> str:
    return f"signatures/{digest.removeprefix('sha256:')}/"


# --- in ---


@dataclass(frozen=True, slots=True)
class Imported:
    """A version that came in; `origin` is what it was called in the bundle."""

    record: VersionRecord
    created: bool
    origin: BundledVersion


def import_bundle(
    store: Store,
    path: Path,
    index: BundleIndex,
    *,
    who: str,
    trust: bool = False,
    require: SignaturePolicy | None = None,
    progress: Steps = lambda phase, done, total: None,
) -> tuple[Imported, ...]:
    """Bring in the versions of a verified bundle (`index`). No label moves.

    Twice is once, and one that was cut off goes on: what the store has already is not copied. A
    version keeps its number where that is free. Raise ArtifactError when a record says something
    else than what is there, or a version would run code and is not trusted; SignatureInvalid when
    one has no signature that `require` accepts; StoreError for the disk. Nothing is published then.
    """
    records = [_record(path, index, version) for version in index.versions]
    for record in records:
        _refuse_untrusted(record, trust)
    signatures = _read_signatures(path, index, records)
    if require is not None:
        for record in records:
            known = (*signatures[record.digest], *read_signatures(store.folder, record.digest))
            require.check_files(files_of(record), known, f"{record.model}:{record.version}")
    _check_room(store, index)
    wheels = _keep_wheels(store, path, index, records)
    try:
        drafts = []
        for record in records:
            incoming = _FromBundle(store, record, path, index, trust)
            incoming.copy(progress)
            drafts.append(incoming.draft("", wheels, progress))
        # Before the version: a server that wants a signature finds both.
        for digest, contents in signatures.items():
            for content in contents:
                add_signature(store.folder, digest, content, replace=False)
        found = []
        for draft, version in zip(drafts, index.versions, strict=True):
            kept, created = store.publish(draft, label="", who=who, number=version.version)
            found.append(Imported(kept, created, version))
    except OSError as exc:
        raise StoreError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    finally:
        store.abandon()
    return tuple(found)


def labels_to_move(
    imported: Sequence[Imported],
    existing: Mapping[str, Mapping[str, int]],
    *,
    label: str = "",
    carry: bool = False,
) -> list[tuple[str, str, int]]:
    """Return (model, label, version) for the labels that should name what came in. Pure.

    `label`: this one, on the newest of each model. `carry`: those that the bundle tells. Else only
    a model without any label gets one: `stable`, on what was stable, else on the newest.
    """
    wanted: list[tuple[str, str, int]] = []
    for model in dict.fromkeys(one.record.model for one in imported):
        mine = [one for one in imported if one.record.model == model]
        newest = max(mine, key=lambda one: one.origin.version)
        if label:
            wanted.append((model, label, newest.record.version))
        if carry:
            wanted += [(model, name, o.record.version) for o in mine for name in o.origin.labels]
        named = {name for m, name, _ in wanted if m == model}
        if not existing.get(model) and STABLE not in named and not label:
            first = next((one for one in mine if STABLE in one.origin.labels), newest)
            wanted.append((model, STABLE, first.record.version))
    return [one for one in wanted if existing.get(one[0], {}).get(one[1]) != one[2]]


class _FromBundle(Incoming):
    """A version on its way in whose contents are members of a bundle."""

    def __init__(
        self, store: Store, record: VersionRecord, path: Path, index: BundleIndex, trust: bool
    ) -> None:
        super().__init__(store, record, {}, trust)
        self._path, self._index = path, index

    def copy(self, progress: Steps) -> None:
        """Take in the files. Raise ArtifactError when one is not what the record says."""
        done = 0
        for file in self._record.files:
            with open_member(self._path, self._index, _blob(file.sha256)) as stream:
                step = within(progress, done, self._record.size)
                self._store.add_content(file, stream, step)
            done += file.size
        self.settle()


def _record(path: Path, index: BundleIndex, version: BundledVersion) -> VersionRecord:
    """Read a version's record. Raise ArtifactError when it does not fit the bundle."""
    try:
        content = read_member(path, index, version.record)
        record = msgspec.json.decode(content, type=VersionRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"{version.record}: not a version's record: {exc}") from exc
    said = (version.model, version.version, version.digest)
    if (record.model, record.version, record.digest) != said:
        raise ArtifactError(f"{version.record}: it is the record of another version")
    check_draft(record)
    sizes = {entry.name: entry.size for entry in index.of_kind("model")}
    for file in record.files:
        if sizes.get(_blob(file.sha256)) != file.size:
            raise ArtifactError(
                f"{version.record}: the content of {file.path} is not in the bundle in its size; "
                "bundle it again where it comes from"
            )
    return record


def _read_signatures(
    path: Path, index: BundleIndex, records: Sequence[VersionRecord]
) -> dict[str, list[bytes]]:
    """Return digest of a version -> its signatures; what belongs to no version is left out."""
    members = index.of_kind("signature")
    return {
        record.digest: [
            read_member(path, index, entry.name)
            for entry in members
            if entry.name.startswith(_signatures(record.digest))
        ]
        for record in records
    }


def _refuse_untrusted(record: VersionRecord, trust: bool) -> None:
    """Raise before anything is copied; what the file itself turns out to be is looked at later."""
    if trust or not (record.runs_code or record.environment):
        return
    what = "comes with libraries of its own, which" if record.environment else f"{record.format}"
    raise ArtifactError(
        f"{record.model}:{record.version}: {what} would run code from the bundle; if you trust "
        "where it comes from, add --trust"
    )


def _check_room(store: Store, index: BundleIndex) -> None:
    """Raise StoreError, saying how much is missing, before anything is copied."""
    missing = [e for e in index.of_kind("model") if not _has(store, e)]
    needed = sum(entry.size for entry in missing)
    disk = os.statvfs(store.folder)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise StoreError(
            f"{store.folder}: the disk is too full: the bundle's models need {needed / 1e6:,.1f} "
            f"MB, {free / 1e6:,.1f} MB are free; free some space, `muelle gc` may help"
        )


def _has(store: Store, entry: Entry) -> bool:
    return store.has_content(StoredFile(path=entry.name, size=entry.size, sha256=entry.sha256))


def _keep_wheels(
    store: Store, path: Path, index: BundleIndex, records: Iterable[VersionRecord]
) -> Path | None:
    """Keep the wheels beside the versions when environments are built of them; return where."""
    if not any(record.environment for record in records):
        return None
    folder = store.folder / WHEELS
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for entry in index.of_kind("wheel"):
            target = folder / Path(entry.name).name
            if not target.is_file() or target.stat().st_size != entry.size:
                # Under another name first: what has a wheel's name is whole.
                part = store.folder / "incoming" / f"{entry.sha256[:32]}.{os.getpid()}"
                with open(part, "wb") as stream:
                    copy_member(path, index, entry.name, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(part, target)
    except OSError as exc:
        raise StoreError(f"{exc.filename or folder}: cannot be written: {exc.strerror}") from exc
    return folder
