"""The file of a bundle: what was written is read, and nothing else is. No store, no server."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ArtifactError, StoreError
from muelle.packaging import bundle_format as form
from muelle.packaging.bundle import BundleHeader, Member, WrittenBundle, code_members, write_bundle
from muelle.packaging.bundle_format import BundledVersion, BundleInvalid
from muelle.packaging.bundle_read import extract, open_member, read_member, verify_bundle

WEIGHTS = bytes(range(256)) * 40
SHA = hashlib.sha256(WEIGHTS).hexdigest()
VERSION = BundledVersion("fraud", 3, f"sha256:{SHA}", ("stable",))
HEADER = BundleHeader(
    epoch=1_700_000_001, platform="linux/amd64", python="3.11", versions=(VERSION,)
)
MEMBERS = [
    Member("README.md", "doc", b"# Read me\n"),
    Member("wheels/numpy-2.0-cp311-cp311-linux_x86_64.whl", "wheel", b"no real wheel" * 300),
    Member("versions/fraud/3.json", "record", b"{}"),
    Member(f"blobs/sha256/{SHA}", "model", WEIGHTS),
    Member("deploy/empty", "deploy", b""),
]
HEAD = 30
"""Bytes of a local header before the name."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good bundle."""
    target = tmp_path_factory.mktemp("whole") / "fraud.muelle"
    write_bundle(target, MEMBERS, HEADER)
    return target.read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes as `fraud.muelle` and return where."""

    def put(content: bytes) -> Path:
        target = tmp_path / "fraud.muelle"
        target.write_bytes(content)
        return target

    return put


def refused(path: Path) -> BundleInvalid:
    """Verify a bundle, which must be refused with one line; return the error."""
    with pytest.raises(BundleInvalid) as caught:
        verify_bundle(path)
    assert "\n" not in caught.value.message
    return caught.value


def written(folder: Path, members: list[Member], header: BundleHeader = HEADER) -> WrittenBundle:
    """Write a bundle into a folder."""
    return write_bundle(folder / "x.muelle", members, header)


def without_versions(*members: Member) -> tuple[list[Member], BundleHeader]:
    """Members, and a header that tells of no version."""
    return list(members), BundleHeader(epoch=0)


def test_what_was_written_is_read(place: Callable[[bytes], Path], whole: bytes) -> None:
    """Negative control of all refusals: an untouched bundle is whole, and says what it holds."""
    path = place(whole)
    index = verify_bundle(path)
    assert index.versions == (VERSION,)
    assert (index.platform, index.python, index.epoch) == ("linux/amd64", "3.11", 1_700_000_001)
    assert index.created_by.startswith("muelle ")
    assert [entry.name for entry in index.members] == [member.name for member in MEMBERS]
    for member in MEMBERS:
        assert read_member(path, index, member.name) == member.source
    with open_member(path, index, MEMBERS[0].name) as stream:
        assert stream.read() == b"# Read me\n"


def test_any_program_can_look_inside(place: Callable[[bytes], Path], whole: bytes) -> None:
    """It is a ZIP file: names, contents, and the date that it was given (2 s fine)."""
    with zipfile.ZipFile(place(whole)) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert [i.filename for i in infos[:2]] == ["bundle.json", "bundle.json.sha256"]
        assert all(i.compress_type == zipfile.ZIP_STORED for i in infos)
        assert {i.date_time for i in infos} == {(2023, 11, 14, 22, 13, 20)}
        for member in MEMBERS:
            assert archive.read(member.name) == member.source
        line = archive.read("bundle.json.sha256").decode()
        raw = archive.read("bundle.json")
    assert line == f"{hashlib.sha256(raw).hexdigest()}  bundle.json\n"


def test_twice_is_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    """No clock, no random: from files as from memory."""
    source = tmp_path / "weights"
    source.write_bytes(WEIGHTS)
    members = [Member(m.name, m.kind, source if m.source is WEIGHTS else m.source) for m in MEMBERS]
    result = written(tmp_path, members)
    assert result.path.read_bytes() == whole
    assert result.size == len(whole)
    assert result.sha256 == hashlib.sha256(whole).hexdigest()


def test_progress_ends_with_all(place: Callable[[bytes], Path], whole: bytes) -> None:
    """Bars move forward and end at 100 %."""
    steps: list[tuple[int, int]] = []
    verify_bundle(place(whole), progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1] == (len(whole), len(whole))


# --- cut, changed ---


@given(st.data())
def test_no_other_bytes_are_a_bundle(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """Bytes changed, added, taken away, moved or cut off anywhere: always refused in one line."""
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(broken) - 1, 0)))
        match data.draw(st.sampled_from(["change", "insert", "delete", "cut", "swap"])):
            case "change" if broken:
                broken[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                broken[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case "delete":
                del broken[at : at + data.draw(st.integers(1, 200))]
            case "cut":
                del broken[at:]
            case "swap":
                to = data.draw(st.integers(0, max(len(broken) - 1, 0)))
                broken[at : at + 30], broken[to : to + 30] = (
                    broken[to : to + 30],
                    broken[at : at + 30],
                )
    path = tmp_path_factory.mktemp("mutated") / "fraud.muelle"
    path.write_bytes(broken)
    if bytes(broken) == whole:
        verify_bundle(path)
    else:
        refused(path)


@given(st.binary(max_size=2000))
def test_no_noise_is_a_bundle(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """Files of any other kind are refused, and so is noise behind a right beginning."""
    path = tmp_path_factory.mktemp("noise") / "x.muelle"
    for content in (noise, b"PK\x03\x04" + noise):
        path.write_bytes(content)
        refused(path)


def test_every_cut_names_the_member_that_it_is_in(
    place: Callable[[bytes], Path], whole: bytes
) -> None:
    """Cut off inside each member: its name, and how much of it is there."""
    index = verify_bundle(place(whole))
    for entry in index.members:
        if entry.size:
            error = refused(place(whole[: entry.offset + entry.size // 2]))
            assert error.member == entry.name
            assert f"fraud.muelle is cut off in {entry.name}: " in error.message
            assert error.message.endswith("copy it again")


def test_a_cut_is_told_in_amounts(place: Callable[[bytes], Path], whole: bytes) -> None:
    """The line says how much of the member is there."""
    entry = verify_bundle(place(whole)).members[3]
    error = refused(place(whole[: entry.offset + 2560]))
    assert f"is cut off in {entry.name}: 2.6 of 10.2 kB are there; copy it again" in error.message


def test_a_cut_is_found_without_reading_what_is_there(
    place: Callable[[bytes], Path], whole: bytes
) -> None:
    """A large file that was cut off is refused at once, not after minutes of hashing."""
    entry = verify_bundle(place(whole)).members[-2]
    steps: list[int] = []
    with pytest.raises(BundleInvalid):
        verify_bundle(
            place(whole[: entry.offset + 1]), progress=lambda done, total: steps.append(done)
        )
    assert steps == []


@pytest.mark.parametrize("n", range(len(MEMBERS) - 1))
def test_a_changed_byte_names_its_member(
    place: Callable[[bytes], Path], whole: bytes, n: int
) -> None:
    """One bit of a content."""
    entry = verify_bundle(place(whole)).members[n]
    broken = bytearray(whole)
    broken[entry.offset + entry.size - 1] ^= 1
    error = refused(place(bytes(broken)))
    assert error.member == entry.name
    assert f"{entry.name} has changed" in error.message


def test_a_changed_index_is_not_believed(place: Callable[[bytes], Path], whole: bytes) -> None:
    """The first member is checked before anything in it is read."""
    error = refused(place(whole.replace(b'"stable"', b'"canary"', 1)))
    assert "bundle.json has changed" in error.message


def test_bytes_behind_the_end_are_refused(place: Callable[[bytes], Path], whole: bytes) -> None:
    """A program that looks for the table from behind might find another one there."""
    assert "7 bytes too many" in refused(place(whole + b"PK\x05\x06abc")).message


def test_the_table_at_the_end_says_the_same(place: Callable[[bytes], Path], whole: bytes) -> None:
    """A name that only the table has: other programs would show another file."""
    at = whole.rindex(b"README.md")
    error = refused(place(whole[:at] + b"OTHER.md!" + whole[at + 9 :]))
    assert "table of contents" in error.message
    assert "README.md" in error.message


def test_a_zip_of_another_program_is_refused(
    place: Callable[[bytes], Path], whole: bytes, tmp_path: Path
) -> None:
    """The same members packed anew, in the same order: the line says what has happened."""
    with zipfile.ZipFile(place(whole)) as archive:
        contents = [(name, archive.read(name)) for name in archive.namelist()]
    other = tmp_path / "other.muelle"
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents:
            archive.writestr(name, content)
    assert refused(other).message


def test_a_claimed_size_makes_no_room(tmp_path: Path) -> None:
    """An index that claims 2**61 bytes is refused by the size of the file, not by allocating."""
    raw = json.dumps(_index([_entry("x", size=2**61)])).encode()
    error = refused(_packed(tmp_path, raw, form.local_header("x", 0, 2**61, 0) + b"abc"))
    assert "is cut off in x: 0.0 of" in error.message


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "empty"), (b"\x7fELF" + bytes(100), "not a bundle"), (b"PK\x05\x06", "not a bundle")],
)
def test_other_files_are_told_apart(
    place: Callable[[bytes], Path], content: bytes, part: str
) -> None:
    """Empty, a program, an empty ZIP."""
    assert part in refused(place(content)).message


def test_no_file_and_a_folder_are_one_line_each(tmp_path: Path) -> None:
    """What is not there, what is no file."""
    assert "No such file" in refused(tmp_path / "no.muelle").message
    assert "a folder" in refused(tmp_path).message


# --- an index that was made to deceive ---


def _index(members: object, **other: object) -> dict[str, object]:
    return {
        "format": 1,
        "created_by": "x",
        "epoch": 0,
        "platform": "",
        "python": "",
        "signed": False,
        "versions": [],
        "members": members,
        **other,
    }


def _packed(folder: Path, raw: bytes, rest: bytes = bytes(1000)) -> Path:
    """A file that begins as a bundle with this index does."""
    path = folder / "made.muelle"
    parts = b""
    for name, content in ((form.INDEX, raw), (form.CHECK, form.check_line(raw))):
        crc = zlib.crc32(content)
        parts += form.local_header(name, crc, len(content), 0) + content
    path.write_bytes(parts + rest)
    return path


def _entry(name: str, **other: object) -> dict[str, object]:
    return {"name": name, "size": 0, "sha256": "e" * 64, "kind": "doc", **other}


@pytest.mark.parametrize(
    "found",
    [
        [],
        _index([_entry("../up")]),
        _index([_entry("/etc/passwd")]),
        _index([_entry("a//b")]),
        _index([_entry("a/./b")]),
        _index([_entry("C:\\x")]),
        _index([_entry("naïve")]),
        _index([_entry("a\nb")]),
        _index([_entry("")]),
        _index([_entry("x" * 2000)]),
        _index([_entry("a"), _entry("a")]),
        _index([_entry("a"), _entry("a/b")]),
        _index([_entry("bundle.json")]),
        _index([_entry("bundle.sig/x")]),
        _index([_entry("a", size=-1)]),
        _index([_entry("a", size=1.5)]),
        _index([_entry("a", size=True)]),
        _index([_entry("a", sha256="E" * 64)]),
        _index([_entry("a", kind="other")]),
        _index([_entry("a", kind=["doc"])]),
        _index([_entry("blobs/sha256/" + "d" * 64, kind="model")]),
        _index([_entry("numpy.whl", kind="wheel")]),
        _index([_entry("versions/fraud/3.json", kind="record")]),
        _index([], versions=[{"model": "f", "version": 1, "digest": "x", "labels": []}]),
        _index([], versions=[{"model": "../f", "version": 1, "digest": f"sha256:{SHA}"}]),
        _index([], versions={}),
        _index([], format=2),
        _index([], epoch=-1),
        _index([], python="3.11; rm"),
        _index([], platform="linux amd64"),
        _index([], signed="no"),
        _index("abc"),
        _index(["abc"]),
    ],
    ids=lambda found: json.dumps(found)[-60:],
)
def test_an_index_that_deceives_is_refused(tmp_path: Path, found: object) -> None:
    """Names that leave the folder, lists that contradict themselves, values of other kinds."""
    raw = json.dumps(found).encode()
    with pytest.raises(BundleInvalid):
        form.parse_index(raw)
    refused(_packed(tmp_path, raw))


def test_a_plain_index_is_accepted() -> None:
    """Negative control of the table above."""
    index, signed = form.parse_index(json.dumps(_index([_entry("a/b.txt")])).encode())
    assert index.members[0].name == "a/b.txt"
    assert not signed


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    ["format", "members", "versions", "name", "size", "epoch", "signed"]
                ),
                c,
            )
        ),
    )
)
def test_any_json_is_refused_or_read(found: object) -> None:
    """No JSON makes the reader fail otherwise than with its own error."""
    for value in (found, _index([]) | found if isinstance(found, dict) else found):
        try:
            form.parse_index(json.dumps(value).encode())
        except BundleInvalid as error:
            assert error.message


def test_a_newer_format_says_so() -> None:
    """Who gets a bundle from a newer Muelle learns what to do."""
    with pytest.raises(BundleInvalid, match="format 2, this Muelle reads 1"):
        form.parse_index(json.dumps(_index([], format=2)).encode())


# --- writing ---


def test_nothing_is_left_of_a_bundle_that_fails(tmp_path: Path) -> None:
    """A missing source, a full disk: no file, no part of one; what stood there stays."""
    (tmp_path / "x.muelle").write_bytes(b"the one before")
    members, header = without_versions(Member("a", "doc", tmp_path / "missing"))
    with pytest.raises(ArtifactError, match="a: .*missing: No such file"):
        written(tmp_path, members, header)
    assert [path.name for path in tmp_path.iterdir()] == ["x.muelle"]
    assert (tmp_path / "x.muelle").read_bytes() == b"the one before"


def test_a_full_disk_leaves_nothing() -> None:
    """/dev/full's folder takes no new file: a StoreError in one line."""
    members, header = without_versions(Member("a", "doc", b"x"))
    with pytest.raises(StoreError, match="cannot be written"):
        write_bundle(Path("/proc/x.muelle"), members, header)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    """What was hashed and what was written must be the same."""
    source = tmp_path / "model"
    source.write_bytes(b"before")

    def sign(_: str) -> bytes:
        source.write_bytes(b"after!")
        return b"signature"

    members, header = without_versions(Member("a", "doc", source))
    with pytest.raises(ArtifactError, match="changed while it was read"):
        write_bundle(tmp_path / "x.muelle", members, header, sign=sign)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["../a", "/a", "a b/ü", "bundle.json", "a/../b", ""])
def test_names_that_cannot_be_are_not_written(tmp_path: Path, name: str) -> None:
    """Nobody makes a bundle that nobody takes."""
    members, header = without_versions(Member(name, "doc", b"x"))
    with pytest.raises(BundleInvalid):
        written(tmp_path, members, header)
    assert list(tmp_path.iterdir()) == []


def test_a_signature_covers_the_index(tmp_path: Path) -> None:
    """It gets the index's SHA-256, comes back with it, and cannot be taken away or changed."""
    asked: list[str] = []

    def sign(sha256: str) -> bytes:
        asked.append(sha256)
        return b"signed " + sha256.encode()

    result = write_bundle(tmp_path / "x.muelle", MEMBERS, HEADER, sign=sign)
    index = verify_bundle(result.path)
    assert asked == [index.sha256] == [result.index_sha256]
    assert index.signature == b"signed " + index.sha256.encode()
    whole = result.path.read_bytes()
    result.path.write_bytes(whole.replace(b"signed " + asked[0].encode(), b"forged " + b"0" * 64))
    assert refused(result.path).member == form.SIGNATURE
    start = whole.index(b"bundle.sig") - HEAD
    result.path.write_bytes(whole[:start] + whole[start + HEAD + 10 + 7 + 64 :])
    assert refused(result.path).member == form.SIGNATURE


def test_extracting_writes_below_its_folder_only(
    place: Callable[[bytes], Path], whole: bytes, tmp_path: Path
) -> None:
    """Members come out under their names; nothing that is there is written over."""
    path = place(whole)
    index = verify_bundle(path)
    folder = tmp_path / "out"
    extract(path, index, ["README.md", "versions/fraud/3.json"], folder)
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == ["README.md", "versions/fraud/3.json"]
    with pytest.raises(FileExistsError):
        extract(path, index, ["README.md"], folder)
    with pytest.raises(BundleInvalid, match="not in the bundle"):
        extract(path, index, ["../README.md"], folder)


def test_what_changes_after_the_check_is_not_extracted(
    place: Callable[[bytes], Path], whole: bytes, tmp_path: Path
) -> None:
    """Contents are hashed again when they are taken out."""
    path = place(whole)
    index = verify_bundle(path)
    broken = bytearray(whole)
    broken[index.members[0].offset] ^= 1
    path.write_bytes(broken)
    with pytest.raises(BundleInvalid, match="changed while it was read"):
        extract(path, index, ["README.md"], tmp_path / "out")


def test_a_bundle_carries_its_installer() -> None:
    """`__main__.py` and what it imports, none of which is ours beyond them."""
    found = {member.name: member.source for member in code_members()}
    assert "__main__.py" in found
    for name, source in found.items():
        assert isinstance(source, bytes)
        compile(source, name, "exec")


# --- more than 4 GB ---


def test_large_files_follow_zip64(tmp_path: Path) -> None:
    """Sizes and places beyond 4 GB, as another reader finds them. The file is mostly a hole."""
    path = tmp_path / "large.zip"
    size = 5 * 2**30
    first, second = form.local_header("big", 0, size, 0), form.local_header("small", 0, 3, 0)
    assert struct.unpack_from("<H", first, 4)[0] == 45
    table = form.central_entry("big", 0, size, 0, 0)
    table += form.central_entry("small", 0, 3, len(first) + size, 0)
    start = len(first) + size + len(second) + 3
    with open(path, "wb") as stream:
        stream.write(first)
        stream.seek(len(first) + size)
        stream.write(second + b"abc" + table + form.end_record(2, len(table), start))
    with zipfile.ZipFile(path) as archive:
        big, small = archive.infolist()
        assert (big.file_size, big.header_offset) == (size, 0)
        assert (small.file_size, small.header_offset) == (3, len(first) + size)
        with archive.open(big) as stream_in:
            assert stream_in.read(10) == bytes(10)


def test_more_members_than_zip_counts(tmp_path: Path) -> None:
    """70,000 members: the count stands in the large end."""
    members = [Member(f"docs/{n}", "doc", b"") for n in range(70_000)]
    result = written(tmp_path, members, BundleHeader(epoch=0))
    assert len(verify_bundle(result.path).members) == 70_000
    with zipfile.ZipFile(result.path) as archive:
        assert len(archive.namelist()) == 70_002
