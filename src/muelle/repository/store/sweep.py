"""Take away what nothing refers to any more (`gc`). The caller keeps pushes out meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from muelle.repository.store.blobs import Blobs
from muelle.repository.store.checkouts import Checkouts
from muelle.repository.store.leases import Leases
from muelle.repository.store.reports import GcReport

_HEX = re.compile(r"[0-9a-f]{8,64}")
_KINDS = ("blobs", "checkouts", "incoming", "environments", "leases")


@dataclass(frozen=True, slots=True)
class InUse:
    """What the versions refer to."""

    blobs: frozenset[str]
    trees: frozenset[str]
    environments: frozenset[str]
    """Digests, without what stands before the hex digits."""


def in_use(c: sqlite3.Connection) -> InUse:
    """Read what the versions refer to."""

    def column(query: str) -> frozenset[str]:
        return frozenset(value for (value,) in c.execute(query))

    environments = column("SELECT DISTINCT environment FROM versions")
    return InUse(
        column("SELECT DISTINCT sha256 FROM files"),
        column("SELECT DISTINCT tree FROM versions"),
        frozenset(digest.rpartition(":")[2] for digest in environments if digest),
    )


class Sweep:
    """One run of gc over a store's folder. Raises OSError."""

    def __init__(
        self, store: Path, blobs: Blobs, checkouts: Checkouts, leases: Leases, used: InUse
    ) -> None:
        self._store, self._blobs, self._checkouts, self._leases = store, blobs, checkouts, leases
        self._used = used

    def run(self, *, grace_s: float, now: float, dry_run: bool) -> GcReport:
        """Remove what is unused and older than `grace_s` at `now` (seconds since the epoch)."""
        found = {
            kind: [p for p in paths if _is_old(p, grace_s, now)] for kind, paths in self._all()
        }
        found["leases"] = [
            path for path in self._leases.dead()
            if not path.name.startswith(".") or _is_old(path, grace_s, now)
        ]  # fmt: skip
        unused = [path for kind in _KINDS for path in found[kind]]
        freed = _bytes_freed(unused)
        if not dry_run:
            # Checkouts first: a blob's space comes back with its last link.
            for kind in reversed(_KINDS):
                remove = self._remover(kind)
                for path in found[kind]:
                    remove(path)
        return GcReport(
            **{kind: len(found[kind]) for kind in _KINDS},
            bytes_freed=freed,
            dry_run=dry_run,
            removed=tuple(path.relative_to(self._store).as_posix() for path in unused),
        )

    def _all(self) -> Iterator[tuple[str, Iterable[Path]]]:
        used = self._used
        yield "blobs", (path for path in self._blobs.all() if path.name not in used.blobs)
        yield "checkouts", (path for path in self._checkouts.all() if path.name not in used.trees)
        yield "incoming", self._blobs.partial()
        folder = self._store / "environments"
        environments = sorted(folder.iterdir()) if folder.is_dir() else []
        yield "environments", (path for path in environments if not self._is_needed(path.name))

    def _is_needed(self, name: str) -> bool:
        """Whether an environment's folder, lock or leftover is of one that a version uses."""
        digits = _HEX.search(name)
        # What cannot be told by its name is not ours to remove.
        return digits is None or any(
            digest.startswith(digits[0]) or digits[0].startswith(digest)
            for digest in self._used.environments
        )

    def _remover(self, kind: str) -> Callable[[Path], None]:
        return self._checkouts.remove if kind == "checkouts" else _remove


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_old(path: Path, grace_s: float, now: float) -> bool:
    """Whether it has not been touched for the time of grace. Without grace everything is old."""
    return grace_s <= 0 or now - path.lstat().st_mtime >= grace_s


def _bytes_freed(paths: Iterable[Path]) -> int:
    """Return the bytes that come back: of contents whose every link is removed."""
    links: dict[tuple[int, int], int] = {}
    facts: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        for file in _files(path):
            found = file.lstat()
            key = (found.st_dev, found.st_ino)
            links[key] = links.get(key, 0) + 1
            facts[key] = found
    return sum(facts[key].st_size for key, n in links.items() if n >= facts[key].st_nlink)


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for here, _, names in os.walk(path):
        yield from (Path(here, name) for name in names)
