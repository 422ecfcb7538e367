"""The bytes of a signature file: OpenSSF model signing, as a Sigstore bundle around an in-toto
statement in a DSSE envelope. Pure. Not for keys, nor for reading what is signed.

Sources: Sigstore bundle v0.3 (JSON form), DSSE protocol v1.0.0, in-toto Statement v1, and the
predicate `https://model_signing/signature/v1.0`, whose digests are a list of `resources`, and whose
subject is the SHA-256 over those digests in order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec

from muelle.core.errors import ArtifactError, SignatureInvalid

Files = Sequence[tuple[str, str]]
"""(relative name with `/`, 64 hex digits of the content's SHA-256)."""

LONE = "."
"""The name of the only file where a file was signed by itself, whatever it is called."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_SHOWN = 3


# --- as it stands in the file; unknown members are passed over, as their formats ask ---


class _KeyHint(msgspec.Struct):
    hint: str | None = None


class _Material(msgspec.Struct, rename="camel"):
    public_key: _KeyHint | None = None
    certificate: Any = None
    x509_certificate_chain: Any = None


class _DsseSignature(msgspec.Struct):
    sig: bytes
    keyid: str | None = ""


class _Dsse(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: list[_DsseSignature]


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Dsse


class _Subject(msgspec.Struct):
    digest: dict[str, str]
    name: str = ""


class _Resource(msgspec.Struct):
    algorithm: str
    digest: str
    name: str


class _Serialization(msgspec.Struct):
    method: str
    hash_type: str = "sha256"


class _Predicate(msgspec.Struct):
    resources: list[_Resource]
    serialization: _Serialization


class _Statement(msgspec.Struct, rename="camel"):
    type: str = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate_type: str
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signature file, read and not believed."""

    payload: bytes
    signature: bytes
    key_id: str
    """64 hex digits of the key that is said to have signed, "" when it is not said."""

    @property
    def message(self) -> bytes:
        """What was signed: the payload with its type and length in front."""
        return pae(self.payload)


@dataclass(frozen=True, slots=True)
class Statement:
    """What somebody has signed. `files`: name -> 64 hex digits."""

    name: str
    files: dict[str, str]


def pae(payload: bytes) -> bytes:
    """Return what a DSSE signature is made over (pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (
        len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload,
    )  # fmt: skip


def write_statement(files: Files, name: str) -> bytes:
    """Return the payload that says that these files are what is meant.

    Raise ArtifactError when there is no file, or a name cannot stand in a signature.
    """
    if not files:
        raise ArtifactError(f"{name}: no file to sign")
    known = dict(files)
    if len(known) != len(files):
        raise ArtifactError(f"{name}: a file is named twice")
    for path, sha256 in files:
        _check(path, sha256)
    resources = [
        {"name": path, "algorithm": "sha256", "digest": known[path]}
        for path in sorted(known, key=lambda path: path.split("/"))
    ]
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(list(resources))}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
            },
            "resources": resources,
        },
    }
    return msgspec.json.encode(statement)


def write_bundle(payload: bytes, signature: bytes, key_id: str) -> bytes:
    """Return the content of a `.sig` file."""
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": payload,
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": signature, "keyid": ""}],
        },
    }
    return msgspec.json.encode(bundle) + b"\n"


def read_bundle(content: bytes) -> Envelope:
    """Read a `.sig` file. Raise SignatureInvalid, which says what is wrong with its form."""
    bundle = _decode(content, _Bundle, "not a signature in the Sigstore bundle format")
    if bundle.media_type != _MEDIA_TYPE:
        raise SignatureInvalid(f"its form is {_clean(bundle.media_type)}, not {_MEDIA_TYPE}")
    material, envelope = bundle.verification_material, bundle.dsse_envelope
    if material.certificate is not None or material.x509_certificate_chain is not None:
        raise SignatureInvalid("it was made with a certificate; only keys are taken here")
    if envelope.payload_type != _PAYLOAD_TYPE:
        raise SignatureInvalid(f"what it signs is {_clean(envelope.payload_type)}, not in-toto")
    if len(envelope.signatures) != 1:
        raise SignatureInvalid(f"it holds {len(envelope.signatures)} signatures; one is taken")
    hint = (material.public_key.hint if material.public_key else None) or ""
    if hint and not _HEX.match(hint):
        raise SignatureInvalid("its key is not named by a SHA-256")
    return Envelope(envelope.payload, envelope.signatures[0].sig, hint)


def read_statement(payload: bytes) -> Statement:
    """Read what was signed. Raise SignatureInvalid when it is no statement about files."""
    said = _decode(payload, _Statement, "what it signs is no in-toto statement about a model")
    if said.type != _STATEMENT or said.predicate_type != _PREDICATE:
        raise SignatureInvalid(f"what it signs is of the kind {_clean(said.predicate_type)}")
    how = said.predicate.serialization
    if how.method != "files" or how.hash_type != "sha256":
        raise SignatureInvalid(
            f"it signs {_clean(how.method)} by {_clean(how.hash_type)}; files by sha256 are taken: "
            "sign it anew"
        )
    resources = said.predicate.resources
    files = {one.name: one.digest for one in resources}
    if len(said.subject) != 1 or len(files) != len(resources) or not files:
        raise SignatureInvalid("what it signs names no subject, no file, or a file twice")
    for one in resources:
        if one.algorithm != "sha256" or not _HEX.match(one.digest):
            raise SignatureInvalid(f"{_clean(one.name)} stands in it without a SHA-256")
    root = _root([msgspec.to_builtins(one) for one in resources])
    if said.subject[0].digest.get("sha256") != root:
        raise SignatureInvalid("the digest of its whole is not that of its files")
    return Statement(said.subject[0].name, files)


def difference(files: Files, signed: dict[str, str]) -> str:
    """Say how files differ from what was signed, "" when they do not.

    A lone file that was signed by itself may be called anything.
    """
    there = dict(files)
    if len(there) == len(signed) == 1 and LONE in (*there, *signed):
        (here,), (meant,) = there.items(), signed.items()
        there, signed = {here[0]: here[1]}, {here[0]: meant[1]}
    parts = (
        ("changed", [n for n in there if n in signed and there[n] != signed[n]]),
        ("missing", [n for n in signed if n not in there]),
        ("not signed", [n for n in there if n not in signed]),
    )
    return "; ".join(f"{_names(names)}: {what}" for what, names in parts if names)


def _root(resources: list[dict[str, str]]) -> str:
    """Return the SHA-256 over the digests in their order."""
    whole = hashlib.sha256()
    for one in resources:
        whole.update(bytes.fromhex(one["digest"]))
    return whole.hexdigest()


def _check(path: str, sha256: str) -> None:
    if not _HEX.match(sha256):
        raise ArtifactError(f"{_clean(path)}: {_clean(sha256)!r} is no SHA-256")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{_clean(path)}: its name is not UTF-8; rename it") from None
    if not path or str(PurePosixPath(path)) != path:
        raise ArtifactError(f"{_clean(path)!r}: not the plain relative name of a file")


def _decode(content: bytes, kind: type[Any], trouble: str) -> Any:
    try:
        # From text: msgspec takes any bytes in members that it passes over.
        return msgspec.json.decode(content.decode(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SignatureInvalid(f"{trouble}: {_clean(str(exc))}") from exc


def _names(names: Sequence[str]) -> str:
    """Return some names for a message, and how many more there are."""
    if names == [LONE]:
        return "the file"
    shown = ", ".join(_clean(name) for name in sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _clean(text: str, limit: int = 120) -> str:
    """Return a stranger's text so that it cannot play with a terminal, nor fill it."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
