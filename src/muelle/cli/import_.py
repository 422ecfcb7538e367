"""`muelle import`: check a bundle from end to end, then take its versions into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.packing import Steps
from muelle.cli.signing_options import policy, require_option
from muelle.cli.store_access import (
    audited,
    label_text,
    move_label,
    opened,
    short_size,
    show_json,
    store_options,
    user,
)

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.packaging.bundle_format import BundleIndex
    from muelle.publishing.bundles import Imported
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "import",
        texts,
        run,
        [
            click.Argument(["bundle"], type=file, metavar="FILE.muelle"),
            click.Option(["--check"], is_flag=True, help=texts("help.option.bundle_check")),
            click.Option(["--key", "keys"], metavar="PUB", type=file, multiple=True,
                         help=texts("help.option.bundle_key")),
            click.Option(["--label"], default="", help=texts("help.option.import_label")),
            click.Option(["--labels"], is_flag=True, help=texts("help.option.import_labels")),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            require_option(texts),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    bundle: Path,
    check: bool,
    keys: tuple[Path, ...],
    label: str,
    labels: bool,
    trust: bool,
    require: tuple[str, ...],
    store: str | None,
    as_json: bool,
) -> None:
    """Verify all, import all, then move the labels."""
    from muelle.packaging.bundle_read import verify_bundle
    from muelle.publishing.bundles import import_bundle, labels_to_move

    with cli.progress(cli.texts("import.checking")) as moving:
        index = verify_bundle(bundle, progress=moving)
    signer = _signer_of(bundle, index, keys)
    if check:
        _show_check(cli, bundle, index, signer, as_json)
        return
    if label:
        _check_label(label)
    required = policy(require)
    with opened(cli, store, create=True) as found, Steps(cli) as steps:
        with audited(found, "import") as entry:
            imported = import_bundle(
                found,
                bundle,
                index,
                who=user(),
                trust=trust,
                require=required,
                progress=steps.phase,
            )
            entry.detail["imported"] = len(imported)
            entry.detail["bundle"] = index.sha256
            if imported:
                last = imported[-1].record
                entry.model, entry.version, entry.digest = last.model, last.version, last.digest
        existing = {one.record.model: found.labels(one.record.model) for one in imported}
        wanted = labels_to_move(imported, existing, label=label, carry=labels)
        moved = [move_label(cli, found, *one, reason="import") for one in wanted]
    if as_json:
        show_json(cli, [_json(one, moved) for one in imported])
        return
    for one in imported:
        _show(cli, one)
    for change in moved:
        cli.show(label_text(cli, change))


def _signer_of(bundle: Path, index: BundleIndex, keys: tuple[Path, ...]) -> str:
    """Return the id of the key that signed it, "" when none is asked for. Raise when it is none."""
    if not keys:
        return ""
    from muelle.core.errors import ArtifactError
    from muelle.packaging.bundle_format import INDEX
    from muelle.packaging.signing import load_public, verify_files

    if not index.signature:
        raise ArtifactError(
            f"{bundle.name}: it is not signed; ask its maker for one made with --sign KEY, or "
            "import it without --key"
        )
    public = [load_public(key) for key in keys]
    return verify_files(index.signature, [(INDEX, index.sha256)], public)


def _check_label(label: str) -> None:
    from muelle.repository.store.checks import check_label

    check_label(label)


def _show_check(cli: Cli, bundle: Path, index: BundleIndex, signer: str, as_json: bool) -> None:
    versions = [f"{v.model}:{v.version}" for v in index.versions]
    if as_json:
        show_json(
            cli,
            {
                "bundle": str(bundle),
                "size": index.size,
                "index_sha256": index.sha256,
                "signed": bool(index.signature),
                "signer": signer,
                "platform": index.platform,
                "python": index.python,
                "versions": versions,
                "members": len(index.members),
            },
        )
        return
    facts = {"n": len(index.members), "size": short_size(index.size), "names": ", ".join(versions)}
    cli.show(cli.texts("import.whole", name=bundle.name, **facts))
    if signer:
        cli.show(cli.texts("import.signed", signer=signer[:16]))
    elif index.signature:
        cli.show(cli.texts("import.unchecked"))


def _show(cli: Cli, one: Imported) -> None:
    record, origin = one.record, one.origin
    key = "import.done" if one.created else "push.unchanged"
    values = {"reference": f"{record.model}:{record.version}", "digest": record.digest[:19]}
    values["origin"] = f"{origin.model}:{origin.version}"
    cli.show(cli.texts(key, **values))


def _json(one: Imported, moved: list[dict[str, Any]]) -> dict[str, Any]:
    record = one.record
    return {
        "model": record.model,
        "version": record.version,
        "digest": record.digest,
        "created": one.created,
        "origin": f"{one.origin.model}:{one.origin.version}",
        "labels": [
            change["label"]
            for change in moved
            if (change["model"], change["version"]) == (record.model, record.version)
        ],
    }
