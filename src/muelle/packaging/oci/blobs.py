"""Bytes with a digest: read in pieces and checked; files that are written whole or not at all.

Not for what the bytes mean: layers, manifests and configurations are read elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from muelle.core.errors import ImageError

CHUNK = 1 << 20
"""Bytes that are read, hashed and written at a time: a layer of any size needs no more memory."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A range of a file: a blob of a layout folder, or a member of an uncompressed tar."""

    path: Path
    size: int
    offset: int = 0

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `start` on. Raise ImageError when the file ends too early."""
        left = self.size - start
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset + start)
                while left > 0:
                    piece = stream.read(min(CHUNK, left))
                    if not piece:
                        raise ImageError(f"{self.path}: ends {left} bytes too early; fetch it anew")
                    left -= len(piece)
                    yield piece
        except OSError as exc:
            raise ImageError(f"{self.path}: cannot be read: {exc.strerror}") from exc

    def read(self, limit_bytes: int) -> bytes:
        """Return all bytes. Raise ImageError when there are more than the limit."""
        if self.size > limit_bytes:
            raise ImageError(
                f"{self.path}: {self.size} bytes where at most {limit_bytes} are taken"
            )
        return b"".join(self.chunks())


def is_digest(text: str) -> bool:
    """Whether a text is `sha256:` and 64 hex digits; no other hash is taken."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(content: bytes) -> str:
    """Return `sha256:<hex>` of bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of_chunks(chunks: Iterable[bytes]) -> str:
    """Return `sha256:<hex>` of bytes that come in pieces."""
    seen = hashlib.sha256()
    for piece in chunks:
        seen.update(piece)
    return "sha256:" + seen.hexdigest()


def check_blob(blob: Blob, digest: str) -> None:
    """Raise ImageError, naming the blob, when its bytes are not those of the digest."""
    if digest_of_chunks(blob.chunks()) != digest:
        raise ImageError(f"{digest} in {blob.path}: its bytes are other ones; fetch it anew")


def gunzip(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """Yield what gzip members hold, in pieces of bounded size. Raise ImageError, naming `what`."""
    inflate = zlib.decompressobj(31)
    fresh = True
    try:
        for piece in chunks:
            while piece:
                if inflate.eof:
                    inflate = zlib.decompressobj(31)
                fresh = False
                out = inflate.decompress(piece, CHUNK)
                if out:
                    yield out
                piece = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    except zlib.error as exc:
        raise ImageError(f"{what}: broken gzip: {exc}") from exc
    if fresh or not inflate.eof:
        raise ImageError(f"{what}: its gzip ends too early")


class ChunkReader(io.BufferedIOBase):
    """A readable file over pieces of bytes, for `tarfile`'s streams. Used by one thread."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._piece = b""
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes; all that is left where it is negative."""
        left = sys.maxsize if size is None or size < 0 else size
        parts = []
        while left > 0:
            if self._at == len(self._piece):
                piece = next(self._chunks, None)
                if piece is None:
                    break
                self._piece, self._at = piece, 0
            part = self._piece[self._at : self._at + left]
            parts.append(part)
            self._at += len(part)
            left -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def written_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file that becomes `target` when the block ends well, and is gone when it does not.

    Raise ImageError in place of what the system says: no room, no such folder, no right to write.
    """
    part: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        part = Path(name)
        with open(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(fd)
        part.chmod(0o644)
        os.replace(part, target)
        part = None
        sync_folder(target.parent)
    except OSError as exc:
        raise ImageError(f"{target}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_checked(blob: Blob, digest: str, write: Callable[[bytes], object]) -> None:
    """Copy a blob's bytes. Raise ImageError when they turn out not to be those of its digest."""
    seen = hashlib.sha256()
    for piece in blob.chunks():
        seen.update(piece)
        write(piece)
    if "sha256:" + seen.hexdigest() != digest:
        raise ImageError(f"{digest} in {blob.path}: its bytes have changed; build it anew")
