"""`muelle gc`: free the space of what no version uses any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import audited, opened, short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "gc",
        texts,
        run,
        [
            click.Option(["--grace-s"], type=click.FloatRange(min=0), default=3600.0,
                         show_default=True, metavar="S", help=texts("help.option.grace")),
            click.Option(["--dry-run"], is_flag=True, help=texts("help.option.dry_run")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(cli: Cli, grace_s: float, dry_run: bool, store: str | None, as_json: bool) -> None:
    """Remove it, or only say what would go."""
    with opened(cli, store) as found:
        if dry_run:
            report = found.gc(grace_s=grace_s, dry_run=True)
        else:
            with audited(found, "gc") as entry:
                report = found.gc(grace_s=grace_s)
                entry.detail["bytes_freed"] = report.bytes_freed
    if as_json:
        show_json(cli, report)
        return
    counts = ("blobs", "checkouts", "incoming", "environments", "leases")
    cli.show(
        cli.texts(
            "gc.would" if report.dry_run else "gc.freed",
            size=short_size(report.bytes_freed),
            **{name: getattr(report, name) for name in counts},
        )
    )
