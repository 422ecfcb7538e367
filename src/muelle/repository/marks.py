"""Tell whether an artifact has changed, and whether somebody still writes it, by looking at names,
sizes and dates. Not for contents: `digest` names those, and reads every byte for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.repository.layout import is_unfinished


@dataclass(frozen=True, slots=True)
class Mark:
    """What an artifact looked like at one moment. Equal marks: nobody has touched it."""

    text: str
    newest_s: float
    """When a file of it was last written or renamed, in seconds since 1970."""
    finished: bool
    """Whether no file in it has the name of a copy under way (`model.onnx.part`)."""


def take_mark(path: Path) -> Mark:
    """Look at a file, or at every file of a folder. Raise ArtifactError when it cannot be seen."""
    try:
        entries = sorted(_entries(path))
    except OSError as exc:
        raise ArtifactError(f"{path.name}: cannot be looked at: {exc.strerror}") from exc
    text = hashlib.blake2b(digest_size=16)
    newest, finished = 0.0, True
    for name, found in entries:
        text.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}\n".encode())
        # A rename into place keeps the date of writing; only the inode's own date tells.
        newest = max(newest, found.st_mtime, found.st_ctime)
        finished = finished and not (name and is_unfinished(name.rpartition("/")[2]))
    return Mark(text.hexdigest(), newest, finished and bool(entries))


def _entries(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    found = path.stat()
    if not path.is_dir():
        yield "", found
        return
    for here, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [f for f in folders if f != "__pycache__"]
        for name in names:
            file = Path(here, name)
            yield file.relative_to(path).as_posix(), file.lstat()


def _raise(error: OSError) -> None:
    raise error


class Stillness:
    """Decides whether an artifact lies still. Pure: marks and moments in, yes or no out.

    Twice the same mark with `settle_s` between is still. At the very first look, also one whose
    files are older than that: a server must not wait for files that lie there since yesterday.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._seen: dict[Path, tuple[str, float]] = {}

    def is_still(self, path: Path, mark: Mark, now: float, wall: float) -> bool:
        """`now` is monotonic, `wall` in seconds since 1970, both of the moment of the mark."""
        before = self._seen.get(path)
        if before is None or before[0] != mark.text:
            self._seen[path] = (mark.text, now)
            old = before is None and mark.newest_s < wall - self._settle_s
            if old and mark.finished:
                self._seen[path] = (mark.text, now - self._settle_s)
            return old and mark.finished
        return mark.finished and now - before[1] >= self._settle_s

    def forget_others(self, paths: set[Path]) -> None:
        """Forget artifacts that are not there any more."""
        self._seen = {path: seen for path, seen in self._seen.items() if path in paths}
