"""Signatures: what they promise, and everything that must not pass for one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ArtifactError, ConfigError, MuelleError, SignatureInvalid
from muelle.packaging import signing, signing_format, signing_keys
from muelle.packaging.signing import PrivateKey

A, B, C = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b", b"c"))
FILES = [("model.onnx", A), ("weights/1.bin", B)]
KEY = signing.new_key()
OTHER = signing.new_key()


def ecdsa_key(folder: Path, curve: ec.EllipticCurve) -> Path:
    """Write a key of another kind as OpenSSL would; `folder/ec.key` and `folder/ec.pub`."""
    key = ec.generate_private_key(curve)
    return write_pem(folder / "ec.key", key)


def write_pem(path: Path, key: Any, password: bytes = b"") -> Path:
    """Write a private key, and the public one beside it."""
    how = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    path.chmod(0o600)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def resigned(statement: dict[str, Any], key: PrivateKey = KEY) -> bytes:
    """Return a right signature over any payload."""
    payload = json.dumps(statement).encode()
    signature = key.sign(signing_format.pae(payload))
    return signing_format.write_bundle(payload, signature, key.public.id)


def opened(signature: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bundle and the statement of a signature as plain values."""
    bundle = json.loads(signature)
    return bundle, json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files, one deeper."""
    made = tmp_path / "fraud"
    (made / "weights").mkdir(parents=True)
    (made / "model.onnx").write_bytes(b"a")
    (made / "weights" / "1.bin").write_bytes(b"b")
    return made


# --- files ---


def test_what_was_signed_is_verified() -> None:
    """The same files, in any order, give back the key that signed them."""
    signature = signing.sign_files(FILES, KEY, name="fraud")
    keys = [OTHER.public, KEY.public]
    assert signing.verify_files(signature, FILES[::-1], keys) == signing.key_id(KEY.public)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("model.onnx", C), ("weights/1.bin", B)], "model.onnx: changed"),
        ([("model.onnx", A)], "weights/1.bin: missing"),
        ([*FILES, ("evil.py", C)], "evil.py: not signed"),
        ([("model.onnx", B), ("weights/1.bin", A)], "model.onnx, weights/1.bin: changed"),
        ([("Model.onnx", A), ("weights/1.bin", B)], "model.onnx: missing; Model.onnx: not signed"),
        ([(f"{i}", C) for i in range(5)], "0, 1, 2 and 2 more: not signed"),
        ([("a\x1b[2J", C)], r"a\x1b[2J: not signed"),
        ([], "model.onnx, weights/1.bin: missing"),
    ],
)
def test_files_that_differ_are_named(files: list[tuple[str, str]], words: str) -> None:
    """A file that changed, is missing, was added or swapped is refused by its name."""
    signature = signing.sign_files(FILES, KEY, name="fraud")
    with pytest.raises(SignatureInvalid) as caught:
        signing.verify_files(signature, files, [KEY.public])
    assert words in caught.value.message
    assert caught.value.message.isprintable()


def test_another_key_is_named() -> None:
    """A right signature by a key that is not accepted says whose it is and whose is wanted."""
    signature = signing.sign_files(FILES, OTHER, name="fraud")
    with pytest.raises(SignatureInvalid, match="signed by another key") as caught:
        signing.verify_files(signature, FILES, [KEY.public])
    assert OTHER.public.id[:16] in caught.value.message
    assert KEY.public.id[:16] in caught.value.message


def test_a_stolen_key_name_does_not_help() -> None:
    """A signature by another key that claims to be by an accepted one is a forgery."""
    payload = signing_format.write_statement(FILES, "fraud")
    made = OTHER.sign(signing_format.pae(payload))
    for claimed in (KEY.public.id, ""):
        signature = signing_format.write_bundle(payload, made, claimed)
        with pytest.raises(SignatureInvalid, match="forged"):
            signing.verify_files(signature, FILES, [KEY.public])


def test_a_signature_without_a_key_name_is_tried_with_every_key() -> None:
    """Older writers of the format leave the name out."""
    payload = signing_format.write_statement(FILES, "fraud")
    made = signing_format.write_bundle(payload, KEY.sign(signing_format.pae(payload)), "")
    assert signing.verify_files(made, FILES, [OTHER.public, KEY.public]) == KEY.public.id


def test_no_key_is_no_check() -> None:
    """Without a key to check with nothing passes."""
    with pytest.raises(ConfigError, match="--key"):
        signing.verify_files(signing.sign_files(FILES, KEY, name="x"), FILES, [])


@given(st.data())
def test_no_bit_can_be_flipped_unseen(data: st.DataObject) -> None:
    """A changed signature file is refused, or says the same of the same files by the same key."""
    signature = signing.sign_files(FILES, KEY, name="fraud")
    at = data.draw(st.integers(0, len(signature) * 8 - 1))
    changed = bytearray(signature)
    changed[at // 8] ^= 1 << (at % 8)
    try:
        assert signing.verify_files(bytes(changed), FILES, [KEY.public]) == KEY.public.id
    except SignatureInvalid:
        return
    # Only the text around what is signed may differ: a name, a space at the end.
    assert opened(bytes(changed))[1] == opened(signature)[1]


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused_in_words(content: bytes) -> None:
    """A file that is no signature gives one typed error."""
    with pytest.raises(SignatureInvalid):
        signing.verify_files(content, FILES, [KEY.public])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    where=st.sampled_from(
        ["mediaType", "verificationMaterial", "dsseEnvelope", "payload", "signatures", "statement",
         "subject", "predicate", "resources", "serialization", "resource"]
    ),
    value=JSON,
)  # fmt: skip
def test_any_value_anywhere_is_refused_in_words(where: str, value: Any) -> None:
    """Strange values in any member of the file, signed or not, give one typed error at most."""
    bundle, statement = opened(signing.sign_files(FILES, KEY, name="fraud"))
    if where in bundle:
        bundle[where] = value
        made = json.dumps(bundle).encode()
    elif where in ("payload", "signatures"):
        bundle["dsseEnvelope"][where] = value
        made = json.dumps(bundle).encode()
    else:
        if where in statement:
            statement[where] = value
        elif where in statement["predicate"]:
            statement["predicate"][where] = value
        elif where == "resource":
            statement["predicate"]["resources"][0] = value
        else:
            statement = value
        made = resigned(statement)
    try:
        assert signing.verify_files(made, FILES, [KEY.public]) == KEY.public.id
        # Only the hint of the key may be left out.
        assert where == "verificationMaterial"
    except SignatureInvalid:
        pass


Names = st.lists(
    st.lists(st.text("abcXYZ019 _-.é漢", min_size=1, max_size=6), min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda n: not any(part in (".", "..") for part in n.split("/"))),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(Names, st.text(max_size=20))
def test_any_files_go_round(names: list[str], name: str) -> None:
    """Whatever files are called, their signature is right for them, and wrong with one more."""
    files = [(n, hashlib.sha256(n.encode()).hexdigest()) for n in names]
    signature = signing.sign_files(files, KEY, name=name.encode("utf-8", "replace").decode())
    assert signing.verify_files(signature, files, [KEY.public]) == KEY.public.id
    with pytest.raises(SignatureInvalid):
        signing.verify_files(signature, [*files, ("one more", A)], [KEY.public])


@pytest.mark.parametrize("name", ["", "/etc/passwd/", "a//b", "./a", "a/.", "\udcff"])
def test_odd_names_are_not_signed(name: str) -> None:
    """A name that two readers could take for different files is refused before it is signed."""
    with pytest.raises(ArtifactError):
        signing.sign_files([(name, A)], KEY, name="x")


@pytest.mark.parametrize(
    "files", [[], [("a", A), ("a", B)], [("a", A), ("a", A)], [("a", "A" * 64)], [("a", "ab")]]
)
def test_what_is_no_list_of_digests_is_not_signed(files: list[tuple[str, str]]) -> None:
    """Nothing, a file twice, or what is no SHA-256 is refused."""
    with pytest.raises(ArtifactError):
        signing.sign_files(files, KEY, name="x")


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a right signature over a statement that was changed first."""
    _, statement = opened(signing.sign_files(FILES, KEY, name="fraud"))
    change(statement)
    return resigned(statement)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["predicate"]["resources"].reverse(), "digest of its whole"),
        (lambda s: s["subject"][0]["digest"].update(sha256=A), "digest of its whole"),
        (lambda s: s["subject"].append(s["subject"][0]), "names no subject"),
        (lambda s: s["predicate"].update(resources=[]), "no file"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "twice"),
        (lambda s: s["predicate"]["resources"][0].update(algorithm="md5"), "without a SHA-256"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "sign it anew"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "sign it anew"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "of the kind"),
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "of the kind"),
    ],
)
def test_other_statements_are_refused(change: Callable[[dict[str, Any]], None], words: str) -> None:
    """What the right key signed for another purpose is no signature over a model's files."""
    with pytest.raises(SignatureInvalid, match=words):
        signing.verify_files(changed(change), FILES, [KEY.public])


def test_the_change_is_what_was_refused() -> None:
    """Negative control: signed anew without a change, the same statement is right."""
    assert signing.verify_files(changed(lambda s: None), FILES, [KEY.public]) == KEY.public.id


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1", "its form is"),
        ("verificationMaterial", {"certificate": {"rawBytes": "AA=="}}, "certificate"),
        ("verificationMaterial", {"publicKey": {"hint": "../../x"}}, "not named by a SHA-256"),
    ],
)
def test_other_bundles_are_refused(member: str, value: Any, words: str) -> None:
    """Another version of the form, certificates, and odd names of keys say so."""
    bundle, _ = opened(signing.sign_files(FILES, KEY, name="fraud"))
    bundle[member] = value
    with pytest.raises(SignatureInvalid, match=words):
        signing.verify_files(json.dumps(bundle).encode(), FILES, [KEY.public])


def test_several_signatures_in_one_file_are_refused() -> None:
    """One key per file: nobody can hide which of several was checked."""
    bundle, _ = opened(signing.sign_files(FILES, KEY, name="fraud"))
    bundle["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(SignatureInvalid, match="2 signatures"):
        signing.verify_files(json.dumps(bundle).encode(), FILES, [KEY.public])


def test_the_type_of_the_payload_is_signed_too() -> None:
    """A signature over the bare payload is not one over the payload as a statement."""
    payload = signing_format.write_statement(FILES, "fraud")
    bare = signing_format.write_bundle(payload, KEY.sign(payload), KEY.public.id)
    with pytest.raises(SignatureInvalid, match="forged"):
        signing.verify_files(bare, FILES, [KEY.public])


# --- folders and files on disk ---


def test_a_folder_is_signed_as_its_files(folder: Path) -> None:
    """The signature of a folder is one over its files' names and contents."""
    signature = signing.sign_folder(folder, KEY)
    assert signing.verify_files(signature, FILES, [KEY.public])
    assert signing.verify_folder(folder, signature, [KEY.public]) == KEY.public.id
    (folder / "weights" / "1.bin").write_bytes(b"B")
    with pytest.raises(SignatureInvalid, match="weights/1.bin: changed"):
        signing.verify_folder(folder, signature, [KEY.public])


def test_a_lone_file_may_be_renamed(folder: Path) -> None:
    """A file's own signature is over its content, whatever it is called, but for nothing else."""
    file = folder / "model.onnx"
    signature = signing.sign_folder(file, KEY)
    assert signing.verify_files(signature, [("other.onnx", A)], [KEY.public])
    assert signing.verify_folder(file.rename(folder / "b"), signature, [KEY.public])
    for wrong in ([("other.onnx", B)], [*FILES], []):
        with pytest.raises(SignatureInvalid):
            signing.verify_files(signature, wrong, [KEY.public])


def test_the_signature_of_one_file_of_a_folder_is_for_that_name() -> None:
    """Signed by its name in a version, a file cannot take another's place."""
    signature = signing.sign_files([("a.onnx", A)], KEY, name="x")
    with pytest.raises(SignatureInvalid, match="a.onnx: missing"):
        signing.verify_files(signature, [("b.onnx", A)], [KEY.public])


def test_compiled_files_are_not_smuggled_in(folder: Path) -> None:
    """`__pycache__` is left out when a folder is signed, and refused when it turns up."""
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "m.pyc").write_bytes(b"old")
    signature = signing.sign_folder(folder, KEY)
    assert signing.verify_files(signature, FILES, [KEY.public])
    with pytest.raises(SignatureInvalid, match=r"__pycache__/m.pyc: not signed"):
        signing.verify_folder(folder, signature, [KEY.public])


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/hostname"), os.mkfifo])
def test_links_and_pipes_are_not_followed(folder: Path, make: Callable[[Path], None]) -> None:
    """What is no file of the folder is refused and not waited for."""
    signature = signing.sign_folder(folder, KEY)
    make(folder / "odd")
    with pytest.raises(ArtifactError):
        signing.verify_folder(folder, signature, [KEY.public])


@pytest.mark.parametrize("name", ["nothing", "nothing/there"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    """A path without anything is one line."""
    with pytest.raises(ArtifactError, match="no such file"):
        signing.sign_folder(tmp_path / name, KEY)


def test_a_folder_keeps_its_signature_beside_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PATH.sig`, also when the path is written `.` or ends in a slash."""
    assert signing.signature_path(folder) == tmp_path / "fraud.sig"
    monkeypatch.chdir(folder)
    assert signing.signature_path(Path()) == tmp_path / "fraud.sig"


# --- digests ---


def test_a_digest_is_signed_for_its_kind() -> None:
    """A manifest's signature is not one of another digest, nor of a digest of another kind."""
    signature = signing.sign_digest("oci-manifest", f"sha256:{A}", "fraud:3", KEY)
    assert signing.verify_digest("oci-manifest", A, signature, [KEY.public]) == KEY.public.id
    for kind, digest in (("oci-manifest", f"sha256:{B}"), ("bundle.json", f"sha256:{A}")):
        with pytest.raises(SignatureInvalid):
            signing.verify_digest(kind, digest, signature, [KEY.public])
    with pytest.raises(ArtifactError, match="sha256"):
        signing.sign_digest("oci-manifest", "sha512:" + A, "x", KEY)


# --- the store's signatures ---


def test_a_store_keeps_one_signature_per_key(tmp_path: Path) -> None:
    """Several keys may sign a version; signing again replaces one's own."""
    digest = f"sha256:{A}"
    assert signing.read_signatures(tmp_path, digest) == ()
    for key in (KEY, OTHER, KEY):
        path = signing.add_signature(tmp_path, digest, signing.sign_files(FILES, key, name="x"))
        assert path == tmp_path / "signatures" / A / f"{key.public.id[:16]}.sig"
    found = signing.read_signatures(tmp_path, digest)
    assert len(found) == 2
    for key in (KEY, OTHER):
        assert signing.require_signature(FILES, found, [key.public], where="x") == key.public.id
    names = sorted(p.name for p in path.parent.iterdir())
    assert len(names) == 2, "no half-written file stays"


def test_what_comes_from_elsewhere_replaces_nothing(tmp_path: Path) -> None:
    """With `replace` off a signature that is there stays, whatever claims to be by its key."""
    good = signing.sign_files(FILES, KEY, name="x")
    signing.add_signature(tmp_path, f"sha256:{A}", good)
    bad = signing_format.write_bundle(b"{}", b"nothing", KEY.public.id)
    signing.add_signature(tmp_path, f"sha256:{A}", bad, replace=False)
    assert signing.read_signatures(tmp_path, f"sha256:{A}") == (good,)


@pytest.mark.parametrize("digest", ["sha256:..", f"sha256:{A}/../x", A, f"sha256:{A.upper()}", ""])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    """Only 64 hex digits name a folder."""
    with pytest.raises(ArtifactError):
        signing.add_signature(tmp_path, digest, signing.sign_files(FILES, KEY, name="x"))
    assert list(tmp_path.iterdir()) == []


def test_junk_is_not_kept(tmp_path: Path) -> None:
    """What is no signature at all does not come into the store."""
    with pytest.raises(SignatureInvalid):
        signing.add_signature(tmp_path, f"sha256:{A}", b"junk")
    assert list(tmp_path.iterdir()) == []


def test_of_several_signatures_the_nearest_says_why() -> None:
    """A stranger's signature does not hide what is wrong with the accepted key's own."""
    stranger = signing.sign_files(FILES, OTHER, name="x")
    own = signing.sign_files([("model.onnx", C)], KEY, name="x")
    for order in ([stranger, own], [own, stranger]):
        with pytest.raises(SignatureInvalid, match="model.onnx: changed"):
            signing.require_signature(FILES, order, [KEY.public], where="fraud:3")
    with pytest.raises(SignatureInvalid, match="fraud:3: not signed.*muelle sign fraud:3"):
        signing.require_signature(FILES, [], [KEY.public], where="fraud:3")


# --- keys ---


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_keys_on_curves_sign_too(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """ECDSA on P-256, P-384 and P-521, from PEM files of other tools."""
    path = ecdsa_key(tmp_path, curve)
    key = signing.load_private(path, {})
    public = signing.load_public(path.with_suffix(".pub"))
    assert (public.kind, public.id) == (curve.name, key.public.id)
    assert key.public == public
    signature = signing.sign_files(FILES, key, name="x")
    assert signing.verify_files(signature, FILES, [public]) == public.id
    with pytest.raises(SignatureInvalid):
        signing.verify_files(signature, FILES[:1], [public])


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    """RSA, and curves that the format does not know, say what is taken."""
    keys: list[Any] = [
        rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1()),
    ]  # fmt: skip
    for key in keys:
        path = write_pem(tmp_path / "odd.key", key)
        with pytest.raises(ConfigError, match="Ed25519"):
            signing.load_private(path, {})
        with pytest.raises(ConfigError, match="Ed25519"):
            signing.load_public(path.with_suffix(".pub"))


def test_keygen_writes_both_halves(tmp_path: Path) -> None:
    """The private half is its owner's alone, and both are the same key."""
    private, public = signing.write_keys(tmp_path / "release", KEY)
    assert (private.name, public.name) == ("release.key", "release.pub")
    assert private.stat().st_mode & 0o777 == 0o600
    assert signing.load_private(private, {}).public == signing.load_public(public) == KEY.public
    assert signing.load_private(private, {}).remark == ""


@pytest.mark.parametrize("there", ["release.key", "release.pub"])
def test_no_key_is_written_over(tmp_path: Path, there: str) -> None:
    """A key that is lost cannot be made again: one that is there stays, and no half is written."""
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        signing.write_keys(tmp_path / "release", KEY)
    assert [p.name for p in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_nothing_is_left_where_keys_cannot_be_written(tmp_path: Path) -> None:
    """No folder, no key; one line."""
    with pytest.raises(ArtifactError, match="cannot be written"):
        signing.write_keys(tmp_path / "no" / "release", KEY)
    assert list(tmp_path.iterdir()) == []


def test_an_encrypted_key_takes_its_password_from_the_environment(tmp_path: Path) -> None:
    """From the variable or from the first line of a file; never from the command line."""
    private, _ = signing.write_keys(tmp_path / "k", KEY, b"secret")
    assert b"ENCRYPTED" in private.read_bytes()
    word = tmp_path / "word"
    word.write_text("secret\nsecond line\n")
    for env in (
        {"MUELLE_SIGN_PASSWORD": "secret"}, {"MUELLE_SIGN_PASSWORD_FILE": str(word)},
    ):  # fmt: skip
        assert signing.load_private(private, env).public == KEY.public
    for env, words in (
        ({}, "is encrypted"),
        ({"MUELLE_SIGN_PASSWORD": "wrong"}, "wrong password"),
        ({"MUELLE_SIGN_PASSWORD": "x", "MUELLE_SIGN_PASSWORD_FILE": str(word)}, "one of them"),
        ({"MUELLE_SIGN_PASSWORD_FILE": str(tmp_path / "none")}, "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            signing.load_private(private, env)


def test_a_password_does_no_harm_to_a_plain_key(tmp_path: Path) -> None:
    """The variable may stay set while a key without a password is used."""
    private, _ = signing.write_keys(tmp_path / "k", KEY)
    assert signing.load_private(private, {"MUELLE_SIGN_PASSWORD": "x"}).public == KEY.public


def test_a_private_key_that_others_can_read_is_remarked(tmp_path: Path) -> None:
    """It works, and says how to mend it."""
    private, _ = signing.write_keys(tmp_path / "k", KEY)
    private.chmod(0o644)
    assert "chmod 600" in signing.load_private(private, {}).remark


@pytest.mark.parametrize(
    ("content", "private", "public"),
    [
        (b"", "no key", "no public key"),
        (b"\x00" * 100, "no key", "no public key"),
        (b"x" * 100_000, "not a key file", "not a key file"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "broken", "private"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "public", "no public"),
        (KEY.public.pem, "a public key", ""),
    ],
)
def test_files_that_are_no_such_key(
    tmp_path: Path, content: bytes, private: str, public: str
) -> None:
    """Each says in one line what the file is instead; a private key given away is said plainly."""
    path = tmp_path / "k"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=private) as caught:
        signing.load_private(path, {})
    assert "\n" not in caught.value.message
    if public:
        with pytest.raises(ConfigError, match=public):
            signing.load_public(path)
    else:
        assert signing.load_public(path) == KEY.public


def test_what_is_no_file_is_no_key(tmp_path: Path) -> None:
    """A folder, or nothing, in place of a key."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError):
            signing.load_public(path)


def test_a_private_key_shows_nothing_of_itself() -> None:
    """Logs and tracebacks cannot carry it."""
    pem = signing_keys._private_pem(KEY, None).decode()
    assert pem.splitlines()[1][:20] not in repr(KEY)
    assert "_key" not in repr(KEY)


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cryptography is not installed the error says which extra brings it."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("muelle.runtimes.libraries.importlib.import_module", missing)
    with pytest.raises(MuelleError, match=r"muelle\[sign\]"):
        signing.new_key()
