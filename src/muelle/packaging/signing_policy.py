"""The policy `require-signature`: nothing is used without a signature by an accepted key.

Checks versions of a store and plain files just before they are loaded, and what is pushed or pulled
in. Not for making signatures (`signing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import SignatureInvalid
from muelle.core.records import VersionRecord
from muelle.packaging.signing import (
    ENDING,
    Files,
    PublicKey,
    hash_files,
    load_public,
    read_signature,
    require_signature,
    signature_path,
    verify_folder,
    verify_record,
)
from muelle.packaging.signing_files import SIGNATURES
from muelle.repository.marks import Mark, take_mark


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """The keys of which one must have signed. Immutable; any thread may ask."""

    keys: tuple[PublicKey, ...]

    @classmethod
    def load(cls, paths: Sequence[str]) -> SignaturePolicy:
        """Read the key files. Raise ConfigError when one is no public key."""
        return cls(tuple(load_public(Path(path).expanduser()) for path in paths))

    # --- a version ---

    def refusal(self, record: VersionRecord, signatures: Sequence[bytes]) -> str:
        """Say why a version must not be used, "" when it may. Its files are not looked at."""
        try:
            verify_record(record, signatures, self.keys)
        except SignatureInvalid as exc:
            return exc.message
        return ""

    def check_version(
        self, record: VersionRecord, folder: Path, signatures: Sequence[bytes]
    ) -> None:
        """Hash the files that are about to be loaded. Raise SignatureInvalid."""
        # The folder's files, not the record's: what lies there too may be run.
        files = hash_files(folder, caches=True)
        self.check_files(files, signatures, f"{record.model}:{record.version}")

    # --- a plain file or folder ---

    def check_path(self, path: Path) -> None:
        """Hash a file or folder and check the signature beside it. Raise SignatureInvalid."""
        beside = signature_path(path)
        if not beside.exists():
            keys = ", ".join(str(key) for key in self.keys)
            raise SignatureInvalid(
                f"{path}: not signed: there is no {beside.name} beside it; wanted is a signature "
                f"by {keys}: muelle sign {path} --key KEY"
            )
        try:
            verify_folder(path, read_signature(beside), self.keys)
        except SignatureInvalid as exc:
            raise SignatureInvalid(f"{path}: {exc.message}") from exc

    def check_files(self, files: Files, signatures: Sequence[bytes], where: str) -> None:
        """Check signatures over files whose digests are known. Raise SignatureInvalid."""
        require_signature(files, signatures, self.keys, where=where)


def mark_with_signature(path: Path) -> Mark:
    """Look at an artifact and at its signature: one that was signed meanwhile has changed."""
    mark = take_mark(path)
    beside = signature_path(path)
    if not beside.is_file():
        return mark
    other = take_mark(beside)
    newest = max(mark.newest_s, other.newest_s)
    return Mark(f"{mark.text}+{other.text}", newest, mark.finished)


def policy_of(paths: Sequence[str]) -> SignaturePolicy | None:
    """Return the policy that these key files make, None when there are none."""
    return SignaturePolicy.load(paths) if paths else None


def source_signatures(path: Path) -> tuple[bytes, ...]:
    """Return the signature beside a file or folder, none when there is none."""
    beside = signature_path(path)
    return (read_signature(beside),) if beside.is_file() else ()


def shipped_signatures(folder: Path, record: VersionRecord) -> tuple[bytes, ...]:
    """Return the signatures of a version in a folder that travels (`repository.shipped`)."""
    beside = sorted((folder / record.model).glob(f"{record.version}.*{ENDING}"))
    return tuple(read_signature(path) for path in beside[:SIGNATURES])
