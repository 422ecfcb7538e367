"""`muelle audit`: who changed what on a store or its servers, and whether the log is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import Command, Group
from muelle.cli.store_access import show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts

ALL = 2**31


def command(texts: Texts) -> click.Command:
    """Return the group; without a subcommand it shows the newest entries."""
    last = click.Option(["--last"], type=click.IntRange(min=1), default=20, metavar="N",
                        help=texts("help.option.audit.last"))  # fmt: skip
    after = click.Option(["--after"], type=click.IntRange(min=0), default=None, metavar="N",
                         help=texts("help.option.audit.after"))  # fmt: skip
    checkpoint = click.Option(["--checkpoint"], metavar="FILE", type=click.Path(path_type=Path),
                              help=texts("help.option.audit.checkpoint"))  # fmt: skip
    file = click.Argument(["file"], required=False, type=click.Path(path_type=Path))
    group = Group(
        "audit",
        texts=texts,
        help=texts("help.audit"),
        short_help=texts("help.audit.short"),
        epilog=texts("help.audit.examples"),
        callback=click.pass_obj(_maybe_show),
        invoke_without_command=True,
        params=[last, after, *store_options(texts)],
    )
    group.add_command(_sub("show", texts, show, [last, after, *store_options(texts)]))
    group.add_command(_sub("verify", texts, verify, [checkpoint, *store_options(texts)]))
    group.add_command(_sub("checkpoint", texts, write_checkpoint, [file, *store_options(texts)]))
    return group


def _sub(name: str, texts: Texts, run: Any, params: list[click.Parameter]) -> Command:
    return Command(
        name,
        help=texts(f"help.audit.{name}"),
        epilog=texts(f"help.audit.{name}.examples"),
        callback=click.pass_obj(run),
        params=params,
    )


def _maybe_show(cli: Cli, **options: Any) -> None:
    if click.get_current_context().invoked_subcommand is None:
        show(cli, **options)


def show(cli: Cli, last: int, after: int | None, store: str | None, as_json: bool) -> None:
    """Print entries, oldest first."""
    from muelle.telemetry.audit import AuditLog

    log = AuditLog.open(_path(cli, store))
    entries = log.newest(last) if after is None else log.read(after, ALL)
    if as_json:
        show_json(cli, list(entries))
        return
    head = [cli.texts(f"table.audit.{k}") for k in ("number", "when", "who", "what", "outcome")]
    rows = [
        (
            str(e.number),
            e.at,
            e.who,
            " ".join(part for part in (e.action, _what(e), _details(e.detail)) if part),
            e.outcome,
        )
        for e in entries
    ]
    cli.show_table(head, rows)


def _what(entry: Any) -> str:
    return f"{entry.model}:{entry.version}" if entry.version is not None else str(entry.model)


def _details(detail: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in detail.items())


def verify(cli: Cli, checkpoint: Path | None, store: str | None, as_json: bool) -> int:
    """Walk the whole chain; exit code 1 when it is not whole."""
    from muelle.telemetry.audit import verify as walk

    pinned = checkpoint.read_text("utf-8") if checkpoint is not None else ""
    report = walk(_path(cli, store), checkpoint=pinned)
    if as_json:
        show_json(
            cli,
            {
                "whole": not report.problems,
                "entries": report.entries,
                "head": report.head,
                "marks": report.marks,
                "problems": list(report.problems),
            },
        )
    else:
        for problem in report.problems:
            cli.show(problem)
        key = "audit.broken" if report.problems else "audit.whole"
        text = cli.texts(key, entries=report.entries, marks=report.marks, n=len(report.problems))
        cli.show(text)
    return 1 if report.problems else 0


def write_checkpoint(cli: Cli, file: Path | None, store: str | None, as_json: bool) -> None:
    """Print `NUMBER CHAIN` of the newest entry, or write it to a file that is kept elsewhere."""
    from muelle.telemetry.audit import AuditLog

    number, chain = AuditLog.open(_path(cli, store)).head()
    if file is not None:
        file.write_text(f"{number} {chain}\n", "utf-8")
    if as_json:
        show_json(cli, {"number": number, "chain": chain})
    elif file is None:
        cli.show(f"{number} {chain}")


def _path(cli: Cli, store: str | None) -> Path:
    """Return the log of the store that is meant. Raise ArtifactError when there is none."""
    from muelle.core.errors import ArtifactError
    from muelle.repository.store import default_store

    folder = Path(store).expanduser() if store else default_store(cli.env)
    path = folder / "audit.db"
    if not path.exists():
        raise ArtifactError(cli.texts("audit.none", path=path))
    return path
