"""Which servers use a store: `servers/<id>.json`, locked while the server lives. Asks nobody."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from muelle.core.errors import ConfigError
from muelle.core.ids import is_model_name
from muelle.core.records import ServerLease
from muelle.repository.store.blobs import store_errors
from muelle.repository.store.locks import lock, unlock

_ENDING = ".json"


class LeaseFile:
    """A living server's lease. Owned by the server; ends with `close`, or with the process."""

    def __init__(self, folder: Path, lease: ServerLease) -> None:
        self._folder = folder
        self._path = folder / f"{lease.id}{_ENDING}"
        self._fd = self._write(lease)

    def update(self, lease: ServerLease) -> None:
        """Say what the server has loaded now. Raise StoreError; then the old lease holds."""
        fd = self._write(lease)
        unlock(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Give the lease back. Twice is once."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            pass  # once it is unlocked, nobody takes it for a living one
        unlock(fd)

    def _write(self, lease: ServerLease) -> int:
        """Write the lease beside the old one, lock it and rename it: it is never seen unlocked."""
        fresh = self._folder / f".{lease.id}-{secrets.token_hex(4)}"
        with store_errors("lease"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(fresh, flags, 0o600)
            try:
                lock(fd, exclusive=True, wait=True)
                os.write(fd, msgspec.json.encode(lease))
                fresh.rename(self._path)
            except BaseException:
                os.close(fd)
                fresh.unlink(missing_ok=True)
                raise
        return fd


class Leases:
    """The folder `servers/` of one store."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "servers"

    def take(self, lease: ServerLease) -> LeaseFile:
        """Write and lock a lease. Raise ConfigError for an id that cannot be a file's name."""
        if not is_model_name(lease.id):
            raise ConfigError(f"server id {lease.id!r}: a-z, 0-9, '.', '_' and '-', at most 63")
        return LeaseFile(self._folder, lease)

    def living(self) -> Iterator[ServerLease]:
        """Yield the leases of the servers that live. Raise StoreError."""
        with store_errors("leases"):
            for path in sorted(self._folder.glob(f"*{_ENDING}")):
                text = _read_locked(path)
                if text is not None and (lease := _decode(text)) is not None:
                    yield lease

    def dead(self) -> Iterator[Path]:
        """Yield the files of servers that are dead. Raise OSError."""
        for path in sorted(self._folder.iterdir()):
            if path.exists() and _read_locked(path) is None:
                yield path


def _decode(text: bytes) -> ServerLease | None:
    try:
        return msgspec.json.decode(text, type=ServerLease)
    except msgspec.MsgspecError:
        return None


def _read_locked(path: Path) -> bytes | None:
    """Return what a file holds that a process has locked; None when nobody has, or it is gone."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if not lock(fd, exclusive=False, wait=False):
                return os.pread(fd, os.fstat(fd).st_size, 0)
            # Unlocked: dead, unless an update has just put another file in its place.
            if os.fstat(fd).st_nlink > 0:
                return None
        finally:
            os.close(fd)
