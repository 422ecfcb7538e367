"""`muelle label`: let a label name a version; a running server first makes the version answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import (
    audited,
    find,
    label_text,
    labelled,
    move_label,
    opened,
    servers_of,
    show_json,
    store_options,
    user,
)

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.repository.store import Store
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "label",
        texts,
        run,
        [
            click.Argument(["reference"], metavar="MODEL:VERSION"),
            click.Argument(["label"], required=False),
            click.Option(["--remove"], is_flag=True, help=texts("help.option.remove_label")),
            click.Option(["--note"], default="", help=texts("help.option.note")),
            *store_options(texts),
        ],
    )


def run(
    cli: Cli,
    reference: str,
    label: str | None,
    remove: bool,
    note: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Move or take away a label; when the server refuses, nothing has changed."""
    from muelle.core.errors import ConfigError

    with opened(cli, store) as found:
        if remove:
            if label is not None:
                raise ConfigError("--remove takes MODEL@LABEL alone")
            told = _remove(cli, found, *labelled(reference))
        elif label is None:
            raise ConfigError(cli.texts("label.missing", reference=reference))
        else:
            model, version = find(found, reference)
            label = label.removeprefix("@")
            if hint := _near(cli, label, found.labels(model)):
                cli.say(hint)
            if warning := _other_signature(cli, found, model, label, version):
                cli.say(warning)
            told = move_label(cli, found, model, label, version, note)
    if as_json:
        show_json(cli, told)
    elif remove:
        cli.show(cli.texts("label.removed", model=told["model"], label=told["label"]))
    else:
        cli.show(label_text(cli, told))


def _near(cli: Cli, label: str, known: dict[str, int]) -> str:
    """Return a hint when a new label looks like one that is there: `stabel`."""
    import difflib

    from muelle.core.records import STABLE

    near = [] if label in known else difflib.get_close_matches(label, [*known, STABLE], n=1)
    return cli.texts("label.near", label=label, near=near[0]) if near and near[0] != label else ""


def _other_signature(cli: Cli, store: Store, model: str, label: str, version: int) -> str:
    """Return a warning when callers of the label will meet other inputs or outputs than before."""
    before = store.labels(model).get(label)
    if before is None or before == version:
        return ""
    old, new = (store.record(model, v).signature for v in (before, version))
    if old is None or new is None or old == new:
        return ""
    return cli.texts("label.other_signature", model=model, old=before, new=version)


def _remove(cli: Cli, store: Store, model: str, label: str) -> dict[str, Any]:
    servers = servers_of(store, model)
    previous = store.labels(model).get(label)
    if servers:
        servers.change(cli, lambda client: client.remove_label(model, label))
    else:
        with audited(store, "label", model, previous) as entry:
            entry.detail |= {"label": label, "removed": True}
            store.remove_label(model, label, who=user())
    return {
        "model": model,
        "label": label,
        "version": None,
        "previous": previous,
        "changed": True,
        "server": servers.url,
    }
