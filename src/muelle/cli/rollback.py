"""`muelle rollback`: let a label name again what it named before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import (
    audited,
    label_text,
    model_of,
    opened,
    servers_of,
    show_json,
    store_options,
    told,
    user,
)

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.repository.store import Store
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "rollback",
        texts,
        run,
        [
            click.Argument(["model"]),
            click.Option(["--label"], help=texts("help.option.rollback_label")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(cli: Cli, model: str, label: str | None, store: str | None, as_json: bool) -> None:
    """Go back one version; a second time goes further back."""
    from muelle.core.records import STABLE

    with opened(cli, store) as found:
        moved = _rollback(cli, found, model_of(model), label or STABLE)
    if as_json:
        show_json(cli, moved)
    else:
        cli.show(label_text(cli, moved))


def _rollback(cli: Cli, store: Store, model: str, label: str) -> dict[str, Any]:
    servers = servers_of(store, model)
    if servers:
        answer = servers.change(cli, lambda client: client.rollback(model, label=label))
        return told(answer, servers.url)
    with audited(store, "rollback", model) as entry:
        entry.detail["label"] = label
        change = store.rollback(model, label, who=user())
        assert change.version is not None
        entry.version = change.version
        entry.digest = store.record(model, change.version).digest
    return {
        "model": model,
        "label": label,
        "version": change.version,
        "previous": change.previous,
        "digest": entry.digest,
        "changed": True,
        "seconds": None,
        "server": "",
    }
