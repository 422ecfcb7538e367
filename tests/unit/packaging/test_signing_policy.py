"""The policy `require-signature`, at every place that versions come from. No server runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from muelle.app_sources import new_source
from muelle.config.sections import SecurityConfig, ServeConfig
from muelle.control.wanted import Artifact, Source
from muelle.core.errors import ConfigError, SignatureInvalid
from muelle.core.records import VersionRecord
from muelle.packaging import signing
from muelle.packaging.signing_policy import SignaturePolicy, mark_with_signature
from muelle.publishing.push import Options, push
from muelle.publishing.transfer import pull
from muelle.repository.shipped import index_of, shipped_files
from muelle.repository.store import Reference, Store
from tests.stores import stamped

KEY = signing.new_key()
OTHER = signing.new_key()


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one version of two files, unsigned."""
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "model").mkdir()
    (folder / "model" / "model.py").write_text(stamped(1))
    (folder / "model" / "weights.txt").write_text("1 2 3")
    with Store.open(folder / "store", create=True) as store:
        push(store, folder / "model", Options(name="stamped", trust=True), who="test")
    return folder / "store"


@pytest.fixture
def store(pushed: Path, tmp_path: Path) -> Path:
    """A copy of that store; its checkouts are copies too, no links to the contents."""
    return Path(shutil.copytree(pushed, tmp_path / "store"))


@pytest.fixture
def pub(tmp_path: Path) -> str:
    """The accepted key's file."""
    return str(signing.write_keys(tmp_path / "release", KEY)[1])


def record_of(store: Path) -> VersionRecord:
    """Return the version's record."""
    with Store.open(store) as found:
        return found.record("stamped", 1)


def sign(store: Path, key: signing.PrivateKey = KEY) -> None:
    """Sign the store's version."""
    record = record_of(store)
    signing.add_signature(store, record.digest, signing.sign_record(record, key))


def ship(store: Path, folder: Path) -> Path:
    """Lay the version out as it travels in an image."""
    with Store.open(store) as found:
        record = found.record("stamped", 1)
        index = index_of([(Reference("stamped"), record)], found.labels, {})
        top, parts = shipped_files(
            index,
            [(record, found.checkout(record.files, record.digest))],
            lambda digest: signing.read_signatures(store, digest),
        )
    for files in (top, *parts.values()):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def from_store(store: Path, pub: str) -> Source:
    """Serve the store under the policy."""
    config = ServeConfig(store=str(store), security=SecurityConfig(require_signature=(pub,)))
    return new_source(config)


def from_shipped(store: Path, pub: str) -> Source:
    """Serve the version as an image would, under the policy."""
    folder = ship(store, store.parent / "shipped")
    security = SecurityConfig(require_signature=(pub,))
    return new_source(ServeConfig(models=(str(folder),), trust=True, security=security))


def only(source: Source) -> Artifact:
    """Return the one artifact of a source."""
    return source.read()["stamped"].versions["1"]


SOURCES = pytest.mark.parametrize("served", [from_store, from_shipped])


@SOURCES
def test_only_what_an_accepted_key_signed_may_be_loaded(
    served: Callable[[Path, str], Source], store: Path, pub: str
) -> None:
    """Unsigned and signed by another key are refused with the reason; signed is not."""
    assert "not signed" in only(served(store, pub)).refused
    sign(store, OTHER)
    assert "another key" in only(served(store, pub)).refused
    sign(store)
    source = served(store, pub)
    artifact = only(source)
    assert artifact.refused == ""
    assert source.prepare(artifact).digest == record_of(store).digest


@SOURCES
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "weights.txt").write_text("1 2 4"), "weights.txt: changed"),
        (lambda f: (f / "helper.py").write_text("evil"), "helper.py: not signed"),
        (lambda f: (f / "__pycache__").mkdir() or (f / "__pycache__/model.pyc").write_text("x"),
         "__pycache__/model.pyc: not signed"),
        (lambda f: (f / "weights.txt").unlink(), "weights.txt: missing"),
    ],
)  # fmt: skip
def test_what_lies_there_is_read_before_it_is_loaded(
    served: Callable[[Path, str], Source],
    change: Callable[[Path], object],
    words: str,
    store: Path,
    pub: str,
) -> None:
    """A file that was changed, added or taken away where it is loaded from is found.

    A store mends what it can by itself: what is missing or too much is laid out anew.
    """
    sign(store)
    source = served(store, pub)
    artifact = only(source)
    folder = source.prepare(artifact).path.parent
    folder.chmod(0o700)
    for file in folder.iterdir():
        file.chmod(0o600)
    change(folder)
    try:
        source.prepare(artifact)
    except SignatureInvalid as exc:
        assert words in exc.message
    else:
        assert served is from_store
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
        assert files == ["model.py", "weights.txt"]
        assert (folder / "weights.txt").read_text() == "1 2 3"


def test_a_signature_makes_a_refused_version_another_artifact(store: Path, pub: str) -> None:
    """The server sees by the mark that it is to try again; with the same answer the mark stays."""
    source = from_store(store, pub)
    before = only(source)
    assert only(source).mark == before.mark
    sign(store)
    after = only(source)
    assert (after.refused, after.mark != before.mark) == ("", True)


def test_without_the_policy_nothing_is_asked_for(store: Path) -> None:
    """Negative control: the same version, unsigned."""
    source = new_source(ServeConfig(store=str(store)))
    artifact = only(source)
    assert artifact.refused == ""
    assert source.prepare(artifact).digest


def test_keys_that_cannot_be_read_stop_the_start(store: Path, tmp_path: Path) -> None:
    """A server that cannot check anything does not run without the check."""
    with pytest.raises(ConfigError, match="cannot be read"):
        from_store(store, str(tmp_path / "none.pub"))


def test_a_plain_folder_is_checked_with_what_lies_beside_it(tmp_path: Path) -> None:
    """`PATH.sig` for a folder; without it the text says which key, and how."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a")
    policy = SignaturePolicy((KEY.public,))
    with pytest.raises(SignatureInvalid, match=r"no model.sig beside it.*muelle sign"):
        policy.check_path(folder)
    signing.write_signature(tmp_path / "model.sig", signing.sign_folder(folder, KEY))
    policy.check_path(folder)
    (folder / "b.bin").write_bytes(b"b")
    with pytest.raises(SignatureInvalid, match="b.bin: not signed"):
        policy.check_path(folder)


def test_a_new_signature_is_a_change_of_the_artifact(tmp_path: Path) -> None:
    """Signed, signed anew, signature gone: each looks different, the same does not."""
    file = tmp_path / "m.onnx"
    file.write_bytes(b"m")
    beside = signing.signature_path(file)
    marks = [mark_with_signature(file).text]
    for content in (b"one", b"another"):
        beside.write_bytes(content)
        marks.append(mark_with_signature(file).text)
        assert mark_with_signature(file).text == marks[-1]
    assert len(set(marks)) == 3
    beside.unlink()
    assert mark_with_signature(file).text == marks[0]


# --- what comes in ---


def test_push_keeps_the_signature_that_came_with_the_file(tmp_path: Path) -> None:
    """Required and there: the version has it; required and not there: nothing is published."""
    file = tmp_path / "stamped.py"
    file.write_text(stamped(1))
    options = Options(trust=True, require=SignaturePolicy((KEY.public,)))
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(SignatureInvalid, match="not signed"):
            push(store, file, options, who="test")
        assert store.models() == ()
        signing.write_signature(signing.signature_path(file), signing.sign_folder(file, KEY))
        (result,) = push(store, file, options, who="test")
        found = signing.read_signatures(store.folder, result.record.digest)
    assert signing.verify_record(result.record, found, [KEY.public]) == KEY.public.id


def test_a_key_of_its_own_does_for_a_push(tmp_path: Path) -> None:
    """Who signs with an accepted key needs no signature beside the file."""
    file = tmp_path / "stamped.py"
    file.write_text(stamped(1))
    require = SignaturePolicy((KEY.public,))
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(SignatureInvalid, match="another key"):
            push(store, file, Options(trust=True, require=require, sign=OTHER), who="test")
        (result,) = push(store, file, Options(trust=True, require=require, sign=KEY), who="test")
    assert signing.read_signatures(store.folder, result.record.digest)


def test_pull_asks_before_it_copies(store: Path, tmp_path: Path) -> None:
    """An unsigned version of another store leaves nothing; a signed one brings its signature."""
    require = SignaturePolicy((KEY.public,))
    with Store.open(tmp_path / "there", create=True) as there:
        with pytest.raises(SignatureInvalid, match="stamped:1: not signed"):
            pull(there, store, "stamped", who="test", trust=True, require=require)
        assert not [p for p in (there.folder / "blobs").rglob("*") if p.is_file()]
        sign(store)
        (one,) = pull(there, store, "stamped", who="test", trust=True, require=require)
        assert signing.read_signatures(there.folder, one.record.digest)
