"""Small bases and images that the tests of `packaging.oci` share."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muelle.packaging.oci import (
    Entry,
    ImageConfig,
    Layer,
    Platform,
    Written,
    write_image,
    write_layer,
)
from muelle.packaging.oci.blobs import Blob
from muelle.packaging.oci.layers import LAYER_TAR

AMD = Platform("linux", "amd64")
ARM = Platform("linux", "arm64")


def sha(content: bytes) -> str:
    """Return the digest of bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def plain_tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar as an engine would write it, deletion marks included."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tar_layer(folder: Path, files: Mapping[str, bytes]) -> Layer:
    """Return an uncompressed layer of any names."""
    raw = plain_tar(files)
    path = folder / sha(raw)[7:]
    path.write_bytes(raw)
    return Layer(LAYER_TAR, sha(raw), sha(raw), len(raw), Blob(path, len(raw)))


def small_image(
    folder: Path,
    *,
    name: str = "registry.local/base:1",
    platform: Platform = AMD,
    form: Any = "archive",
    layers: Sequence[Layer] = (),
    config: ImageConfig | None = None,
) -> Written:
    """Write an image of one file and the given layers; return it."""
    layer = write_layer(
        [Entry("usr/local/bin/python3.11", b"#!elf", 0o755), Entry.link("usr/bin/env", "x")],
        folder / "layer",
        epoch=0,
    )
    target = folder / ("image" if form == "layout" else "image.tar")
    return write_image(
        target,
        None,
        [layer, *layers],
        config or ImageConfig(env={"A": "1"}, cmd=("/bin/x",)),
        name=name,
        epoch=0,
        platform=platform,
        form=form,
    )


def docker_save(folder: Path, *, packed: bool = False, tag: str = "base:1") -> Path:
    """Write an archive as `docker save` before 25 does: two layers that are the same file."""
    raw = plain_tar({"usr/bin/python3.12": b"x"})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha(raw), sha(raw)]},
        }
    ).encode()
    stored = gzip.compress(raw) if packed else raw
    manifest = [
        {
            "Config": f"{sha(config)[7:]}.json",
            "RepoTags": [tag],
            "Layers": ["a/layer.tar", "b/layer.tar"],
        }
    ]
    path = folder / "saved.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (
            (f"{sha(config)[7:]}.json", config),
            ("a/layer.tar", stored),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        archive.addfile(link)
    return path
