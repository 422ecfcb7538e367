"""`muelle history`: how the labels of a model have moved, who moved them and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import model_of, opened, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "history",
        texts,
        run,
        [
            click.Argument(["model"]),
            click.Option(["--label"], help=texts("help.option.history_label")),
            *store_options(texts),
        ],
    )


def run(cli: Cli, model: str, label: str | None, store: str | None, as_json: bool) -> None:
    """Print the movements, newest first."""
    with opened(cli, store) as found:
        changes = found.history(model_of(model), label)
    if as_json:
        show_json(cli, changes)
        return
    if not changes:
        cli.say(cli.texts("history.none"))
        return
    keys = ("when", "label", "version", "before", "who", "reason")
    cli.show_table(
        [cli.texts(f"table.{key}") for key in keys],
        [
            (
                one.at,
                f"@{one.label}",
                _number(one.version),
                _number(one.previous),
                one.who,
                one.reason,
            )
            for one in changes
        ],
    )


def _number(version: int | None) -> str:
    return "-" if version is None else str(version)
