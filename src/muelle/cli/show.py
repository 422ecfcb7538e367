"""`muelle show`: everything that the store knows of a version. Loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import find, opened, short_size, show_json, store_options
from muelle.cli.store_views import (
    pairs,
    record_json,
    shown_labels,
    shown_route,
    shown_signature,
    shown_tensor,
    shown_value,
)

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.records import RouteSpec, VersionRecord
    from muelle.texts import Texts

_MAX_FILES = 20


def command(texts: Texts) -> click.Command:
    """Return the command."""
    reference = click.Argument(["reference"], metavar="MODEL[:VERSION|@LABEL]")
    return new_command("show", texts, run, [reference, *store_options(texts)])


def run(cli: Cli, reference: str, store: str | None, as_json: bool) -> None:
    """Print the version's record, and the labels and the route that name it."""
    with opened(cli, store) as found:
        model, version = find(found, reference)
        record = found.record(model, version)
        labels = [label for label, number in found.labels(model).items() if number == version]
        route = found.route(model)
    if as_json:
        show_json(cli, {**record_json(record), "labels": labels, "route": route})
        return
    for line in pairs(_facts(cli, record, labels, route)):
        cli.show(line)
    cli.show("")
    head = ["", cli.texts("table.tensor"), cli.texts("table.type")]
    cli.show_table(head, shown_signature(record.signature))
    _show_files(cli, record)
    _show_examples(cli, record)


def _facts(
    cli: Cli, record: VersionRecord, labels: list[str], route: RouteSpec | None
) -> list[tuple[str, str]]:
    code = cli.texts("inspect.yes" if record.runs_code else "inspect.no")
    rows = {
        "version": f"{record.model}:{record.version}",
        "labels": shown_labels(labels),
        "route": shown_route(route),
        "digest": record.digest,
        "format": record.format,
        "runtime": record.runtime,
        "runs_code": code,
        "size": short_size(record.size),
        "libraries": ", ".join(f"{k} {v}" for k, v in record.libraries.items()),
        "python": record.python,
        "environment": record.environment,
        "requirements": ", ".join(record.requirements),
        "params": shown_value(record.params),
        "metrics": shown_value(record.metrics),
        "note": record.note,
        "source": record.source,
        "published": cli.texts(
            "show.pushed", created=record.created, who=record.who, host=record.host
        ),
        "tolerance": f"rtol {record.rtol:g}, atol {record.atol:g}",
    }
    return [(cli.texts(f"show.{name}"), value) for name, value in rows.items() if value]


def _show_files(cli: Cli, record: VersionRecord) -> None:
    cli.show("")
    head = [cli.texts(f"table.{key}") for key in ("file", "size", "sha256")]
    cli.show_table(
        head, [(f.path, short_size(f.size), f.sha256) for f in record.files[:_MAX_FILES]]
    )
    if len(record.files) > _MAX_FILES:
        cli.show(cli.texts("show.more_files", n=len(record.files) - _MAX_FILES))


def _show_examples(cli: Cli, record: VersionRecord) -> None:
    for i, example in enumerate(record.examples, 1):
        cli.show("")
        remarks = [cli.texts("show.made_up")] if example.made_up else []
        if not example.repeatable:
            remarks.append(cli.texts("show.not_repeatable"))
        more = f" ({', '.join(remarks)})" if remarks else ""
        cli.show(cli.texts("show.example", n=i) + more)
        for tensor in example.inputs:
            cli.show(f"  → {shown_tensor(tensor)}")
        for tensor in example.outputs:
            cli.show(f"  ← {shown_tensor(tensor)}")
