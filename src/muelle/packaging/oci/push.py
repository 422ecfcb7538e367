"""Send an image from a layout or an archive to a registry, and attach artifacts to images.

Only what the registry lacks is sent. Not for building, and not for the registry's protocol itself
(`registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.core.errors import ImageError, RegistryError
from muelle.packaging.oci.blobs import copy_checked, digest_of, is_digest, written_file
from muelle.packaging.oci.layout import (
    DOCUMENT_BYTES,
    FULL_NAME,
    INDEX,
    INDEXES,
    MANIFEST,
    MANIFESTS,
    REF_NAME,
    Descriptor,
    Layout,
    descriptors,
    dump_json,
    open_layout,
    parse_name,
    parse_object,
    read_descriptor,
)
from muelle.packaging.oci.login import Login, read_login
from muelle.packaging.oci.registry import Registry

EMPTY = "application/vnd.oci.empty.v1+json"
"""The configuration of an artifact that needs none: `{}`."""

Progress = Callable[[str, int, int], None]
"""Gets a blob's digest, the bytes sent of it (0: it was there already), and its size."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a registry now has. Bytes count blobs only."""

    reference: str
    digest: str
    sent_bytes: int
    present_bytes: int


def push(
    source: Path,
    reference: str,
    *,
    insecure: bool = False,
    progress: Progress | None = None,
    login: Login | None = None,
    token_hosts: Sequence[str] = (),
) -> Pushed:
    """Send the image of a layout or an archive to `host[:port]/path:tag`, with what is attached.

    `insecure` takes a registry without TLS or with any certificate. `login` is read from Docker's
    configuration where it is not given. Raise ImageError for the image, RegistryError for the rest.
    """
    name = parse_name(reference)
    if not name.host:
        raise RegistryError(
            f"{reference}: names no registry; write its host before it, as in "
            f"registry.local:5000/{reference}"
        )
    layout = open_layout(source)
    if not layout.is_oci:
        raise ImageError(f"{source}: no OCI layout or archive; build it with muelle build")
    listed = layout.index()
    image = chosen_image(layout, listed, reference)
    registry = Registry(
        name.host,
        name.path,
        insecure=insecure,
        login=login or read_login(name.host),
        token_hosts=token_hosts,
    )
    try:
        registry.open()
        job = _Push(layout, registry, progress or (lambda digest, sent, size: None))
        job.tree(image, name.tag)
        for attached in (d for d in listed if d.artifact_type):
            job.referrer(attached)
    finally:
        registry.close()
    return Pushed(str(name), image.digest, job.sent_bytes, job.present_bytes)


def chosen_image(layout: Layout, listed: Sequence[Descriptor], reference: str) -> Descriptor:
    """Return the image to send: the only one, or the one of that name. Raise ImageError."""
    images = {
        d.digest: d for d in listed if not d.artifact_type and d.media_type in MANIFESTS | INDEXES
    }
    called = [
        d
        for d in images.values()
        if reference in (d.annotations.get(REF_NAME), d.annotations.get(FULL_NAME))
    ]
    if len(images) == 1 or called:
        return (called or list(images.values()))[0]
    raise ImageError(f"{layout.where}: holds {len(images)} images, and none is named {reference}")


def attach(
    folder: Path,
    subject: str,
    artifact_type: str,
    content: bytes,
    *,
    annotations: Mapping[str, str] | None = None,
) -> str:
    """Attach an artifact (a signature, a list of parts) to an image of a layout folder.

    `subject` is the manifest's digest. Return the digest of the artifact's own manifest; the same
    artifact attached twice is there once. Raise ImageError.
    """
    layout = open_layout(folder)
    if not folder.is_dir() or not is_digest(subject):
        raise ImageError(f"{folder}: artifacts are attached in a layout folder, to a sha256 digest")
    listed = layout.index()
    target = next((d for d in listed if d.digest == subject), None)
    if target is None:
        raise ImageError(f"{folder}: holds no image {subject}")
    about = Descriptor(target.media_type, target.digest, target.size, {})
    config = b"{}"
    manifest = dump_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": Descriptor(EMPTY, digest_of(config), len(config), {}).document(),
            "layers": [Descriptor(artifact_type, digest_of(content), len(content), {}).document()],
            "subject": about.document(),
            **({"annotations": dict(annotations)} if annotations else {}),
        }
    )
    entry = Descriptor(
        MANIFEST, digest_of(manifest), len(manifest), annotations or {}, None, artifact_type
    )
    for blob in (config, content, manifest):
        _keep(folder / "blobs" / "sha256" / digest_of(blob).removeprefix("sha256:"), blob)
    if entry.digest not in {d.digest for d in listed}:
        index = _index([*listed, entry])
        with written_file(folder / "index.json") as stream:
            stream.write(index)
    return entry.digest


def _keep(path: Path, content: bytes) -> None:
    if not path.exists():
        with written_file(path) as stream:
            stream.write(content)


def _index(entries: Sequence[Descriptor]) -> bytes:
    return dump_json(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [e.document() for e in entries]}
    )


class _Push:
    """One push: walks from a manifest down, sends the leaves first."""

    def __init__(self, layout: Layout, registry: Registry, progress: Progress) -> None:
        self._layout, self._registry, self._progress = layout, registry, progress
        self._done: set[str] = set()
        self.sent_bytes = 0
        self.present_bytes = 0

    def tree(self, descriptor: Descriptor, reference: str) -> bool:
        """Send a manifest or an index with all below it. Return whether its subject was taken."""
        document = self._layout.document(descriptor)
        where = f"{self._layout.where}: {descriptor.digest}"
        if descriptor.media_type in INDEXES:
            for child in descriptors(document, "manifests", where):
                self.tree(child, child.digest)
        else:
            self._blob(read_descriptor(document.get("config"), f"{where}: config"))
            for layer in descriptors(document, "layers", where):
                self._blob(layer)
        raw = self._layout.blob(descriptor).read(DOCUMENT_BYTES)
        return self._registry.put_manifest(raw, reference, descriptor.media_type)

    def referrer(self, descriptor: Descriptor) -> None:
        """Send an attached artifact; registries that do not list such by themselves get a list.

        Source: OCI distribution specification 1.1, "Pushing Manifests with Subject".
        """
        if self.tree(descriptor, descriptor.digest):
            return
        document = self._layout.document(descriptor)
        subject = read_descriptor(document.get("subject"), f"{descriptor.digest}: subject")
        tag = subject.digest.replace(":", "-")
        entries = self._listed(tag)
        if descriptor.digest not in {e.digest for e in entries}:
            self._registry.put_manifest(_index([*entries, descriptor]), tag, INDEX)

    def _listed(self, tag: str) -> list[Descriptor]:
        raw = self._registry.manifest(tag)
        if raw is None:
            return []
        where = f"{self._registry.host}: {tag}"
        found: dict[str, Any] = parse_object(raw, where)
        return descriptors(found, "manifests", where)

    def _blob(self, descriptor: Descriptor) -> None:
        digest, size = descriptor.digest, descriptor.size
        if digest in self._done:
            return
        self._done.add(digest)
        blob = self._layout.blob(descriptor)
        if self._registry.has_blob(digest, size):
            self.present_bytes += size
            self._progress(digest, 0, size)
            return
        # The registry would find a damaged blob too, but only after all of it was sent.
        copy_checked(blob, digest, lambda piece: None)
        self._registry.put_blob(blob, digest, lambda sent: self._progress(digest, sent, size))
        self.sent_bytes += size
