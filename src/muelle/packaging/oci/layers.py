"""Write the layers of an image: the same entries give the same bytes, on every machine and day.

Not for choosing what an image holds, and not for unpacking: nothing here touches the root of a file
system. The digest of a gzip layer also depends on the zlib that Python was built with; its diff_id
(the tar's own digest) does not.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import CHUNK, Blob, written_file

LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER_TAR + "+gzip"
LAYER_ZSTD = LAYER_TAR + "+zstd"

_LEVEL = 6
"""zlib's own default, fixed here: another level is another digest."""

_BLOCK = 512
_RECORD = 20 * _BLOCK
_PARENT_MODES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}
"""Parents that are added by themselves must not close or open what a base has."""


@dataclass(frozen=True, slots=True)
class Link:
    """The target of a symbolic link: absolute (in the image) or relative; it need not exist."""

    target: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file (bytes, or a path on this machine), a link, or a directory (None) of a layer."""

    path: str
    """Relative to the image's root, with `/`: `opt/muelle/app.py`."""
    content: bytes | Path | Link | None = None
    mode: int | None = None
    """None: 0755 for a directory, 0644 for a file."""
    uid: int = 0
    gid: int = 0

    @property
    def bits(self) -> int:
        """The permission bits that are written."""
        if self.mode is not None:
            return self.mode & 0o7777
        return {type(None): 0o755, Link: 0o777}.get(type(self.content), 0o644)

    @classmethod
    def directory(cls, path: str, mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> Entry:
        """Return a directory."""
        return cls(path, None, mode, uid, gid)

    @classmethod
    def link(cls, path: str, target: str) -> Entry:
        """Return a symbolic link."""
        return cls(path, Link(target))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as an image names it, and where its bytes lie. Sizes in bytes."""

    media_type: str
    digest: str
    diff_id: str
    size: int
    blob: Blob
    unpacked_size: int = 0
    """Of the tar; 0 where it was not looked at."""
    comment: str = ""
    """What it holds, for the image's history and for the list of sizes."""


def folder_entries(
    folder: Path, prefix: str, *, uid: int = 0, gid: int = 0, skip: frozenset[str] = frozenset()
) -> Iterator[Entry]:
    """Yield the entries of a folder on this machine as they shall lie below `prefix`.

    Modes become 0755 (directories, executable files) and 0644. Links stay links. Names in `skip`
    are left out at every depth. Raise ImageError for sockets, devices and the like.
    """
    yield Entry.directory(prefix, uid=uid, gid=gid)
    try:
        found = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as exc:
        raise ImageError(f"{folder}: cannot be read: {exc.strerror}") from exc
    for item in found:
        if item.name in skip:
            continue
        path = f"{prefix}/{item.name}"
        if item.is_symlink():
            yield Entry(path, Link(os.readlink(item.path)), None, uid, gid)
        elif item.is_dir():
            yield from folder_entries(Path(item.path), path, uid=uid, gid=gid, skip=skip)
        elif item.is_file():
            mode = 0o755 if item.stat().st_mode & 0o111 else 0o644
            yield Entry(path, Path(item.path), mode, uid, gid)
        else:
            raise ImageError(f"{item.path}: neither a file, a folder nor a link; take it away")


def write_layer(
    entries: Iterable[Entry],
    target: Path,
    *,
    epoch: int,
    gzip: bool = True,
    comment: str = "",
) -> Layer:
    """Write entries as a layer into the file `target`. `epoch` (s since 1970) is their time.

    Entries may come in any order; directories above them are added (0755, root). With `gzip` off
    the tar is stored as it is: right for weights, which do not get smaller. Files are streamed.
    Raise ImageError for paths that lead out, for doubles, and for files that cannot be read.
    """
    ordered = arranged(entries)
    with written_file(target) as stream:
        sink = _Sink(stream, gzip)
        for entry in ordered:
            _add(sink, entry, epoch)
        sink.close()
    return Layer(
        LAYER_GZIP if gzip else LAYER_TAR,
        sink.digest,
        sink.diff_id,
        sink.size,
        Blob(target, sink.size),
        sink.unpacked_size,
        comment,
    )


def arranged(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in order, parents first, missing parents added. Pure. Raise ImageError."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        checked_path(entry.path)
        if by_path.setdefault(entry.path, entry) != entry:
            raise ImageError(f"{entry.path}: twice in one layer, with different contents")
    for path in list(by_path):
        parent = path.rpartition("/")[0]
        while parent:
            above = by_path.setdefault(
                parent, Entry.directory(parent, _PARENT_MODES.get(parent, 0o755))
            )
            if above.content is not None:
                raise ImageError(f"{path}: {parent} is a file or a link in the same layer")
            parent = parent.rpartition("/")[0]
    return [by_path[path] for path in sorted(by_path, key=lambda p: p.split("/"))]


def checked_path(path: str) -> str:
    """Return a path that stays inside the image. Raise ImageError for every other one."""
    wrong = (
        any(part in ("", ".", "..") or part.startswith(".wh.") for part in path.split("/"))
        or not _is_clean(path)
        or len(path.encode("utf-8", "replace")) > 4095
    )
    if wrong:
        raise ImageError(
            f"{path[:200]!r}: no path for an image: it must be relative, without '..', empty "
            "parts, control characters and names that begin with '.wh.'"
        )
    return path


def _is_clean(text: str) -> bool:
    # Surrogates stand for bytes that are not UTF-8; C0, DEL and C1 change what a terminal shows.
    return not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text)


def tar_header(
    path: str,
    *,
    size: int = 0,
    mode: int = 0o644,
    kind: bytes = tarfile.REGTYPE,
    epoch: int = 0,
    link: str = "",
    uid: int = 0,
    gid: int = 0,
) -> bytes:
    """Return the header of a tar member: USTAR, with a PAX one before it where it is too short."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.type, info.mtime = size, mode, kind, epoch
    info.uid, info.gid, info.linkname = uid, gid, link
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def tar_padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of a member."""
    return b"\0" * (-size % _BLOCK)


def tar_end(size: int) -> bytes:
    """Return what ends a tar that has `size` bytes so far: two zero blocks, a full record."""
    end = 2 * _BLOCK
    return b"\0" * (end + -(size + end) % _RECORD)


class _Sink:
    """Takes a tar's bytes: hashes them, compresses them, hashes that, writes it."""

    def __init__(self, stream: BinaryIO, gzip: bool) -> None:
        self._stream = stream
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256() if gzip else self._plain
        # 31: with gzip's header, which zlib writes with time 0 and without a name.
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31) if gzip else None
        self.size = 0
        self.unpacked_size = 0

    def write(self, piece: bytes) -> None:
        self._plain.update(piece)
        self.unpacked_size += len(piece)
        if self._deflate is None:
            self._put(piece)
        else:
            self._pack(self._deflate.compress(piece))

    def close(self) -> None:
        self.write(tar_end(self.unpacked_size))
        if self._deflate is not None:
            self._pack(self._deflate.flush())

    def _pack(self, packed: bytes) -> None:
        if packed:
            self._packed.update(packed)
            self._put(packed)

    def _put(self, piece: bytes) -> None:
        self._stream.write(piece)
        self.size += len(piece)

    @property
    def digest(self) -> str:
        return "sha256:" + self._packed.hexdigest()

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._plain.hexdigest()


def _add(sink: _Sink, entry: Entry, epoch: int) -> None:
    match entry.content:
        case None:
            kind, size, link = tarfile.DIRTYPE, 0, ""
        case Link(target):
            if not target or not _is_clean(target):
                raise ImageError(f"{entry.path}: its target {target[:200]!r} is no path")
            kind, size, link = tarfile.SYMTYPE, 0, target
        case bytes() as content:
            kind, size, link = tarfile.REGTYPE, len(content), ""
        case Path() as source:
            _add_file(sink, entry, source, epoch)
            return
    name = entry.path + "/" * (entry.content is None)
    sink.write(
        tar_header(
            name,
            size=size,
            mode=entry.bits,
            kind=kind,
            epoch=epoch,
            link=link,
            uid=entry.uid,
            gid=entry.gid,
        )
    )
    if isinstance(entry.content, bytes):
        sink.write(entry.content + tar_padding(size))


def _add_file(sink: _Sink, entry: Entry, source: Path, epoch: int) -> None:
    try:
        stream = open(source, "rb")  # noqa: SIM115 - errors of reading are told from those of writing
    except OSError as exc:
        raise ImageError(f"{source}: cannot be read: {exc.strerror}") from exc
    with stream:
        size = os.fstat(stream.fileno()).st_size
        sink.write(
            tar_header(
                entry.path,
                size=size,
                mode=entry.bits,
                epoch=epoch,
                uid=entry.uid,
                gid=entry.gid,
            )
        )
        left = size
        while piece := _read(stream, min(CHUNK, left + 1), source):
            left -= len(piece)
            if left < 0:
                break
            sink.write(piece)
    if left:
        raise ImageError(f"{source}: changed while it was read; leave it alone and build again")
    sink.write(tar_padding(size))


def _read(stream: BinaryIO, size: int, source: Path) -> bytes:
    try:
        return stream.read(size)
    except OSError as exc:
        raise ImageError(f"{source}: cannot be read: {exc.strerror}") from exc
