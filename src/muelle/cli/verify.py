"""`muelle verify`: read the whole store again and say which file rots. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import opened, short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command("verify", texts, run, store_options(texts))


def run(cli: Cli, store: str | None, as_json: bool) -> int:
    """Print what is wrong; exit code 1 when something is."""
    with opened(cli, store) as found, cli.progress(cli.texts("verify.reading")) as progress:
        report = found.verify(progress)
    if as_json:
        import msgspec

        show_json(cli, {"ok": report.ok, **msgspec.to_builtins(report)})
        return 0 if report.ok else 1
    for problem in report.problems:
        users = ", ".join(f"{model}:{version}" for model, version in problem.versions)
        used = f" ({cli.texts('verify.used_by', versions=users)})" if users else ""
        cli.show(f"{problem.kind}: {problem.text}{used}")
    cli.show(
        cli.texts(
            "verify.fine" if report.ok else "verify.wrong",
            n=len(report.problems),
            versions=report.n_versions,
            blobs=report.n_blobs,
            size=short_size(report.size),
        )
    )
    return 0 if report.ok else 1
