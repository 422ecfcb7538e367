"""Keys that sign: Ed25519 and ECDSA on P-256, P-384 and P-521, as PEM files. Makes and reads them.

Not for what is signed (`signing_format`), nor for certificates, agents or hardware keys.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muelle.core.errors import ArtifactError, ConfigError
from muelle.repository.store.locks import sync_folder
from muelle.runtimes.libraries import library

KEY_BYTES = 64 * 1024
"""No PEM file of one key is larger."""
PASSWORD = "MUELLE_SIGN_PASSWORD"
PASSWORD_FILE = f"{PASSWORD}_FILE"

_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""Curve -> the hash that goes with it, as the Sigstore bundle format pairs them."""
_PRIVATE = re.compile(rb"-----BEGIN (\w+ )*PRIVATE KEY-----")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures. Two are equal when they are the same key."""

    id: str
    """64 hex digits: SHA-256 of the key as PEM."""
    kind: str
    """`ed25519`, `secp256r1`, `secp384r1` or `secp521r1`."""
    pem: bytes
    name: str = field(default="", compare=False)
    """The file that it was read from, for messages."""
    _key: Any = field(default=None, repr=False, compare=False)

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's over the message."""
        try:
            if self.kind == "ed25519":
                self._key.verify(signature, message)
            else:
                self._key.verify(signature, message, _ecdsa(self.kind))
        except library("cryptography.exceptions", "sign").InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:16]})" if self.name else self.id[:16]


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. It is never written anywhere, nor shown."""

    public: PublicKey
    remark: str = ""
    """What is wrong with how its file lies there, "" when nothing is."""
    _key: Any = field(default=None, repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """Return the signature: 64 bytes for Ed25519, DER for ECDSA."""
        kind = self.public.kind
        how = () if kind == "ed25519" else (_ecdsa(kind),)
        signature: bytes = self._key.sign(message, *how)
        return signature


def key_id(public: PublicKey) -> str:
    """Return the 64 hex digits that name a key, as the model-signing library counts them."""
    return public.id


def load_private(path: Path, env: Mapping[str, str] | None = None) -> PrivateKey:
    """Read a private key. An encrypted one takes its password from the environment.

    The password stands in MUELLE_SIGN_PASSWORD, or on the first line of the file that
    MUELLE_SIGN_PASSWORD_FILE names. Raise ConfigError, which says what the file is instead.
    """
    content, mode = _read(path)
    if not _PRIVATE.search(content):
        what = "a public key" if b"PUBLIC KEY-----" in content else "no key in PEM form"
        raise ConfigError(f"{path}: {what}; signing needs the private one: muelle keygen NAME")
    key = _decrypt(path, content, read_password(os.environ if env is None else env))
    remark = ""
    if mode & 0o077:
        remark = f"{path}: others on this machine can read this private key; chmod 600 {path}"
    return PrivateKey(_public(key.public_key(), path), remark, key)


def load_public(path: Path) -> PublicKey:
    """Read a public key. Raise ConfigError, which says what the file is instead."""
    content, _ = _read(path)
    if _PRIVATE.search(content):
        raise ConfigError(
            f"{path}: a private key; name the public one (NAME.pub), and let nobody see this one"
        )
    try:
        key = _serialization().load_pem_public_key(content)
    except (ValueError, _unsupported()) as exc:
        raise ConfigError(f"{path}: no public key in PEM form: {_words(exc)}") from exc
    return _public(key, path)


def read_password(env: Mapping[str, str]) -> bytes | None:
    """Return the password that the environment gives, None when it gives none."""
    text, file = env.get(PASSWORD, ""), env.get(PASSWORD_FILE, "")
    if text and file:
        raise ConfigError(f"{PASSWORD} and {PASSWORD_FILE}: one of them")
    if file:
        content, _ = _read(Path(file))
        text = content.decode("utf-8", "surrogateescape").partition("\n")[0].rstrip("\r")
        if not text:
            raise ConfigError(f"{PASSWORD_FILE}: {file} has no password on its first line")
    return text.encode("utf-8", "surrogateescape") if text else None


def new_key() -> PrivateKey:
    """Make an Ed25519 key."""
    ed25519 = library("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    key = ed25519.Ed25519PrivateKey.generate()
    return PrivateKey(_public(key.public_key(), None), "", key)


def write_keys(name: Path, key: PrivateKey, password: bytes | None = None) -> tuple[Path, Path]:
    """Write `NAME.key` (only its owner may read it; encrypted with the password) and `NAME.pub`.

    Raise ConfigError when one of them is there already: a key that is lost cannot be made again.
    """
    private, public = (name.with_name(name.name + ending) for ending in (".key", ".pub"))
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: it exists already; choose another name")
    try:
        _write_new(private, _private_pem(key, password), 0o600)
        try:
            _write_new(public, key.public.pem, 0o644)
        except OSError:
            private.unlink()
            raise
        sync_folder(private.parent)
    except OSError as exc:
        raise ArtifactError(f"{exc.filename or name}: cannot be written: {exc.strerror}") from exc
    return private, public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; leave none behind when that fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _private_pem(key: PrivateKey, password: bytes | None) -> bytes:
    form = _serialization()
    how = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    pem: bytes = key._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, how)
    return pem


def _decrypt(path: Path, content: bytes, password: bytes | None) -> Any:
    load = _serialization().load_pem_private_key
    try:
        try:
            return load(content, None)
        except TypeError:  # this is how it says that the key is encrypted
            if password is None:
                raise ConfigError(
                    f"{path}: the key is encrypted; put its password into {PASSWORD}, or the "
                    f"name of a file that has it into {PASSWORD_FILE}"
                ) from None
            return load(content, password)
    except (ValueError, _unsupported()) as exc:
        what = "wrong password, or a broken key" if password else f"a broken key: {_words(exc)}"
        raise ConfigError(f"{path}: {what}") from exc


def _public(key: Any, path: Path | None) -> PublicKey:
    form = _serialization()
    where = str(path) if path is not None else ""
    ed25519 = library("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")
    if isinstance(key, ed25519.Ed25519PublicKey):
        kind = "ed25519"
    else:
        kind = getattr(getattr(key, "curve", None), "name", "")
        if kind not in _CURVES:
            other = kind or type(key).__name__.lstrip("_").removesuffix("PublicKey")
            raise ConfigError(
                f"{where}: a key of the kind {other} is not taken; taken are Ed25519 (muelle "
                "keygen NAME) and ECDSA on P-256, P-384 and P-521"
            )
    pem = key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(pem).hexdigest(), kind, pem, where, key)


def _read(path: Path) -> tuple[bytes, int]:
    """Return content and mode of a small file."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if not stat.S_ISREG(mode) or len(content) > KEY_BYTES:
        raise ConfigError(f"{path}: not a key file")
    return content, mode


def _ecdsa(curve: str) -> Any:
    hashes = library("cryptography.hazmat.primitives.hashes", "sign")
    ec = library("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    return ec.ECDSA(getattr(hashes, _CURVES[curve])())


def _serialization() -> Any:
    return library("cryptography.hazmat.primitives.serialization", "sign")


def _unsupported() -> type[Exception]:
    error: type[Exception] = library("cryptography.exceptions", "sign").UnsupportedAlgorithm
    return error


def _words(error: BaseException) -> str:
    """Return the first sentence of a library's error."""
    return re.split(r"[.\n]", str(error))[0][:120] or type(error).__name__
