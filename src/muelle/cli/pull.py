"""`muelle pull`: bring in the versions of an export, or one of another store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.push import Phases
from muelle.cli.signing_options import policy, require_option
from muelle.cli.store_access import audited, opened, show_json, store_options, user

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "pull",
        texts,
        run,
        [
            click.Argument(["source"], metavar="DIR", type=file),
            click.Argument(["reference"], metavar="[MODEL[:VERSION|@LABEL]]", default=""),
            click.Option(["--name"], default="", help=texts("help.option.pull_name")),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            click.Option(["--wheels"], metavar="DIR", type=file, envvar="MUELLE_WHEELS",
                         help=texts("help.option.wheels")),
            require_option(texts),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    source: Path,
    reference: str,
    name: str,
    trust: bool,
    wheels: Path | None,
    require: tuple[str, ...],
    store: str | None,
    as_json: bool,
) -> None:
    """Check every file against its record and publish it; labels stay where they are."""
    from muelle.publishing.transfer import pull

    required = policy(require)
    with opened(cli, store, create=True) as found:
        with audited(found, "pull", name) as entry, Phases(cli) as progress:
            pulled = pull(
                found,
                source,
                reference,
                who=user(),
                name=name,
                trust=trust,
                wheels=wheels,
                require=required,
                progress=progress,
            )
            last = pulled[-1].record
            entry.model, entry.version, entry.digest = last.model, last.version, last.digest
            entry.detail["pulled"] = len(pulled)
        labels = {one.record.model: found.labels(one.record.model) for one in pulled}
    if as_json:
        show_json(
            cli,
            [
                {
                    "model": one.record.model,
                    "version": one.record.version,
                    "digest": one.record.digest,
                    "created": one.created,
                    "origin": one.origin,
                }
                for one in pulled
            ],
        )
        return
    for one in pulled:
        reference = f"{one.record.model}:{one.record.version}"
        key = "pull.done" if one.created else "push.unchanged"
        texts = {"reference": reference, "origin": one.origin, "digest": one.record.digest[:19]}
        cli.show(cli.texts(key, **texts))
    if not labels[last.model]:
        cli.show(cli.texts("push.no_label", reference=f"{last.model}:{last.version}"))
