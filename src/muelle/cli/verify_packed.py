"""What `muelle verify` does with bundles and images: read them whole, and check their signature.

Both are checked against themselves also without a key. Not a command.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from muelle.cli.context import Cli
    from muelle.packaging.signing import PublicKey


def is_bundle(path: Path) -> bool:
    """Whether it is a file that `muelle bundle` wrote, by its name and first bytes."""
    if path.suffix != ".muelle" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_image(path: Path) -> bool:
    """Whether it is an image's layout folder or archive, by its name."""
    return (path / "oci-layout").is_file() or (path.suffix == ".tar" and path.is_file())


def check_bundle(cli: Cli, path: Path, given: Path | None, public: Sequence[PublicKey]) -> str:
    """Read a bundle; return the key that signed it, "" when none is asked for.

    The signature is the one inside, over its index; else one beside it, over the file. Raise
    ArtifactError: not whole; SignatureInvalid: not signed by one of the keys.
    """
    from muelle.core.errors import SignatureInvalid
    from muelle.packaging.bundle_format import INDEX
    from muelle.packaging.bundle_read import verify_bundle
    from muelle.packaging.signing import (
        read_signature,
        signature_path,
        verify_files,
        verify_folder,
    )

    with cli.progress(cli.texts("import.checking")) as moving:
        index = verify_bundle(path, progress=moving)
    if not public:
        return ""
    beside = given or signature_path(path)
    try:
        if index.signature and given is None:
            return verify_files(index.signature, [(INDEX, index.sha256)], public)
        if not beside.exists():
            raise SignatureInvalid(
                f"it is whole, and not signed: there is no signature in it, and no {beside.name}"
            )
        return verify_folder(path, read_signature(beside), public)
    except SignatureInvalid as exc:
        raise SignatureInvalid(f"{path}: {exc.message}") from exc


def check_image(cli: Cli, path: Path, given: Path | None, public: Sequence[PublicKey]) -> str:
    """Read every blob of an image; return the key that signed it, "" when none is asked for.

    The signature beside it is over its manifest, as `muelle build --sign` writes it, or over the
    file or folder, as `muelle sign` does. Raise as `check_bundle`.
    """
    from muelle.core.errors import SignatureInvalid
    from muelle.packaging.oci import verify_layout
    from muelle.packaging.signing import (
        OCI_MANIFEST,
        read_signature,
        signature_path,
        verify_digest,
        verify_folder,
    )

    with cli.waiting(cli.texts("pack.checking")):
        manifests = verify_layout(path).manifests
    if not public:
        return ""
    signature = read_signature(given or signature_path(path))
    reason = ""
    # What is attached to an image lies in the same folder, with a manifest of its own.
    for digest in manifests:
        try:
            return verify_digest(OCI_MANIFEST, digest, signature, public)
        except SignatureInvalid as exc:
            reason = reason or exc.message
    try:
        return verify_folder(path, signature, public)
    except SignatureInvalid:
        raise SignatureInvalid(f"{path}: {reason}") from None
