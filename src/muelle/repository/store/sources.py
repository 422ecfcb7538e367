"""What is pushed: a file, or a folder's files, with names that are safe to use again.

Not for contents, nor archives; and never through a symbolic link: what it points at could change,
or lie outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.repository.digest import CACHE

_NAME_BYTES = 255
_PATH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """One file to be taken in. `name` is what it is called in the version."""

    name: str
    path: Path
    size: int
    on_disk: int
    """Bytes that it takes there: fewer than `size` when it has holes."""
    mtime_ns: int


def list_sources(source: Path) -> list[Source]:
    """Return the file, or the folder's files sorted by name.

    Raise ArtifactError when there is none, one is neither a file nor a folder (links, pipes), or
    a name cannot be kept.
    """
    try:
        found = source.lstat()
        if stat.S_ISREG(found.st_mode):
            return [_source(source.name, source)]
        if not stat.S_ISDIR(found.st_mode):
            raise ArtifactError(_neither(source.name, found.st_mode))
        files = sorted(_walk(source), key=lambda file: file.name)
    except FileNotFoundError as exc:
        raise ArtifactError(f"{exc.filename}: no such file or folder") from exc
    except OSError as exc:
        raise ArtifactError(f"{source.name}: cannot be read: {exc.strerror}") from exc
    if not files:
        raise ArtifactError(f"{source.name}: the folder holds no file")
    return files


def check_names(names: Iterable[str]) -> None:
    """Raise ArtifactError for a name that cannot be kept, or two that cannot lie side by side."""
    seen: set[str] = set()
    for name in names:
        _check_name(name)
        if name in seen:
            raise ArtifactError(f"{name!r}: two files of that name in one version")
        seen.add(name)
    for name in seen:
        parent = name.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise ArtifactError(f"{parent!r}: both a file and a folder of that name")
            parent = parent.rpartition("/")[0]


def _check_name(name: str) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{name!r}: the name is not UTF-8; rename the file") from None
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ArtifactError(f"{name!r}: a file's name must stay inside its version")
    if not name.isprintable():
        raise ArtifactError(f"{name!r}: control characters in a file's name; rename it")
    if len(encoded) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        raise ArtifactError(f"{name[:80]!r}…: the name is too long; rename it")


def _walk(folder: Path) -> Iterator[Source]:
    for here, folders, names in os.walk(folder, onerror=_raise):
        if CACHE in folders:
            folders.remove(CACHE)
        for name in folders:
            path = Path(here, name)
            if path.is_symlink():
                raise ArtifactError(_neither(path.relative_to(folder).as_posix(), stat.S_IFLNK))
        for name in names:
            path = Path(here, name)
            yield _source(path.relative_to(folder).as_posix(), path)


def _source(name: str, path: Path) -> Source:
    _check_name(name)
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(_neither(name, found.st_mode))
    return Source(name, path, found.st_size, found.st_blocks * 512, found.st_mtime_ns)


def _neither(name: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return f"{name}: it is a symbolic link; put the file itself there"
    return f"{name}: neither a file nor a folder"


def _raise(error: OSError) -> None:
    raise error
