"""`muelle sign`: sign a version of the store, or a file or folder. Checks nothing (`verify`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.signing_options import path_meant, private_key
from muelle.cli.store_access import (
    audited,
    find,
    opened,
    servers_of,
    show_json,
    store_options,
)

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.packaging.signing import PrivateKey
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "sign",
        texts,
        run,
        [
            click.Argument(["target"], metavar="MODEL[:VERSION|@LABEL]|PATH"),
            click.Option(["--key"], metavar="NAME.key", required=True,
                         type=click.Path(path_type=Path), help=texts("help.option.sign_key")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(cli: Cli, target: str, key: Path, store: str | None, as_json: bool) -> None:
    """Sign it, and say where the signature lies."""
    private = private_key(cli, key)
    assert private is not None, "the option is required"
    path = path_meant(target)
    if path is not None:
        what, place = str(path), _sign_path(path, private)
    else:
        what, place = _sign_version(cli, target, store, private)
    if as_json:
        show_json(cli, {"signed": what, "signature": str(place), "key": private.public.id})
        return
    cli.show(cli.texts("sign.done", what=what, signer=private.public.id[:16], path=place))


def _sign_path(path: Path, key: PrivateKey) -> Path:
    from muelle.packaging.signing import sign_folder, signature_path, write_signature

    place = signature_path(path)
    write_signature(place, sign_folder(path, key))
    return place


def _sign_version(
    cli: Cli, reference: str, folder: str | None, key: PrivateKey
) -> tuple[str, Path]:
    from muelle.packaging.signing import add_signature, sign_record

    with opened(cli, folder) as store:
        record = store.record(*find(store, reference))
        with audited(store, "sign", record.model, record.version) as entry:
            entry.digest = record.digest
            entry.detail["key"] = key.public.id
            # What has rotted must not get a signature that says it is what was pushed.
            store.rehash(record.files)
            place = add_signature(store.folder, record.digest, sign_record(record, key))
            store.note_change()
        servers = servers_of(store, record.model)
        if servers:
            servers.change(cli, lambda client: client.sync())
    return f"{record.model}:{record.version}", place
