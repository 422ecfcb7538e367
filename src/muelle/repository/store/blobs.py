"""Contents by their SHA-256: `blobs/sha256/ab/<64 hex>`, read-only. Not for names or versions.

A content is written to `incoming/`, synced, and then renamed into its place: what stands in
`blobs/` is whole. A copy that was cut off is taken up again by the next push of the same file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from muelle.core.errors import ArtifactError, StoreError
from muelle.core.records import StoredFile
from muelle.repository.digest import BLOCK_BYTES, Progress
from muelle.repository.store.locks import lock, sync_folder
from muelle.repository.store.sources import Source, check_names, list_sources

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ZEROS = bytes(BLOCK_BYTES)


class Meter:
    """Sums up the bytes of several files for one progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, n_bytes: int) -> None:
        """Count what has been read."""
        self._done += n_bytes
        if self._progress is not None:
            # A file that grows meanwhile must not show more than all.
            self._progress(min(self._done, self._total), self._total)

    def finish(self) -> None:
        """Show all as done."""
        if self._progress is not None:
            self._progress(self._total, self._total)


class Blobs:
    """The contents of one store. Any thread or process may call."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "blobs" / "sha256"
        self._incoming = store / "incoming"

    def path(self, sha256: str) -> Path:
        """Return where a content lies, or would lie. Raise ArtifactError: no 64 hex digits."""
        if not _SHA256.match(sha256):
            raise ArtifactError(f"{sha256[:80]!r}: not a SHA-256")
        return self._folder / sha256[:2] / sha256

    def all(self) -> Iterator[Path]:
        """Yield every blob, sorted by its digest."""
        for folder in sorted(self._folder.iterdir()):
            yield from (path for path in sorted(folder.iterdir()) if _SHA256.match(path.name))

    def partial(self) -> Iterator[Path]:
        """Yield what copies in progress, or cut off, have written."""
        return iter(sorted(self._incoming.iterdir()))

    def require(self, file: StoredFile) -> None:
        """Raise ArtifactError unless the content is there in its full size."""
        try:
            size = self.path(file.sha256).stat().st_size
        except OSError:
            raise ArtifactError(
                f"{file.path}: its content is not in the store; push the file again"
            ) from None
        if size != file.size:
            raise ArtifactError(
                f"{file.path}: the store holds {size} of its {file.size} bytes; push it again"
            )

    def is_sound(self, sha256: str, meter: Meter | None = None) -> bool:
        """Whether the content is there and has its digest. Reads all of it. Raise OSError."""
        try:
            fd = os.open(self.path(sha256), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            return hash_of(fd, meter) == sha256
        finally:
            os.close(fd)

    def add(
        self, source: Path, progress: Progress | None, known_sizes: Container[int]
    ) -> tuple[StoredFile, ...]:
        """Take in a file, or all files of a folder; see `Store.add_files`.

        A file of a size that the store holds already is first hashed, so that nothing is written
        for what is there; any other is hashed while it is copied.
        """
        sources = list_sources(source)
        check_names(file.name for file in sources)
        meter = Meter(progress, sum(file.size for file in sources))
        stored = [self._add_one(file, file.size in known_sizes, meter) for file in sources]
        meter.finish()
        return tuple(stored)

    def receive(self, stored: StoredFile, stream: BinaryIO, progress: Progress | None) -> bool:
        """Take in one content from a stream that begins with it; see `Store.add_content`."""
        with store_errors(stored.path):
            place = self.path(stored.sha256)
            if self.is_sound(stored.sha256) and place.stat().st_size == stored.size:
                os.utime(place)  # in use again: gc counts from now
                sync_folder(place.parent)
                return False
        # Named by its content: a copy that was cut off goes on whatever the stream comes from.
        file = Source(stored.path, Path("/", stored.sha256), stored.size, stored.size, 0)

        def read(block: bytearray, offset: int) -> int:
            with _source_errors(file):
                return stream.readinto(block)  # type: ignore[attr-defined, no-any-return]

        def check(sha256: str) -> None:
            if sha256 != stored.sha256:
                raise ArtifactError(f"{stored.path}: its content is not the one that was packed")

        self._take_in(file, read, check, Meter(progress, stored.size))
        return True

    def _add_one(self, file: Source, may_be_there: bool, meter: Meter) -> StoredFile:
        fd = _open_source(file)
        try:
            sha256 = self._find(file, fd, meter) if may_be_there else None
            if sha256 is None:
                sha256 = self._copy(file, fd, Meter(None, 0) if may_be_there else meter)
        finally:
            os.close(fd)
        return StoredFile(path=file.name, size=file.size, sha256=sha256)

    def _find(self, file: Source, fd: int, meter: Meter) -> str | None:
        """Return the digest of a source whose content is there and sound, else None."""
        with _source_errors(file):
            sha256 = hash_of(fd, meter)
            _check_unchanged(file, fd)
        with store_errors(file.name):
            if not self.is_sound(sha256):
                return None
            place = self.path(sha256)
            os.utime(place)  # in use again: gc counts from now
            sync_folder(place.parent)  # whoever renamed it may not have come so far
        return sha256

    def _copy(self, file: Source, fd: int, meter: Meter) -> str:
        def check(_: str) -> None:
            with _source_errors(file):
                _check_unchanged(file, fd)

        return self._take_in(file, lambda block, at: _read(file, fd, block, at), check, meter)

    def _take_in(
        self,
        file: Source,
        read: Callable[[bytearray, int], int],
        check: Callable[[str], None],
        meter: Meter,
    ) -> str:
        """Copy what `read(block, offset)` gives into its place, when `check(sha256)` lets it."""
        with store_errors(file.name):
            part, part_path = self._open_part(file)
        try:
            check_room(file, part)
            sha256 = self._fill(part, file, read, meter)
            check(sha256)
            with store_errors(file.name):
                os.ftruncate(part, file.size)
                os.fchmod(part, 0o444)
                os.fsync(part)
                self._put(part_path, sha256)
        except (StoreError, ArtifactError):
            # What a failing disk has kept of it is not to be built on.
            part_path.unlink(missing_ok=True)
            raise
        finally:
            os.close(part)
        return sha256

    def _open_part(self, file: Source) -> tuple[int, Path]:
        """Open the file that this source is copied to: with what an earlier push left in it."""
        facts = f"{file.path.absolute()}\0{file.size}\0{file.mtime_ns}"
        name = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        path = self._incoming / name
        fd = os.open(path, flags, 0o600)
        if lock(fd, exclusive=True, wait=False) and _is_same(fd, path):
            return fd, path
        # Another process copies the same file now: each for itself.
        os.close(fd)
        path = self._incoming / f"{name}.{os.getpid()}-{os.urandom(4).hex()}"
        return os.open(path, flags | os.O_EXCL, 0o600), path

    def _fill(
        self, part: int, file: Source, read: Callable[[bytearray, int], int], meter: Meter
    ) -> str:
        """Copy and hash. What stands in `part` already is compared, and kept as far as it agrees.

        Blocks of zeros become holes, as they are in most sources that have them.
        """
        hasher = hashlib.sha256()
        block, mine = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
        done, agrees = 0, True
        # One that grows as fast as it is read would never end.
        while done <= file.size and (n := read(block, done)):
            view = memoryview(block)[:n]
            hasher.update(view)
            with store_errors(file.name, file.size - done):
                if agrees and not (os.preadv(part, [mine], done) >= n and mine[:n] == view):
                    agrees = False
                    os.ftruncate(part, done)
                if not agrees and block != _ZEROS:
                    _write(part, view, done)
            done += n
            meter.add(n)
        return hasher.hexdigest()

    def _put(self, part: Path, sha256: str) -> None:
        """Give a whole content its place. One that stands there may have rotted: it goes."""
        place = self.path(sha256)
        if not place.parent.is_dir():
            place.parent.mkdir(0o700, exist_ok=True)
            sync_folder(place.parent.parent)
        os.rename(part, place)
        sync_folder(place.parent)


def hash_of(fd: int, meter: Meter | None = None) -> str:
    """Return the SHA-256 of an open file, read from its beginning in blocks. Raise OSError.

    Of a file that grows meanwhile, no more than about what it was in the beginning is read.
    """
    size = os.fstat(fd).st_size
    hasher = hashlib.sha256()
    block = bytearray(BLOCK_BYTES)
    done = 0
    while done <= size and (n := os.preadv(fd, [block], done)):
        hasher.update(memoryview(block)[:n])
        done += n
        if meter is not None:
            meter.add(n)
    return hasher.hexdigest()


def check_room(file: Source, part: int) -> None:
    """Raise StoreError, saying how much is missing, when the rest of the file will not fit."""
    with store_errors(file.name):
        disk = os.fstatvfs(part)
        needed = min(file.size, file.on_disk) - os.fstat(part).st_blocks * 512
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise StoreError(_full(file.name, needed - free))


@contextmanager
def store_errors(name: str, missing: int = 0) -> Iterator[None]:
    """Turn the disk's errors into StoreError; a full one says how many bytes are missing."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(_full(name, missing)) from exc
        raise StoreError(f"{name}: the store cannot be written: {exc.strerror}") from exc


def _full(name: str, missing: int) -> str:
    much = f": {missing / 1e6:,.1f} MB are missing" if missing else ""
    return f"{name}: the store's disk is full{much}; free some space, `muelle gc` may help"


def _open_source(file: Source) -> int:
    with _source_errors(file):
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _check_unchanged(file, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd


@contextmanager
def _source_errors(file: Source) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ArtifactError(f"{file.name}: cannot be read: {exc.strerror}") from exc


def _check_unchanged(file: Source, fd: int) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
        raise ArtifactError(f"{file.name}: it changed while it was read; push it when it is done")


def _read(file: Source, fd: int, block: bytearray, offset: int) -> int:
    with _source_errors(file):
        return os.preadv(fd, [block], offset)


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def _is_same(fd: int, path: Path) -> bool:
    """Whether the open file still has that name."""
    try:
        there, here = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
