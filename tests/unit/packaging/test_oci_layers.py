"""Layers: the same entries are the same bytes, and no entry leads out of the image."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ImageError
from muelle.packaging.oci import Entry, Link, folder_entries, write_layer
from muelle.packaging.oci.layers import LAYER_GZIP, LAYER_TAR, arranged, checked_path

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1)
PATHS = st.lists(
    NAMES.filter(lambda n: n not in (".", "..") and not n.startswith(".wh.")),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow over 64 KiB: the same as a full disk, as far as writing goes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    """Return what Python's own reader finds in a layer."""
    with tarfile.open(path) as archive:
        return {info.name: info for info in archive}


def test_a_layer_holds_its_entries_with_numeric_owners_and_one_time(tmp_path: Path) -> None:
    """Files, links and directories come back with mode, owner and the epoch; nobody is named."""
    big = tmp_path / "weights.bin"
    big.write_bytes(os.urandom(3_000_000))
    entries = [
        Entry("opt/app/run.py", b"x = 1\n", 0o755),
        Entry("models/w.bin", big, uid=10001, gid=10001),
        Entry("opt/app/now", Link("run.py")),
        Entry.directory("tmp", 0o1777),
        Entry("opt/" + "long/" * 40 + "é.txt", b"deep"),
    ]
    layer = write_layer(entries, tmp_path / "layer", epoch=1_700_000_000)
    found = members(tmp_path / "layer")
    assert found["opt/app/run.py"].mode == 0o755
    assert (found["models/w.bin"].uid, found["models/w.bin"].gid) == (10001, 10001)
    assert found["opt/app/now"].linkname == "run.py"
    assert found["tmp"].mode == 0o1777
    assert found["opt/" + "long/" * 40 + "é.txt"].size == 4
    assert found["models"].isdir() and found["models"].mode == 0o755
    assert {info.mtime for info in found.values()} == {1_700_000_000}
    assert {info.uname + info.gname for info in found.values()} == {""}
    with tarfile.open(tmp_path / "layer") as archive:
        stream = archive.extractfile("models/w.bin")
        assert stream is not None and stream.read() == big.read_bytes()
    raw = (tmp_path / "layer").read_bytes()
    assert layer.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert layer.diff_id == "sha256:" + hashlib.sha256(gzip.decompress(raw)).hexdigest()
    assert (layer.size, layer.unpacked_size) == (len(raw), len(gzip.decompress(raw)))


def test_order_and_names_of_files_on_this_machine_do_not_matter(tmp_path: Path) -> None:
    """The same contents in another order, from other files with other times: the same bytes."""
    entries = [Entry(f"d{i % 3}/f{i}", bytes([i]) * i) for i in range(50)]
    one = write_layer(entries, tmp_path / "one", epoch=5)
    for entry in entries:
        (tmp_path / entry.path.replace("/", "-")).write_bytes(entry.content)  # type: ignore[arg-type]
    moved = [Entry(e.path, tmp_path / e.path.replace("/", "-")) for e in entries]
    random.Random(0).shuffle(moved)
    two = write_layer(moved, tmp_path / "two", epoch=5)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert one.digest == two.digest


@pytest.mark.parametrize(
    "entry",
    [Entry("a", b"y"), Entry("a", b"x", 0o600), Entry("b", b"x"), Entry("a", b"x", uid=1)],
)
def test_another_entry_is_another_digest(tmp_path: Path, entry: Entry) -> None:
    """Negative control: content, mode, name and owner are all in the digest."""
    one = write_layer([Entry("a", b"x")], tmp_path / "one", epoch=0)
    two = write_layer([entry], tmp_path / "two", epoch=0)
    assert one.diff_id != two.diff_id


def test_weights_may_stay_uncompressed(tmp_path: Path) -> None:
    """Without gzip the blob is the tar itself, and says so."""
    packed = write_layer([Entry("a", b"x" * 10_000)], tmp_path / "p", epoch=0)
    plain = write_layer([Entry("a", b"x" * 10_000)], tmp_path / "t", epoch=0, gzip=False)
    assert (packed.media_type, plain.media_type) == (LAYER_GZIP, LAYER_TAR)
    assert plain.digest == plain.diff_id == packed.diff_id
    assert packed.size < plain.size == plain.unpacked_size
    assert plain.size % 10_240 == 0


@given(paths=st.lists(PATHS, max_size=8, unique=True))
def test_parents_come_first_and_every_path_survives(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str]
) -> None:
    """Whatever the names, an unpacker meets a directory before what lies in it."""
    entries = [Entry.directory(path) for path in paths]
    order = [entry.path for entry in arranged(entries)]
    assert len(set(order)) == len(order) and set(paths) <= set(order)
    for at, path in enumerate(order):
        parent = path.rpartition("/")[0]
        assert not parent or parent in order[:at]
    target = tmp_path_factory.mktemp("layer") / "layer"
    write_layer(entries, target, epoch=0)
    assert list(members(target)) == order


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "", "a/./b", "a\nb", "a\x00b",
        "\x1b[2Jx", "\udc80", "a/.wh.b", ".wh..wh..opq", "a" * 5000, "x\x9bm",
    ],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(path: str) -> None:
    """Absolute, climbing, empty, deleting or unprintable paths never reach a layer."""
    with pytest.raises(ImageError, match="no path for an image"):
        checked_path(path)


def test_an_ordinary_path_passes() -> None:
    """Negative control of the refusals."""
    assert checked_path("opt/ñ/a b/..c") == "opt/ñ/a b/..c"


def test_contradictions_are_refused(tmp_path: Path) -> None:
    """One path cannot be two things; the same entry twice is no contradiction."""
    for pair in (
        [Entry("a", b"1"), Entry("a", b"2")],
        [Entry("a", b"1"), Entry("a/b", b"2")],
        [Entry.link("a", "/etc"), Entry("a/passwd", b"2")],
        [Entry.link("a", "x\ny")],
        [Entry.link("a", "")],
    ):
        with pytest.raises(ImageError):
            write_layer(pair, tmp_path / "layer", epoch=0)
    assert list(tmp_path.iterdir()) == []
    write_layer([Entry("a", b"1"), Entry("a", b"1")], tmp_path / "layer", epoch=0)


def test_parents_do_not_close_what_a_base_has_open(tmp_path: Path) -> None:
    """A file below /tmp brings a /tmp that everybody may write."""
    write_layer([Entry("tmp/x/y", b"")], tmp_path / "layer", epoch=0)
    assert members(tmp_path / "layer")["tmp"].mode == 0o1777


def test_a_folder_becomes_entries(tmp_path: Path) -> None:
    """Files, folders and links of a folder; modes made plain, unwanted names left out."""
    source = tmp_path / "s"
    (source / "sub" / "__pycache__").mkdir(parents=True)
    (source / "sub" / "__pycache__" / "x.pyc").write_bytes(b"")
    (source / "run").write_bytes(b"")
    (source / "run").chmod(0o700)
    (source / "sub" / "text").write_bytes(b"t")
    (source / "sub" / "text").chmod(0o600)
    (source / "link").symlink_to("run")
    entries = {e.path: e for e in folder_entries(source, "opt", skip=frozenset({"__pycache__"}))}
    assert set(entries) == {"opt", "opt/run", "opt/sub", "opt/sub/text", "opt/link"}
    assert (entries["opt/run"].bits, entries["opt/sub/text"].bits) == (0o755, 0o644)
    assert entries["opt/link"].content == Link("run")
    os.mkfifo(source / "pipe")
    with pytest.raises(ImageError, match="pipe"):
        list(folder_entries(source, "opt"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: None) -> None:
    """One clear line, and neither a layer nor a piece of one."""
    with pytest.raises(ImageError, match="cannot be written"):
        write_layer([Entry("w", os.urandom(200_000))], tmp_path / "layer", epoch=0)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, and one that grows or shrinks against its size, stop the layer."""
    with pytest.raises(ImageError, match="missing: cannot be read"):
        write_layer([Entry("w", tmp_path / "missing")], tmp_path / "layer", epoch=0)
    # Files of /proc say that they are empty, and are not.
    with pytest.raises(ImageError, match="changed while it was read"):
        write_layer([Entry("w", Path("/proc/self/status"))], tmp_path / "layer", epoch=0)
    assert list(tmp_path.iterdir()) == []
