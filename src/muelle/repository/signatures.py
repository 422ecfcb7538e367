"""The signatures that a store keeps of its versions' contents. Not for checking them: `signing`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from muelle.core.errors import StoreError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_ENDING = ".sig"


def add_signature(store: Path, digest: str, key_id: str, signature: bytes) -> Path:
    """Keep a signature of the content with this digest, one per key. Raise StoreError."""
    folder = _folder(store, digest)
    target = folder / f"{key_id[:16]}{_ENDING}"
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as stream:
            stream.write(signature)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise StoreError(f"{target}: cannot be written: {exc.strerror}") from exc
    return target


def read_signatures(store: Path, digest: str) -> list[bytes]:
    """Return the signatures of the content with this digest. Raise StoreError."""
    folder = _folder(store, digest)
    try:
        return [path.read_bytes() for path in sorted(folder.glob(f"*{_ENDING}"))]
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be read: {exc.strerror}") from exc


def _folder(store: Path, digest: str) -> Path:
    match = _DIGEST.match(digest)
    if match is None:
        raise StoreError(f"{digest!r} is no digest of a version")
    return store / "signatures" / match[1]
