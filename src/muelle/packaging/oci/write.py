"""Write an image: an OCI layout folder, or one tar that `docker load` and every OCI tool take.

No daemon, no root, no clock: the same base, layers and settings give the same bytes. Not for making
layers (`layers`), and not for sending images anywhere (`push`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import copy_checked, digest_of, sync_folder, written_file
from muelle.packaging.oci.images import Base
from muelle.packaging.oci.layers import Layer, tar_end, tar_header, tar_padding
from muelle.packaging.oci.layout import Platform
from muelle.packaging.oci.plan import ImageConfig, Plan, blob_name, plan

LAYOUT_MARK = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class Written:
    """A finished image. Sizes in bytes, as they lie in the image."""

    path: Path
    name: str
    manifest_digest: str
    config_digest: str
    sizes: tuple[tuple[str, int], ...]
    """What each layer holds, and its size; the base's layers first."""

    @property
    def size(self) -> int:
        """The size of all layers."""
        return sum(size for _, size in self.sizes)


def write_image(
    target: Path,
    base: Base | None,
    layers: Sequence[Layer],
    config: ImageConfig,
    *,
    name: str,
    epoch: int,
    platform: Platform | None = None,
    form: Literal["layout", "archive"] = "archive",
) -> Written:
    """Write an image of `layers` upon `base` to `target`, whole or not at all.

    `platform` is the base's where there is one, else this machine's. A layout folder that is there
    is replaced, any other folder is not. Raise ImageError.
    """
    made = plan(base, layers, config, name=name, epoch=epoch, platform=platform)
    if form == "layout":
        with _written_folder(target) as folder:
            _fill(folder, made)
    else:
        with written_file(target) as stream:
            _fill_archive(stream, made, epoch)
    sizes = tuple((layer.comment or layer.digest, layer.size) for layer in made.layers)
    digest = digest_of(made.manifest)
    return Written(target, str(made.name), digest, digest_of(made.config), sizes)


# --- bytes ---


def _fill(folder: Path, made: Plan) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for document in made.documents:
        with _durable(folder / blob_name(digest_of(document))) as stream:
            stream.write(document)
    for layer in {layer.digest: layer for layer in made.layers}.values():
        with _durable(folder / blob_name(layer.digest)) as stream:
            copy_checked(layer.blob, layer.digest, stream.write)
    for name, content in (("index.json", made.index()), ("oci-layout", LAYOUT_MARK)):
        with _durable(folder / name) as stream:
            stream.write(content)
    sync_folder(blobs)
    sync_folder(folder)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    with open(path, "xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _written_folder(target: Path) -> Iterator[Path]:
    """Give a folder that becomes `target` when the block ends well, and is gone otherwise."""
    part: Path | None = None
    try:
        if target.exists() and not _is_replaceable(target):
            raise ImageError(
                f"{target}: is there already, and is no OCI layout; name another folder"
            )
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        made = part / "new"
        made.mkdir(0o755)
        yield made
        if target.exists():
            # Two steps, for want of one: a reader may find nothing for a moment, never a half.
            os.rename(target, part / "old")
        os.rename(made, target)
        sync_folder(target.parent)
    except OSError as exc:
        raise ImageError(f"{target}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        if part is not None:
            if (part / "old").exists() and not target.exists():
                with contextlib.suppress(OSError):
                    os.rename(part / "old", target)
            shutil.rmtree(part, ignore_errors=True)


def _is_replaceable(target: Path) -> bool:
    if not target.is_dir() or target.is_symlink():
        return False
    return (target / "oci-layout").is_file() or not any(target.iterdir())


def _fill_archive(stream: BinaryIO, made: Plan, epoch: int) -> None:
    size = 0

    def write(piece: bytes) -> None:
        nonlocal size
        stream.write(piece)
        size += len(piece)

    def member(name: str, content: bytes) -> None:
        write(tar_header(name, size=len(content), epoch=epoch))
        write(content + tar_padding(len(content)))

    # What a reader of the stream needs to know comes first.
    member("oci-layout", LAYOUT_MARK)
    member("index.json", made.index())
    member("manifest.json", made.docker_manifest())
    for folder in ("blobs/", "blobs/sha256/"):
        write(tar_header(folder, mode=0o755, kind=tarfile.DIRTYPE, epoch=epoch))
    for document in made.documents:
        member(blob_name(digest_of(document)), document)
    for layer in {layer.digest: layer for layer in made.layers}.values():
        write(tar_header(blob_name(layer.digest), size=layer.size, epoch=epoch))
        copy_checked(layer.blob, layer.digest, write)
        write(tar_padding(layer.size))
    write(tar_end(size))
