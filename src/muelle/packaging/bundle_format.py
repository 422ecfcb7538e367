"""The form of a bundle: what every byte of it must be, but for its members' contents. Pure.

A bundle is a ZIP file of one form only, so that whoever opens it sees the same: what the index
(`bundle.json`, the first member) says decides every other byte. Not for reading files
(`bundle_read`) nor writing them (`bundle`). Standard library only: a copy of this file travels in
every bundle.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

if __package__:
    from muelle.core.errors import ArtifactError
else:  # In a bundle there is nothing of Muelle to import.

    class ArtifactError(Exception):  # type: ignore[no-redef]
        """What the package's own error is where there is no package."""


FORMAT = 1
INDEX, CHECK, SIGNATURE = "bundle.json", "bundle.json.sha256", "bundle.sig"
KINDS = frozenset(
    ("model", "record", "wheel", "lock", "image", "deploy", "sbom", "signature", "doc", "code")
)
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_SIGNATURE_BYTES = 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_PART = re.compile(r"[A-Za-z0-9._+!=@~,-]{1,255}\Z")
_KIND = re.compile(f"({'|'.join(sorted(KINDS))})\\Z")
_NAME = re.compile(r"[^\x00-\x1f]*\Z")
_PYTHON = re.compile(r"(3\.[0-9]{1,3})?\Z")
_PLATFORM = re.compile(r"([a-z0-9]+/[a-z0-9_]+)?\Z")

LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
MAGIC = b"PK\x03\x04"
_BIG, _MANY = 0xFFFF_FFFF, 0xFFFF
_PLAIN, _ZIP64 = 20, 45
_UNIX_FILE = 0o100644 << 16


class BundleError(ArtifactError):
    """Something is wrong with a bundle, or with making a server of it: one line, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BundleInvalid(BundleError):
    """A bundle is cut off, changed, or was never one. `member` is the one at fault, "" for none."""

    def __init__(self, message: str, member: str = "") -> None:
        super().__init__(message)
        self.member = member


@dataclass(frozen=True, slots=True)
class Entry:
    """A member: sizes in bytes; `offset` is where its content begins in the file."""

    name: str
    size: int
    sha256: str
    kind: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class BundledVersion:
    """A version that a bundle holds, and the labels that named it where it comes from."""

    model: str
    version: int
    digest: str
    labels: tuple[str, ...] = ()

    @property
    def record(self) -> str:
        """The member that holds its record."""
        return f"versions/{self.model}/{self.version}.json"


@dataclass(frozen=True, slots=True)
class BundleIndex:
    """What a bundle holds. `platform` and `python` are those of the wheels, "" without wheels."""

    created_by: str
    epoch: int
    platform: str
    python: str
    versions: tuple[BundledVersion, ...]
    members: tuple[Entry, ...]
    sha256: str
    """Of `bundle.json`: it stands for the whole bundle, and is what a signature covers."""
    size: int = 0
    signature: bytes = b""

    def find(self, name: str) -> Entry:
        """Return a member. Raise BundleInvalid when there is none of that name."""
        for entry in self.members:
            if entry.name == name:
                return entry
        raise BundleInvalid(f"{name}: not in the bundle; it was not made by Muelle", name)

    def of_kind(self, *kinds: str) -> tuple[Entry, ...]:
        """Return the members of these kinds, in order."""
        return tuple(entry for entry in self.members if entry.kind in kinds)


# --- the one form: what every byte must be ---


def checked_name(name: str) -> str:
    """Return a member's name. Raise BundleInvalid for one that could leave its folder."""
    parts = name.split("/")
    if len(name) > 1024 or not all(_PART.match(p) and p not in (".", "..") for p in parts):
        raise BundleInvalid(f"{name[:100]!r}: not a name that a member may have")
    return name


def check_names(names: Iterable[str]) -> None:
    """Raise BundleInvalid when two members cannot lie side by side."""
    seen: set[str] = {INDEX, CHECK, SIGNATURE}
    folders: set[str] = set()
    for name in names:
        if name in seen:
            raise BundleInvalid(f"{name}: listed twice", name)
        seen.add(name)
        parts = name.split("/")
        folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
    for name in sorted(seen & folders):
        raise BundleInvalid(f"{name}: both a file and a folder of that name", name)


def local_header(name: str, crc: int, size: int, epoch: int) -> bytes:
    """Return what stands before a member's content."""
    big = size >= _BIG
    extra = struct.pack("<2H2Q", 1, 16, size, size) if big else b""
    shown = _BIG if big else size
    moment, day = _dos_time(epoch)
    needed = _ZIP64 if big else _PLAIN
    head = LOCAL.pack(
        MAGIC, needed, 0, 0, moment, day, crc, shown, shown, len(name), len(extra)
    )  # fmt: skip
    return head + name.encode("ascii") + extra


def central_entry(name: str, crc: int, size: int, offset: int, epoch: int) -> bytes:
    """Return a member's line in the table at the end; `offset` is that of its local header."""
    large = [size, size] if size >= _BIG else []
    large += [offset] if offset >= _BIG else []
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    shown = min(size, _BIG)
    moment, day = _dos_time(epoch)
    needed = _ZIP64 if large else _PLAIN
    head = _CENTRAL.pack(
        b"PK\x01\x02", 3 << 8 | needed, needed, 0, 0, moment, day, crc, shown, shown,
        len(name), len(extra), 0, 0, 0, _UNIX_FILE, min(offset, _BIG),
    )  # fmt: skip
    return head + name.encode("ascii") + extra


def end_record(n_members: int, size: int, offset: int) -> bytes:
    """Return the last bytes of the file, after a table of `size` bytes that begins at `offset`."""
    found = b""
    if n_members >= _MANY or size >= _BIG or offset >= _BIG:
        found = _END64.pack(
            b"PK\x06\x06", _END64.size - 12, 3 << 8 | _ZIP64, _ZIP64, 0, 0,
            n_members, n_members, size, offset,
        )  # fmt: skip
        found += _LOCATOR.pack(b"PK\x06\x07", 0, offset + size, 1)
    shown = min(n_members, _MANY)
    end = _END.pack(b"PK\x05\x06", 0, 0, shown, shown, min(size, _BIG), min(offset, _BIG), 0)
    return found + end


def check_line(raw_index: bytes) -> bytes:
    """Return the content of `bundle.json.sha256`, as `sha256sum -c` reads it."""
    return f"{hashlib.sha256(raw_index).hexdigest()}  {INDEX}\n".encode()


def _dos_time(epoch: int) -> tuple[int, int]:
    """Return the time and the date as ZIP keeps them: from 1980 to 2107, two seconds fine."""
    t = time.gmtime(min(max(epoch, 315_532_800), 4_354_819_198))
    return t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2, (
        (t.tm_year - 1980) << 9 | t.tm_mon << 5 | t.tm_mday
    )


# --- the index ---


def parse_index(raw: bytes) -> tuple[BundleIndex, bool]:
    """Read `bundle.json`; return what it says, and whether a signature follows.

    Raise BundleInvalid. Pure.
    """
    try:
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        if found.get("format") != FORMAT:
            raise BundleInvalid(
                f"{INDEX}: format {found.get('format')!r}, this Muelle reads {FORMAT}; use the one "
                "that made it, or a newer one",
                INDEX,
            )
        index = BundleIndex(
            created_by=_text(found, "created_by", re.compile(r"[ -~]{0,100}\Z")),
            epoch=_number(found, "epoch", 2**40),
            platform=_text(found, "platform", _PLATFORM),
            python=_text(found, "python", _PYTHON),
            versions=tuple(_version(one) for one in _list(found, "versions")),
            members=tuple(_member(one) for one in _list(found, "members")),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        signed = found["signed"]
        if not isinstance(signed, bool):
            raise ValueError("signed is neither true nor false")
    except (ValueError, KeyError, RecursionError) as exc:
        raise BundleInvalid(f"{INDEX}: not what Muelle writes: {exc}", INDEX) from exc
    _check_index(index)
    return index, signed


def _check_index(index: BundleIndex) -> None:
    """Raise BundleInvalid when members and versions contradict each other."""
    check_names(entry.name for entry in index.members)
    records = {entry.name for entry in index.of_kind("record")}
    listed = [version.record for version in index.versions]
    for name in sorted(records.symmetric_difference(listed)):
        raise BundleInvalid(f"{name}: a record without its version, or the other way round", name)
    if len(set(listed)) < len(listed):
        raise BundleInvalid(f"{INDEX}: a version is listed twice", INDEX)
    for entry in index.members:
        if entry.kind == "model" and entry.name != f"blobs/sha256/{entry.sha256}":
            raise BundleInvalid(f"{entry.name}: named by another content than its own", entry.name)
        if entry.kind == "wheel" and not re.fullmatch(r"wheels/[^/]+\.whl", entry.name):
            raise BundleInvalid(f"{entry.name}: not where a wheel must be", entry.name)


def _version(one: Any) -> BundledVersion:
    if not isinstance(one, dict):
        raise ValueError("a version that is no object")
    labels = _list(one, "labels")
    if not all(isinstance(label, str) and _MODEL.match(label) for label in labels):
        raise ValueError("labels")
    return BundledVersion(
        model=_text(one, "model", _MODEL),
        version=_number(one, "version", 10**18, least=1),
        digest=_text(one, "digest", _DIGEST),
        labels=tuple(labels),
    )


def _member(one: Any) -> Entry:
    if not isinstance(one, dict):
        raise ValueError("a member that is no object")
    kind = _text(one, "kind", _KIND)
    size = _number(one, "size", 2**62)
    name = checked_name(_text(one, "name", _NAME))
    return Entry(name, size, _text(one, "sha256", _SHA256), kind)


def _text(found: dict[str, Any], key: str, form: re.Pattern[str]) -> str:
    value = found[key]
    if not isinstance(value, str) or not form.match(value):
        raise ValueError(f"{key} {str(value)[:40]!r}")
    return value


def _number(found: dict[str, Any], key: str, most: int, *, least: int = 0) -> int:
    value = found[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{key} {str(value)[:40]!r}")
    return value


def _list(found: dict[str, Any], key: str) -> list[Any]:
    value = found[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def amount(n_bytes: int, of: int) -> str:
    """Return `1.2 of 16.0 MB`; powers of 1,000, as disks are sold."""
    scale, unit = next(
        ((s, u) for s, u in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if of >= s), (1, "bytes")
    )
    if unit == "bytes":
        return f"{n_bytes} of {of} bytes"
    return f"{n_bytes / scale:.1f} of {of / scale:.1f} {unit}"
