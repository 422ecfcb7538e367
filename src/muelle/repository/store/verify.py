"""Read a whole store again and say what is wrong (`muelle verify`). Repairs nothing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.core.records import StoredFile
from muelle.repository.digest import Progress
from muelle.repository.store import tables
from muelle.repository.store.blobs import Blobs, Meter, hash_of
from muelle.repository.store.checkouts import Checkouts, tree_of
from muelle.repository.store.reports import Problem, VerifyReport

Key = tuple[str, int]
"""(model, version)."""


@dataclass(slots=True)
class Expected:
    """What the database says that the folders hold, and what is wrong in itself."""

    files: dict[Key, tuple[StoredFile, ...]] = field(default_factory=dict)
    trees: dict[str, Key] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def expected(c: sqlite3.Connection) -> Expected:
    """Read the tables, and check them against each other."""
    found = Expected()
    for (text,) in c.execute("PRAGMA integrity_check(20)"):
        if text != "ok":
            found.problems.append(Problem(kind="database", text=f"store.db: {text}"))
    for row in c.execute("PRAGMA foreign_key_check"):
        found.problems.append(Problem(kind="database", text=f"store.db: row without parent: {row}"))
    by_version: dict[Key, list[StoredFile]] = {}
    for model, version, path, size, sha256 in c.execute("SELECT * FROM files"):
        file = StoredFile(path=path, size=size, sha256=sha256)
        by_version.setdefault((model, version), []).append(file)
    query = (
        "SELECT model, version, digest, tree, record FROM versions "
        "LEFT JOIN records USING (model, version)"
    )
    for model, version, digest, tree, content in c.execute(query):
        key = (model, version)
        files = tuple(by_version.get(key, ()))
        found.files[key] = files
        found.trees[tree] = key
        if wrong := _wrong_record(key, digest, tree, files, content):
            text = f"{model}:{version}: {wrong}; push the version again and remove this one"
            found.problems.append(Problem(kind="record", text=text, versions=(key,)))
    return found


def _wrong_record(
    key: Key, digest: str, tree: str, files: tuple[StoredFile, ...], content: bytes | None
) -> str:
    if content is None:
        return "its record is missing"
    try:
        record = tables.decode_record(content)
    except ArtifactError as exc:
        return str(exc).partition(";")[0]
    if (record.model, record.version, record.digest) != (*key, digest):
        return "its record is another version's"
    if tree_of(record.files) != tree or tree_of(files) != tree or not files:
        return "its record names other files than the tables"
    return ""


class Verify:
    """One look at everything. Raises OSError only when a folder itself cannot be listed."""

    def __init__(self, blobs: Blobs, checkouts: Checkouts, found: Expected) -> None:
        self._blobs, self._checkouts, self._found = blobs, checkouts, found

    def run(self, progress: Progress | None) -> VerifyReport:
        """Hash every blob, and every file of a checkout that is not its blob itself."""
        there = list(self._blobs.all())
        total = sum(path.stat().st_size for path in there)
        meter = Meter(progress, total)
        problems = list(self._found.problems)
        for path in there:
            if trouble := self._trouble(path.name, meter):
                problems.append(self._rotten(path.name, trouble))
        problems += self._missing({path.name for path in there})
        for place in self._checkouts.all():
            key = self._found.trees.get(place.name)
            if key is not None and (problem := self._check_checkout(place, key)) is not None:
                problems.append(problem)
        meter.finish()
        n_versions = len(self._found.files)
        return VerifyReport(
            n_versions=n_versions, n_blobs=len(there), size=total, problems=tuple(problems)
        )

    def _trouble(self, sha256: str, meter: Meter) -> str:
        try:
            return "" if self._blobs.is_sound(sha256, meter) else "its content has changed"
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"

    def _rotten(self, sha256: str, trouble: str) -> Problem:
        uses = list(self._uses(sha256))
        if not uses:
            text = f"blobs/sha256/{sha256[:2]}/{sha256}: {trouble}; no version uses it: muelle gc"
            return Problem(kind="rotten", text=text, sha256=sha256)
        return self._about("rotten", sha256, uses, f"{trouble}; push the same file again")

    def _missing(self, there: set[str]) -> Iterator[Problem]:
        wanted = {file.sha256 for files in self._found.files.values() for file in files}
        for sha256 in sorted(wanted - there):
            uses = list(self._uses(sha256))
            yield self._about("missing", sha256, uses, "its content is gone; push the file again")

    def _about(
        self, kind: str, sha256: str, uses: list[tuple[Key, StoredFile]], text: str
    ) -> Problem:
        keys = tuple(key for key, _ in uses)
        names = ", ".join(f"{model}:{version}" for model, version in keys[:5])
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        path = uses[0][1].path
        return Problem(
            kind=kind,
            text=f"{path} of {names}{more}: {text}",
            sha256=sha256,
            path=path,
            versions=keys,
        )

    def _uses(self, sha256: str) -> Iterator[tuple[Key, StoredFile]]:
        for key, files in sorted(self._found.files.items()):
            for file in files:
                if file.sha256 == sha256:
                    yield key, file
                    break

    def _check_checkout(self, place: Path, key: Key) -> Problem | None:
        wrong = self._wrong_in(place, self._found.files[key])
        if not wrong:
            return None
        model, version = key
        text = (
            f"versions/{place.name}: {wrong} ({model}:{version}); remove that folder while no "
            "server uses it: it is made again"
        )
        return Problem(kind="checkout", text=text, versions=(key,))

    def _wrong_in(self, place: Path, files: tuple[StoredFile, ...]) -> str:
        if not self._checkouts.is_whole(place, files):
            return "files are missing, left over, or of another size"
        for file in files:
            try:
                if not self._checkouts.is_linked(place, file) and _hash(place / file.path) != (
                    file.sha256
                ):
                    return f"{file.path} has changed"
            except OSError as exc:
                return f"{file.path} cannot be read: {exc.strerror}"
        return ""


def _hash(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with closing(os.fdopen(fd, "rb", buffering=0)):
        return hash_of(fd)
