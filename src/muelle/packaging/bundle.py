"""Write a bundle: one file with everything that a machine without the internet needs.

The same members give the same bytes: fixed order, one date, one form (`bundle_format`). Members
are stored as they are, so that a bundle of large models costs no more than reading them twice. Not
for gathering what goes in (`publishing.bundles`), nor for reading (`bundle_read`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from muelle import __version__
from muelle.core.errors import ArtifactError, StoreError
from muelle.packaging import bundle_format as form
from muelle.packaging.bundle_format import BundledVersion
from muelle.packaging.bundle_read import BLOCK_BYTES, Progress

CODE = (
    "__main__.py",
    "bundle_format.py",
    "bundle_read.py",
    "bundle_start.py",
    "bundle_wheels.py",
)
"""What makes a bundle a program: `python3 fraud.muelle`. Its own copies of our modules."""
_SOURCES = {"__main__.py": "install_server.py"}


@dataclass(frozen=True, slots=True)
class Member:
    """Something that goes into a bundle. `kind` is one of `bundle_format.KINDS`."""

    name: str
    kind: str
    source: Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleHeader:
    """What the index says beside the members. `epoch`: seconds, the date of everything inside."""

    epoch: int
    platform: str = ""
    python: str = ""
    versions: tuple[BundledVersion, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenBundle:
    """A bundle that is there. `sha256` is that of the whole file, `size` its bytes."""

    path: Path
    size: int
    sha256: str
    index_sha256: str
    parts: dict[str, int]
    """Kind -> bytes."""


def write_bundle(
    target: Path,
    members: Iterable[Member],
    header: BundleHeader,
    *,
    sign: Callable[[str], bytes] | None = None,
    progress: Progress = lambda done, total: None,
) -> WrittenBundle:
    """Write the members in their order; `sign` gets the SHA-256 of the index, returns a signature.

    What stood at `target` is replaced when all is written, and nothing is left when it fails.
    Raise ArtifactError for a member that cannot be read or changes meanwhile, StoreError for the
    disk, BundleInvalid for names that cannot be.
    """
    listed = list(members)
    meter = _Meter(progress, sum(_size_of(member) for member in listed))
    hashed = [_hashed(member, meter) for member in listed]
    raw = _index(header, hashed, signed=sign is not None)
    index, _ = form.parse_index(raw)  # What could not be read is not written.
    first = [(form.INDEX, raw), (form.CHECK, form.check_line(raw))]
    if sign is not None:
        signature = sign(index.sha256)
        if len(signature) > form.MAX_SIGNATURE_BYTES:
            raise ArtifactError(f"{form.SIGNATURE}: {len(signature)} bytes is no signature")
        first.append((form.SIGNATURE, signature))
    with _written(target) as stream:
        archive = _Archive(stream, header.epoch)
        for name, content in first:
            archive.add(name, zlib.crc32(content), len(content), io.BytesIO(content), None)
        for member, facts in zip(listed, hashed, strict=True):
            with _opened(member) as source:
                archive.add(member.name, facts.crc, facts.size, source, facts.sha256, meter)
        size = archive.finish()
    meter.finish()
    parts: dict[str, int] = {}
    for facts in hashed:
        parts[facts.kind] = parts.get(facts.kind, 0) + facts.size
    return WrittenBundle(target, size, archive.sha256, index.sha256, parts)


def code_members() -> list[Member]:
    """Return the members that install a server with nothing but Python."""
    here = Path(__file__).parent
    return [Member(name, "code", (here / _SOURCES.get(name, name)).read_bytes()) for name in CODE]


def _index(header: BundleHeader, hashed: Sequence[_Hashed], *, signed: bool) -> bytes:
    found: dict[str, Any] = {
        "format": form.FORMAT,
        "created_by": f"muelle {__version__}",
        "epoch": header.epoch,
        "platform": header.platform,
        "python": header.python,
        "signed": signed,
        "versions": [
            {"model": v.model, "version": v.version, "digest": v.digest, "labels": list(v.labels)}
            for v in header.versions
        ],
        "members": [
            {"name": one.name, "size": one.size, "sha256": one.sha256, "kind": one.kind}
            for one in hashed
        ],
    }
    return (json.dumps(found, indent=1) + "\n").encode("ascii")


@dataclass(frozen=True, slots=True)
class _Hashed:
    name: str
    kind: str
    size: int
    sha256: str
    crc: int


def _hashed(member: Member, meter: _Meter) -> _Hashed:
    digest, crc, size = hashlib.sha256(), 0, 0
    with _opened(member) as source:
        for block in _blocks(source, member.name):
            digest.update(block)
            crc = zlib.crc32(block, crc)
            size += len(block)
            meter.add(len(block))
    return _Hashed(form.checked_name(member.name), member.kind, size, digest.hexdigest(), crc)


class _Archive:
    """Writes the one form of ZIP. Owned by `write_bundle`."""

    def __init__(self, stream: BinaryIO, epoch: int) -> None:
        self._stream, self._epoch = stream, epoch
        self._at = 0
        self._central: list[bytes] = []
        self._digest = hashlib.sha256()

    def add(
        self,
        name: str,
        crc: int,
        size: int,
        source: BinaryIO,
        sha256: str | None,
        meter: _Meter | None = None,
    ) -> None:
        """Write one member. Raise ArtifactError when it is no longer what was hashed."""
        self._central.append(form.central_entry(name, crc, size, self._at, self._epoch))
        self._write(form.local_header(name, crc, size, self._epoch))
        digest, left = hashlib.sha256(), size
        for block in _blocks(source, name):
            digest.update(block)
            left -= len(block)
            if left < 0:
                break
            self._write(block)
            if meter is not None:
                meter.add(len(block))
        if left or (sha256 is not None and digest.hexdigest() != sha256):
            raise ArtifactError(f"{name}: it changed while it was read; bundle it when it is done")

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()

    def finish(self) -> int:
        """Write the table of contents; return the size of the file."""
        start = self._at
        for line in self._central:
            self._write(line)
        self._write(form.end_record(len(self._central), self._at - start, start))
        return self._at

    def _write(self, block: bytes) -> None:
        self._stream.write(block)
        self._digest.update(block)
        self._at += len(block)


class _Meter:
    """Every byte counts twice: hashed, then written."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, 2 * total, 0

    def add(self, n_bytes: int) -> None:
        """Count what was read."""
        self._done += n_bytes
        self._progress(min(self._done, self._total), self._total)

    def finish(self) -> None:
        """Show all as done."""
        self._progress(self._total, self._total)


def _size_of(member: Member) -> int:
    if isinstance(member.source, bytes):
        return len(member.source)
    with _read_errors(member.name):
        return member.source.stat().st_size


def _opened(member: Member) -> BinaryIO:
    if isinstance(member.source, bytes):
        return io.BytesIO(member.source)
    with _read_errors(member.name):
        return open(member.source, "rb", buffering=0)


def _blocks(source: BinaryIO, name: str) -> Iterator[bytes]:
    while True:
        with _read_errors(name):
            block = source.read(BLOCK_BYTES)
        if not block:
            return
        yield block


@contextlib.contextmanager
def _read_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ArtifactError(f"{name}: {exc.filename or 'it'}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _written(target: Path) -> Iterator[BinaryIO]:
    """Give a file that becomes `target` when the block ends well, and is gone when it does not."""
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
        folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise StoreError(f"{target}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()
