"""Signatures and signed files on disk: `PATH.sig`, the store's `signatures/`, digests of a tree.

A version's signatures lie in `<store>/signatures/<its digest>/<first 16 digits of the key>.sig`: by
content, so that versions with the same files share them. Not for what they say (`signing`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from muelle.core.errors import ArtifactError, SignatureInvalid, StoreError
from muelle.packaging.signing_format import LONE, read_bundle
from muelle.repository.digest import BLOCK_BYTES, CACHE
from muelle.repository.store.checks import check_digest
from muelle.repository.store.locks import sync_folder
from muelle.repository.store.sources import list_sources

ENDING = ".sig"
SIGNATURE_BYTES = 32 * 1024 * 1024
"""Larger than a signature over 100,000 files."""
SIGNATURES = 64
"""As many signatures of one version are looked at."""


def signature_path(path: Path) -> Path:
    """Return where the signature of a file or folder lies: beside it."""
    path = path if path.name not in ("", ".", "..") else path.resolve()
    return path.with_name(path.name + ENDING)


def hash_files(path: Path, *, caches: bool = False) -> list[tuple[str, str]]:
    """Return (name, SHA-256) of a file (its name is `.`) or of a folder's files, sorted.

    `__pycache__` counts only with `caches`. Raise ArtifactError: a link, a pipe, an odd name, or a
    file that cannot be read.
    """
    if path.is_file():
        return [(LONE, _hash(path))]
    found = [(file.name, _hash(file.path)) for file in list_sources(path)]
    if caches:
        found += [(file.relative_to(path).as_posix(), _hash(file)) for file in _caches(path)]
    return sorted(found)


def write_signature(path: Path, signature: bytes, *, replace: bool = True) -> None:
    """Write a `.sig` file, whole or not at all. Raise StoreError when the disk fails.

    Without `replace`, one that is there stays.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "wb") as file:
                file.write(signature)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                fresh.replace(path)
            elif not path.exists():
                os.link(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError:
        return  # Somebody else was faster.
    except OSError as exc:
        raise StoreError(f"{path}: cannot be written: {exc.strerror}") from exc


def read_signature(path: Path) -> bytes:
    """Read a `.sig` file. Raise SignatureInvalid when there is none, or what is there is none."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SignatureInvalid(f"{path}: not a file")
            content = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError as exc:
        raise SignatureInvalid(f"{path}: there is no such signature") from exc
    except OSError as exc:
        raise SignatureInvalid(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(content) > SIGNATURE_BYTES:
        raise SignatureInvalid(f"{path}: too large for a signature")
    return content


def add_signature(store: Path, digest: str, signature: bytes, *, replace: bool = True) -> Path:
    """Keep a signature of the version with this digest (`sha256:<hex>`); return where it lies.

    Whether it is right is not asked. Another one of the same key is replaced, unless `replace` is
    off. Raise SignatureInvalid when it is none at all, StoreError when the disk fails.
    """
    said = read_bundle(signature).key_id or hashlib.sha256(signature).hexdigest()
    folder = _folder(store, digest)
    try:
        for made in (folder.parent, folder):
            if not made.is_dir():
                made.mkdir(0o700, exist_ok=True)
                sync_folder(made.parent)
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be made: {exc.strerror}") from exc
    path = folder / f"{said[:16]}{ENDING}"
    write_signature(path, signature, replace=replace)
    return path


def read_signatures(store: Path, digest: str) -> tuple[bytes, ...]:
    """Return the signatures of the version with this digest, sorted by key; none is fine."""
    folder = _folder(store, digest)
    try:
        names = sorted(name for name in os.listdir(folder) if _is_signature(name))
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be read: {exc.strerror}") from exc
    return tuple(read_signature(folder / name) for name in names[:SIGNATURES])


def _is_signature(name: str) -> bool:
    return name.endswith(ENDING) and not name.startswith(".")


def _folder(store: Path, digest: str) -> Path:
    check_digest(digest)  # it becomes a path
    return store / "signatures" / digest.removeprefix("sha256:")


def _caches(folder: Path) -> Iterator[Path]:
    for here, _, names in os.walk(folder):
        if CACHE in Path(here).relative_to(folder).parts:
            yield from (Path(here, name) for name in names)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ArtifactError(f"{path}: neither a file nor a folder")
            while n := file.readinto(buffer):
                digest.update(view[:n])
    except OSError as exc:
        raise ArtifactError(f"{path}: cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()
