"""The store: publish, labels, rollback, routes, removal, gc, verify, leases."""

from __future__ import annotations

import dataclasses
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from muelle.core.errors import (
    ArtifactError,
    BadRequest,
    Conflict,
    ModelNotFound,
    MuelleError,
    StoreError,
    VersionNotFound,
)
from muelle.core.records import (
    Example,
    RouteSpec,
    ServerLease,
    StoredFile,
    StoredTensor,
    VersionRecord,
)
from muelle.repository.digest import digest_artifact
from muelle.repository.store import Reference, Store, default_store
from muelle.repository.store.blobs import check_room
from muelle.repository.store.checkouts import tree_of
from muelle.repository.store.references import earlier
from muelle.repository.store.sources import list_sources

MB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True, wall=lambda: 1_800_000_000.0) as made:
        yield made


Publish = Callable[..., VersionRecord]


@pytest.fixture
def publish(store: Store, tmp_path: Path) -> Publish:
    """Publish a version whose one file holds a text; return its record."""

    def call(model: str = "fraud", content: str = "", **facts: object) -> VersionRecord:
        source = tmp_path / "model.bin"
        source.write_text(content or f"{model} {len(list(source.parent.rglob('*')))}")
        files = store.add_files(source)
        label = facts.pop("label", None)
        assert label is None or isinstance(label, str)
        record, created = store.publish(draft(files, model, **facts), label=label, who="ana")
        assert created
        return record

    return call


def draft(files: tuple[StoredFile, ...], model: str = "fraud", **facts: object) -> VersionRecord:
    plain = VersionRecord(
        model=model,
        version=0,
        digest=f"sha256:{files[0].sha256}",
        artifact=files[0].path,
        runtime="onnx",
        format="onnx",
        files=files,
    )
    return msgspec.structs.replace(plain, **facts)


def lease(*versions: tuple[str, int]) -> ServerLease:
    return ServerLease(id="one", pid=os.getpid(), host="here", socket="", url="", versions=versions)


def example(number: int, answer: int = 0) -> Example:
    def tensor(name: str, value: int) -> StoredTensor:
        return StoredTensor(name=name, datatype="UINT8", shape=(1, 1), content=bytes([value]))

    return Example(inputs=(tensor("x", number),), outputs=(tensor("y", answer),))


# --- opening ---


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"MUELLE_STORE": "/a/b", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/muelle/store"),
        ({"XDG_DATA_HOME": "not/absolute", "HOME": "/h"}, "/h/.local/share/muelle/store"),
        ({"HOME": "/h"}, "/h/.local/share/muelle/store"),
    ],
)
def test_the_default_store_follows_the_environment(env: dict[str, str], expected: str) -> None:
    """MUELLE_STORE, else XDG's data folder, else the one in the home folder."""
    assert default_store(env) == Path(expected)


def test_a_store_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    """Opening never makes a store unless it is asked to, and says how to make one."""
    with pytest.raises(ArtifactError, match="no store there; `muelle push"):
        Store.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_half_made_store_is_not_one_yet_and_can_be_made(tmp_path: Path) -> None:
    """A creation that was cut off before the schema was written is begun again."""
    (tmp_path / "store.db").touch()
    with pytest.raises(ArtifactError, match="no store there"):
        Store.open(tmp_path)
    Store.open(tmp_path, create=True).close()
    with Store.open(tmp_path) as store:
        assert store.models() == ()


def test_a_copy_without_its_empty_folders_is_whole(store: Store) -> None:
    """Backups that leave out empty folders can be opened and pushed to."""
    store.close()
    for name in ("incoming", "servers", "versions"):
        (store.folder / name).rmdir()
    with Store.open(store.folder) as copy:
        copy.add_files(Path(__file__))
        assert copy.verify().ok and copy.servers() == ()


def test_a_store_of_a_newer_muelle_is_refused(store: Store) -> None:
    """A schema from the future is neither read nor written."""
    with sqlite3.connect(store.folder / "store.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer Muelle \(schema 99, this one knows 1\)"):
        Store.open(store.folder)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Rubbish in place of the database is an error in words."""
    (tmp_path / "store.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(tmp_path)


def test_only_the_owner_may_look_into_a_store(store: Store) -> None:
    """Folders have mode 0700, blobs 0444."""
    store.add_files(Path(__file__))
    folders = [store.folder, *(p for p in store.folder.rglob("*") if p.is_dir())]
    assert {p.stat().st_mode & 0o777 for p in folders} == {0o700}
    (blob,) = store.folder.glob("blobs/sha256/*/*")
    assert blob.stat().st_mode & 0o777 == 0o444


# --- content ---


def test_a_folder_is_taken_in_with_its_names(store: Store, tmp_path: Path) -> None:
    """Every file has its relative name, size and SHA-256; the tree's digest is the folder's own."""
    source = tmp_path / "model"
    (source / "variables").mkdir(parents=True)
    (source / "saved_model.pb").write_bytes(b"graph")
    (source / "variables" / "data").write_bytes(b"w" * (MB + 1))
    seen: list[tuple[int, int]] = []

    files = store.add_files(source, lambda done, total: seen.append((done, total)))

    assert [(file.path, file.size) for file in files] == [
        ("saved_model.pb", 5),
        ("variables/data", MB + 1),
    ]
    assert f"sha256:{tree_of(files)}" == digest_artifact(source)
    assert seen[-1] == (MB + 6, MB + 6) and seen == sorted(seen)


def test_what_is_there_is_not_written_again(store: Store, publish: Publish) -> None:
    """The blob of a file that a version has already is kept as it is, and counts as new for gc."""
    record = publish(content="the same")
    (blob,) = store.folder.glob("blobs/sha256/*/*")
    os.utime(blob, (1, 1))
    before = blob.stat()
    source = store.folder.parent / "other.bin"
    source.write_text("the same")

    (file,) = store.add_files(source)

    assert file.sha256 == record.files[0].sha256
    assert blob.stat().st_ino == before.st_ino
    assert blob.stat().st_mtime > 1
    assert not list((store.folder / "incoming").iterdir())


def test_a_rotten_blob_is_replaced_by_the_next_push(store: Store, publish: Publish) -> None:
    """Pushing a file again heals it, also when its size is right."""
    record = publish(content="sound")
    rot(store, record.files[0])
    assert not store.verify().ok
    source = store.folder.parent / "again.bin"
    source.write_text("sound")
    store.add_files(source)
    assert store.verify().ok


@pytest.mark.parametrize("kind", ["file", "folder", "inside"])
def test_symbolic_links_are_refused(kind: str, store: Store, tmp_path: Path) -> None:
    """No link is followed, wherever it stands: what it names could lie outside, or change."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    source = tmp_path / "source"
    if kind == "file":
        source.symlink_to(secret / "key")
    elif kind == "folder":
        source.mkdir()
        (source / "sub").symlink_to(secret)
    else:
        source.mkdir()
        (source / "key").symlink_to(secret / "key")
    with pytest.raises(ArtifactError, match="symbolic link; put the file itself there"):
        store.add_files(source)
    assert not list(store.folder.glob("blobs/sha256/*/*"))


def test_a_pipe_is_refused_and_not_waited_for(store: Store, tmp_path: Path) -> None:
    """What is neither a file nor a folder is refused before it is opened."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        store.add_files(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["line\nbreak", "tab\t", "\udcff"])
def test_names_that_cannot_be_kept_are_refused(name: str, store: Store, tmp_path: Path) -> None:
    """Control characters and names that are no UTF-8."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / name).write_text("x")
    with pytest.raises(ArtifactError, match="rename"):
        store.add_files(tmp_path / "source")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "a\0b", "a/", "x" * 256]
)
def test_a_record_cannot_name_files_outside(name: str, store: Store, tmp_path: Path) -> None:
    """Names come from records of other stores too: none leads out of its folder."""
    (tmp_path / "m.bin").write_text("x")
    (file,) = store.add_files(tmp_path / "m.bin")
    bad = msgspec.structs.replace(file, path=name)
    with pytest.raises(ArtifactError):
        store.publish(draft((bad,)), who="ana")
    with pytest.raises(ArtifactError):
        store.checkout((bad,), f"sha256:{file.sha256}")


def test_an_empty_folder_and_a_missing_path_are_errors(store: Store, tmp_path: Path) -> None:
    """Nothing to push is said so."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no file"):
        store.add_files(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="no such file or folder"):
        store.add_files(tmp_path / "none")


def test_a_file_that_changes_meanwhile_is_refused(store: Store, tmp_path: Path) -> None:
    """What is read while it is written is nobody's version."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"a" * (3 * MB))

    def grow(done: int, total: int) -> None:
        with open(source, "ab") as file:
            file.write(b"more")

    with pytest.raises(ArtifactError, match="changed while it was read"):
        store.add_files(source, grow)
    assert not list(store.folder.glob("blobs/sha256/*/*"))
    assert not list((store.folder / "incoming").iterdir())


class Cut(Exception):
    """The push ends in the middle."""


def cut_at(n_bytes: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= n_bytes:
            raise Cut

    return progress


def bytes_written() -> int:
    """Return what this process has given to write calls so far."""
    found = re.search(r"^wchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no count of written bytes here")
@pytest.mark.parametrize("spoil", [False, True])
def test_a_copy_that_was_cut_off_is_continued(spoil: bool, store: Store, tmp_path: Path) -> None:
    """What has been copied is not written again; what was spoiled meanwhile is."""
    source = tmp_path / "model.bin"
    source.write_bytes(os.urandom(8 * MB))
    with pytest.raises(Cut):
        store.add_files(source, cut_at(6 * MB))
    (part,) = (store.folder / "incoming").iterdir()
    assert part.stat().st_size == 6 * MB
    if spoil:
        with open(part, "r+b") as file:
            file.write(b"not what was there")
    before = bytes_written()

    (stored,) = store.add_files(source)

    assert (bytes_written() - before < 3 * MB) is not spoil
    assert f"sha256:{stored.sha256}" == digest_artifact(source)
    assert store.verify().ok


def test_two_copies_of_one_file_at_once_do_not_meet(store: Store, tmp_path: Path) -> None:
    """While one copy is under way, another of the same file goes its own way."""
    source = tmp_path / "model.bin"
    source.write_bytes(os.urandom(3 * MB))
    inner: list[tuple[StoredFile, ...]] = []

    def push_in_between(done: int, total: int) -> None:
        if not inner:
            inner.append(())
            with Store.open(store.folder) as other:
                inner[0] = other.add_files(source)

    outer = store.add_files(source, push_in_between)

    assert outer == inner[0]
    assert store.verify().ok


def test_a_full_disk_says_how_much_is_missing(store: Store, tmp_path: Path) -> None:
    """A file that cannot fit is refused before it is copied, with the bytes that are missing."""
    (tmp_path / "model.bin").write_bytes(b"x")
    (small,) = list_sources(tmp_path / "model.bin")
    huge = dataclasses.replace(small, size=1 << 60, on_disk=1 << 60)
    with (
        open(tmp_path / "part", "wb") as part,
        pytest.raises(StoreError, match=r"disk is full: [\d,.]+ MB are missing; free some"),
    ):
        check_room(huge, part.fileno())


def push_sparse(folder: Path, size: int) -> int:
    """Add a sparse file in a process of its own; return its largest memory in bytes."""
    source = folder / "big.bin"
    source.touch()
    os.truncate(source, size)
    with open(source, "r+b") as file:
        file.seek(size // 2)
        file.write(b"not only zeros")
    program = (
        "import re, sys; from pathlib import Path\n"
        "from muelle.repository.store import Store\n"
        "store = Store.open(Path(sys.argv[1]), create=True)\n"
        "(file,) = store.add_files(Path(sys.argv[2]))\n"
        "assert store.folder.joinpath('blobs/sha256', file.sha256[:2], file.sha256).stat().st_size"
        f" == {size}\n"
        # Not ru_maxrss: that starts with what the parent had, before the exec.
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    command = [sys.executable, "-c", program, str(folder / "sparse-store"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    """300 MB are taken in with less than 100 MB of memory, all of Python included."""
    assert push_sparse(tmp_path, 300 * MB) < 100e6


@pytest.mark.slow
def test_5_gb_are_taken_in_with_little_memory(tmp_path: Path) -> None:
    """The goal of the issue: a sparse file of 5 GB, memory below 100 MB."""
    assert push_sparse(tmp_path, 5_000_000_000) < 100e6


# --- checkouts ---


def test_a_checkout_has_the_files_under_their_names(store: Store, tmp_path: Path) -> None:
    """Files are links to the blobs, read-only; asking again gives the same folder untouched."""
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "a.bin").write_text("a")
    (source / "sub" / "b.bin").write_text("b")
    files = store.add_files(source)
    place = store.checkout(files, digest_artifact(source))
    made = place.stat().st_mtime_ns

    assert (place / "sub" / "b.bin").read_text() == "b"
    assert digest_artifact(place) == digest_artifact(source)
    assert (place / "a.bin").stat().st_nlink == 2
    assert store.checkout(files, digest_artifact(source)) == place
    assert place.stat().st_mtime_ns == made


def test_one_content_under_two_names_has_two_checkouts(store: Store, tmp_path: Path) -> None:
    """A lone file's digest does not know its name; its folder does."""
    places = []
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_text("same")
        files = store.add_files(tmp_path / name)
        places.append(store.checkout(files, f"sha256:{files[0].sha256}"))
    assert [[p.name for p in place.iterdir()] for place in places] == [["a.bin"], ["b.bin"]]


def test_external_data_of_onnx_gets_files_of_its_own(store: Store, tmp_path: Path) -> None:
    """The loader of ONNX refuses linked data files, so a checkout copies them."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "model.onnx").write_text("graph")
    (source / "weights").write_text("weights")
    place = store.checkout(store.add_files(source), digest_artifact(source))
    assert {p.stat().st_nlink for p in place.iterdir()} == {1}
    assert {p.stat().st_mode & 0o777 for p in place.iterdir()} == {0o444}


def test_a_damaged_checkout_is_made_again(store: Store, publish: Publish) -> None:
    """Verify names it, and the next checkout puts it right."""
    record = publish(content="whole")
    place = store.checkout(record.files, record.digest)
    (place / "model.bin").unlink()
    (problem,) = store.verify().problems
    assert problem.kind == "checkout" and problem.versions == (("fraud", 1),)

    store.checkout(record.files, record.digest)

    assert (place / "model.bin").read_text() == "whole"
    assert store.verify().ok


def test_a_checkout_of_a_missing_content_is_an_error(store: Store) -> None:
    """It says which file, and leaves nothing behind."""
    file = StoredFile(path="m.bin", size=1, sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"m\.bin: its content is not in the store"):
        store.checkout((file,), "sha256:" + "0" * 64)
    assert not list((store.folder / "versions").iterdir())


# --- versions ---


def test_versions_count_up_and_the_first_is_stable(store: Store, publish: Publish) -> None:
    """The first version gets `stable` by itself; later ones only when asked."""
    first, second = publish(), publish()
    assert (first.version, second.version) == (1, 2)
    assert (first.created, first.who) == ("2027-01-15T08:00:00Z", "ana")
    assert store.labels("fraud") == {"stable": 1}
    assert store.record("fraud", 2) == second


def test_the_first_version_can_go_without_a_label(store: Store, publish: Publish) -> None:
    """An empty label means none; the model then means its newest version."""
    publish(label="")
    publish(label="")
    assert store.labels("fraud") == {}
    assert store.resolve(Reference.parse("fraud")) == ("fraud", 2)


def test_the_same_again_is_the_same_version(store: Store, tmp_path: Path) -> None:
    """Equal files, environment and example requests make no new version, unless forced."""
    (tmp_path / "m.bin").write_text("x")
    plain = draft(store.add_files(tmp_path / "m.bin"), examples=(example(1, answer=5),))
    first, created = store.publish(plain, who="ana")
    again = store.publish(
        msgspec.structs.replace(plain, note="again", examples=(example(1, answer=6),)),
        label="canary",
        who="ana",
    )
    assert created and again == (first, False)
    assert store.labels("fraud") == {"canary": 1, "stable": 1}

    for changed in (
        msgspec.structs.replace(plain, examples=(example(2),)),
        msgspec.structs.replace(plain, environment="sha256:" + "e" * 64),
    ):
        assert store.publish(changed, who="ana")[1]
    assert store.publish(plain, who="ana", force=True)[0].version == 4


def test_a_number_never_comes_twice(store: Store, publish: Publish) -> None:
    """What was called fraud:2 once is never another fraud:2, also when the model was empty."""
    publish(label="")
    publish(label="")
    for version in (1, 2):
        store.remove("fraud", version, who="ana")
    assert store.models() == ()
    assert publish().version == 3


def test_a_wanted_number_is_kept_when_it_is_free(store: Store, tmp_path: Path) -> None:
    """A version from another store keeps its number, unless that was given away here."""
    (tmp_path / "m.bin").write_text("x")
    plain = draft(store.add_files(tmp_path / "m.bin"))
    numbers = [
        store.publish(plain, who="ana", force=True, number=wanted)[0].version
        for wanted in (7, 3, 7, 0)
    ]
    assert numbers == [7, 3, 8, 9]


def test_a_version_needs_its_content(store: Store, tmp_path: Path) -> None:
    """A record whose files are not in the store is refused: nothing is published."""
    (tmp_path / "m.bin").write_text("x")
    (file,) = store.add_files(tmp_path / "m.bin")
    for bad in (
        msgspec.structs.replace(file, sha256="0" * 64),
        msgspec.structs.replace(file, size=2),
    ):
        with pytest.raises(ArtifactError, match="push"):
            store.publish(draft((bad,)), who="ana")
    assert store.models() == ()


@pytest.mark.parametrize(
    ("facts", "label", "message"),
    [
        ({"model": "My Model"}, None, "perhaps 'my-model'"),
        ({"files": ()}, None, "needs a file"),
        ({"digest": "md5:1"}, None, "not a version's digest"),
        ({"metrics": {"auc": float("nan")}}, None, "auc is nan"),
        ({}, "2", "cannot be a label"),
        ({}, "Stable!", "cannot be a label"),
    ],
)
def test_what_cannot_be_a_version_is_refused(
    facts: dict[str, object], label: str | None, message: str, store: Store, tmp_path: Path
) -> None:
    """Names, digests and numbers are checked before anything is written."""
    (tmp_path / "m.bin").write_text("x")
    plain = msgspec.structs.replace(draft(store.add_files(tmp_path / "m.bin")), **facts)
    with pytest.raises(MuelleError, match=re.escape(message)):
        store.publish(plain, label=label, who="ana")
    assert store.generation() == 0


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("fruad", ModelNotFound, "fruad: no such model in the store; near it is: fraud"),
        ("zzz", ModelNotFound, "`muelle list` shows the models"),
        ("fraud:9", VersionNotFound, "fraud:9: no such version; there are 1"),
        ("fraud@stabel", VersionNotFound, "fraud@stabel: no such label; near it is: stable"),
        ("fraud@x", VersionNotFound, "fraud@x: no such label; it has stable"),
        ("fraud:stable", BadRequest, "(a label is written with @: @stable)"),
        ("fraud:1@stable", BadRequest, "not both"),
        ("fraud:0", BadRequest, "'0' is no version's number"),
        ("Fraud", BadRequest, "perhaps 'fraud'"),
        ("fraud@7", BadRequest, "cannot be a label"),
    ],
)
def test_mistyped_references_get_a_hint(
    reference: str, error: type[MuelleError], message: str, store: Store, publish: Publish
) -> None:
    """Every wrong name says what a right one is."""
    publish()
    with pytest.raises(error, match=re.escape(message)):
        store.resolve(Reference.parse(reference))


def test_references_name_versions(store: Store, publish: Publish) -> None:
    """By number, by label, or as what is stable; and they print as they are written."""
    publish()
    publish(label="canary")
    for text, version in (("fraud", 1), ("fraud:2", 2), ("fraud@canary", 2)):
        reference = Reference.parse(text)
        assert store.resolve(reference) == ("fraud", version)
        assert str(reference) == text


def test_lists_read_no_record(store: Store, publish: Publish) -> None:
    """`models`, `versions` and `labels` answer although no record can be read any more."""
    for name in ("churn", "fraud"):
        publish(name, note="first")
        publish(name, label="canary")
    with sqlite3.connect(store.folder / "store.db") as connection:
        connection.execute("UPDATE records SET record = x'00'")
    connection.close()

    churn, fraud = store.models()

    assert (fraud.model, fraud.n_versions, fraud.newest) == ("fraud", 2, 2)
    assert fraud.labels == {"canary": 2, "stable": 1}
    assert churn.model == "churn"
    rows = store.versions("fraud")
    assert [(row.version, row.note, row.labels) for row in rows] == [
        (2, "", ("canary",)),
        (1, "first", ("stable",)),
    ]
    with pytest.raises(ArtifactError, match="record is damaged"):
        store.record("fraud", 1)
    assert {p.kind for p in store.verify().problems} == {"record"}


def test_a_list_imports_no_numpy(store: Store, publish: Publish) -> None:
    """What `muelle list` needs of the store starts light."""
    publish()
    program = (
        "import sys; from pathlib import Path; from muelle.repository.store import Store\n"
        "print(len(Store.open(Path(sys.argv[1])).models()))\n"
        "assert not {'numpy', 'orjson', 'fastapi'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(store.folder)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"1\n"


# --- labels and rollback ---


def test_labels_move_and_are_written_down(store: Store, publish: Publish) -> None:
    """Each movement has one line in the history; a movement to where it stands has none."""
    publish()
    publish()
    change = store.set_label("fraud", "stable", 2, who="bo", reason="label: better")
    same = store.set_label("fraud", "stable", 2, who="bo")
    gone = store.remove_label("fraud", "stable", who="bo")

    assert (change.previous, change.version) == (1, 2)
    assert (same.previous, same.version) == (2, 2)
    assert (gone.previous, gone.version) == (2, None)
    assert [(c.version, c.who, c.reason) for c in store.history("fraud", "stable")] == [
        (None, "bo", "label"),
        (2, "bo", "label: better"),
        (1, "ana", "push"),
    ]


def test_a_label_can_only_name_what_is_there(store: Store, publish: Publish) -> None:
    """Unknown versions and models leave labels as they are."""
    publish()
    with pytest.raises(VersionNotFound):
        store.set_label("fraud", "stable", 5, who="ana")
    with pytest.raises(ModelNotFound):
        store.set_label("fruad", "stable", 1, who="ana")
    with pytest.raises(VersionNotFound, match="no such label"):
        store.remove_label("fraud", "canary", who="ana")
    assert store.all_labels() == {"fraud": {"stable": 1}}


def test_two_rollbacks_go_further_back(store: Store, publish: Publish) -> None:
    """Not to and fro; and when nothing is left it says so and what to do."""
    for _ in range(3):
        publish(label="stable")
    assert store.rollback_target("fraud") == 2
    assert store.rollback("fraud", who="ana").version == 2
    assert store.rollback("fraud", who="ana").version == 1
    with pytest.raises(Conflict, match=r"no other version before.*`muelle label fraud:VERSION"):
        store.rollback("fraud", who="ana")
    store.set_label("fraud", "stable", 3, who="ana")
    assert store.rollback("fraud", who="ana").version == 1


def test_a_rollback_passes_over_what_was_removed(store: Store, publish: Publish) -> None:
    """The next one that is still there."""
    for _ in range(3):
        publish(label="stable")
    store.remove("fraud", 2, who="ana")
    assert store.rollback("fraud", who="ana").version == 1


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([], []),
        ([(1, False)], []),
        ([(1, False), (2, False), (3, False)], [2, 1]),
        ([(1, False), (2, False), (3, False), (2, True)], [1]),
        ([(1, False), (2, False), (1, True)], []),
        ([(1, False), (2, False), (1, True), (3, False)], [1]),
        ([(1, False), (2, False), (1, False)], [2, 1]),
        ([(1, False), (2, False), (None, False)], [2, 1]),
        ([(1, False), (None, False), (2, False)], [1]),
        ([(1, False), (2, False), (None, False), (2, True)], [1]),
    ],
)
def test_what_a_label_named_before(
    moves: list[tuple[int | None, bool]], expected: list[int]
) -> None:
    """The rule of rollbacks as a table."""
    assert earlier(moves) == expected


# --- routes ---


def test_a_route_is_kept_and_cleared(store: Store, publish: Publish) -> None:
    """It comes back as it was set; targets are labels or numbers."""
    publish()
    publish(label="canary")
    spec = RouteSpec(weights={"stable": 95, "2": 5}, sticky="header:x-user", shadow="canary")
    store.set_route("fraud", spec, who="ana")
    assert store.route("fraud") == spec
    assert store.routes() == {"fraud": spec}
    assert store.models()[0].route == spec
    store.set_route("fraud", None, who="ana")
    assert store.route("fraud") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RouteSpec(weights={}), "needs a target"),
        (RouteSpec(weights={"stable": 0}), "all shares are 0"),
        (RouteSpec(weights={"stable": -1}), "a share is a number"),
        (RouteSpec(weights={"stable": float("inf")}), "a share is a number"),
        (RouteSpec(weights={"stable": 1}, sticky="cookie:x"), "write header:<name>"),
        (RouteSpec(weights={"stabel": 1}), "near it is: stable"),
        (RouteSpec(weights={"7": 1}), "no such version"),
        (RouteSpec(weights={"stable": 1}, shadow="canary"), "no such label"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(
    spec: RouteSpec, message: str, store: Store, publish: Publish
) -> None:
    """Shares, keys and targets are checked; the old route stays."""
    publish()
    with pytest.raises(MuelleError, match=message):
        store.set_route("fraud", spec, who="ana")
    assert store.routes() == {}


# --- removal, gc, verify ---


def test_what_is_in_use_is_not_removed(store: Store, publish: Publish) -> None:
    """A label, a route and a living server each hold a version; the error names all of them."""
    publish(label="")
    publish(label="canary")
    store.set_label("fraud", "stable", 1, who="ana")
    store.set_route("fraud", RouteSpec(weights={"stable": 1, "2": 1}), who="ana")
    held = store.lease(lease(("fraud", 2)))
    with pytest.raises(Conflict, match=r"label canary names it.*route of fraud.*server one"):
        store.remove("fraud", 2, who="ana")

    store.set_route("fraud", RouteSpec(weights={"canary": 1}), who="ana")
    with pytest.raises(Conflict, match="sends traffic to it"):
        store.remove_label("fraud", "canary", who="ana")
    store.set_route("fraud", None, who="ana")
    store.remove_label("fraud", "canary", who="ana")
    held.update(lease(("fraud", 1)))
    store.remove("fraud", 2, who="ana")
    assert [row.version for row in store.versions("fraud")] == [1]
    held.close()


def test_gc_removes_what_nothing_refers_to(store: Store, publish: Publish) -> None:
    """Blobs, checkouts, half copies, environments and dead leases, after their time of grace."""
    kept = publish(content="kept", environment="sha256:" + "e" * 64)
    gone = publish(content="removed later")
    for record in (kept, gone):
        store.checkout(record.files, record.digest)
    store.remove("fraud", gone.version, who="ana")
    for name in ("e" * 64, "f" * 64, "wheels"):
        (store.folder / "environments" / name).mkdir(parents=True)
    (store.folder / "incoming" / "cut").write_bytes(b"half")
    (store.folder / "versions" / ".new-1").mkdir()
    (store.folder / "servers" / "dead.json").write_bytes(msgspec.json.encode(lease()))

    now = (store.folder / "incoming" / "cut").stat().st_mtime
    young = store.gc(now=now + 60)
    assert (young.blobs, young.checkouts, young.incoming, young.environments) == (0, 0, 0, 0)
    plan = store.gc(now=now + 7200, dry_run=True)
    done = store.gc(now=now + 7200)

    assert (done.blobs, done.checkouts, done.incoming, done.environments) == (1, 2, 1, 1)
    assert young.leases == 1
    assert done.bytes_freed == len("removed later") + len("half")
    assert (plan.removed, plan.bytes_freed) == (done.removed, done.bytes_freed)
    assert store.gc(grace_s=0).removed == ()
    left = sorted(p.name for p in (store.folder / "environments").iterdir())
    assert left == ["e" * 64, "wheels"]
    assert store.verify().ok
    assert store.checkout(kept.files, kept.digest).exists()


def test_gc_leaves_a_push_in_peace(store: Store, tmp_path: Path) -> None:
    """Between copying and publishing, gc is refused: here and in another process's store."""
    (tmp_path / "m.bin").write_text("x")
    with Store.open(store.folder) as other:
        files = other.add_files(tmp_path / "m.bin")
        with pytest.raises(Conflict, match="a push is under way"):
            store.gc(grace_s=0)
        other.publish(draft(files), who="ana")
        store.gc(grace_s=0)
        other.add_files(tmp_path / "m.bin")
        other.abandon()
        store.gc(grace_s=0)
    assert store.verify().ok


def rot(store: Store, file: StoredFile) -> None:
    """Change one byte of a blob behind the store's back."""
    blob = store.folder / "blobs" / "sha256" / file.sha256[:2] / file.sha256
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)


def test_verify_names_what_rots(store: Store, publish: Publish) -> None:
    """One flipped bit, one missing blob: the file and every version that uses it are named."""
    assert store.verify().ok
    first = publish(content="rotting", label="")
    publish("churn", content="rotting")
    missing = publish(content="missing")
    rot(store, first.files[0])
    sha256 = missing.files[0].sha256
    (store.folder / "blobs" / "sha256" / sha256[:2] / sha256).unlink()
    seen: list[tuple[int, int]] = []

    report = store.verify(lambda done, total: seen.append((done, total)))

    assert [(p.kind, p.path, p.versions) for p in report.problems] == [
        ("rotten", "model.bin", (("churn", 1), ("fraud", 1))),
        ("missing", "model.bin", (("fraud", 2),)),
    ]
    assert "push the same file again" in report.problems[0].text
    assert seen[-1] == (report.size, report.size)
    with pytest.raises(ArtifactError, match=r"model\.bin: its content has changed"):
        store.rehash(first.files)


def test_verify_finds_tables_that_disagree(store: Store, publish: Publish) -> None:
    """A record that names other files than the tables, or a row without a version."""
    publish(content="one")
    with sqlite3.connect(store.folder / "store.db") as connection:
        connection.execute("UPDATE files SET sha256 = replace(sha256, 'a', 'b')")
        connection.execute("INSERT INTO labels VALUES ('ghost', 'stable', 9)")
    connection.close()
    kinds = [problem.kind for problem in store.verify().problems]
    assert "database" in kinds and "record" in kinds


# --- several processes ---


def test_the_generation_rises_with_every_change_and_only_then(
    store: Store, publish: Publish
) -> None:
    """Other openings of the store see it; reading and doing nothing leave it as it is."""
    with Store.open(store.folder) as other:
        seen = [other.generation()]
        publish()
        seen.append(other.generation())
        publish()
        store.set_label("fraud", "stable", 2, who="ana")
        seen.append(other.generation())
        store.set_route("fraud", RouteSpec(weights={"stable": 1}), who="ana")
        seen.append(other.generation())
        store.remove("fraud", 1, who="ana")
        seen.append(other.generation())
    assert seen == sorted(set(seen))
    before = store.generation()
    store.set_label("fraud", "stable", 2, who="ana")
    store.models(), store.verify(), store.gc()
    assert store.generation() == before


def test_a_lease_ends_with_its_process(store: Store) -> None:
    """A server that was killed holds nothing: its lease is not listed, and gc removes the file."""
    program = (
        "import sys, os; from pathlib import Path; from muelle.repository.store import Store\n"
        "from muelle.core.records import ServerLease\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "held = store.lease(ServerLease(id='other', pid=1, host='h', socket='', url='u'))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert [server.id for server in store.servers()] == ["other"]
        assert store.gc(grace_s=0).leases == 0
        child.kill()
    assert store.servers() == ()
    assert store.gc(grace_s=0).leases == 1


def test_a_lease_that_is_updated_is_never_seen_dead(store: Store) -> None:
    """Updates replace the file; the newest content is what others read; close takes it away."""
    held = store.lease(lease())
    for number in range(1, 20):
        held.update(lease(("fraud", number)))
        assert [server.versions for server in store.servers()] == [(("fraud", number),)]
    assert len(list((store.folder / "servers").iterdir())) == 1
    held.close()
    held.close()
    assert store.servers() == () and not list((store.folder / "servers").iterdir())


def test_two_processes_push_at_once(store: Store, tmp_path: Path) -> None:
    """Every push gets a number of its own, none is lost, and all is whole afterwards."""
    program = (
        "import sys; from pathlib import Path; from muelle.repository.store import Store\n"
        "from muelle.core.records import VersionRecord\n"
        "folder, me = Path(sys.argv[1]), sys.argv[2]\n"
        "for n in range(10):\n"
        "    source = folder.parent / f'{me}.bin'; source.write_text(f'{me if n % 2 else 0} {n}')\n"
        "    with Store.open(folder, create=True) as store:\n"
        "        files = store.add_files(source)\n"
        "        store.publish(VersionRecord(model='fraud', version=0, artifact='', runtime='r',\n"
        "            digest='sha256:' + files[0].sha256, format='f', files=files, note=me),\n"
        "            who=me, label='stable', force=True)\n"
    )
    folder = tmp_path / "shared"
    pushers = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), name]) for name in "ab"
    ]
    assert [pusher.wait() for pusher in pushers] == [0, 0]
    with Store.open(folder) as both:
        rows = both.versions("fraud")
        assert [row.version for row in rows] == list(range(20, 0, -1))
        assert sorted(row.note for row in rows) == ["a"] * 10 + ["b"] * 10
        assert len(both.history("fraud")) == 20
        assert both.verify().ok
        assert both.gc(grace_s=0).removed == ()
