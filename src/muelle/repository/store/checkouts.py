"""A version's files under their names, so that runtimes can load them by path. Made on demand.

A checkout can always be made anew from the blobs. It is made in a folder of its own and renamed, so
that one that is there is whole. Files are hard links to the blobs where that works.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from muelle.core.errors import StoreError
from muelle.core.records import StoredFile
from muelle.repository.store.blobs import Blobs, store_errors
from muelle.repository.store.locks import sync_folder
from muelle.repository.store.sources import check_names

_UNFINISHED = "."
"""What the names of folders begin with that are being made, or taken away."""


def tree_of(files: Iterable[StoredFile]) -> str:
    """Return 64 hex digits that name these contents under these names.

    It is the digest of a folder as `repository.digest` defines it. A lone file's version digest
    does not know its name, and the same content may be pushed under two.
    """
    lines = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        lines.update(f"{file.sha256}  {file.path}\n".encode())
    return lines.hexdigest()


class Checkouts:
    """The folder `versions/` of one store. Any process may call while it holds the store's lock."""

    def __init__(self, store: Path, blobs: Blobs) -> None:
        self._folder = store / "versions"
        self._blobs = blobs

    def make(self, files: Sequence[StoredFile]) -> Path:
        """Return the folder with these files, made when it is not there or not whole.

        Raise ArtifactError when a blob is missing, StoreError when the disk fails.
        """
        check_names(file.path for file in files)
        place = self._folder / tree_of(files)
        if self.is_whole(place, files):
            return place
        for file in files:
            self._blobs.require(file)
        fresh = self._folder / f"{_UNFINISHED}new-{secrets.token_hex(8)}"
        try:
            with store_errors("checkout", sum(file.size for file in files)):
                self._lay_out(fresh, files)
                self._swap_in(fresh, place, files)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return place

    def all(self) -> Iterator[Path]:
        """Yield every checkout, and what was left of unfinished ones."""
        return iter(sorted(self._folder.iterdir()))

    def remove(self, place: Path) -> None:
        """Take a checkout away. A half removed one is never taken for whole. Raise OSError."""
        if not place.name.startswith(_UNFINISHED):
            leaving = self._leaving()
            place.rename(leaving)
            place = leaving
        shutil.rmtree(place)

    def is_whole(self, place: Path, files: Sequence[StoredFile]) -> bool:
        """Whether every file is there in its size. Reads no content."""
        try:
            return all(
                place.joinpath(file.path).lstat().st_size == file.size for file in files
            ) and _count(place) == len(files)
        except OSError:
            return False

    def is_linked(self, place: Path, file: StoredFile) -> bool:
        """Whether a file of a checkout is its blob, and not a copy of it. Raise OSError."""
        return place.joinpath(file.path).samefile(self._blobs.path(file.sha256))

    def _lay_out(self, fresh: Path, files: Sequence[StoredFile]) -> None:
        fresh.mkdir(0o700)
        folders = {fresh}
        may_link = not _counts_links(files)
        for file in files:
            place = fresh / file.path
            for parent in reversed(place.relative_to(fresh).parents[:-1]):
                folder = fresh / parent
                folder.mkdir(0o700, exist_ok=True)
                folders.add(folder)
            self._place(file, place, may_link)
        for folder in folders:
            sync_folder(folder)

    def _place(self, file: StoredFile, place: Path, may_link: bool) -> None:
        blob = self._blobs.path(file.sha256)
        if may_link:
            try:
                os.link(blob, place, follow_symlinks=False)
                return
            except OSError:
                pass  # a file system without hard links, or too many to this one: copy
        with open(blob, "rb") as source, open(place, "xb") as target:
            shutil.copyfileobj(source, target, 1024 * 1024)
            target.flush()
            os.fchmod(target.fileno(), 0o444)
            os.fsync(target.fileno())
        if place.stat().st_size != file.size:
            raise StoreError(f"{file.path}: the copy is not whole; run `muelle verify`")

    def _swap_in(self, fresh: Path, place: Path, files: Sequence[StoredFile]) -> None:
        try:
            fresh.rename(place)
        except OSError:
            if self.is_whole(place, files):
                return  # another process was faster
            if not place.exists():
                raise
            self.remove(place)
            fresh.rename(place)
        sync_folder(self._folder)

    def _leaving(self) -> Path:
        return self._folder / f"{_UNFINISHED}old-{secrets.token_hex(8)}"


def _counts_links(files: Sequence[StoredFile]) -> bool:
    """Whether a runtime will refuse hard links among these files.

    ONNX models with external data: a linked data file could be any file of the machine, so their
    loader wants files of their own.
    """
    return len(files) > 1 and any(file.path.endswith(".onnx") for file in files)


def _count(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
