"""`muelle keygen`: make a pair of keys that sign. Not for certificates, nor for keys of TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import show_json

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "keygen",
        texts,
        run,
        [
            click.Argument(["name"], metavar="NAME", type=click.Path(path_type=Path)),
            click.Option(["--json", "as_json"], is_flag=True, help=texts("help.option.json")),
        ],
    )


def run(cli: Cli, name: Path, as_json: bool) -> None:
    """Write both halves, and say which is which."""
    from muelle.packaging.signing import new_key, write_keys
    from muelle.packaging.signing_keys import read_password

    password = read_password(cli.env)
    key = new_key()
    private, public = write_keys(name, key, password)
    if as_json:
        facts = {"private": str(private), "public": str(public), "id": key.public.id}
        show_json(cli, {**facts, "kind": key.public.kind, "encrypted": password is not None})
        return
    cli.show(cli.texts("keygen.private", path=private))
    cli.show(cli.texts("keygen.public", path=public, id=key.public.id[:16]))
    if password is None:
        cli.say(cli.texts("keygen.plain"))
