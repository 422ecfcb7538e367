"""An OCI image layout, as a folder or as one tar file: its documents read, checked and written.

Source: OCI image specification 1.1 (image-layout, image-index, manifest, descriptor). Archives that
`docker save` writes are found here too; what stands in them is read by `images`. Not for layers.
"""

from __future__ import annotations

import json
import platform as machine
import posixpath
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import Blob, digest_of, is_digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
"""Where containerd, Docker 25 and Podman look for the whole name first."""

DOCUMENT_BYTES = 4 * 1024 * 1024
"""The largest manifest, index or configuration that is read (registries take no larger ones)."""

_MAX_MEMBERS = 100_000
_NAME = re.compile(
    r"(?:(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?|\[[0-9a-f:.]+\](?::[0-9]{1,5})?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv8l": "arm64", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Platform:
    """What a machine must be to run an image."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def runs(self, other: Platform) -> bool:
        """Whether an image for `other` is one for this platform; no variant wanted takes any."""
        same = (self.os, self.architecture) == (other.os, other.architecture)
        return same and (not self.variant or self.variant == other.variant)


@dataclass(frozen=True, slots=True)
class ImageName:
    """`host:port/path:tag` in its parts; `host` is empty where none was given."""

    host: str
    path: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}:{self.tag}" if self.host else f"{self.path}:{self.tag}"

    @property
    def full(self) -> str:
        """The name as containerd keeps it, with Docker's default host."""
        if self.host:
            return str(self)
        path = self.path if "/" in self.path else f"library/{self.path}"
        return f"docker.io/{path}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of a blob."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    platform: Platform | None = None
    artifact_type: str = ""
    """What an artifact is that is attached to an image; empty for images themselves."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plain: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            plain["annotations"] = dict(self.annotations)
        if self.platform is not None:
            plain["platform"] = platform_document(self.platform)
        if self.artifact_type:
            plain["artifactType"] = self.artifact_type
        return plain


def parse_name(text: str) -> ImageName:
    """Read `[host[:port]/]path[:tag]`; without a tag it is `latest`. Raise ImageError."""
    found = _NAME.fullmatch(text)
    if found is None or len(text) > 255:
        raise ImageError(
            f"{text[:100]!r}: no name for an image; write host:port/path:tag in lower case, such "
            "as registry.local:5000/fraud:3"
        )
    host, path = found["host"] or "", found["path"]
    if host and not ("." in host or ":" in host or host == "localhost"):
        host, path = "", f"{host}/{path}"  # team/fraud: a path, as every engine reads it
    return ImageName(host, path, found["tag"] or "latest")


def parse_platform(text: str) -> Platform:
    """Read `linux/amd64` or `linux/arm64/v8`. Raise ImageError."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9_.]{1,32}", p) for p in parts):
        raise ImageError(f"{text[:100]!r}: no platform; write linux/amd64 or linux/arm64")
    return _platform(*parts)


def host_platform() -> Platform:
    """Return the platform of this machine."""
    return _platform(machine.system().lower(), machine.machine().lower())


def platform_document(platform: Platform) -> dict[str, str]:
    """Return a platform as JSON has it."""
    plain = {"os": platform.os, "architecture": platform.architecture}
    return plain | ({"variant": platform.variant} if platform.variant else {})


def _platform(os: str, architecture: str, variant: str = "") -> Platform:
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture == "arm64" and variant == "v8":
        variant = ""  # every arm64 is one
    return Platform(os, architecture, variant)


class Layout:
    """The files of a layout folder or of an archive. Reads only what it is asked for."""

    def __init__(self, where: Path, members: Mapping[str, Blob] | None = None) -> None:
        self.where = where
        self._members = members
        """Of an archive; None for a folder."""

    def member(self, name: str) -> Blob | None:
        """Return a file by its name inside, or None."""
        if self._members is not None:
            return self._members.get(name)
        path = self.where / name
        return Blob(path, path.stat().st_size) if path.is_file() else None

    def blob(self, descriptor: Descriptor) -> Blob:
        """Return where a blob lies. Raise ImageError when it is missing or of another size."""
        found = self.member(f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}")
        if found is None:
            raise ImageError(f"{self.where}: {descriptor.digest} is missing; fetch it anew")
        if found.size != descriptor.size:
            raise ImageError(
                f"{self.where}: {descriptor.digest} has {found.size} bytes, not {descriptor.size}; "
                "fetch it anew"
            )
        return found

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """Return a document, checked against its digest. Raise ImageError."""
        raw = self.blob(descriptor).read(DOCUMENT_BYTES)
        if digest_of(raw) != descriptor.digest:
            raise ImageError(
                f"{self.where}: {descriptor.digest}: its bytes are other ones; fetch it anew"
            )
        return parse_object(raw, f"{self.where}: {descriptor.digest}")

    def named(self, name: str) -> Any:
        """Return what the JSON file `name` holds. Raise ImageError when it is not there."""
        found = self.member(name)
        if found is None:
            raise ImageError(f"{self.where}: {name} is missing; fetch it anew")
        return parse_json(found.read(DOCUMENT_BYTES), f"{self.where}: {name}")

    def index(self) -> list[Descriptor]:
        """Return what `index.json` lists. Raise ImageError."""
        found = self.named("index.json")
        if not isinstance(found, dict):
            raise ImageError(f"{self.where}: index.json: not an object")
        return descriptors(found, "manifests", f"{self.where}: index.json")

    @property
    def is_oci(self) -> bool:
        """Whether it follows the OCI layout (an archive of `docker save` before 25 does not)."""
        return self.member("oci-layout") is not None and self.member("index.json") is not None


def open_layout(path: Path) -> Layout:
    """Open a layout folder, an OCI archive or a `docker save` archive. Raise ImageError."""
    if path.is_dir():
        layout = Layout(path)
        if not layout.is_oci:
            raise ImageError(f"{path}: no OCI layout: oci-layout and index.json are missing")
        return layout
    return Layout(path, _archive_members(path))


def descriptors(document: Mapping[str, Any], key: str, where: str) -> list[Descriptor]:
    """Read a list of descriptors from a document. Raise ImageError."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ImageError(f"{where}: {key} is no list")
    return [read_descriptor(entry, f"{where}: {key}") for entry in entries]


def read_descriptor(entry: Any, where: str) -> Descriptor:
    """Read one descriptor. Raise ImageError."""
    if not isinstance(entry, dict):
        raise ImageError(f"{where}: not an object")
    kind, digest, size = entry.get("mediaType", ""), entry.get("digest"), entry.get("size")
    notes = entry.get("annotations") or {}
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageError(f"{where}: {str(digest)[:100]!r} is no sha256 digest")
    if not isinstance(kind, str) or type(size) is not int or size < 0:
        raise ImageError(f"{where}: {digest}: mediaType or size is wrong")
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise ImageError(f"{where}: {digest}: annotations are no texts")
    artifact = entry.get("artifactType") or ""
    if not isinstance(artifact, str):
        raise ImageError(f"{where}: {digest}: artifactType is no text")
    return Descriptor(kind, digest, size, notes, read_platform(entry.get("platform")), artifact)


def read_platform(entry: Any) -> Platform | None:
    """Read `os`, `architecture` and `variant` of an object, if they are there."""
    if not isinstance(entry, dict):
        return None
    os, architecture, variant = (entry.get(k, "") for k in ("os", "architecture", "variant"))
    if not all(isinstance(v, str) for v in (os, architecture, variant)) or not architecture:
        return None
    return _platform(os, architecture, variant)


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object. Raise ImageError."""
    found = parse_json(raw, where)
    if not isinstance(found, dict):
        raise ImageError(f"{where}: not an object")
    return found


def parse_json(raw: bytes, where: str) -> Any:
    """Read JSON. Raise ImageError, naming `where`, for whatever is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ImageError(f"{where}: no JSON: {str(exc)[:100]}") from exc


def dump_json(document: Any) -> bytes:
    """Return a document in the one way in which it is hashed: sorted keys, no spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _archive_members(path: Path) -> dict[str, Blob]:
    """Return name -> where it lies, links resolved, of an uncompressed tar."""
    members: dict[str, Blob] = {}
    links: dict[str, str] = {}
    try:
        with open(path, "rb") as stream:
            start = stream.read(6)
        if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
            raise ImageError(
                f"{path}: is compressed; unpack it first (gunzip, zstd -d), keep the tar"
            )
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                name = posixpath.normpath(info.name)
                if len(members) > _MAX_MEMBERS:
                    raise ImageError(f"{path}: more than {_MAX_MEMBERS} members: no image")
                if info.isreg() and not info.issparse():
                    members[name] = Blob(path, info.size, info.offset_data)
                elif info.issym():
                    links[name] = posixpath.normpath(
                        posixpath.join(posixpath.dirname(name), info.linkname)
                    )
                elif info.islnk():
                    links[name] = posixpath.normpath(info.linkname)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file or folder") from None
    except OSError as exc:
        raise ImageError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tarfile.TarError, ValueError) as exc:
        raise ImageError(f"{path}: no image archive (a tar): {exc}") from exc
    for name, target in links.items():
        # Older engines link a layer that two images share; one step is all that they write.
        if target in members:
            members.setdefault(name, members[target])
    return members
