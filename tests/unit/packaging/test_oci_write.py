"""Images: what is merged from a base, reproducible to the bit, whole or not there at all."""

from __future__ import annotations

import json
import os
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ImageError
from muelle.packaging.oci import (
    Entry,
    Healthcheck,
    ImageConfig,
    Written,
    attach,
    read_base,
    verify_layout,
    write_image,
    write_layer,
)
from muelle.packaging.oci.layout import open_layout
from tests.unit.packaging.oci_samples import AMD, ARM, small_image


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow over 64 KiB: the same as a full disk, as far as writing goes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = ImageConfig(
    entrypoint=("/usr/local/bin/python3.11", "-m", "muelle"),
    env={"B": "2 3", "A": "own"},
    user="10001:10001",
    workdir="/models",
    ports=("8080/tcp",),
    volumes=("/store",),
    labels={"org.opencontainers.image.title": "fraud", "team": "risk"},
    healthcheck=Healthcheck(("/usr/local/bin/python3.11", "-c", "0"), interval_s=1.5),
    stop_signal="SIGTERM",
)


def on_base(folder: Path, **more: Any) -> Written:
    """Write an image with every setting upon a small base."""
    base = read_base(small_image(folder).path, platform=AMD)
    weights = Entry("models/m.bin", b"w" * 99)
    layer = write_layer([weights], folder / "own", epoch=7, comment="model")
    options: dict[str, Any] = {"name": "registry.local/fraud:3", "epoch": 7, "form": "layout"}
    options |= more
    target = folder / ("built" if options["form"] == "layout" else "built.tar")
    return write_image(target, base, [layer], FULL, **options)


def config_of(written: Written) -> dict[str, Any]:
    """Return the configuration of an image."""
    layout = open_layout(written.path)
    manifest = layout.document(layout.index()[0])
    blob = layout.member("blobs/sha256/" + manifest["config"]["digest"][7:])
    assert blob is not None
    found: dict[str, Any] = json.loads(blob.read(10_000))
    return found


def test_settings_are_merged_with_those_of_the_base(tmp_path: Path) -> None:
    """Ours win; the base's environment stays, its command goes with its entry point."""
    config = config_of(on_base(tmp_path))
    settings = config["config"]
    assert settings["Env"] == ["A=own", "B=2 3"]
    assert settings["Entrypoint"] == list(FULL.entrypoint) and "Cmd" not in settings
    assert (settings["User"], settings["WorkingDir"]) == ("10001:10001", "/models")
    assert settings["ExposedPorts"] == {"8080/tcp": {}} and settings["Volumes"] == {"/store": {}}
    assert settings["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/python3.11", "-c", "0"]
    assert settings["Healthcheck"]["Interval"] == 1_500_000_000
    assert settings["StopSignal"] == "SIGTERM"
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert config["created"] == "1970-01-01T00:00:07Z"
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"]) == 2


def test_annotations_say_where_it_comes_from(tmp_path: Path) -> None:
    """OCI labels, the time, and the base's name and digest; other labels are no annotations."""
    layout = open_layout(on_base(tmp_path).path)
    notes = layout.document(layout.index()[0])["annotations"]
    base = read_base(tmp_path / "image.tar", platform=AMD)
    assert notes == {
        "org.opencontainers.image.title": "fraud",
        "org.opencontainers.image.created": "1970-01-01T00:00:07Z",
        "org.opencontainers.image.base.name": "registry.local/base:1",
        "org.opencontainers.image.base.digest": base.digest,
    }


def test_two_builds_are_one_image(tmp_path: Path) -> None:
    """Archives and layouts built twice, in different folders, are equal to the bit."""
    trees = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folder = on_base(tmp_path / name)
        archive = on_base(tmp_path / name, form="archive", name="registry.local/fraud:4")
        assert archive.manifest_digest == folder.manifest_digest
        trees.append(archive.path.read_bytes())
    assert trees[0] == trees[1]


def test_another_time_is_another_image(tmp_path: Path) -> None:
    """Negative control: the epoch is in the digest."""
    one = on_base(tmp_path)
    assert on_base(tmp_path, epoch=8).manifest_digest != one.manifest_digest


def test_an_archive_is_one_for_docker_too(tmp_path: Path) -> None:
    """Its manifest.json names the same blobs, and the first members say what it is."""
    written = on_base(tmp_path, form="archive")
    with tarfile.open(written.path) as archive:
        listed = archive.getnames()
        stream = archive.extractfile("manifest.json")
        assert stream is not None
        (image,) = json.load(stream)
    assert listed[:3] == ["oci-layout", "index.json", "manifest.json"]
    assert image["RepoTags"] == ["registry.local/fraud:3"]
    assert image["Config"] == "blobs/sha256/" + written.config_digest[7:]
    assert set(image["Layers"]) <= set(listed)
    assert verify_layout(written.path).n_blobs == 4


def test_sizes_are_told_by_part(tmp_path: Path) -> None:
    """The base's layers first, each with what it holds."""
    written = on_base(tmp_path)
    assert [what for what, _ in written.sizes] == ["base registry.local/base:1", "model"]
    assert written.size == sum(size for _, size in written.sizes)


def test_a_full_disk_leaves_nothing_and_what_was_there(tmp_path: Path, small_disk: None) -> None:
    """An image that was there before is still there, whole; no piece of the new one is."""
    layer = write_layer([Entry("w", os.urandom(200_000))], tmp_path / "big", epoch=0)
    before = {form: small_image(tmp_path, form=form) for form in ("layout", "archive")}
    listing = sorted(p.name for p in tmp_path.iterdir())
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (65_536, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )
    for form, written in before.items():
        with pytest.raises(ImageError, match="cannot be written"):
            write_image(
                written.path,
                None,
                [layer],
                FULL,
                name="x:1",
                epoch=0,
                form=form,  # type: ignore[arg-type]
            )
        assert verify_layout(written.path).manifests == (written.manifest_digest,)
    assert sorted(p.name for p in tmp_path.iterdir()) == listing


def test_a_layout_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    """An older layout and an empty folder make room; a folder of other things does not."""
    first = small_image(tmp_path, form="layout")
    (tmp_path / "image" / "more").write_text("x")
    assert small_image(tmp_path, form="layout").manifest_digest == first.manifest_digest
    assert not (tmp_path / "image" / "more").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine").write_text("x")
    layer = write_layer([Entry("a", b"")], tmp_path / "l", epoch=0)
    with pytest.raises(ImageError, match="is no OCI layout"):
        write_image(tmp_path / "work", None, [layer], FULL, name="x:1", epoch=0, form="layout")
    assert (tmp_path / "work" / "mine").read_text() == "x"


def test_layers_that_changed_since_are_found(tmp_path: Path) -> None:
    """A layer's file that is not what it was stops the image, and leaves none."""
    layer = write_layer([Entry("a", b"x")], tmp_path / "l", epoch=0, gzip=False)
    raw = bytearray((tmp_path / "l").read_bytes())
    raw[512] ^= 1
    (tmp_path / "l").write_bytes(raw)
    for form in ("layout", "archive"):
        with pytest.raises(ImageError, match="have changed"):
            write_image(tmp_path / "i", None, [layer], FULL, name="x:1", epoch=0, form=form)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l"]


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    """A base of another platform, no layer at all, a variable that is none."""
    base = read_base(small_image(tmp_path, platform=ARM).path, platform=ARM)
    layer = write_layer([Entry("a", b"x")], tmp_path / "l", epoch=0)
    with pytest.raises(ImageError, match=r"is for linux/arm64, not for linux/amd64"):
        write_image(tmp_path / "i", base, [layer], FULL, name="x:1", epoch=0, platform=AMD)
    with pytest.raises(ImageError, match="at least one layer"):
        write_image(tmp_path / "i", None, [], FULL, name="x:1", epoch=0)
    with pytest.raises(ImageError, match="no name for a variable"):
        config = ImageConfig(env={"A=B": "x"})
        write_image(tmp_path / "i", None, [layer], config, name="x:1", epoch=0)


@given(flip=st.integers(0), bit=st.integers(0, 7))
def test_verify_finds_every_changed_bit(
    tmp_path_factory: pytest.TempPathFactory, flip: int, bit: int
) -> None:
    """One bit changed anywhere in the blobs is found; an untouched layout passes."""
    written = small_image(tmp_path_factory.mktemp("image"), form="layout")
    assert verify_layout(written.path).n_blobs == 3
    files = sorted((written.path / "blobs" / "sha256").iterdir())
    file = files[flip % len(files)]
    raw = bytearray(file.read_bytes())
    raw[(flip // len(files)) % len(raw)] ^= 1 << bit
    file.write_bytes(raw)
    with pytest.raises(ImageError, match=file.name):
        verify_layout(written.path)


def rewritten(written: Written, change: Any) -> None:
    """Change a layout's manifest and configuration, with digests that fit again."""
    from muelle.packaging.oci.layout import dump_json
    from tests.unit.packaging.oci_samples import sha

    layout = open_layout(written.path)
    (entry,) = layout.index()
    manifest = layout.document(entry)
    config = config_of(written)
    change(manifest, config)
    for document, put in ((config, manifest["config"]), (manifest, None)):
        raw = dump_json(document)
        (written.path / "blobs" / "sha256" / sha(raw)[7:]).write_bytes(raw)
        if put is not None:
            put |= {"digest": sha(raw), "size": len(raw)}
    plain = entry.document() | {"digest": sha(raw), "size": len(raw)}
    (written.path / "index.json").write_bytes(dump_json({"manifests": [plain]}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, c: c["rootfs"]["diff_ids"].append("sha256:" + "0" * 64), "1 layers, but 2"),
        (
            lambda m, c: c["rootfs"].update(diff_ids=["sha256:" + "0" * 64]),
            "unpacks to sha256:[0-9a-f]+, not to sha256:000",
        ),
        (lambda m, c: c.pop("rootfs"), "no diff_ids"),
        (lambda m, c: m["layers"][0].update(digest="sha256:" + "0" * 64), "000 is missing"),
        (lambda m, c: m["layers"][0].update(digest="../../etc/passwd"), "no sha256 digest"),
        (lambda m, c: m["layers"][0].update(size=1), "bytes, not 1"),
        (lambda m, c: m.update(layers={}), "layers is no list"),
    ],
)
def test_documents_that_contradict_each_other_are_found(
    tmp_path: Path, change: Any, reason: str
) -> None:
    """Right digests, wrong content: the refusal says which blob does not fit."""
    written = small_image(tmp_path, form="layout")
    rewritten(written, lambda m, c: None)
    verify_layout(written.path)  # negative control
    rewritten(written, change)
    with pytest.raises(ImageError, match=reason):
        verify_layout(written.path)


def test_docker_would_get_the_same_image(tmp_path: Path) -> None:
    """An archive whose manifest.json names other blobs than index.json is refused."""
    written = on_base(tmp_path, form="archive")
    raw = written.path.read_bytes()
    wanted = f'"Config":"blobs/sha256/{written.config_digest[7:]}"'.encode()
    other = f'"Config":"blobs/sha256/{written.manifest_digest[7:]}"'.encode()
    assert raw.count(wanted) == 1
    written.path.write_bytes(raw.replace(wanted, other))
    with pytest.raises(ImageError, match="names other blobs"):
        verify_layout(written.path)


def test_artifacts_are_attached_once(tmp_path: Path) -> None:
    """A signature lies in the layout beside the image, which is still the one to build on."""
    written = small_image(tmp_path, form="layout")
    kind = "application/vnd.cyclonedx+json"
    digest = attach(written.path, written.manifest_digest, kind, b"{}", annotations={"a": "b"})
    assert (
        attach(written.path, written.manifest_digest, kind, b"{}", annotations={"a": "b"}) == digest
    )
    assert verify_layout(written.path).manifests == (written.manifest_digest, digest)
    assert read_base(written.path, platform=AMD).digest == written.manifest_digest
    layout = open_layout(written.path)
    manifest = layout.document(layout.index()[1])
    assert manifest["subject"]["digest"] == written.manifest_digest
    with pytest.raises(ImageError, match="holds no image"):
        attach(written.path, "sha256:" + "0" * 64, kind, b"{}")
