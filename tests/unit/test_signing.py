"""Signatures: what holds, what does not, and that others read them and we read others'."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ConfigError, SignatureInvalid, StoreError
from muelle.repository.signatures import add_signature, read_signatures
from muelle.signing import (
    PrivateKey,
    files_of,
    hint_of,
    load_private,
    load_public,
    new_key,
    sign_files,
    verify_files,
)


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


FILES = [("model.onnx", digest("m")), ("tokenizer/vocab.txt", digest("v"))]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys: a and b (Ed25519), p256, p384, p521."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        new_key(folder / f"{name}.key", folder / f"{name}.pub")
    for name, curve in (
        ("p256", ec.SECP256R1()),
        ("p384", ec.SECP384R1()),
        ("p521", ec.SECP521R1()),
    ):
        key = ec.generate_private_key(curve)
        _write(folder, name, key)
    return folder


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{name}.key").write_bytes(private)
    (folder / f"{name}.key").chmod(0o600)
    (folder / f"{name}.pub").write_bytes(public)


def private(keys: Path, name: str) -> PrivateKey:
    """Load a private key."""
    return load_private(keys / f"{name}.key", {})


@pytest.mark.parametrize("name", ["a", "p256", "p384", "p521"])
def test_what_was_signed_holds(keys: Path, name: str) -> None:
    """The same files in any order, by a key among several: the key is told."""
    signature = sign_files(FILES, private(keys, name), name="fraud")
    publics = [load_public(keys / f"{n}.pub") for n in ("b", name)]
    found = verify_files(signature, FILES[::-1], publics)
    assert found.id == publics[1].id == hint_of(signature)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("model.onnx", digest("x")), FILES[1]], "model.onnx is not the file that was signed"),
        (FILES[:1], "tokenizer/vocab.txt was signed, and is not there"),
        ([*FILES, ("evil.py", digest("e"))], "evil.py is there, and was not signed"),
        ([], "was signed, and is not there"),
    ],
)
def test_other_files_do_not(keys: Path, files: list[tuple[str, str]], words: str) -> None:
    """A changed, missing or added file is named."""
    signature = sign_files(FILES, private(keys, "a"), name="fraud")
    with pytest.raises(SignatureInvalid, match=words):
        verify_files(signature, files, [load_public(keys / "a.pub")])


def test_another_key_does_not(keys: Path) -> None:
    """Signed by somebody else, or no key at all: not good."""
    signature = sign_files(FILES, private(keys, "a"), name="fraud")
    for publics in ([load_public(keys / "b.pub")], []):
        with pytest.raises(SignatureInvalid, match="none of the keys that count"):
            verify_files(signature, FILES, publics)


def test_the_key_that_is_named_proves_nothing(keys: Path) -> None:
    """Naming a good key in a signature by another does not make it good."""
    found = json.loads(sign_files(FILES, private(keys, "b"), name="fraud"))
    good = load_public(keys / "a.pub")
    found["verificationMaterial"]["publicKey"]["hint"] = good.id
    with pytest.raises(SignatureInvalid):
        verify_files(json.dumps(found).encode(), FILES, [good])


def test_a_payload_of_another_type_does_not_count(keys: Path) -> None:
    """A signature over something else cannot be passed off as one over files."""
    found = json.loads(sign_files(FILES, private(keys, "a"), name="fraud"))
    found["dsseEnvelope"]["payloadType"] = "text/plain"
    with pytest.raises(SignatureInvalid):
        verify_files(json.dumps(found).encode(), FILES, [load_public(keys / "a.pub")])


@given(st.data())
def test_any_change_of_a_signature_is_refused(keys: Path, data: st.DataObject) -> None:
    """Whatever bit of the envelope changes: refused in words, never another exception."""
    whole = sign_files(FILES, private(keys, "a"), name="fraud")
    found = json.loads(whole)
    part = data.draw(st.sampled_from(["payload", "sig"]))
    envelope = found["dsseEnvelope"]
    text = envelope["payload"] if part == "payload" else envelope["signatures"][0]["sig"]
    raw = bytearray(base64.b64decode(text))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    changed = base64.b64encode(bytes(raw)).decode()
    if part == "payload":
        envelope["payload"] = changed
    else:
        envelope["signatures"][0]["sig"] = changed
    with pytest.raises(SignatureInvalid):
        verify_files(json.dumps(found).encode(), FILES, [load_public(keys / "a.pub")])


@given(st.binary(max_size=300))
def test_nonsense_is_no_signature(keys: Path, content: bytes) -> None:
    """Any bytes: refused in words."""
    with pytest.raises(SignatureInvalid):
        verify_files(content, FILES, [load_public(keys / "a.pub")])


# --- with the package that defines the format ---


def model_signing(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the reference implementation."""
    command = [sys.executable, "-m", "model_signing", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"\0\1" * 1000)
    (folder / "sub/config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["p256", "p384"])
def test_model_signing_verifies_ours(keys: Path, model: Path, name: str) -> None:
    """The reference implementation takes our signature, and refuses it once a file changes."""
    signature = model.parent / "model.sig"
    signature.write_bytes(sign_files(files_of(model), private(keys, name), name="model"))
    arguments = ("verify", "key", str(model), "--signature", str(signature))
    arguments += ("--public_key", str(keys / f"{name}.pub"))
    done = model_signing(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (model / "weights.bin").write_bytes(b"\0\2")
    assert model_signing(*arguments).returncode != 0


def test_we_verify_model_signings(keys: Path, model: Path) -> None:
    """We take the reference implementation's signature, and refuse it once a file changes."""
    signature = model.parent / "model.sig"
    done = model_signing(
        "sign", "key", str(model), "--private_key", str(keys / "p256.key"),
        "--signature", str(signature),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    publics = [load_public(keys / "p256.pub")]
    assert verify_files(signature.read_bytes(), files_of(model), publics).id == publics[0].id
    (model / "sub/config.json").write_text("{ }")
    with pytest.raises(SignatureInvalid, match=r"sub/config\.json"):
        verify_files(signature.read_bytes(), files_of(model), publics)


# --- keys and where signatures lie ---


def test_private_keys_are_kept_private(tmp_path: Path) -> None:
    """A new key is for this user alone, is not written over, and an open one is not used."""
    new_key(tmp_path / "k.key", tmp_path / "k.pub")
    assert (tmp_path / "k.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="exists already"):
        new_key(tmp_path / "k.key", tmp_path / "k.pub")
    (tmp_path / "k.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private(tmp_path / "k.key", {})


def test_a_key_with_a_password(tmp_path: Path) -> None:
    """The password comes from a variable, or from a file; without it the error says which."""
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "k.key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    path.chmod(0o600)
    (tmp_path / "password").write_text("secret\n")
    load_private(path, {"MUELLE_SIGN_PASSWORD": "secret"})
    load_private(path, {"MUELLE_SIGN_PASSWORD_FILE": str(tmp_path / "password")})
    with pytest.raises(ConfigError, match="MUELLE_SIGN_PASSWORD"):
        load_private(path, {"HOME": "/"})


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """DSA, or no key at all: the error says what is taken."""
    _write(tmp_path, "d", dsa.generate_private_key(1024))
    with pytest.raises(ConfigError, match="Ed25519 is"):
        load_private(tmp_path / "d.key", {})
    (tmp_path / "x.pub").write_text("not a key")
    with pytest.raises(ConfigError, match="not a public key"):
        load_public(tmp_path / "x.pub")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_public(tmp_path / "none.pub")


def test_a_store_keeps_one_signature_per_key(tmp_path: Path) -> None:
    """Signing again replaces, another key adds; what is no digest is refused."""
    content = f"sha256:{'a' * 64}"
    add_signature(tmp_path, content, "1" * 64, b"old")
    add_signature(tmp_path, content, "1" * 64, b"new")
    add_signature(tmp_path, content, "2" * 64, b"other")
    assert read_signatures(tmp_path, content) == [b"new", b"other"]
    assert read_signatures(tmp_path, f"sha256:{'b' * 64}") == []
    with pytest.raises(StoreError):
        add_signature(tmp_path, "sha256:../../x", "1" * 64, b"")
