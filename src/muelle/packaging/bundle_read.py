"""Read a bundle and believe nothing of it: every byte is compared with what must stand there.

Reads from the beginning to the end, so that a file that was cut off says where. Not for writing
(`bundle`), nor for what the members mean. Standard library only: a copy of this file travels in
every bundle, beside its `__main__.py`.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

if __package__:
    from muelle.packaging import bundle_format as form
else:  # In a bundle they lie side by side.
    import bundle_format as form  # type: ignore[import-not-found,no-redef]

BLOCK_BYTES = 1024 * 1024
MAX_SMALL_BYTES = 64 * 1024 * 1024
"""Of a member that is read into memory: a record, a lock."""

Progress = Callable[[int, int], None]
"""(bytes_done, bytes_total) of the whole file."""


def verify_bundle(path: Path, *, progress: Progress = lambda done, total: None) -> form.BundleIndex:
    """Read the whole bundle from its beginning to its end, and return what it holds.

    Raise BundleInvalid, which names the member that is cut off, changed, missing or too many.
    """
    try:
        with open(path, "rb") as stream:
            return _Check(stream, path.name, os.fstat(stream.fileno()).st_size, progress).run()
    except IsADirectoryError as exc:
        raise form.BundleInvalid(f"{path.name}: a folder, not a bundle") from exc
    except OSError as exc:
        raise form.BundleInvalid(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def open_member(path: Path, index: form.BundleIndex, name: str) -> BinaryIO:
    """Open a member of a verified bundle. What it reads is not hashed again. Raise OSError."""
    entry = index.find(name)
    return io.BufferedReader(_Window(open(path, "rb", buffering=0), entry), BLOCK_BYTES)


def read_member(path: Path, index: form.BundleIndex, name: str) -> bytes:
    """Return a small member's content, hashed again. Raise BundleInvalid."""
    entry = index.find(name)
    if entry.size > MAX_SMALL_BYTES:
        raise form.BundleInvalid(f"{name}: {entry.size} bytes, too large for what it is", name)
    return b"".join(_checked(path, index, entry))


def extract(path: Path, index: form.BundleIndex, names: Iterable[str], folder: Path) -> None:
    """Write members below a folder under their names, hashed again. Raise BundleInvalid, OSError.

    Nothing that is there is written over, nor written through a link: use a folder of your own.
    """
    for name in names:
        target = folder / index.find(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(target, flags, 0o644), "wb") as stream:
            copy_member(path, index, name, stream)


def copy_member(path: Path, index: form.BundleIndex, name: str, stream: BinaryIO) -> None:
    """Write a member's content into a stream, hashed again. Raise BundleInvalid, OSError."""
    for block in _checked(path, index, index.find(name)):
        stream.write(block)


def _checked(path: Path, index: form.BundleIndex, entry: form.Entry) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with open_member(path, index, entry.name) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            yield block
    if digest.hexdigest() != entry.sha256:
        raise form.BundleInvalid(f"{entry.name}: the bundle changed while it was read", entry.name)


# --- the walk ---


class _Check:
    """One walk over a bundle. Used once, by one thread."""

    def __init__(self, stream: BinaryIO, file: str, size: int, progress: Progress) -> None:
        self._stream, self._file, self._size, self._progress = stream, file, size, progress
        self._at = 0
        self._central: list[tuple[str, bytes]] = []
        """(name, its line in the table) of what has been read."""

    def run(self) -> form.BundleIndex:
        """Return the index, with each member's place. Raise BundleInvalid."""
        if self._size == 0:
            raise form.BundleInvalid(f"{self._file}: it is empty; copy it again")
        headers: list[tuple[str, bytes, bytes]] = []
        raw = self._small(form.INDEX, form.MAX_INDEX_BYTES, headers)
        check = self._small(form.CHECK, 128, headers)
        if check != form.check_line(raw):
            raise form.BundleInvalid(
                f"{self._file}: {form.INDEX} has changed; copy it again", form.INDEX
            )
        index, signed = form.parse_index(raw)
        signature = (
            self._small(form.SIGNATURE, form.MAX_SIGNATURE_BYTES, headers) if signed else b""
        )
        self._accept(headers, index.epoch)
        self._refuse_cut(index)
        placed = tuple(self._member(entry, index.epoch) for entry in index.members)
        self._table()
        self._progress(self._size, self._size)
        return form.BundleIndex(
            created_by=index.created_by,
            epoch=index.epoch,
            platform=index.platform,
            python=index.python,
            versions=index.versions,
            members=placed,
            sha256=index.sha256,
            size=self._size,
            signature=signature,
        )

    def _small(self, name: str, most: int, headers: list[tuple[str, bytes, bytes]]) -> bytes:
        """Return the content of one of the first members, whose size only its header tells."""
        head = self._take(form.LOCAL.size, name)
        if not form.MAGIC.startswith(head[:4]):
            raise self._no_bundle() if not headers else self._misplaced(name)
        if len(head) < form.LOCAL.size:
            raise self._cut(name, 0, 0)
        size = int(form.LOCAL.unpack(head)[8])
        if form.LOCAL.unpack(head)[9:] != (len(name), 0) or size > most:
            raise self._no_bundle() if not headers else self._misplaced(name)
        head += self._take(len(name), name)
        content = self._take(size, name)
        if head[form.LOCAL.size :] != name.encode()[: len(head) - form.LOCAL.size]:
            raise self._no_bundle() if not headers else self._misplaced(name)
        if len(content) < size:
            raise self._cut(name, len(content), size)
        headers.append((name, head, content))
        return content

    def _accept(self, headers: list[tuple[str, bytes, bytes]], epoch: int) -> None:
        """Compare the headers of the first members, now that the date is known."""
        offset = 0
        for name, head, content in headers:
            crc = zlib.crc32(content)
            if head != form.local_header(name, crc, len(content), epoch):
                raise form.BundleInvalid(f"{self._file}: {name} has changed; copy it again", name)
            self._central.append((name, form.central_entry(name, crc, len(content), offset, epoch)))
            offset += len(head) + len(content)

    def _refuse_cut(self, index: form.BundleIndex) -> None:
        """Raise at once when the file is too short and all that is there is in its place.

        No size that the index claims is believed before this: what follows reads in blocks.
        """
        at = self._at
        for entry in index.members:
            head = len(form.local_header(entry.name, 0, entry.size, index.epoch))
            end = at + head + entry.size
            if end > self._size:
                there = max(self._size - at - head, 0)
                self._stream.seek(at)
                begin = self._stream.read(form.LOCAL.size)
                self._stream.seek(self._at)
                if begin[:4] == form.MAGIC[: len(begin)]:
                    raise self._cut(entry.name, there, entry.size)
                return  # Bytes are missing further ahead: the walk finds where.
            at = end

    def _member(self, entry: form.Entry, epoch: int) -> form.Entry:
        """Read one member. Raise BundleInvalid when a byte of it is another."""
        start = self._at
        length = len(form.local_header(entry.name, 0, entry.size, epoch))
        head = self._take(length, entry.name)
        if len(head) < length:
            raise self._cut(entry.name, 0, entry.size)
        said = int(form.LOCAL.unpack_from(head)[6])
        if head != form.local_header(entry.name, said, entry.size, epoch):
            raise self._misplaced(entry.name)
        offset = self._at
        digest, crc, left = hashlib.sha256(), 0, entry.size
        while left:
            block = self._take(min(left, BLOCK_BYTES), entry.name)
            if not block:
                raise self._cut(entry.name, entry.size - left, entry.size)
            digest.update(block)
            crc = zlib.crc32(block, crc)
            left -= len(block)
            self._progress(self._at, self._size)
        if digest.hexdigest() != entry.sha256 or crc != said:
            raise form.BundleInvalid(
                f"{self._file}: {entry.name} has changed (its content is not the one that "
                f"{form.INDEX} lists); copy it again",
                entry.name,
            )
        line = form.central_entry(entry.name, crc, entry.size, start, epoch)
        self._central.append((entry.name, line))
        return form.Entry(entry.name, entry.size, entry.sha256, entry.kind, offset)

    def _table(self) -> None:
        """Compare the table at the end, by which other programs find the members."""
        start = self._at
        for name, line in self._central:
            self._expect(line, f"the table of contents at its end says something else of {name}")
        size = self._at - start
        end = form.end_record(len(self._central), size, start)
        self._expect(end, "its end is not what it must be")
        if extra := self._size - self._at:
            raise form.BundleInvalid(
                f"{self._file}: {extra} bytes too many at its end; copy it again"
            )

    def _expect(self, wanted: bytes, trouble: str) -> None:
        found = self._take(len(wanted), "")
        if found == wanted:
            return
        if wanted.startswith(found):
            raise form.BundleInvalid(
                f"{self._file}: it is cut off in the table of contents at its end; copy it again"
            )
        raise form.BundleInvalid(f"{self._file}: {trouble}; copy it again")

    def _take(self, n_bytes: int, name: str) -> bytes:
        """Read so many bytes, or what there is. Never makes room for more than the file holds."""
        n_bytes = min(n_bytes, max(self._size - self._at, 0))
        block = self._stream.read(n_bytes) if n_bytes else b""
        if len(block) < n_bytes:
            raise form.BundleInvalid(f"{self._file}: it grew shorter while it was read", name)
        self._at += len(block)
        return block

    def _no_bundle(self) -> form.BundleInvalid:
        return form.BundleInvalid(f"{self._file}: not a bundle that Muelle made (muelle bundle)")

    def _misplaced(self, name: str) -> form.BundleInvalid:
        return form.BundleInvalid(
            f"{self._file}: {name} is not where it must begin: bytes were added, taken away or "
            "changed there, or the file was packed anew by another program; copy it again",
            name,
        )

    def _cut(self, name: str, there: int, size: int) -> form.BundleInvalid:
        much = f": {form.amount(there, size)} are there" if size else ""
        return form.BundleInvalid(f"{self._file} is cut off in {name}{much}; copy it again", name)


class _Window(io.RawIOBase):
    """A member's bytes as a file of their own. Owned by one reader."""

    def __init__(self, stream: io.FileIO, entry: form.Entry) -> None:
        self._stream, self._left = stream, entry.size
        stream.seek(entry.offset)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the member goes; return how many bytes."""
        view = memoryview(buffer)[: self._left]
        n = self._stream.readinto(view) if self._left else 0
        self._left -= n or 0
        return n or 0

    def close(self) -> None:
        """Close the bundle's file too."""
        self._stream.close()
        super().close()
