"""The store's SQLite file: schema, transactions, and their durability. Not what the tables mean.

Write-ahead log with synchronous=FULL: a transaction that `write` leaves without an error is on the
disk. A commit that fails is settled: see `_settle`.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muelle.core.errors import ArtifactError, StoreError
from muelle.repository.store.locks import sync_folder

SCHEMA_VERSION = 1
BUSY_S = 10.0
"""How long a writer waits for another process's transaction; those take milliseconds."""

_SCHEMA = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL, writer TEXT NOT NULL);
INSERT INTO state VALUES (1, 0, '');
-- Every number ever given away, so that none comes twice.
CREATE TABLE numbers (
    model TEXT NOT NULL, version INTEGER NOT NULL, removed_at TEXT, removed_by TEXT,
    PRIMARY KEY (model, version)) WITHOUT ROWID;
-- What lists need. Records are apart, so that a list reads none of their pages.
CREATE TABLE versions (
    model TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, tree TEXT NOT NULL,
    created TEXT NOT NULL, format TEXT NOT NULL, size INTEGER NOT NULL,
    environment TEXT NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (model, version)) WITHOUT ROWID;
CREATE TABLE records (
    model TEXT NOT NULL, version INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES versions ON DELETE CASCADE);
CREATE TABLE files (
    model TEXT NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (model, version, path),
    FOREIGN KEY (model, version) REFERENCES versions ON DELETE CASCADE) WITHOUT ROWID;
CREATE TABLE labels (
    model TEXT NOT NULL, label TEXT NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (model, label),
    FOREIGN KEY (model, version) REFERENCES versions) WITHOUT ROWID;
CREATE TABLE history (
    number INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, label TEXT NOT NULL,
    version INTEGER, previous INTEGER, at TEXT NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL,
    back INTEGER NOT NULL);
CREATE INDEX history_of ON history (model, label, number);
CREATE TABLE routes (
    model TEXT PRIMARY KEY, spec BLOB NOT NULL, at TEXT NOT NULL, who TEXT NOT NULL) WITHOUT ROWID;
"""


class Unsettled(StoreError):
    """The disk failed at the commit and again after it: the change may or may not be in effect."""


class Database:
    """One connection. Any thread may call; calls wait for each other."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._turn = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Database:
        """Open the file, or make it. Raise ArtifactError when there is none and not `create`."""
        if not create and not path.is_file():
            raise ArtifactError(f"{path.parent}: no store there; `muelle push FILE` makes one")
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as exc:
            raise StoreError(f"the store {path.parent} cannot be opened: {exc}") from exc
        database = cls(path, connection)
        try:
            database._prepare(create)
        except BaseException:
            connection.close()
            raise
        return database

    def close(self) -> None:
        """Close the connection. Twice is once."""
        with self._turn:
            try:
                self._connection.close()
            except sqlite3.Error:
                pass  # the log could not be folded in; the next one who opens the store does it

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the store in however many queries. Raise StoreError."""
        with self._turn, self._in_words("cannot be read"):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._end()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Change the store: all of what is done inside, or nothing when an error leaves it.

        Raise StoreError when the disk fails (nothing has changed), Unsettled when it cannot be
        known whether the change is in effect.
        """
        token = secrets.token_hex(8)
        with self._turn:
            with self._in_words("cannot be written; nothing has changed"):
                self._connection.execute("BEGIN IMMEDIATE")
                before = self._connection.total_changes
                try:
                    yield self._connection
                    if self._connection.total_changes != before:
                        self._connection.execute(
                            "UPDATE state SET generation = generation + 1, writer = ?", (token,)
                        )
                except BaseException:
                    self._end()
                    raise
            self._commit(token)

    def _commit(self, token: str) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as exc:
            self._end()
            if not self._settle(token):
                raise StoreError(
                    self._words("cannot be written; nothing has changed", exc)
                ) from exc

    def _settle(self, token: str) -> bool:
        """Whether a transaction whose commit failed is in effect after all.

        Its pages may stand in the log although the sync failed, and a later reader of the log
        would take them for good. So another transaction is written: it goes over what was not
        committed, or confirms what was.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            ((writer,),) = self._connection.execute("SELECT writer FROM state")
            self._connection.execute("UPDATE state SET generation = generation + 1")
            self._connection.execute("COMMIT")
        except sqlite3.Error as exc:
            self._end()
            raise Unsettled(
                self._words("failed in the middle; look with `muelle history` what holds", exc)
            ) from exc
        return bool(writer == token)

    def _end(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite has rolled back by itself

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StoreError(self._words(what, exc)) from exc

    def _words(self, what: str, error: sqlite3.Error) -> str:
        return f"the store {self._path.parent} {what}: {error}"

    def _prepare(self, create: bool) -> None:
        with self._in_words("cannot be opened"):
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
                self._connection.execute(f"PRAGMA {pragma}")
            if self._schema_version() == 0:
                if not create:
                    raise ArtifactError(
                        f"{self._path.parent}: no store there; `muelle push FILE` makes one"
                    )
                self._make()
        if self._schema_version() > SCHEMA_VERSION:
            raise StoreError(
                f"the store {self._path.parent} was written by a newer Muelle (schema "
                f"{self._schema_version()}, this one knows {SCHEMA_VERSION}); update this one"
            )

    def _make(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have come first.
            if self._schema_version() == 0:
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._connection.execute("COMMIT")
            sync_folder(self._path.parent)
        except OSError as exc:
            raise StoreError(f"the store {self._path.parent}: {exc.strerror}") from exc
        finally:
            self._end()

    def _schema_version(self) -> int:
        ((found,),) = self._connection.execute("PRAGMA user_version")
        return int(found)
