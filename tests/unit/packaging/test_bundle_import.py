"""From one store into a bundle and into another store: the same, once, and nothing believed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from muelle.core.errors import ArtifactError, SignatureInvalid, StoreError
from muelle.core.records import VersionRecord
from muelle.packaging.bundle import BundleHeader, Member, write_bundle
from muelle.packaging.bundle_format import BundledVersion
from muelle.packaging.bundle_read import read_member, verify_bundle
from muelle.packaging.signing import (
    PrivateKey,
    add_signature,
    key_id,
    new_key,
    read_signatures,
    sign_record,
    verify_record,
)
from muelle.packaging.signing_policy import SignaturePolicy
from muelle.publishing.bundles import Extras, Imported, gather, import_bundle, labels_to_move
from muelle.publishing.push import Options, push
from muelle.repository.store import Store
from tests import models
from tests.stores import label, push_stamped

Change = Callable[[list[Member], BundleHeader], tuple[list[Member], BundleHeader]]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of code, and one of an ONNX file whose content is there twice."""
    folder = tmp_path_factory.mktemp("origin") / "store"
    push_stamped(folder, 1, 2, label="stable")
    label(folder, "stamped", "canary", 1)
    with Store.open(folder) as store:
        for name in ("fraud", "twin"):
            push(store, models.onnx_classifier().path, Options(name=name), who="test")
    return folder


def pack(origin: Path, target: Path, *names: str, change: Change | None = None) -> Path:
    """Write a bundle of versions (`fraud:1`), perhaps changed on the way."""
    with Store.open(origin) as store:
        parts = [name.partition(":") for name in names]
        records = [store.record(model, int(number)) for model, _, number in parts]
        members, header = gather(store, records, Extras(), epoch=0)
        if change is not None:
            members, header = change(members, header)
        return write_bundle(target, members, header).path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store.open(tmp_path / "store", create=True) as found:
        yield found


def take(store: Store, path: Path, *, trust: bool = False) -> tuple[Imported, ...]:
    """Verify and import a bundle."""
    return import_bundle(store, path, verify_bundle(path), who="test", trust=trust)


def facts(record: VersionRecord) -> VersionRecord:
    """A record without what differs from store to store."""
    return msgspec.structs.replace(record, created="", who="", host="")


def test_versions_come_in_as_they_were(origin: Path, store: Store, tmp_path: Path) -> None:
    """Files, signature, examples, number: all as in the store that they come from."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1", "stamped:2")
    imported = take(store, path, trust=True)
    assert [(one.record.model, one.record.version) for one in imported] == [
        ("fraud", 1),
        ("stamped", 2),
    ]
    assert all(one.created for one in imported)
    with Store.open(origin) as other:
        for one in imported:
            theirs = other.record(one.record.model, one.record.version)
            assert facts(one.record) == facts(theirs)
            mine = store.checkout(one.record.files, one.record.digest)
            for file in theirs.files:
                there = other.checkout(theirs.files, theirs.digest) / file.path
                assert (mine / file.path).read_bytes() == there.read_bytes()
    assert store.verify().ok


def test_the_same_store_gives_the_same_bundle(origin: Path, tmp_path: Path) -> None:
    """Bit for bit."""
    first = pack(origin, tmp_path / "a.muelle", "fraud:1", "stamped:1")
    second = pack(origin, tmp_path / "b.muelle", "fraud:1", "stamped:1")
    assert first.read_bytes() == second.read_bytes()


def test_a_content_is_packed_once(origin: Path, tmp_path: Path) -> None:
    """Two models of the same file."""
    index = verify_bundle(pack(origin, tmp_path / "x.muelle", "fraud:1", "twin:1"))
    assert len(index.of_kind("record")) == 2
    assert len(index.of_kind("model")) == 1


def test_a_second_import_changes_nothing(origin: Path, store: Store, tmp_path: Path) -> None:
    """Each version is unchanged, and nothing is copied again."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1", "twin:1")
    first = take(store, path)
    blobs = {p: p.stat().st_ino for p in (store.folder / "blobs").rglob("*") if p.is_file()}
    second = take(store, path)
    assert [one.created for one in second] == [False, False]
    assert [one.record for one in second] == [one.record for one in first]
    after = {p: p.stat().st_ino for p in (store.folder / "blobs").rglob("*") if p.is_file()}
    assert after == blobs
    assert not list((store.folder / "incoming").iterdir())


def test_a_number_that_is_taken_is_replaced(origin: Path, store: Store, tmp_path: Path) -> None:
    """Another fraud:1 is here already: theirs becomes 2, and says what it was."""
    push(store, models.onnx_halves().path, Options(name="fraud"), who="test")
    (one,) = take(store, pack(origin, tmp_path / "x.muelle", "fraud:1"))
    assert (one.record.version, one.origin.version) == (2, 1)


def test_code_needs_trust(origin: Path, store: Store, tmp_path: Path) -> None:
    """Said before anything is copied."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1", "stamped:1")
    with pytest.raises(ArtifactError, match="stamped:1: .* add --trust"):
        take(store, path)
    assert store.models() == ()
    assert not list((store.folder / "blobs" / "sha256").rglob("*"))


def test_a_bundle_of_nothing_brings_nothing(store: Store, tmp_path: Path) -> None:
    """Wheels alone, say."""
    path = write_bundle(tmp_path / "x.muelle", [], BundleHeader(epoch=0)).path
    assert take(store, path) == ()


# --- records that deceive ---


def with_record(change: Callable[[VersionRecord], VersionRecord]) -> Change:
    """Pack another record in place of the first."""

    def changed(members: list[Member], header: BundleHeader) -> tuple[list[Member], BundleHeader]:
        found = []
        for member in members:
            if member.kind == "record":
                assert isinstance(member.source, bytes)
                record = change(msgspec.json.decode(member.source, type=VersionRecord))
                member = Member(member.name, "record", msgspec.json.encode(record))
            found.append(member)
        return found, header

    return changed


def without(kind: str) -> Change:
    """Leave the members of a kind out."""
    return lambda members, header: ([m for m in members if m.kind != kind], header)


def other_file(record: VersionRecord, **facts: object) -> VersionRecord:
    """The record with another first file."""
    first, *rest = record.files
    files = (msgspec.structs.replace(first, **facts), *rest)
    return msgspec.structs.replace(record, files=files)


@pytest.mark.parametrize(
    "change",
    [
        without("model"),
        with_record(lambda r: other_file(r, path="../../evil.onnx")),
        with_record(lambda r: other_file(r, path="/etc/evil.onnx")),
        with_record(lambda r: other_file(r, size=7)),
        with_record(lambda r: other_file(r, sha256="0" * 64)),
        with_record(lambda r: other_file(r, sha256="../../../etc/passwd")),
        with_record(lambda r: msgspec.structs.replace(r, files=())),
        with_record(lambda r: msgspec.structs.replace(r, model="other")),
        with_record(lambda r: msgspec.structs.replace(r, version=9)),
        with_record(lambda r: msgspec.structs.replace(r, digest="sha256:" + "0" * 64)),
        with_record(lambda r: msgspec.structs.replace(r, artifact="../x")),
        with_record(lambda r: msgspec.structs.replace(r, format="XGBoost")),
        lambda members, header: (
            [replace(m, source=b"{") if m.kind == "record" else m for m in members],
            header,
        ),
        lambda members, header: (
            [replace(m, source=b"\xff[[") if m.kind == "record" else m for m in members],
            header,
        ),
        lambda members, header: (
            members,
            replace(header, versions=(replace(header.versions[0], digest=f"sha256:{'1' * 64}"),)),
        ),
    ],
)
def test_a_record_that_deceives_is_refused(
    origin: Path, store: Store, tmp_path: Path, change: Change
) -> None:
    """The file is whole, but what it says of its version is not so: nothing is published."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1", change=change)
    with pytest.raises(ArtifactError):
        take(store, path)
    assert store.models() == ()
    assert not (tmp_path / "evil.onnx").exists()


def test_a_record_that_hides_code_is_found_out(origin: Path, store: Store, tmp_path: Path) -> None:
    """It says that loading runs no code; the file itself says otherwise."""
    change = with_record(lambda r: msgspec.structs.replace(r, runs_code=False))
    path = pack(origin, tmp_path / "x.muelle", "stamped:1", change=change)
    with pytest.raises(ArtifactError, match="--trust"):
        take(store, path)
    assert store.models() == ()


def test_what_changes_after_the_check_is_refused(
    origin: Path, store: Store, tmp_path: Path
) -> None:
    """The bundle is hashed again while it is copied."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1")
    index = verify_bundle(path)
    (entry,) = index.of_kind("model")
    content = bytearray(path.read_bytes())
    content[entry.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not the one that was packed"):
        import_bundle(store, path, index, who="test")
    assert store.models() == ()


def test_a_disk_without_room_is_told_first(origin: Path, store: Store, tmp_path: Path) -> None:
    """Nothing is copied when it cannot all be; the line says how much is needed."""
    huge = 2**60
    change = with_record(lambda record: other_file(record, size=huge))
    path = pack(origin, tmp_path / "x.muelle", "fraud:1", change=change)
    index = verify_bundle(path)
    members = (replace(one, size=huge) if one.kind == "model" else one for one in index.members)
    with pytest.raises(StoreError, match="MB are free"):
        import_bundle(store, path, replace(index, members=tuple(members)), who="test")
    assert store.models() == ()


# --- cut off in the middle ---

KILLED = """
import os, signal, sys
from pathlib import Path
from muelle.packaging.bundle_read import verify_bundle
from muelle.publishing.bundles import import_bundle
from muelle.repository.store import Store

path, folder, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
seen = 0

def progress(phase, done, total):
    global seen
    seen += 1
    if seen == limit:
        os.kill(os.getpid(), signal.SIGKILL)

with Store.open(folder, create=True) as store:
    import_bundle(store, path, verify_bundle(path), who="test", trust=True, progress=progress)
print(seen)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model with three files of 3 MB each, which differ."""
    folder = tmp_path_factory.mktemp("large")
    model = folder / "weights"
    model.mkdir()
    (model / "model.py").write_text(
        "from muelle import Model, TensorSpec\n\n\n"
        "class Echo(Model):\n"
        '    inputs = [TensorSpec(name="x", datatype="FP64", shape=(-1,))]\n'
        '    outputs = [TensorSpec(name="y", datatype="FP64", shape=(-1,))]\n\n'
        '    def predict(self, inputs):\n        return {"y": inputs["x"]}\n'
    )
    for n in range(3):
        (model / f"part-{n}.bin").write_bytes(bytes([n + 1]) * 3_000_000)
    with Store.open(folder / "store", create=True) as store:
        push(store, model, Options(name="large", trust=True), who="test")
    return pack(folder / "store", folder / "large.muelle", "large:1")


def killed_at(large: Path, folder: Path, limit: int) -> int:
    """Import in a process that kills itself after so many steps; return its exit status."""
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(large), str(folder), str(limit)], check=False
    ).returncode


@pytest.mark.parametrize("limit", [1, 3, 6, 9])
def test_an_import_that_was_killed_goes_on(large: Path, tmp_path: Path, limit: int) -> None:
    """Killed anywhere: nothing is published; the next one ends it and leaves nothing behind."""
    folder = tmp_path / "store"
    assert killed_at(large, folder, limit) == -9
    with Store.open(folder) as store:
        assert store.models() == ()
        there = {p.name: p.stat().st_mtime_ns for p in (folder / "blobs").rglob("*") if p.is_file()}
        (one,) = take(store, large, trust=True)
        assert one.created
        assert not list((folder / "incoming").iterdir())
        for name in there:
            assert (folder / "blobs" / "sha256" / name[:2] / name).is_file()
        checked = store.checkout(one.record.files, one.record.digest)
        assert (checked / "part-2.bin").read_bytes() == b"\x03" * 3_000_000


def test_the_killed_import_would_have_ended(large: Path, tmp_path: Path) -> None:
    """Negative control: with a limit beyond its steps it ends well."""
    assert killed_at(large, tmp_path / "store", 10_000) == 0


def test_contents_that_are_there_are_not_read_again(large: Path, tmp_path: Path) -> None:
    """After a cut, only what is missing is copied: what is there keeps its file."""
    folder = tmp_path / "store"
    assert killed_at(large, folder, 6) == -9
    before = {p: p.stat().st_ino for p in (folder / "blobs").rglob("*") if p.is_file()}
    assert before
    with Store.open(folder) as store:
        take(store, large, trust=True)
    assert {p: p.stat().st_ino for p in before} == before


def test_a_rotten_content_is_replaced(large: Path, tmp_path: Path) -> None:
    """A content of the store whose bytes have changed on the disk is taken from the bundle."""
    folder = tmp_path / "store"
    with Store.open(folder, create=True) as store:
        take(store, large, trust=True)
        place = next(p for p in (folder / "blobs").rglob("*") if p.stat().st_size == 3_000_000)
        place.chmod(0o644)
        with open(place, "r+b") as stream:
            stream.write(b"rot")
        shutil.rmtree(folder / "versions")
        (folder / "versions").mkdir()
        (one,) = take(store, large, trust=True)
        store.rehash(one.record.files)


# --- labels ---


def came(model: str, version: int, *labels: str, now: int = 0) -> Imported:
    """A version that came in, under another number perhaps."""
    record = VersionRecord(
        model=model, version=now or version, digest="", artifact="", runtime="onnx", format="ONNX"
    )
    return Imported(record, True, BundledVersion(model, version, "", labels))


@pytest.mark.parametrize(
    ("imported", "existing", "options", "wanted"),
    [
        # A model without any label gets stable, on what was stable there, else on the newest.
        ([came("a", 3)], {}, {}, [("a", "stable", 3)]),
        ([came("a", 3), came("a", 4)], {}, {}, [("a", "stable", 4)]),
        ([came("a", 3, "stable"), came("a", 4, "canary")], {}, {}, [("a", "stable", 3)]),
        ([came("a", 3, "stable", now=7)], {}, {}, [("a", "stable", 7)]),
        # One that has labels keeps them as they are.
        ([came("a", 3, "stable")], {"a": {"stable": 1}}, {}, []),
        ([came("a", 3, "stable")], {"a": {"other": 1}}, {}, []),
        # On request: one label, or those of the bundle.
        ([came("a", 3)], {"a": {"stable": 1}}, {"label": "canary"}, [("a", "canary", 3)]),
        ([came("a", 3)], {}, {"label": "canary"}, [("a", "canary", 3)]),
        ([came("a", 3), came("a", 4)], {}, {"label": "stable"}, [("a", "stable", 4)]),
        ([came("a", 3, "stable")], {"a": {"stable": 1}}, {"carry": True}, [("a", "stable", 3)]),
        ([came("a", 3, "x")], {}, {"carry": True}, [("a", "x", 3), ("a", "stable", 3)]),
        ([came("a", 3, "stable")], {"a": {"stable": 3}}, {"carry": True}, []),
        # Each model for itself.
        ([came("a", 1), came("b", 1)], {"a": {"x": 1}}, {}, [("b", "stable", 1)]),
    ],
)
def test_which_labels_move(
    imported: list[Imported],
    existing: dict[str, dict[str, int]],
    options: dict[str, object],
    wanted: list[tuple[str, str, int]],
) -> None:
    """As push does for a first version; else only what was asked for."""
    assert labels_to_move(imported, existing, **options) == wanted  # type: ignore[arg-type]


def test_a_bundle_tells_its_labels(origin: Path, tmp_path: Path) -> None:
    """Of each version, those that name it."""
    index = verify_bundle(pack(origin, tmp_path / "x.muelle", "stamped:1", "stamped:2"))
    assert [version.labels for version in index.versions] == [("canary",), ("stable",)]


# --- signatures of versions ---


@pytest.fixture(scope="module")
def signed(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrivateKey]:
    """A copy of the store whose fraud:1 is signed, and the key."""
    folder = tmp_path_factory.mktemp("signed") / "store"
    shutil.copytree(origin, folder)
    key = new_key()
    with Store.open(folder) as store:
        record = store.record("fraud", 1)
        add_signature(folder, record.digest, sign_record(record, key))
    return folder, key


def test_signatures_travel_with_their_versions(
    signed: tuple[Path, PrivateKey], store: Store, tmp_path: Path
) -> None:
    """What was signed here is signed there, by the same key; a policy for it is met."""
    folder, key = signed
    path = pack(folder, tmp_path / "x.muelle", "fraud:1", "stamped:1")
    policy = SignaturePolicy((key.public,))
    index = verify_bundle(path)
    assert len(index.of_kind("signature")) == 1
    with pytest.raises(SignatureInvalid, match="stamped:1"):
        import_bundle(store, path, index, who="test", trust=True, require=policy)
    assert store.models() == ()
    alone = pack(folder, tmp_path / "y.muelle", "fraud:1")
    (one,) = import_bundle(store, alone, verify_bundle(alone), who="test", require=policy)
    (kept,) = read_signatures(store.folder, one.record.digest)
    assert verify_record(one.record, [kept], [key.public]) == key_id(key.public)


def test_a_signature_by_another_key_is_not_accepted(
    signed: tuple[Path, PrivateKey], store: Store, tmp_path: Path
) -> None:
    """Negative control of the policy."""
    path = pack(signed[0], tmp_path / "x.muelle", "fraud:1")
    policy = SignaturePolicy((new_key().public,))
    with pytest.raises(SignatureInvalid, match="fraud:1"):
        import_bundle(store, path, verify_bundle(path), who="test", require=policy)
    assert store.models() == ()


# --- what else goes in ---


def test_folders_go_in_as_they_are(origin: Path, tmp_path: Path) -> None:
    """Files for a platform; a link among them is refused: it could lead anywhere."""
    deploy = tmp_path / "deploy"
    (deploy / "k8s").mkdir(parents=True)
    (deploy / "k8s" / "app.yaml").write_text("kind: Deployment")
    with Store.open(origin) as store:
        records = [store.record("fraud", 1)]
        members, header = gather(store, records, Extras(deploy=deploy), epoch=0)
        path = write_bundle(tmp_path / "x.muelle", members, header).path
        content = read_member(path, verify_bundle(path), "deploy/k8s/app.yaml")
        assert content == b"kind: Deployment"
        (deploy / "link").symlink_to("/etc/hostname")
        with pytest.raises(ArtifactError, match="link: neither a file nor a folder"):
            gather(store, records, Extras(deploy=deploy), epoch=0)


def test_each_version_has_a_page(origin: Path, tmp_path: Path) -> None:
    """Digest, signature, a request that can be copied; and a README in both languages."""
    path = pack(origin, tmp_path / "x.muelle", "fraud:1")
    index = verify_bundle(path)
    page = read_member(path, index, "docs/fraud-1.md").decode()
    assert index.versions[0].digest in page
    assert "`X`: FP32 [-1, 4]" in page
    assert "curl -s http://127.0.0.1:8080/v2/models/fraud/infer" in page
    readme = read_member(path, index, "README.md").decode()
    assert "## Install it: English" in readme
    assert "## Instalarlo: español" in readme
    assert "fraud:1 @stable" in readme
