"""Name an artifact by its content: SHA-256. Not for checking signatures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from muelle.core.errors import ArtifactError

BLOCK_BYTES = 1024 * 1024
_PREFIX = "sha256:"
CACHE = "__pycache__"
"""A folder that Python makes by itself wherever it imports from: no part of any artifact."""

Progress = Callable[[int, int], None]
"""(bytes_done, bytes_total), called after each block and once at the end."""


def digest_artifact(path: Path, progress: Progress | None = None) -> str:
    """Return `sha256:<64 hex digits>` of a file, or of a folder's names and contents.

    A folder's digest is that of one line per file, sorted by name: digest, two spaces, relative
    name. Empty folders do not count, nor do `__pycache__`. Raise ArtifactError when something
    cannot be read, or when a folder holds a symbolic link (its target could change while the
    digest stays).
    """
    is_folder = path.is_dir()
    try:
        files = sorted(_files(path), key=_sort_key) if is_folder else [(path.name, path)]
        total = sum(file.stat().st_size for _, file in files)
        done = 0
        lines = hashlib.sha256()
        for name, file in files:
            single = hashlib.sha256()
            for block in _blocks(file):
                single.update(block)
                done += len(block)
                if progress is not None:
                    # A file that grows meanwhile must not show more than all.
                    progress(min(done, total), total)
            if not is_folder:
                lines = single
            else:
                lines.update(f"{single.hexdigest()}  {name}\n".encode("utf-8", "surrogateescape"))
    except OSError as exc:
        raise ArtifactError(f"{path.name}: cannot be read: {exc.strerror}") from exc
    if progress is not None:
        progress(total, total)
    return _PREFIX + lines.hexdigest()


def digest_of_files(files: Sequence[tuple[str, str]]) -> str:
    """Return the digest that `digest_artifact` gives: of a lone file, or of a folder with several.

    `files` are (relative name with `/`, 64 hex digits of its SHA-256), in any order; at least one.
    """
    if len(files) == 1:
        return _PREFIX + files[0][1]
    lines = hashlib.sha256()
    for name, sha256 in sorted(files):
        lines.update(f"{sha256}  {name}\n".encode("utf-8", "surrogateescape"))
    return _PREFIX + lines.hexdigest()


def _sort_key(item: tuple[str, Path]) -> str:
    return item[0]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for here, folders, names in os.walk(folder, onerror=_raise):
        if CACHE in folders:
            folders.remove(CACHE)
        for name in (*folders, *names):
            path = Path(here, name)
            if path.is_symlink():
                raise ArtifactError(
                    f"{folder.name}: {path.relative_to(folder).as_posix()} is a symbolic link; "
                    "put the file itself there"
                )
        for name in names:
            path = Path(here, name)
            # One line per file: a line break in a name could make two trees look alike.
            yield path.relative_to(folder).as_posix().replace("\n", "\\n"), path


def _raise(error: OSError) -> None:
    raise error


def _blocks(file: Path) -> Iterator[memoryview]:
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    with open(file, "rb", buffering=0) as source:
        while n := source.readinto(buffer):
            yield view[:n]
