"""`muelle serve`: settings in, a running server out. Not the server (`muelle.app`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command, read_settings, setting_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    models = click.Argument(
        ["models"], nargs=-1, metavar="[NAME=]PATH|APP.py:NAME...", type=click.Path()
    )
    return new_command("serve", texts, run, [models, *setting_options(texts)])


def run(cli: Cli, models: tuple[str, ...], config: str | None, **flags: Any) -> int:
    """Serve until a signal ends it; return the server's exit code."""
    # Naming code here is the decision to run it: an app asks for no --trust.
    from muelle.apps.target import split_app

    app, models = split_app(models, os.path.exists)
    if app:
        flags["app.target"] = app
    settings, _ = read_settings(cli, models, config, **flags)
    has_models = settings.models or settings.store or _has_store(cli)
    if not has_models and not settings.app.target:
        raise click.UsageError(cli.texts("error.no_model"), click.get_current_context())
    if settings.name is not None and len(settings.models) > 1:
        text = cli.texts("error.name_for_many", count=len(settings.models))
        raise click.UsageError(text, click.get_current_context())
    # The server's parts are imported here, after every cheap reason to stop.
    from muelle.app import serve
    from muelle.cli.screens import ServeScreen

    with ServeScreen(cli) as screen:
        return serve(settings, screen)


def _has_store(cli: Cli) -> bool:
    """Whether this user has pushed a model: then `muelle serve` alone serves the store."""
    from muelle.repository.store import default_store

    return (default_store(cli.env) / "store.db").exists()
