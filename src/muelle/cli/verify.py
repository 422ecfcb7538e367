"""`muelle verify`: read the whole store again and say which file rots; or check signatures.

Changes nothing. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import find, opened, short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.signing import PublicKey
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "verify",
        texts,
        run,
        [
            click.Argument(["what"], metavar="[MODEL[:VERSION|@LABEL]|PATH]", required=False),
            click.Option(["--key", "keys"], metavar="PUB", multiple=True,
                         type=click.Path(path_type=Path), help=texts("help.option.verify_key")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli, what: str | None, keys: tuple[Path, ...], store: str | None, as_json: bool
) -> int:
    """Print what is wrong; exit code 1 when something is."""
    from muelle.core.errors import ConfigError

    if what is None:
        if keys:
            raise ConfigError("--key: name what it has signed: a version, a file, a bundle")
        return _store(cli, store, as_json)
    from muelle.signing import load_public

    publics = [load_public(key) for key in keys]
    path = Path(what)
    signer = _path(cli, path, publics) if path.exists() else _version(cli, what, store, publics)
    if as_json:
        show_json(cli, {"ok": True, "what": what, "key": signer.id if signer else None})
    elif signer is not None:
        cli.show(cli.texts("verify.signed", what=what, name=signer.name, id=signer.id[:16]))
    else:
        cli.show(cli.texts("verify.whole", what=what))
    return 0


def _path(cli: Cli, path: Path, keys: list[PublicKey]) -> PublicKey | None:
    """Check a bundle, an image, or a model's file or folder. Raise when something is wrong."""
    from muelle.core.errors import ArtifactError, SignatureInvalid
    from muelle.signing import files_of, image_files, signature_beside, verify_files

    if path.is_file() and _starts_with(path, b"PK\x03\x04") and path.suffix == ".muelle":
        return _bundle(cli, path, keys)
    image = (path / "oci-layout").is_file() or path.suffix == ".tar"
    manifests = _checked_image(cli, path) if image else ()
    if image and not keys:
        return None
    if not keys:
        raise ArtifactError(f"{path}: name the key that should have signed it: --key PUB")
    beside = signature_beside(path)
    if not beside.is_file():
        raise ArtifactError(f"{path}: it is not signed: there is no {beside.name} beside it")
    signature = beside.read_bytes()
    if not image:
        return verify_files(signature, files_of(path), keys)
    # What is attached to an image lies in the same folder, with manifests of its own.
    for digest in manifests[:-1]:
        with contextlib.suppress(SignatureInvalid):
            return verify_files(signature, image_files(digest), keys)
    return verify_files(signature, image_files(manifests[-1]), keys)


def _checked_image(cli: Cli, path: Path) -> tuple[str, ...]:
    """Read every blob; return the digests of the manifests."""
    from muelle.packaging.oci import verify_layout

    with cli.waiting(cli.texts("pack.checking")):
        return verify_layout(path).manifests


def _bundle(cli: Cli, path: Path, keys: list[PublicKey]) -> PublicKey | None:
    from muelle.core.errors import ArtifactError
    from muelle.packaging.bundle_format import INDEX
    from muelle.packaging.bundle_read import verify_bundle
    from muelle.signing import verify_files

    with cli.progress(cli.texts("import.checking")) as moving:
        index = verify_bundle(path, progress=moving)
    if not keys:
        return None
    if not index.signature:
        raise ArtifactError(f"{path}: it is whole, and not signed")
    return verify_files(index.signature, [(INDEX, index.sha256)], keys)


def _version(cli: Cli, what: str, store: str | None, keys: list[PublicKey]) -> PublicKey | None:
    from muelle.core.errors import SignatureInvalid
    from muelle.repository.signatures import read_signatures
    from muelle.signing import verify_files

    with opened(cli, store) as found:
        record = found.record(*find(found, what))
        with cli.progress(cli.texts("verify.reading")) as progress:
            found.rehash(record.files, progress)
        if not keys:
            return None
        files = [(file.path, file.sha256) for file in record.files]
        name = f"{record.model}:{record.version}"
        trouble = SignatureInvalid(f"{name}: it is not signed; muelle sign {name} --key KEY")
        for signature in read_signatures(found.folder, record.digest):
            try:
                return verify_files(signature, files, keys)
            except SignatureInvalid as exc:
                trouble = SignatureInvalid(f"{name}: {exc.message}")
        raise trouble


def _starts_with(path: Path, head: bytes) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(head)) == head


def _store(cli: Cli, store: str | None, as_json: bool) -> int:
    with opened(cli, store) as found, cli.progress(cli.texts("verify.reading")) as progress:
        report = found.verify(progress)
    if as_json:
        import msgspec

        show_json(cli, {"ok": report.ok, **msgspec.to_builtins(report)})
        return 0 if report.ok else 1
    for problem in report.problems:
        users = ", ".join(f"{model}:{version}" for model, version in problem.versions)
        used = f" ({cli.texts('verify.used_by', versions=users)})" if users else ""
        cli.show(f"{problem.kind}: {problem.text}{used}")
    cli.show(
        cli.texts(
            "verify.fine" if report.ok else "verify.wrong",
            n=len(report.problems),
            versions=report.n_versions,
            blobs=report.n_blobs,
            size=short_size(report.size),
        )
    )
    return 0 if report.ok else 1
