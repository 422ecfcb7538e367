"""`muelle rm`: take versions out of the store. Refused while a label, route or server uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import audited, find, opened, show_json, store_options, user

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    references = click.Argument(["references"], metavar="MODEL:VERSION...", nargs=-1, required=True)
    return new_command("rm", texts, run, [references, *store_options(texts)])


def run(cli: Cli, references: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Remove the versions in order; the first that is refused ends it."""
    from muelle.core.errors import ConfigError
    from muelle.repository.store import Reference

    removed = []
    try:
        with opened(cli, store) as found:
            for text in references:
                if (wanted := Reference.parse(text)).version is None:
                    # What a label names changes: what is destroyed is named by its number.
                    raise ConfigError(f"{text!r}: name a version, for example {wanted.model}:1")
            for text in references:
                model, version = find(found, text)
                with audited(found, "rm", model, version) as entry:
                    entry.digest = found.record(model, version).digest
                    found.remove(model, version, who=user())
                removed.append({"model": model, "version": version, "digest": entry.digest})
                if not as_json:
                    cli.show(cli.texts("rm.removed", reference=f"{model}:{version}"))
    finally:
        if as_json:
            show_json(cli, removed)
    if not as_json:
        cli.say(cli.texts("rm.space"))
