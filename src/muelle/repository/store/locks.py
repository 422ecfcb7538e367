"""Locks between processes: flock on a file. A process that dies gives its locks back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class Hold:
    """A lock that is held until `release`, or until the process ends. Not inherited by children."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, path: Path, *, exclusive: bool, wait: bool) -> Hold | None:
        """Lock the file, which is made when missing. None: `wait` is off and another has it.

        Raise OSError when the file cannot be opened.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if lock(fd, exclusive=exclusive, wait=wait):
            return cls(fd)
        os.close(fd)
        return None

    def release(self) -> None:
        """Give the lock back. Twice is once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            unlock(fd)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock(fd: int, *, exclusive: bool, wait: bool) -> bool:
    """Lock an open file. False: another has it, and `wait` is off."""
    how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give the lock back and close the file.

    Closing alone does not do: a child that another thread forks holds a copy until it runs exec.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raise OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
