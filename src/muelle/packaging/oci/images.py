"""Read a base image: from a layout folder, an archive, or an engine on this machine.

Every byte is hashed before it is believed. Not for registries (whoever may fetches a base there),
and not for unpacking: of the layers only the names are read.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import (
    Blob,
    ChunkReader,
    check_blob,
    digest_of,
    digest_of_chunks,
    gunzip,
    is_digest,
    written_file,
)
from muelle.packaging.oci.layers import LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, Layer
from muelle.packaging.oci.layout import (
    DOCUMENT_BYTES,
    FULL_NAME,
    INDEXES,
    MANIFESTS,
    REF_NAME,
    Descriptor,
    Layout,
    Platform,
    descriptors,
    host_platform,
    open_layout,
    parse_name,
    parse_object,
    read_descriptor,
    read_platform,
)

_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_LAYER_TYPES = {
    LAYER_TAR: LAYER_TAR,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    _DOCKER_LAYER: LAYER_TAR,
    _DOCKER_LAYER + ".gzip": LAYER_GZIP,
    _DOCKER_LAYER + ".zstd": LAYER_ZSTD,
}
_MAX_DEPTH = 3
_SAVE_S = 600
_MAX_NAMES = 2_000_000
_PYTHON = re.compile(
    r"(?P<folder>usr/local/bin|usr/bin|opt/[^/]+/bin)/python(?P<version>3\.(?P<minor>\d{1,3}))"
)
_FOLDERS = ("usr/local/bin", "usr/bin")


@dataclass(frozen=True, slots=True)
class Base:
    """An image to build on. `layers` in their order; `config` is the OCI configuration as JSON."""

    name: str
    digest: str
    """Of the manifest; of the configuration where the archive has no manifest."""
    platform: Platform
    config: Mapping[str, Any] = field(repr=False)
    layers: tuple[Layer, ...]

    @property
    def env(self) -> dict[str, str]:
        """The environment that containers of the base start with."""
        settings = self.config.get("config") or {}
        pairs = (str(line).partition("=") for line in settings.get("Env") or ())
        return {key: value for key, _, value in pairs}


def read_base(source: Path, *, platform: Platform | None = None, name: str = "") -> Base:
    """Read the image for a platform (this machine's by default) from a layout folder or an archive.

    `name` chooses where there are several, and is the base's name in what is built on it. Raise
    ImageError: nothing there, another platform, several to choose from, or a blob that is broken.
    """
    layout = open_layout(source)
    wanted = platform or host_platform()
    if layout.is_oci:
        return _from_oci(layout, wanted, name)
    if layout.member("manifest.json") is not None:
        return _from_docker(layout, wanted, name)
    raise ImageError(f"{source}: no image: neither an OCI archive nor one of docker save")


def save_from_engine(name: str, target: Path, *, host: str | None = None) -> Path:
    """Write an image of the local engine into the file `target`, for `read_base`.

    `host` is the engine's address; None takes DOCKER_HOST or the usual socket. Raise ImageError.
    """
    from muelle.runtimes.libraries import library

    docker, requests = library("docker", "build"), library("requests", "build")
    parse_name(name)
    trouble = (docker.errors.DockerException, requests.RequestException)
    away = f"{name}: the local engine cannot be asked"

    def pieces(stream: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from stream
        except trouble as exc:  # a kind of OSError, which writing would take for its own
            raise ImageError(f"{away}: it broke off: {_short(exc)}") from exc

    try:
        # The engine gathers the whole image before it sends the first byte.
        options = {"timeout": _SAVE_S}
        engine = (
            docker.DockerClient(base_url=host, **options) if host else docker.from_env(**options)
        )
        try:
            stream = engine.images.get(name).save(named=True)
            with written_file(target) as file:
                for piece in pieces(stream):
                    file.write(piece)
        finally:
            engine.close()
    except docker.errors.ImageNotFound:
        raise ImageError(f"{name}: the local engine has no such image; load or build it") from None
    except trouble as exc:
        raise ImageError(f"{away}: {_short(exc)}") from exc
    return target


def _short(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200]


def names(base: Base) -> frozenset[str]:
    """Return the paths of the files and links of a base, relative to its root, deletions obeyed.

    Raise ImageError where a layer cannot be read here (zstd): then whoever asks must be told.
    """
    found: set[str] = set()
    for layer in base.layers:
        for name in _layer_names(layer):
            folder, _, last = name.rpartition("/")
            if last == ".wh..wh..opq":
                found = {n for n in found if not n.startswith(f"{folder}/")}
            elif last.startswith(".wh."):
                gone = f"{folder}/{last[4:]}".lstrip("/")
                found = {n for n in found if n != gone and not n.startswith(f"{gone}/")}
        # A layer deletes what lies below it, never its own.
        found.update(n for n in _layer_names(layer) if not n.rpartition("/")[2].startswith(".wh."))
        if len(found) > _MAX_NAMES:
            raise ImageError(f"{base.name}: more than {_MAX_NAMES} files: not read")
    return frozenset(found)


def find_python(found: Iterable[str]) -> tuple[str, str] | None:
    """Return the path and version, `('/usr/local/bin/python3.11', '3.11')`, of the Python to use.

    /usr/local before /usr before /opt, the newest in each. None where there is none. Pure.
    """
    matches = [m for m in map(_PYTHON.fullmatch, found) if m is not None]
    if not matches:
        return None

    def rank(match: re.Match[str]) -> tuple[int, int, str]:
        folder = match["folder"]
        place = _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)
        return place, -int(match["minor"]), folder

    best = min(matches, key=rank)
    return "/" + best[0], best["version"]


def _layer_names(layer: Layer) -> Iterator[str]:
    where = f"layer {layer.digest}"
    if layer.media_type == LAYER_ZSTD:
        raise ImageError(
            f"{where}: is compressed with zstd, whose names are not read here; say which Python "
            "the base has, or convert the base to gzip (skopeo copy --dest-compress-format gzip)"
        )
    chunks = layer.blob.chunks()
    if layer.media_type == LAYER_GZIP:
        chunks = gunzip(chunks, where)
    try:
        with tarfile.open(fileobj=ChunkReader(chunks), mode="r|") as archive:
            while (info := archive.next()) is not None:
                if not info.isdir():
                    yield info.name.removeprefix("./").lstrip("/")
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
    except (tarfile.TarError, ValueError) as exc:
        raise ImageError(f"{where}: no tar: {exc}") from exc


# --- OCI layouts ---


def _from_oci(layout: Layout, wanted: Platform, name: str) -> Base:
    found = list(_manifests(layout, layout.index(), "", 0))
    if len({descriptor.digest for descriptor, _ in found}) > 1 and name:
        # One image alone may be called anything; of several the one that is meant is taken.
        found = [f for f in found if _is_called(f[1], name)] or found
    fitting: dict[str, tuple[Descriptor, dict[str, Any], Platform, str]] = {}
    others: list[str] = []
    for descriptor, label in found:
        digest = descriptor.digest
        if descriptor.platform is not None and not wanted.runs(descriptor.platform):
            others.append(str(descriptor.platform))
            continue
        manifest = layout.document(descriptor)
        config = _config(layout, manifest, digest)
        platform = read_platform(config) or Platform("", "")
        if wanted.runs(platform):
            fitting.setdefault(digest, (descriptor, manifest, platform, label))
        else:
            others.append(str(platform) or "unknown")
    descriptor, manifest, platform, label = _only(fitting, others, layout.where, wanted, name)
    config = _config(layout, manifest, descriptor.digest)
    return Base(
        name or label or layout.where.name,
        descriptor.digest,
        platform,
        config,
        _layers(layout, manifest, config, descriptor.digest),
    )


def _is_called(label: str, name: str) -> bool:
    """Whether an image's label is this name: whole, with the default host, or the tag alone."""
    return label in (name, parse_name(name).full, str(parse_name(name))) or (
        label == parse_name(name).tag
    )


def _manifests(
    layout: Layout, listed: list[Descriptor], label: str, depth: int
) -> Iterator[tuple[Descriptor, str]]:
    """Yield the image manifests of an index with their names, nested indexes included."""
    if depth > _MAX_DEPTH:
        raise ImageError(f"{layout.where}: index within index, more than {_MAX_DEPTH} deep")
    for descriptor in listed:
        notes = descriptor.annotations
        own = notes.get(FULL_NAME) or notes.get(REF_NAME) or label
        if descriptor.media_type in MANIFESTS:
            # Build tools list attestations as images of a platform that nobody has; what is
            # attached to an image (signatures, parts lists) says its type.
            unknown = descriptor.platform is not None and descriptor.platform.os == "unknown"
            if not unknown and not descriptor.artifact_type:
                yield descriptor, own
        elif descriptor.media_type in INDEXES:
            inner = layout.document(descriptor)
            where = f"{layout.where}: {descriptor.digest}"
            yield from _manifests(layout, descriptors(inner, "manifests", where), own, depth + 1)


def _config(layout: Layout, manifest: dict[str, Any], digest: str) -> dict[str, Any]:
    return layout.document(read_descriptor(manifest.get("config"), f"{layout.where}: {digest}"))


def _only(
    fitting: Mapping[str, Any], others: list[str], where: Path, wanted: Platform, name: str
) -> Any:
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if fitting:
        labels = sorted({f[-1] or digest for digest, f in fitting.items()})
        raise ImageError(f"{where}: holds {', '.join(labels)}; say which one to build on")
    if others:
        raise ImageError(
            f"{where}: is for {', '.join(sorted(set(others)))}, not for {wanted}; give a base for "
            "that platform, or another --platform"
        )
    raise ImageError(f"{where}: holds no image{f' named {name}' if name else ''}")


def _layers(
    layout: Layout, manifest: dict[str, Any], config: Mapping[str, Any], digest: str
) -> tuple[Layer, ...]:
    where = f"{layout.where}: {digest}"
    diff_ids = _diff_ids(config, where)
    listed = descriptors(manifest, "layers", where)
    if len(diff_ids) != len(listed):
        raise ImageError(
            f"{where}: {len(listed)} layers, but {len(diff_ids)} diff_ids; fetch it anew"
        )
    layers = []
    for descriptor, diff_id in zip(listed, diff_ids, strict=True):
        kind = _LAYER_TYPES.get(descriptor.media_type)
        if kind is None:
            raise ImageError(
                f"{where}: layers of the type {descriptor.media_type[:100]!r} are not taken"
            )
        blob = layout.blob(descriptor)
        check_blob(blob, descriptor.digest)
        layers.append(Layer(kind, descriptor.digest, diff_id, descriptor.size, blob))
    return tuple(layers)


def _diff_ids(config: Mapping[str, Any], where: str) -> list[str]:
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(d, str) and is_digest(d) for d in found):
        raise ImageError(f"{where}: its configuration has no diff_ids; fetch it anew")
    return found


# --- archives of docker save before 25, and of podman save ---


def _from_docker(layout: Layout, wanted: Platform, name: str) -> Base:
    images = layout.named("manifest.json")
    if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
        raise ImageError(f"{layout.where}: manifest.json: no list of images")
    fitting: dict[str, Any] = {}
    others: list[str] = []
    for image in images:
        tags = [str(tag) for tag in image.get("RepoTags") or ()]
        if name and len(images) > 1 and str(parse_name(name)) not in tags:
            continue
        raw = _member(layout, image.get("Config")).read(DOCUMENT_BYTES)
        digest = digest_of(raw)
        if digest.removeprefix("sha256:") not in str(image.get("Config")):
            raise ImageError(f"{layout.where}: {image.get('Config')}: its bytes are other ones")
        config = parse_object(raw, f"{layout.where}: {digest}")
        platform = read_platform(config) or Platform("", "")
        if wanted.runs(platform):
            fitting[digest] = (digest, image, config, platform, tags[0] if tags else "")
        else:
            others.append(str(platform) or "unknown")
    digest, image, config, platform, label = _only(fitting, others, layout.where, wanted, name)
    layers = _docker_layers(layout, image.get("Layers"), _diff_ids(config, str(layout.where)))
    return Base(name or label or layout.where.name, digest, platform, config, layers)


def _docker_layers(layout: Layout, listed: Any, diff_ids: list[str]) -> tuple[Layer, ...]:
    if not isinstance(listed, list) or len(listed) != len(diff_ids):
        raise ImageError(f"{layout.where}: layers and diff_ids differ in number; fetch it anew")
    layers = []
    for path, diff_id in zip(listed, diff_ids, strict=True):
        blob = _member(layout, path)
        packed = next(blob.chunks(), b"").startswith(b"\x1f\x8b")
        plain = digest_of_chunks(gunzip(blob.chunks(), str(path)) if packed else blob.chunks())
        if plain != diff_id:
            raise ImageError(f"{layout.where}: {path}: its bytes are other ones; save it anew")
        digest = digest_of_chunks(blob.chunks()) if packed else plain
        kind = LAYER_GZIP if packed else LAYER_TAR
        layers.append(Layer(kind, digest, diff_id, blob.size, blob))
    return tuple(layers)


def _member(layout: Layout, name: Any) -> Blob:
    found = layout.member(name) if isinstance(name, str) else None
    if found is None:
        raise ImageError(f"{layout.where}: {str(name)[:100]!r} is missing; save it anew")
    return found
