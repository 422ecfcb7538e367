"""`muelle keygen`: a new pair of keys to sign with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    name = click.Argument(["name"], type=click.Path(path_type=Path))
    return new_command("keygen", texts, run, [name])


def run(cli: Cli, name: Path) -> None:
    """Write NAME.key and NAME.pub."""
    from muelle.signing import new_key

    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    key = new_key(private, public)
    cli.show(cli.texts("keygen.done", private=private, public=public, id=key.id[:16]))
