"""`muelle export`: write a version's files and its record into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import find, opened, short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "export",
        texts,
        run,
        [
            click.Argument(["reference"], metavar="MODEL[:VERSION|@LABEL]"),
            click.Argument(["folder"], metavar="DIR", type=click.Path(path_type=Path)),
            click.Option(["--layout"], type=click.Choice(["plain", "triton"]), default="plain",
                         show_default=True, help=texts("help.option.layout")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    reference: str,
    folder: Path,
    layout: Literal["plain", "triton"],
    store: str | None,
    as_json: bool,
) -> None:
    """Write it; nothing that lies there is overwritten."""
    from muelle.publishing.transfer import export

    with opened(cli, store) as found:
        record = found.record(*find(found, reference))
        place = export(found, record, folder, layout)
    facts = {"model": record.model, "version": record.version, "digest": record.digest}
    if as_json:
        show_json(cli, {**facts, "folder": str(place), "size": record.size})
        return
    cli.show(
        cli.texts(
            "export.done",
            reference=f"{record.model}:{record.version}",
            folder=place,
            n=len(record.files),
            size=short_size(record.size),
        )
    )
