"""The store of versions: publish, label, roll back, remove, sweep. Not for loading models.

The folder: `store.db` (what there is, and what labels and routes say), `blobs/` (contents by their
SHA-256), `incoming/` (copies in progress), `versions/` (files under their names, for runtimes),
`servers/` (leases), `environments/` (of `packaging`), `pushes.lock`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from muelle.core.errors import ArtifactError, Conflict, StoreError
from muelle.core.records import (
    STABLE,
    LabelChange,
    ModelSummary,
    RouteSpec,
    ServerLease,
    StoredFile,
    VersionRecord,
)
from muelle.repository.digest import Progress
from muelle.repository.store import checks, tables
from muelle.repository.store.blobs import Blobs, store_errors
from muelle.repository.store.checkouts import Checkouts
from muelle.repository.store.database import Database
from muelle.repository.store.leases import LeaseFile, Leases
from muelle.repository.store.locks import Hold, lock, sync_folder
from muelle.repository.store.references import Reference
from muelle.repository.store.reports import GcReport, VerifyReport, VersionRow

_FOLDERS = ("blobs", "blobs/sha256", "incoming", "versions", "servers")


def default_store(env: Mapping[str, str]) -> Path:
    """Return where the user's store lies: MUELLE_STORE, or in the XDG data folder."""
    if named := env.get("MUELLE_STORE"):
        return Path(named).expanduser()
    data = env.get("XDG_DATA_HOME", "")
    # The XDG rules: a relative path there is to be ignored.
    base = Path(data) if data.startswith("/") else Path(env.get("HOME", "~"), ".local", "share")
    return base.expanduser() / "muelle" / "store"


class Store:
    """One store, opened by one process. Any thread may call; several processes may have it open.

    What a method does is durable when it returns, and not in effect when it raises, unless the
    error says otherwise. A store object pushes one version at a time: from the first `add_files`
    to `publish`, `abandon` or `close` it keeps gc out.
    """

    def __init__(self, folder: Path, database: Database, wall: Callable[[], float]) -> None:
        self.folder = folder
        self._db = database
        self._wall = wall
        self._blobs = Blobs(folder)
        self._checkouts = Checkouts(folder, self._blobs)
        self._leases = Leases(folder)
        self._push: Hold | None = None

    @classmethod
    def open(
        cls, folder: Path, *, create: bool = False, wall: Callable[[], float] = time.time
    ) -> Store:
        """Open a store, or make it. `wall` gives seconds since the epoch, for dates.

        Raise ArtifactError when there is none and not `create`; StoreError when it is of a newer
        Muelle, damaged, or the disk fails.
        """
        folder = folder.absolute()
        if create:
            return cls(folder, _make(folder), wall)
        database = Database.open(folder / "store.db", create=False)
        with store_errors(folder.name):
            # Some tools that copy folders leave the empty ones out.
            for name in _FOLDERS:
                if not folder.joinpath(name).is_dir():
                    folder.joinpath(name).mkdir(0o700, exist_ok=True)
        return cls(folder, database, wall)

    def close(self) -> None:
        """Close the database and end a push that was not published. Twice is once."""
        self.abandon()
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- content ---

    def add_files(self, source: Path, progress: Progress | None = None) -> tuple[StoredFile, ...]:
        """Take in a file, or all files of a folder, in blocks; return them sorted by name.

        A copy that was cut off is continued. What is there already is not written again. Symbolic
        links are refused, and names that cannot be kept. Raise ArtifactError for the source,
        StoreError for the store's disk.
        """
        self._begin_push()
        with self._db.read() as c:
            sizes = {size for (size,) in c.execute("SELECT DISTINCT size FROM files")}
        return self._blobs.add(source, progress, sizes)

    def has_content(self, file: StoredFile) -> bool:
        """Whether a content is there in its full size. Does not read it."""
        try:
            self._blobs.require(file)
        except ArtifactError:
            return False
        return True

    def add_content(
        self, file: StoredFile, stream: BinaryIO, progress: Progress | None = None
    ) -> bool:
        """Take in one file's content from a stream that ends with it; return whether it was new.

        What is there already, and sound, is not read from the stream. A copy that was cut off is
        continued. Raise ArtifactError when it is another content, StoreError for the store's disk.
        """
        self._begin_push()
        return self._blobs.receive(file, stream, progress)

    def abandon(self) -> None:
        """End a push without publishing: what it has added is left to gc."""
        hold, self._push = self._push, None
        if hold is not None:
            hold.release()

    def checkout(self, files: Sequence[StoredFile], digest: str) -> Path:
        """Return a folder with these files under their names, made when it is not there.

        `digest` is the version's, for the check that it is one; the folder is named by names and
        contents together. Raise ArtifactError when a content is missing, StoreError for the disk.
        """
        checks.check_digest(digest)
        with self._lock(exclusive=False, wait=True):
            return self._checkouts.make(files)

    def rehash(self, files: Sequence[StoredFile], progress: Progress | None = None) -> None:
        """Read the files' contents again. Raise ArtifactError, naming the first that has rotted."""
        for file in files:
            with store_errors(file.path):
                self._blobs.require(file)
                if not self._blobs.is_sound(file.sha256):
                    raise ArtifactError(
                        f"{file.path}: its content has changed on the disk; push the file again"
                    )
            if progress is not None:
                progress(file.size, file.size)

    # --- versions ---

    def publish(
        self,
        draft: VersionRecord,
        *,
        label: str | None = None,
        who: str,
        force: bool = False,
        number: int = 0,
    ) -> tuple[VersionRecord, bool]:
        """Make the draft a version; return its record, and whether it is new.

        The draft's number and date are ignored: it gets the next number (or `number`, when that
        was never given away). When the same is a version already, and not `force`, that one's
        record is returned. The label, if any, moves in the same transaction; a model's first
        version gets `stable` unless `label` is "".
        """
        checks.check_draft(draft)
        if label:
            checks.check_label(label)
        self._begin_push()
        for file in draft.files:
            self._blobs.require(file)
        with self._db.write() as c:
            wanted = STABLE if label is None and not tables.has_model(c, draft.model) else label
            found = None if force else tables.find_twin(c, draft)
            record = found or msgspec.structs.replace(
                draft,
                version=tables.free_number(c, draft.model, number),
                created=self._now(),
                who=draft.who or who,
            )
            if found is None:
                tables.insert(c, record)
            if wanted:
                self._move(c, record.model, wanted, record.version, who, "push")
        self.abandon()
        return record, found is None

    def models(self) -> tuple[ModelSummary, ...]:
        """Return one line for each model, sorted by name. Reads no record."""
        with self._db.read() as c:
            return tables.summaries(c)

    def versions(self, model: str) -> tuple[VersionRow, ...]:
        """Return a model's versions, newest first. Reads no record. Raise ModelNotFound."""
        with self._db.read() as c:
            return tables.rows(c, model)

    def record(self, model: str, version: int) -> VersionRecord:
        """Return everything known of a version. Raise ModelNotFound or VersionNotFound."""
        with self._db.read() as c:
            return tables.record(c, model, version)

    def resolve(self, reference: Reference) -> tuple[str, int]:
        """Return (model, version). A model alone means what `stable` names, else the newest."""
        with self._db.read() as c:
            return tables.resolve(c, reference)

    def remove(self, model: str, version: int, *, who: str) -> None:
        """Take a version away; gc frees its space later.

        Raise Conflict while a label, a route or a living server uses it.
        """
        with self._db.write() as c:
            tables.require_version(c, model, version)
            if reasons := self._uses(c, model, version):
                raise Conflict(f"{model}:{version} cannot be removed: {'; '.join(reasons)}")
            tables.delete(c, model, version, self._now(), who)

    # --- labels ---

    def labels(self, model: str) -> dict[str, int]:
        """Return label -> version. Raise ModelNotFound."""
        with self._db.read() as c:
            tables.require_model(c, model)
            return tables.labels_of(c, model)

    def all_labels(self) -> dict[str, dict[str, int]]:
        """Return model -> label -> version, of the models that have labels."""
        with self._db.read() as c:
            return tables.all_labels(c)

    def set_label(
        self, model: str, label: str, version: int, *, who: str, reason: str = "label"
    ) -> LabelChange:
        """Let a label name a version. Nothing is written when it does so already."""
        checks.check_label(label)
        with self._db.write() as c:
            tables.require_version(c, model, version)
            return self._move(c, model, label, version, who, reason)

    def remove_label(
        self, model: str, label: str, *, who: str, reason: str = "label"
    ) -> LabelChange:
        """Take a label away. Raise Conflict while the model's route sends traffic to it."""
        with self._db.write() as c:
            tables.require_model(c, model)
            tables.labelled(model, label, tables.labels_of(c, model))
            if label in tables.targets_of(tables.route_of(c, model)):
                raise Conflict(
                    f"{model}@{label}: the route of {model} sends traffic to it; change it first: "
                    f"`muelle route {model}`"
                )
            return self._move(c, model, label, None, who, reason)

    def rollback(
        self, model: str, label: str = STABLE, *, who: str, reason: str = "rollback"
    ) -> LabelChange:
        """Let a label name the version that it named before. A second one goes further back."""
        with self._db.write() as c:
            target = tables.rollback_target(c, model, label)
            return self._move(c, model, label, target, who, reason, back=True)

    def rollback_target(self, model: str, label: str = STABLE) -> int:
        """Return the version that `rollback` would go to. Raise Conflict when there is none."""
        with self._db.read() as c:
            return tables.rollback_target(c, model, label)

    def history(self, model: str, label: str | None = None) -> tuple[LabelChange, ...]:
        """Return the movements of the labels, or of one label, newest first."""
        with self._db.read() as c:
            return tables.history(c, model, label)

    # --- routes ---

    def route(self, model: str) -> RouteSpec | None:
        """Return how the model's traffic is shared, None when it has no route."""
        with self._db.read() as c:
            tables.require_model(c, model)
            return tables.route_of(c, model)

    def routes(self) -> dict[str, RouteSpec]:
        """Return model -> route, of the models that have one."""
        with self._db.read() as c:
            return tables.all_routes(c)

    def set_route(self, model: str, spec: RouteSpec | None, *, who: str) -> None:
        """Set a model's route, or clear it. Raise VersionNotFound: a target is not there."""
        if spec is not None:
            checks.check_route(model, spec)
        with self._db.write() as c:
            tables.put_route(c, model, spec, self._now(), who)

    def generation(self) -> int:
        """Return a number that rises with every change of versions, labels and routes."""
        with self._db.read() as c:
            return int(c.execute("SELECT generation FROM state").fetchone()[0])

    def note_change(self) -> None:
        """Let servers read what they serve anew: something beside the tables has changed."""
        with self._db.write() as c:
            c.execute("UPDATE state SET generation = generation")

    # --- upkeep ---

    def gc(
        self, *, grace_s: float = 3600, now: float | None = None, dry_run: bool = False
    ) -> GcReport:
        """Remove what no version refers to and was not touched for `grace_s`.

        Raise Conflict while a push is under way, here or in another process.
        """
        from muelle.repository.store.sweep import Sweep, in_use

        with self._lock(exclusive=True, wait=False), store_errors("gc"):
            with self._db.read() as c:
                used = in_use(c)
            sweep = Sweep(self.folder, self._blobs, self._checkouts, self._leases, used)
            moment = self._wall() if now is None else now
            return sweep.run(grace_s=grace_s, now=moment, dry_run=dry_run)

    def verify(self, progress: Progress | None = None) -> VerifyReport:
        """Read everything again: contents, checkouts, records. Raise StoreError when it cannot."""
        from muelle.repository.store.verify import Verify, expected

        with self._lock(exclusive=False, wait=True), store_errors("verify"):
            with self._db.read() as c:
                found = expected(c)
            return Verify(self._blobs, self._checkouts, found).run(progress)

    # --- servers ---

    def lease(self, lease: ServerLease) -> LeaseFile:
        """Say that a server uses the store, until the lease is closed or the process ends.

        A server leases a version before it reads it: then it is not removed under its hands.
        """
        return self._leases.take(lease)

    def servers(self) -> tuple[ServerLease, ...]:
        """Return the leases of the servers that live."""
        return tuple(self._leases.living())

    # --- within ---

    def _now(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall()))

    def _begin_push(self) -> None:
        if self._push is None:
            self._push = self._lock(exclusive=False, wait=True)

    def _lock(self, *, exclusive: bool, wait: bool) -> Hold:
        with store_errors("pushes.lock"):
            hold = Hold.take(self.folder / "pushes.lock", exclusive=exclusive, wait=wait)
        if hold is None:
            raise Conflict("a push is under way on this store; try again when it has ended")
        return hold

    def _move(
        self,
        c: sqlite3.Connection,
        model: str,
        label: str,
        version: int | None,
        who: str,
        reason: str,
        *,
        back: bool = False,
    ) -> LabelChange:
        change = LabelChange(
            model=model,
            label=label,
            version=version,
            previous=tables.labels_of(c, model).get(label),
            at=self._now(),
            who=who,
            reason=reason,
        )
        if change.version != change.previous:
            tables.move(c, change, back=back)
        return change

    def _uses(self, c: sqlite3.Connection, model: str, version: int) -> list[str]:
        """Return why a version cannot go, each with what to do."""
        labels = [label for label, v in tables.labels_of(c, model).items() if v == version]
        reasons = [
            f"label {label} names it (`muelle label --remove {model}@{label}`)" for label in labels
        ]
        if str(version) in tables.targets_of(tables.route_of(c, model)):
            reasons.append(f"the route of {model} sends traffic to it (`muelle route {model}`)")
        for server in self._leases.living():
            if (model, version) in server.versions:
                reasons.append(f"server {server.id} (process {server.pid} on {server.host}) has it")
        return reasons


def _make(folder: Path) -> Database:
    """Make what is missing of a store; one process at a time, each step may be the last one."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(fd, exclusive=True, wait=True)
            for name in _FOLDERS:
                folder.joinpath(name).mkdir(0o700, exist_ok=True)
            os.fsync(fd)
            database = Database.open(folder / "store.db", create=True)
        finally:
            os.close(fd)
        sync_folder(folder.parent)
    except OSError as exc:
        raise StoreError(f"the store {folder} cannot be made: {exc.strerror}") from exc
    return database
