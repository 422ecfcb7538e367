"""Check a layout or an archive byte by byte: is every blob there, whole, and what others say it is?

Not for signatures: this finds damage and mistakes, and says nothing about who made the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import Blob, check_blob, digest_of_chunks, gunzip, is_digest
from muelle.packaging.oci.layout import (
    CONFIG,
    INDEXES,
    MANIFESTS,
    Descriptor,
    Layout,
    descriptors,
    open_layout,
    read_descriptor,
)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at: digests of the manifests, number and bytes of all blobs."""

    manifests: tuple[str, ...]
    n_blobs: int
    size: int
    unread: tuple[str, ...] = ()
    """Layers whose diff_id could not be computed here (zstd); their digests are right."""


def verify_layout(path: Path) -> Verified:
    """Re-hash every blob of a layout folder or archive, and compare what its documents say.

    Raise ImageError, which names the blob that is missing, cut, changed or contradicts another.
    """
    layout = open_layout(path)
    if not layout.is_oci:
        raise ImageError(
            f"{path}: no OCI layout; only manifest.json of an old docker save is there"
        )
    mark = layout.named("oci-layout")
    if not isinstance(mark, dict) or mark.get("imageLayoutVersion") != "1.0.0":
        raise ImageError(f"{path}: oci-layout: not of version 1.0.0")
    check = _Check(layout)
    for descriptor in layout.index():
        check.visit(descriptor)
    if layout.member("manifest.json") is not None:
        check.docker(layout.named("manifest.json"))
    return Verified(
        tuple(check.manifests),
        len(check.seen),
        sum(d.size for d in check.seen.values()),
        tuple(check.unread),
    )


class _Check:
    """One walk over a layout; a blob that two documents name is read once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.seen: dict[str, Descriptor] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        self.unread: list[str] = []

    def visit(self, descriptor: Descriptor) -> None:
        digest = descriptor.digest
        if not self._fresh(descriptor):
            return
        where = f"{self._layout.where}: {digest}"
        if descriptor.media_type in INDEXES:
            inner = self._layout.document(descriptor)
            for child in descriptors(inner, "manifests", where):
                self.visit(child)
        elif descriptor.media_type in MANIFESTS:
            self._manifest(descriptor, where)

    def docker(self, images: Any) -> None:
        """`manifest.json` must name the same blobs, or `docker load` would get another image."""
        where = f"{self._layout.where}: manifest.json"
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise ImageError(f"{where}: no list of images")
        known = [
            [m["config"]["digest"], *(x["digest"] for x in m["layers"])]
            for m in self.manifests.values()
        ]
        for image in images:
            named = [image.get("Config"), *(image.get("Layers") or ())]
            digests = ["sha256:" + str(n).removeprefix("blobs/sha256/") for n in named]
            if digests not in known:
                raise ImageError(f"{where}: names other blobs than index.json; build it anew")

    def _fresh(self, descriptor: Descriptor) -> bool:
        """Check a blob's bytes, once. Return whether it was not seen before."""
        before = self.seen.get(descriptor.digest)
        blob = self._layout.blob(descriptor)
        if before is None:
            check_blob(blob, descriptor.digest)
            self.seen[descriptor.digest] = descriptor
        return before is None

    def _manifest(self, descriptor: Descriptor, where: str) -> None:
        manifest = self._layout.document(descriptor)
        config = read_descriptor(manifest.get("config"), f"{where}: config")
        layers = descriptors(manifest, "layers", where)
        self.manifests[descriptor.digest] = manifest
        self._fresh(config)
        for layer in layers:
            self._fresh(layer)
        if config.media_type == CONFIG:
            self._diff_ids(self._layout.document(config), layers, where)

    def _diff_ids(self, config: dict[str, Any], layers: list[Descriptor], where: str) -> None:
        rootfs = config.get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(ids, list) or not all(isinstance(d, str) and is_digest(d) for d in ids):
            raise ImageError(f"{where}: its configuration has no diff_ids")
        if len(ids) != len(layers):
            raise ImageError(f"{where}: {len(layers)} layers, but {len(ids)} diff_ids")
        for layer, diff_id in zip(layers, ids, strict=True):
            found = self._diff_id(layer, self._layout.blob(layer))
            if found is None:
                self.unread.append(layer.digest)
            elif found != diff_id:
                raise ImageError(
                    f"{where}: layer {layer.digest} unpacks to {found}, not to {diff_id}"
                )

    @staticmethod
    def _diff_id(layer: Descriptor, blob: Blob) -> str | None:
        if layer.media_type.endswith("gzip"):
            return digest_of_chunks(gunzip(blob.chunks(), f"layer {layer.digest}"))
        return layer.digest if layer.media_type.endswith("tar") else None
