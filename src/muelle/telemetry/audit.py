"""The audit log: who did what, when, and how it ended, as a chain that shows every later change.

Each entry's `chain` is the SHA-256 over the chain before it and the entry itself, so that a
changed, dropped, swapped or inserted entry breaks everything behind it. Every hundredth entry also
carries a mark: an HMAC with a key that lies beside the log, mode 0600. What that proves: whoever
can write the log but not read the key cannot forge a new chain. What it cannot: against whoever has
the key, or who cuts the newest entries off, only a checkpoint that was written elsewhere helps.

One SQLite file; several processes may write. Blocking: not for the event loop's thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from muelle.core.admin import AuditEntry
from muelle.core.errors import ArtifactError, StoreError

MARK_EVERY = 100
BUSY_S = 10.0
FIRST = "0" * 64
"""The chain before the first entry."""

Detail: TypeAlias = dict[str, str | int | float | bool | None]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, body TEXT NOT NULL, chain TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS marks (number INTEGER PRIMARY KEY, mac TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify` found."""

    entries: int
    head: str
    """The chain of the last entry that is sound."""
    problems: tuple[str, ...]
    """One line each, in the order of the log; empty: the log is whole."""
    marks: int
    """Keyed marks that were checked; 0 without the key."""


class AuditLog:
    """One log file. Opened by each thread or process for itself; each call has its connection."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path = path
        self._now = now

    @classmethod
    def open(
        cls, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> AuditLog:
        """Open the log, or make it with a key of its own. Raise StoreError."""
        log = cls(path, now)
        key = key_path(path)
        try:
            if not key.exists():
                _make_key(key)
        except OSError as exc:
            raise StoreError(f"the audit log's key cannot be made: {exc.strerror}") from exc
        with log._connected() as c:
            c.executescript(_SCHEMA)
        return log

    def check(self) -> None:
        """Raise StoreError when nothing can be written now."""
        with self._connected() as c:
            c.execute("BEGIN IMMEDIATE")
            # A page is really changed, so that a full disk or a read-only file shows itself.
            c.execute("INSERT INTO marks VALUES (-1, '')")
            c.execute("ROLLBACK")

    def write(
        self,
        who: str,
        action: str,
        model: str = "",
        version: int | None = None,
        digest: str = "",
        outcome: str = "ok",
        detail: Detail | None = None,
    ) -> AuditEntry:
        """Add an entry; it is on the disk when this returns. Raise StoreError: it is not there."""
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._connected() as c:
            c.execute("BEGIN IMMEDIATE")
            last = c.execute("SELECT number, chain FROM entries ORDER BY number DESC LIMIT 1")
            number, before = last.fetchone() or (0, FIRST)
            entry = AuditEntry(
                number=number + 1,
                at=at,
                who=who,
                action=action,
                model=model,
                version=version,
                digest=digest,
                outcome=outcome[:2_000],
                detail=detail or {},
                chain="",
            )
            body = _body_of(entry)
            chain = _chain(before, body)
            c.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, body, chain))
            if entry.number % MARK_EVERY == 0:
                mac = _mac(_read_key(key_path(self._path)), entry.number, chain)
                c.execute("INSERT INTO marks VALUES (?, ?)", (entry.number, mac))
            c.execute("COMMIT")
        return msgspec.structs.replace(entry, chain=chain)

    def read(self, after: int = 0, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return entries with higher numbers than `after`, oldest first."""
        with self._connected() as c:
            rows = c.execute(
                "SELECT number, body, chain FROM entries WHERE number > ? ORDER BY number LIMIT ?",
                (after, limit),
            ).fetchall()
        return tuple(_entry_of(number, body, chain) for number, body, chain in rows)

    def newest(self, count: int) -> tuple[AuditEntry, ...]:
        """Return the last entries, oldest first."""
        number, _ = self.head()
        return self.read(max(0, number - count), count)

    def head(self) -> tuple[int, str]:
        """Return number and chain of the last entry; (0, zeros) of an empty log."""
        with self._connected() as c:
            last = c.execute("SELECT number, chain FROM entries ORDER BY number DESC LIMIT 1")
            number, chain = last.fetchone() or (0, FIRST)
        return int(number), str(chain)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as exc:
            raise StoreError(f"the audit log {self._path.name}: {exc}") from exc


def verify(path: Path, *, checkpoint: str = "") -> AuditReport:
    """Walk the whole chain. `checkpoint` is `NUMBER CHAIN`, as `muelle audit checkpoint` wrote it.

    Raise ArtifactError when there is no log, or the checkpoint cannot be read as one.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: no audit log there")
    pinned = _read_checkpoint(checkpoint)
    key = _read_key(key_path(path)) if key_path(path).exists() else b""
    problems: list[str] = []
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S
        )
        with contextlib.closing(connection) as c:
            marks = dict(c.execute("SELECT number, mac FROM marks"))
            rows = c.execute("SELECT number, body, chain FROM entries ORDER BY number")
            expected, before, head, checked = 1, FIRST, FIRST, 0
            sound = True
            for number, body, chain in rows:
                if number != expected:
                    missing = (
                        f"{expected}" if number == expected + 1 else f"{expected} to {number - 1}"
                    )
                    problems.append(f"entry {missing} is missing")
                    sound = False
                if _number_in(body) != number or _chain(before, body) != chain:
                    if number == expected:
                        problems.append(
                            f"entry {number} does not follow from the one before: it was changed, "
                            "inserted or moved"
                        )
                    sound = False
                if number in marks and key:
                    checked += 1
                    if not hmac.compare_digest(marks[number], _mac(key, number, chain)):
                        problems.append(f"entry {number}: its keyed mark does not fit")
                elif number % MARK_EVERY == 0 and key:
                    problems.append(f"entry {number}: its keyed mark is missing")
                if pinned is not None and number == pinned[0] and chain != pinned[1]:
                    problems.append(f"entry {number} is not the one of the checkpoint")
                if sound:
                    head = chain
                before, expected = chain, number + 1
            last = expected - 1
    except sqlite3.Error as exc:
        problems.append(f"the file is damaged: {exc}")
        return AuditReport(0, FIRST, tuple(problems), 0)
    for number in sorted(marks):
        if number > last:
            problems.append(f"entry {number} has a mark but is not there: the end was cut off")
    if pinned is not None and last < pinned[0]:
        problems.append(
            f"the log ends at entry {last}, the checkpoint knew entry {pinned[0]}: "
            "the end was cut off"
        )
    return AuditReport(last, head, tuple(problems), checked)


def key_path(log: Path) -> Path:
    """Return where the key of a log lies."""
    return log.with_suffix(".key")


def _make_key(path: Path) -> None:
    """Write a fresh key under another name and link it into place: two makers get the same one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, secrets.token_hex(32).encode())
        os.fsync(fd)
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(fd)
        fresh.unlink()


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"the audit log's key cannot be read: {exc.strerror}") from exc


def _body_of(entry: AuditEntry) -> str:
    """Return what is hashed: JSON with sorted keys, without number and chain's own values."""
    fields = msgspec.to_builtins(entry)
    del fields["chain"]
    return msgspec.json.encode(fields, order="sorted").decode()


def _entry_of(number: int, body: str, chain: str) -> AuditEntry:
    try:
        fields = msgspec.json.decode(body)
        return msgspec.convert({**fields, "chain": chain}, AuditEntry)
    except (msgspec.MsgspecError, TypeError) as exc:
        raise StoreError(f"audit entry {number} cannot be read: {exc}") from exc


def _number_in(body: str) -> int:
    try:
        found = msgspec.json.decode(body)["number"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return -1
    return found if isinstance(found, int) else -1


def _chain(before: str, body: str) -> str:
    return hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()


def _mac(key: bytes, number: int, chain: str) -> str:
    return hmac.new(key, f"{number} {chain}".encode(), hashlib.sha256).hexdigest()


def _read_checkpoint(text: str) -> tuple[int, str] | None:
    if not text.strip():
        return None
    number, _, chain = text.strip().partition(" ")
    if not number.isdigit() or len(chain) != 64:
        raise ArtifactError(
            "the checkpoint is not `NUMBER CHAIN`, as muelle audit checkpoint writes"
        )
    return int(number), chain
