"""Bases: every form that tools write is read, and nothing that is damaged is believed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ImageError
from muelle.packaging.oci import Platform, find_python, names, parse_platform, read_base
from muelle.packaging.oci.blobs import Blob
from muelle.packaging.oci.images import Base
from muelle.packaging.oci.layers import LAYER_ZSTD, Layer
from muelle.packaging.oci.layout import INDEX, MANIFEST, parse_name
from tests.unit.packaging.oci_samples import AMD, ARM, docker_save, sha, small_image, tar_layer


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_what_was_written_is_read_again(tmp_path: Path, form: str) -> None:
    """Digest, platform, settings and layers of an image, from a folder and from a tar."""
    written = small_image(tmp_path, form=form)
    base = read_base(written.path, platform=AMD)
    assert base.digest == written.manifest_digest
    assert (base.name, base.platform, base.env) == ("registry.local/base:1", AMD, {"A": "1"})
    assert names(base) == {"usr/local/bin/python3.11", "usr/bin/env"}


@pytest.mark.parametrize("packed", [False, True])
def test_archives_of_older_engines_are_read(tmp_path: Path, packed: bool) -> None:
    """`docker save` before 25: folders with layer.tar, linked where two are the same."""
    base = read_base(docker_save(tmp_path, packed=packed), platform=AMD)
    assert base.name == "base:1"
    assert len(base.layers) == 2 and base.layers[0].digest == base.layers[1].digest
    assert names(base) == {"usr/bin/python3.12"}
    assert base.env == {"PATH": "/usr/bin"}


def test_a_base_of_another_platform_is_one_line(tmp_path: Path) -> None:
    """What it is for, what was wanted, and what to do."""
    written = small_image(tmp_path, platform=ARM)
    with pytest.raises(ImageError, match=r"is for linux/arm64, not for linux/amd64; give a base"):
        read_base(written.path, platform=AMD)
    assert read_base(written.path, platform=ARM).platform == ARM


def index_of(folder: Path, parts: list[tuple[Path, str, Platform | None]]) -> Path:
    """Write a layout whose index names an inner index of the images of other layouts."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for layout, digest, platform in parts:
        for blob in (layout / "blobs" / "sha256").iterdir():
            (blobs / blob.name).write_bytes(blob.read_bytes())
        entry = {
            "mediaType": MANIFEST,
            "digest": digest,
            "size": (blobs / digest[7:]).stat().st_size,
        }
        if platform is not None:
            entry["platform"] = {"os": platform.os, "architecture": platform.architecture}
        entries.append(entry)
    inner = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    (blobs / sha(inner)[7:]).write_bytes(inner)
    top = {"mediaType": INDEX, "digest": sha(inner), "size": len(inner)}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return folder


def test_the_platform_chooses_from_an_index(tmp_path: Path) -> None:
    """Also where the index does not say what its images are for, and beside attestations."""
    parts = []
    for platform in (AMD, ARM):
        folder = tmp_path / platform.architecture
        folder.mkdir()
        written = small_image(folder, platform=platform, form="layout")
        parts.append((written.path, written.manifest_digest, platform))
    attestation = (parts[0][0], parts[0][1], Platform("unknown", "unknown"))
    told = index_of(tmp_path / "told", [*parts, attestation])
    assert read_base(told, platform=ARM).digest == parts[1][1]
    assert read_base(told, platform=AMD).digest == parts[0][1]
    silent = index_of(tmp_path / "silent", [(path, digest, None) for path, digest, _ in parts])
    assert read_base(silent, platform=ARM).digest == parts[1][1]
    with pytest.raises(ImageError, match=r"is for linux/amd64, linux/arm64, not for linux/s390x"):
        read_base(told, platform=Platform("linux", "s390x"))


def test_several_images_need_a_name(tmp_path: Path) -> None:
    """Two images for one platform: both are named in the refusal, and a name chooses."""
    parts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written = small_image(
            tmp_path / name,
            form="layout",
            name=f"registry.local/{name}:1",
            layers=[tar_layer(tmp_path / name, {name: b"x"})],
        )
        entry = json.loads((written.path / "index.json").read_text())["manifests"][0]
        parts.append((written, entry))
    both = index_of(tmp_path / "both", [(w.path, w.manifest_digest, AMD) for w, _ in parts])
    (both / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [entry for _, entry in parts]})
    )
    with pytest.raises(ImageError, match=r"holds registry\.local/one:1, registry\.local/two:1"):
        read_base(both, platform=AMD)
    chosen = read_base(both, platform=AMD, name="registry.local/two:1")
    assert chosen.digest == parts[1][0].manifest_digest


def test_deletions_of_upper_layers_are_obeyed(tmp_path: Path) -> None:
    """A deleted file or folder, an emptied one; what a layer adds beside its own marks stays."""
    layers = (
        tar_layer(tmp_path, {"./a/x": b"", "a/y": b"", "b/c/z": b"", "d/old": b"", "keep": b""}),
        tar_layer(
            tmp_path, {"d/new": b"", "a/.wh.x": b"", ".wh.b": b"", "d/.wh..wh..opq": b"", "e": b""}
        ),
    )
    base = Base("b", "sha256:" + "0" * 64, AMD, {}, layers)
    assert names(base) == {"a/y", "keep", "d/new", "e"}


def test_zstd_layers_pass_but_their_names_are_not_read(tmp_path: Path) -> None:
    """The refusal names the layer and two ways out."""
    path = tmp_path / "z"
    path.write_bytes(b"(\xb5/\xfd")
    layer = Layer(LAYER_ZSTD, "sha256:" + "1" * 64, "sha256:" + "2" * 64, 4, Blob(path, 4))
    with pytest.raises(ImageError, match="zstd"):
        names(Base("b", "sha256:" + "0" * 64, AMD, {}, (layer,)))


@pytest.mark.parametrize(
    ("found", "python"),
    [
        ({"usr/bin/python3.11", "usr/local/bin/python3.9"}, ("/usr/local/bin/python3.9", "3.9")),
        ({"usr/bin/python3.9", "usr/bin/python3.12"}, ("/usr/bin/python3.12", "3.12")),
        ({"opt/conda/bin/python3.11"}, ("/opt/conda/bin/python3.11", "3.11")),
        ({"usr/bin/python3", "usr/bin/python3.11-config", "lib/python3.11"}, None),
        (set(), None),
    ],
)
def test_the_python_of_a_base_is_found(found: set[str], python: tuple[str, str] | None) -> None:
    """The one that its builder put there wins, then the newest."""
    assert find_python(found) == python


@given(flip=st.integers(0), bit=st.integers(0, 7), cut=st.booleans())
def test_no_damaged_layout_is_believed(
    tmp_path_factory: pytest.TempPathFactory, flip: int, bit: int, cut: bool
) -> None:
    """Any bit changed, or any end cut off, of any blob is refused, with an error of one line."""
    folder = tmp_path_factory.mktemp("image")
    written = small_image(folder, form="layout")
    read_base(written.path, platform=AMD)  # negative control
    files = sorted((written.path / "blobs" / "sha256").iterdir())
    file = files[flip % len(files)]
    raw = bytearray(file.read_bytes())
    at = (flip // len(files)) % len(raw)
    if cut:
        del raw[at:]
    else:
        raw[at] ^= 1 << bit
    file.write_bytes(raw)
    with pytest.raises(ImageError, match=file.name) as caught:
        read_base(written.path, platform=AMD)
    assert "\n" not in str(caught.value)


@given(cut=st.integers(0))
def test_a_cut_archive_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """However much is missing, up to the padding at the very end, the answer is an ImageError."""
    folder = tmp_path_factory.mktemp("image")
    written = small_image(folder)
    with tarfile.open(written.path) as archive:
        end = max(info.offset_data + info.size for info in archive)
    raw = written.path.read_bytes()
    written.path.write_bytes(raw[: cut % end])
    with pytest.raises(ImageError):
        read_base(written.path, platform=AMD)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    """A folder, a text, a compressed tar, a tar of something else, nothing at all."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello " * 1000)
    (tmp_path / "gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "text", "text")
    expected = {"folder": "no OCI layout", "text": "no image", "gz": "unpack it first",
                "tar": "no image", "nothing": "no such file"}  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(ImageError, match=reason):
            read_base(tmp_path / name, platform=AMD)


@pytest.mark.parametrize("member", ["Config", "Layers", "diff_ids"])
def test_broken_docker_archives_are_refused(tmp_path: Path, member: str) -> None:
    """A configuration, a layer or a number of layers that does not fit."""
    path = docker_save(tmp_path)
    raw = path.read_bytes()
    change = {
        "Config": (b"PATH=/usr/bin", b"PATH=/usr/xxx"),
        "Layers": (b"usr/bin/python3.12", b"usr/bin/python3.13"),
        "diff_ids": (b'"a/layer.tar", "b/layer.tar"', b'"a/layer.tar"               '),
    }[member]
    assert change[0] in raw
    path.write_bytes(raw.replace(*change))
    with pytest.raises(ImageError):
        read_base(path, platform=AMD)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("fraud", "docker.io/library/fraud:latest"),
        ("team/fraud:3", "docker.io/team/fraud:3"),
        ("registry.local/fraud:3", "registry.local/fraud:3"),
        ("127.0.0.1:5000/a/b-c:V.1", "127.0.0.1:5000/a/b-c:V.1"),
        ("localhost/x", "localhost/x:latest"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
    ],
)
def test_names_are_read_as_engines_read_them(text: str, full: str) -> None:
    """A first part without a dot, a colon or `localhost` is a folder, not a host."""
    assert parse_name(text).full == full
    assert parse_name(str(parse_name(text))) == parse_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "a b",
        "a:b:c",
        "a/../b",
        "-a",
        "a\nRUN x",
        "a:",
        "http://x/y",
        "x@sha256:1",
        "a" * 300,
        "a\n",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    """Upper case, spaces, line breaks, addresses: one line that shows a right name."""
    with pytest.raises(ImageError, match="no name for an image"):
        parse_name(text)


@given(text=st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Nothing but ImageError ever comes out; what passes is plain ASCII without blanks."""
    try:
        name = str(parse_name(text))
    except ImageError:
        return
    assert name.isascii() and name.isprintable() and " " not in name


def test_platforms_have_one_way_of_writing() -> None:
    """Machine names of Linux and the variant that every arm64 has are normalised."""
    assert parse_platform("linux/x86_64") == AMD
    assert parse_platform("linux/arm64/v8") == parse_platform("linux/aarch64") == ARM
    assert str(parse_platform("linux/arm/v7")) == "linux/arm/v7"
    for wrong in ("linux", "linux/", "a/b/c/d", "Linux/amd64", "linux/amd64\n"):
        with pytest.raises(ImageError, match="no platform"):
            parse_platform(wrong)
