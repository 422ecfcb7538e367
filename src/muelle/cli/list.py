"""`muelle list`: the models of the store, or the versions of one. Reads no record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import (
    model_of,
    opened,
    short_size,
    short_time,
    show_json,
    store_options,
)
from muelle.cli.store_views import shown_labels, shown_route

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.records import ModelSummary
    from muelle.repository.store import VersionRow
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    model = click.Argument(["model"], required=False)
    return new_command("list", texts, run, [model, *store_options(texts)])


def run(cli: Cli, model: str | None, store: str | None, as_json: bool) -> None:
    """Print one line for each model, or for each version of the model, newest first."""
    with opened(cli, store) as found:
        if model is None:
            _show_models(cli, found.models(), as_json)
        else:
            _show_versions(cli, found.versions(model_of(model)), as_json)


def _show_models(cli: Cli, models: tuple[ModelSummary, ...], as_json: bool) -> None:
    if as_json:
        show_json(cli, models)
        return
    if not models:
        cli.say(cli.texts("list.empty"))
        return
    keys = ("model", "labels", "versions", "newest", "format", "size", "created", "route")
    cli.show_table(
        [cli.texts(f"table.{key}") for key in keys],
        [
            (
                one.model,
                " ".join(f"@{label}={version}" for label, version in one.labels.items()),
                str(one.n_versions),
                str(one.newest),
                one.format,
                short_size(one.size),
                short_time(one.created),
                shown_route(one.route),
            )
            for one in models
        ],
    )


def _show_versions(cli: Cli, versions: tuple[VersionRow, ...], as_json: bool) -> None:
    if as_json:
        show_json(cli, versions)
        return
    keys = ("version", "labels", "format", "size", "created", "digest", "note")
    cli.show_table(
        [cli.texts(f"table.{key}") for key in keys],
        [
            (
                str(one.version),
                shown_labels(one.labels),
                one.format,
                short_size(one.size),
                short_time(one.created),
                one.digest[:19],
                one.note,
            )
            for one in versions
        ],
    )
