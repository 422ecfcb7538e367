"""Sign files, folders, versions and image digests, and check such signatures. The door to it.

The form is that of the OpenSSF model-signing library, which checks our ECDSA signatures as we check
its; see docs/adr/0008. Not for what a signature must be there for (`signing_policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muelle.core.errors import ArtifactError, ConfigError, SignatureInvalid
from muelle.core.records import VersionRecord
from muelle.packaging.signing_files import (
    ENDING,
    add_signature,
    hash_files,
    read_signature,
    read_signatures,
    signature_path,
    write_signature,
)
from muelle.packaging.signing_format import (
    LONE,
    Files,
    difference,
    pae,
    read_bundle,
    read_statement,
    write_bundle,
    write_statement,
)
from muelle.packaging.signing_keys import (
    PrivateKey,
    PublicKey,
    key_id,
    load_private,
    load_public,
    new_key,
    write_keys,
)

__all__ = [
    "ENDING",
    "LONE",
    "OCI_MANIFEST",
    "Files",
    "PrivateKey",
    "PublicKey",
    "add_signature",
    "files_of",
    "hash_files",
    "key_id",
    "load_private",
    "load_public",
    "new_key",
    "read_signature",
    "read_signatures",
    "require_signature",
    "sign_digest",
    "sign_files",
    "sign_folder",
    "sign_record",
    "signature_path",
    "verify_digest",
    "verify_files",
    "verify_folder",
    "verify_record",
    "write_keys",
    "write_signature",
]


OCI_MANIFEST = "oci-manifest"
"""What is signed of an image: its manifest, however the image is packed."""


def sign_files(files: Files, key: PrivateKey, *, name: str) -> bytes:
    """Return the content of a `.sig` file over (name, SHA-256 in hex) pairs.

    `name` is what the whole is called, for whoever reads the file: nothing checks it. Raise
    ArtifactError when a name cannot stand in a signature.
    """
    payload = write_statement(files, name)
    return write_bundle(payload, key.sign(pae(payload)), key.public.id)


def verify_files(signature: bytes, files: Files, public: Sequence[PublicKey]) -> str:
    """Return the id of the key that has signed exactly these files.

    Raise SignatureInvalid: the key is another one, the signature is forged or broken, or a file
    differs, is missing, or is more than was signed (which ones, it says).
    """
    if not public:
        raise ConfigError("no key to check a signature with; name one: --key NAME.pub")
    envelope = read_bundle(signature)
    candidates = [key for key in public if envelope.key_id in ("", key.id)]
    if not candidates:
        allowed = ", ".join(str(key) for key in public)
        raise SignatureInvalid(f"signed by another key ({envelope.key_id[:16]}), not by {allowed}")
    signer = next((k for k in candidates if k.accepts(envelope.signature, envelope.message)), None)
    if signer is None:
        names = ", ".join(str(key) for key in candidates)
        raise SignatureInvalid(f"the signature is not one of {names}: it was changed or forged")
    # Nothing of the payload is looked at before the key has vouched for it.
    if wrong := difference(files, read_statement(envelope.payload).files):
        raise SignatureInvalid(f"not what {signer} has signed: {wrong}")
    return signer.id


def sign_folder(path: Path, key: PrivateKey) -> bytes:
    """Sign a file, or all files of a folder. Raise ArtifactError when one cannot be read."""
    return sign_files(hash_files(path), key, name=path.absolute().name)


def verify_folder(path: Path, signature: bytes, public: Sequence[PublicKey]) -> str:
    """Return the id of the key that has signed this file or folder. Raise as `verify_files`.

    In a folder everything counts, also what Python keeps in `__pycache__`: it would be run.
    """
    return verify_files(signature, hash_files(path, caches=True), public)


def sign_digest(kind: str, digest: str, name: str, key: PrivateKey) -> bytes:
    """Sign one thing that is known by its digest (`sha256:<hex>`): `oci-manifest`, for example."""
    return sign_files([(kind, _hex_of(digest))], key, name=name)


def verify_digest(kind: str, digest: str, signature: bytes, public: Sequence[PublicKey]) -> str:
    """Return the id of the key that has signed the digest as one of this kind."""
    return verify_files(signature, [(kind, _hex_of(digest))], public)


# --- versions of a store ---


def files_of(record: VersionRecord) -> list[tuple[str, str]]:
    """Return what is signed of a version: its files."""
    return [(file.path, file.sha256) for file in record.files]


def sign_record(record: VersionRecord, key: PrivateKey) -> bytes:
    """Sign a version's files."""
    return sign_files(files_of(record), key, name=record.model)


def verify_record(
    record: VersionRecord, signatures: Sequence[bytes], public: Sequence[PublicKey]
) -> str:
    """Return the id of a key that has signed the version's files. Raise SignatureInvalid."""
    where = f"{record.model}:{record.version}" if record.version else record.model
    return require_signature(files_of(record), signatures, public, where=where)


def require_signature(
    files: Files, signatures: Sequence[bytes], public: Sequence[PublicKey], *, where: str
) -> str:
    """Return the id of the first key with a right signature among several.

    Raise SignatureInvalid, which says why none is: of the one that comes nearest.
    """
    allowed = ", ".join(str(key) for key in public)
    if not signatures:
        raise SignatureInvalid(
            f"{where}: not signed; wanted is a signature by {allowed}: muelle sign {where} "
            "--key KEY"
        )
    reasons = []
    known = {key.id for key in public}
    for signature in signatures:
        try:
            return verify_files(signature, files, public)
        except SignatureInvalid as exc:
            reasons.append((_claimed(signature) not in known, exc.message))
    raise SignatureInvalid(f"{where}: {min(reasons)[1]}")


def _claimed(signature: bytes) -> str:
    try:
        return read_bundle(signature).key_id
    except SignatureInvalid:
        return ""


def _hex_of(digest: str) -> str:
    algorithm, sign, value = digest.rpartition(":")
    if sign and algorithm != "sha256":
        raise ArtifactError(f"{digest}: only sha256 digests can be signed")
    return value
