"""Our signatures and those of the OpenSSF model-signing library: each checks the other's.

The library runs in a process of its own: it brings much along. It signs with ECDSA only; Ed25519 is
ours alone.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from muelle.core.errors import SignatureInvalid
from muelle.packaging import signing
from tests.unit.packaging.test_signing import ecdsa_key

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None, reason="model-signing is not installed"
)

THEIRS = """
import sys
import model_signing as library
what, model, signature, key = sys.argv[1:]
if what == "sign":
    library.signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
else:
    try:
        library.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(
            model, signature
        )
    except ValueError as exc:
        sys.exit(f"refused: {exc}")
"""


def theirs(what: str, model: Path, signature: Path, key: Path) -> str:
    """Sign or verify with the library; return why it refused, "" when it did not."""
    done = subprocess.run(
        [sys.executable, "-c", THEIRS, what, str(model), str(signature), str(key)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode:
        assert "refused: " in done.stderr, done.stderr
        return done.stderr
    return ""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose names sort otherwise as texts than as paths, with one that is not ASCII."""
    folder = tmp_path / "fraud"
    for name in ("a/b", "a.bin", "a-b/c", "Z", "modelo-ñ.onnx", "weights/1/2.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_the_library_verifies_ours(tmp_path: Path, model: Path, curve: ec.EllipticCurve) -> None:
    """What we sign with a key on a curve, the library accepts; and refuses once a file changed."""
    path = ecdsa_key(tmp_path, curve)
    signature = tmp_path / "fraud.sig"
    signing.write_signature(signature, signing.sign_folder(model, signing.load_private(path, {})))
    assert theirs("verify", model, signature, path.with_suffix(".pub")) == ""
    (model / "Z").write_bytes(b"other")
    assert "Hash mismatch" in theirs("verify", model, signature, path.with_suffix(".pub"))


def test_we_verify_the_librarys(tmp_path: Path, model: Path) -> None:
    """What the library signs, we accept, for a folder and for a lone file; and refuse changed."""
    path = ecdsa_key(tmp_path, ec.SECP256R1())
    public = [signing.load_public(path.with_suffix(".pub"))]
    for what in (model / "Z", model):
        signature = tmp_path / f"{what.name}.sig"
        assert theirs("sign", what, signature, path) == ""
        found = signing.read_signature(signature)
        assert signing.verify_folder(what, found, public) == public[0].id
        (model / "Z").write_bytes(b"instead of " + what.name.encode())
        with pytest.raises(SignatureInvalid, match="changed"):
            signing.verify_folder(what, found, public)


def test_the_library_verifies_our_lone_file(tmp_path: Path, model: Path) -> None:
    """A file signed by itself is signed in the same way there and here."""
    path = ecdsa_key(tmp_path, ec.SECP256R1())
    signature = signing.signature_path(model / "Z")
    signing.write_signature(
        signature, signing.sign_folder(model / "Z", signing.load_private(path, {}))
    )
    assert theirs("verify", model / "Z", signature, path.with_suffix(".pub")) == ""
