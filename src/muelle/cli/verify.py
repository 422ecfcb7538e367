"""`muelle verify`: read the whole store again and say which file rots, or one thing of it.

One thing: a version, a file or folder, a bundle, an image; and whether a key has signed it. Changes
nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.signing_options import path_meant, public_keys
from muelle.cli.store_access import find, opened, short_size, show_json, store_options
from muelle.cli.verify_packed import check_bundle, check_image, is_bundle, is_image

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.packaging.signing import PublicKey
    from muelle.repository.store import Store
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "verify",
        texts,
        run,
        [
            click.Argument(["target"], metavar="[MODEL[:VERSION|@LABEL]|PATH]", default=""),
            click.Option(["--key", "keys"], metavar="NAME.pub", multiple=True, type=file,
                         help=texts("help.option.verify_key")),
            click.Option(["--signature"], metavar="FILE", type=file,
                         help=texts("help.option.signature")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    target: str,
    keys: tuple[Path, ...],
    signature: Path | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Print what is wrong; exit code 1 when something is."""
    public = public_keys(keys)
    if not target:
        return _whole_store(cli, store, as_json, public)
    path = path_meant(target)
    if path is None:
        signer = _version(cli, target, store, public)
    elif is_bundle(path):
        signer = check_bundle(cli, path, signature, public)
    elif is_image(path):
        signer = check_image(cli, path, signature, public)
    else:
        signer = _path(path, signature, public)
    if as_json:
        show_json(cli, {"ok": True, "verified": target, "key": signer or None})
    elif signer:
        name = next(key.name for key in public if key.id == signer)
        cli.show(cli.texts("verify.signed", what=target, signer=signer[:16], path=name))
    else:
        cli.show(cli.texts("verify.whole", what=target))
    return 0


def _path(path: Path, given: Path | None, public: tuple[PublicKey, ...]) -> str:
    """Check a file or folder of which nothing else is known than its signature."""
    from muelle.core.errors import ConfigError, SignatureInvalid
    from muelle.packaging.signing import read_signature, signature_path, verify_folder

    if not public:
        raise ConfigError(f"{path}: with which key? name it: --key NAME.pub")
    signature = read_signature(given or signature_path(path))
    try:
        return verify_folder(path, signature, public)
    except SignatureInvalid as exc:
        raise SignatureInvalid(f"{path}: {exc.message}") from exc


def _version(cli: Cli, reference: str, folder: str | None, public: tuple[PublicKey, ...]) -> str:
    """Read a version's files again, and check its signature where keys are named."""
    from muelle.packaging.signing import read_signatures, verify_record

    with opened(cli, folder) as store:
        record = store.record(*find(store, reference))
        signer = ""
        if public:
            signer = verify_record(record, read_signatures(store.folder, record.digest), public)
        with cli.progress(cli.texts("verify.reading")) as progress:
            store.rehash(record.files, progress)
    return signer


def _whole_store(cli: Cli, store: str | None, as_json: bool, public: tuple[PublicKey, ...]) -> int:
    with opened(cli, store) as found:
        with cli.progress(cli.texts("verify.reading")) as progress:
            report = found.verify(progress)
        unsigned = _unsigned(found, public) if public else []
    ok = report.ok and not unsigned
    if as_json:
        import msgspec

        more = {"unsigned": unsigned} if public else {}
        show_json(cli, {"ok": ok, **msgspec.to_builtins(report), **more})
        return 0 if ok else 1
    for problem in report.problems:
        users = ", ".join(f"{model}:{version}" for model, version in problem.versions)
        used = f" ({cli.texts('verify.used_by', versions=users)})" if users else ""
        cli.show(f"{problem.kind}: {problem.text}{used}")
    for reason in unsigned:
        cli.show(f"signature: {reason}")
    cli.show(
        cli.texts(
            "verify.fine" if ok else "verify.wrong",
            n=len(report.problems) + len(unsigned),
            versions=report.n_versions,
            blobs=report.n_blobs,
            size=short_size(report.size),
        )
    )
    return 0 if ok else 1


def _unsigned(store: Store, public: tuple[PublicKey, ...]) -> list[str]:
    """Say of each version without a right signature why none is."""
    from muelle.packaging.signing import read_signatures
    from muelle.packaging.signing_policy import SignaturePolicy

    policy = SignaturePolicy(public)
    records = [
        store.record(summary.model, row.version)
        for summary in store.models()
        for row in reversed(store.versions(summary.model))
    ]
    reasons = [
        policy.refusal(record, read_signatures(store.folder, record.digest)) for record in records
    ]
    return [reason for reason in reasons if reason]
