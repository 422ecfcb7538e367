"""`muelle completion SHELL`: the script that a shell reads. Installs nothing by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    shell = click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))
    return new_command("completion", texts, run, [shell])


def run(cli: Cli, shell: str) -> None:
    """Print the script."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "the choice above holds only shells that click knows"
    root = click.get_current_context().find_root().command
    # `func_name` and the rest are filled by click; bash's version is not asked (it may be absent).
    completion = kind(root, {}, "muelle", "_MUELLE_COMPLETE")
    cli.show(completion.source_template % completion.source_vars())
