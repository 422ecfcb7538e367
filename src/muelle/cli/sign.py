"""`muelle sign`: sign a version of the store, or any file or folder (a model, an image)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import audited, find, opened, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.records import VersionRecord
    from muelle.repository.store import Store
    from muelle.signing import PrivateKey
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "sign",
        texts,
        run,
        [
            click.Argument(["what"], metavar="MODEL[:VERSION|@LABEL]|PATH"),
            click.Option(["--key"], metavar="KEY", required=True,
                         type=click.Path(path_type=Path), help=texts("help.option.sign")),
            *(one for one in store_options(texts) if one.name == "store"),
        ],
    )  # fmt: skip


def run(cli: Cli, what: str, key: Path, store: str | None) -> None:
    """Sign it; what was signed before by the same key is replaced."""
    from muelle.signing import files_of, load_private, sign_files, signature_beside

    private = load_private(key, cli.env)
    path = Path(what)
    if path.exists():
        beside = signature_beside(path)
        beside.write_bytes(sign_files(files_of(path), private, name=path.name))
        cli.show(cli.texts("sign.done", what=path, where=beside, id=private.public.id[:16]))
        return
    with opened(cli, store) as found:
        record = found.record(*find(found, what))
        with audited(found, "sign", record.model, record.version) as entry:
            entry.digest = record.digest
            entry.detail["key"] = private.public.id
            where = sign_version(found, record, private)
    name = f"{record.model}:{record.version}"
    cli.show(cli.texts("sign.done", what=name, where=where, id=private.public.id[:16]))


def sign_version(store: Store, record: VersionRecord, key: PrivateKey) -> Path:
    """Sign a version's content, read whole before: what rots is not signed."""
    from muelle.repository.signatures import add_signature
    from muelle.signing import sign_files

    store.rehash(record.files)
    signature = sign_files([(f.path, f.sha256) for f in record.files], key, name=record.model)
    return add_signature(store.folder, record.digest, key.public.id, signature)
