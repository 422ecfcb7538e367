"""Sign a list of files and check the signature, without any network: Ed25519, or ECDSA.

The file is that of the OpenSSF model-signing format, version 1.0: a Sigstore bundle with a DSSE
envelope around an in-toto statement that lists every file's SHA-256. Why it is written here and not
by the `model-signing` package: docs/adr/0008. Not for deciding whose keys count.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from muelle.core.errors import ArtifactError, ConfigError, SignatureInvalid
from muelle.runtimes.libraries import library

ENDING = ".sig"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_MAX_BYTES = 64 * 1024 * 1024
_MAX_KEY_BYTES = 64 * 1024
_HASH_BITS = {256: "SHA256", 384: "SHA384", 521: "SHA512"}
"""The hash that goes with the size of an elliptic curve, as the format says."""

_KEY_ID = re.compile(r"[0-9a-f]{64}\Z")

Files = Sequence[tuple[str, str]]
"""(relative name with `/`, 64 hex digits of its SHA-256), in any order."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to check with. `id` is the SHA-256 of its PEM text, as the format names keys."""

    id: str
    name: str
    """The file that it came from, for people."""
    key: Any


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key to sign with."""

    public: PublicKey
    key: Any


def new_key(private: Path, public: Path) -> PublicKey:
    """Write a new Ed25519 key pair; the private one for this user alone. Raise ConfigError."""
    ed25519 = library("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    serialization = _serialization()
    key = ed25519.Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    found = _public(key.public_key(), public.name)
    for path, content, mode in ((private, text, 0o600), (public, _pem(found.key), 0o644)):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise ConfigError(f"{path}: it exists already; choose another name") from None
        with open(fd, "wb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
    return found


def load_private(path: Path, env: Mapping[str, str] | None = None) -> PrivateKey:
    """Read a private key (PEM). Raise ConfigError.

    Its password is in MUELLE_SIGN_PASSWORD, or in the file that MUELLE_SIGN_PASSWORD_FILE names.
    """
    content = _read(path, "private key")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: others can read this private key; chmod 600 {path}")
    try:
        key = _serialization().load_pem_private_key(content, _password(env or os.environ))
    except (ValueError, TypeError) as exc:
        hint = "; its password goes into MUELLE_SIGN_PASSWORD" if "assword" in str(exc) else ""
        raise ConfigError(f"{path}: not a private key in PEM form: {exc}{hint}") from exc
    return PrivateKey(_public(key.public_key(), path.name), key)


def load_public(path: Path) -> PublicKey:
    """Read a public key (PEM). Raise ConfigError."""
    content = _read(path, "public key")
    try:
        key = _serialization().load_pem_public_key(content)
    except ValueError as exc:
        raise ConfigError(f"{path}: not a public key in PEM form: {exc}") from exc
    return _public(key, str(path))


def sign_files(files: Files, key: PrivateKey, *, name: str) -> bytes:
    """Return the signature of a list of files: JSON, to be kept as a `.sig`. `name` is for people.

    Source: OpenSSF model-signing format 1.0; DSSE 1.0 (pre-authentication encoding).
    """
    ordered = sorted(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": digest} for file, digest in ordered
            ],
        },
    }
    payload = msgspec.json.encode(statement)
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": key.public.id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [
                {"sig": base64.b64encode(_sign(key.key, _encoded(payload))).decode(), "keyid": ""}
            ],
        },
    }
    return msgspec.json.encode(bundle)


def verify_files(signature: bytes, files: Files, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key by which exactly these files were signed. Raise SignatureInvalid.

    The text says what is wrong: another key, another file, one too many, one missing.
    """
    bundle = _parsed(signature)
    payload, key = _checked(bundle, keys)
    signed = _resources(payload)
    given = dict(files)
    for name in sorted({*signed, *given}):
        if name not in given:
            raise SignatureInvalid(f"{name} was signed, and is not there")
        if name not in signed:
            raise SignatureInvalid(f"{name} is there, and was not signed")
        if signed[name] != given[name]:
            raise SignatureInvalid(
                f"{name} is not the file that was signed (SHA-256 {given[name][:16]}…, signed "
                f"{signed[name][:16]}…)"
            )
    return key


def hint_of(signature: bytes) -> str:
    """Return the id of the key that a signature names: unproved. Raise SignatureInvalid."""
    key = _parsed(signature).verificationMaterial.publicKey
    if key is None or not _KEY_ID.match(key.hint):
        raise SignatureInvalid("the signature names no key")
    return key.hint


def files_of(path: Path, *, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Hash a file, or all files of a folder. Raise ArtifactError."""
    from muelle.repository.digest import digest_artifact

    if path.is_file():
        return [(path.name, digest_artifact(path).rpartition(":")[2])]
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such file or folder")
    found = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            raise ArtifactError(f"{file}: a symbolic link; put the file itself there")
        if file.is_file() and name not in without and "__pycache__" not in file.parts:
            found.append((name, digest_artifact(file).rpartition(":")[2]))
    return found


def image_files(digest: str) -> list[tuple[str, str]]:
    """Return what is signed of an image: its manifest, however the image is packed."""
    return [("oci-manifest", digest.rpartition(":")[2])]


def signature_beside(path: Path) -> Path:
    """Return where the signature of a file or folder lies: `model.onnx.sig`."""
    return path.with_name(f"{path.name}{ENDING}")


# --- the form ---


class _KeyHint(msgspec.Struct):
    hint: str = ""


class _Material(msgspec.Struct):
    publicKey: _KeyHint | None = None


class _Signed(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct):
    payload: str
    payloadType: str
    signatures: list[_Signed]


class _Bundle(msgspec.Struct):
    dsseEnvelope: _Envelope
    verificationMaterial: _Material = msgspec.field(default_factory=_Material)


class _Resource(msgspec.Struct):
    name: str
    digest: str
    algorithm: str = "sha256"


class _Predicate(msgspec.Struct):
    resources: list[_Resource]


class _Subject(msgspec.Struct):
    digest: dict[str, str]


class _Statement(msgspec.Struct):
    subject: list[_Subject]
    predicateType: str
    predicate: _Predicate


def _parsed(signature: bytes) -> _Bundle:
    if len(signature) > _MAX_BYTES:
        raise SignatureInvalid("the signature is larger than any that is written")
    try:
        return msgspec.json.decode(signature, type=_Bundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SignatureInvalid(f"not a signature: {exc}") from exc


def _checked(bundle: _Bundle, keys: Sequence[PublicKey]) -> tuple[bytes, PublicKey]:
    """Return what was signed, once one of the keys has proved it."""
    envelope = bundle.dsseEnvelope
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(one.sig, validate=True) for one in envelope.signatures]
    except (binascii.Error, ValueError) as exc:
        raise SignatureInvalid(f"not a signature: {exc}") from exc
    if envelope.payloadType != _PAYLOAD:
        raise SignatureInvalid("not a signature of files: it is over something else")
    for key in keys:
        for one in signatures:
            if _holds(key.key, one, _encoded(payload)):
                return payload, key
    hint = bundle.verificationMaterial.publicKey
    by = f" (it names key {hint.hint[:16]}…)" if hint is not None and hint.hint else ""
    known = ", ".join(f"{key.name} ({key.id[:16]}…)" for key in keys) or "none"
    raise SignatureInvalid(f"signed by none of the keys that count{by}; those are: {known}")


def _resources(payload: bytes) -> dict[str, str]:
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SignatureInvalid(f"what was signed cannot be read: {exc}") from exc
    if statement.predicateType != _PREDICATE:
        raise SignatureInvalid("what was signed is no list of files in a form that is known")
    found = {}
    for resource in statement.predicate.resources:
        if resource.algorithm != "sha256" or resource.name in found:
            raise SignatureInvalid(f"{resource.name}: signed twice, or with another hash")
        found[resource.name] = resource.digest
    return found


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed names its type and length."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


# --- keys ---


def _serialization() -> Any:
    return library("cryptography.hazmat.primitives.serialization", "sign")


def _public(key: Any, name: str) -> PublicKey:
    ec = library("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    ed25519 = library("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size in _HASH_BITS
    if not curve and not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(
            f"{name}: a key of a kind that is not taken; Ed25519 is (muelle keygen NAME), and "
            "ECDSA P-256, P-384 and P-521"
        )
    return PublicKey(hashlib.sha256(_pem(key)).hexdigest(), name, key)


def _pem(key: Any) -> bytes:
    serialization = _serialization()
    text: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return text


def _ecdsa(key_size: int) -> Any:
    ec = library("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    hashes = library("cryptography.hazmat.primitives.hashes", "sign")
    return ec.ECDSA(getattr(hashes, _HASH_BITS[key_size])())


def _sign(key: Any, content: bytes) -> bytes:
    if hasattr(key, "curve"):
        signature: bytes = key.sign(content, _ecdsa(key.curve.key_size))
        return signature
    plain: bytes = key.sign(content)
    return plain


def _holds(key: Any, signature: bytes, content: bytes) -> bool:
    invalid = library("cryptography.exceptions", "sign").InvalidSignature
    try:
        if hasattr(key, "curve"):
            key.verify(signature, content, _ecdsa(key.curve.key_size))
        else:
            key.verify(signature, content)
    except invalid:
        return False
    return True


def _password(env: Mapping[str, str]) -> bytes | None:
    if text := env.get("MUELLE_SIGN_PASSWORD"):
        return text.encode()
    if file := env.get("MUELLE_SIGN_PASSWORD_FILE"):
        return _read(Path(file), "password").rstrip(b"\n")
    return None


def _read(path: Path, what: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MAX_KEY_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: the {what} cannot be read: {exc.strerror}") from exc
    if len(content) > _MAX_KEY_BYTES:
        raise ConfigError(f"{path}: too large for a {what}")
    return content
