"""`muelle status`: what the servers of a store are doing. Asks each by its admin socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import opened, short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.admin import ServerStatus
    from muelle.core.status import VersionStatus
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "status",
        texts,
        run,
        [
            click.Option(["--socket"], metavar="PATH", help=texts("help.option.status.socket")),
            *store_options(texts),
        ],
    )


def run(cli: Cli, socket: str | None, store: str | None, as_json: bool) -> int:
    """Print every server; exit code 1 when one of them is not ready, or none runs."""
    found = _statuses(cli, socket, store)
    if as_json:
        show_json(cli, found)
    else:
        for i, status in enumerate(found):
            if i:
                cli.show("")
            _show(cli, status)
        if not found:
            cli.show(cli.texts("status.none"))
    return 0 if found and all(status.ready for status in found) else 1


def _statuses(cli: Cli, socket: str | None, store: str | None) -> list[ServerStatus]:
    from muelle.client import Client

    if socket is not None:
        sockets = [socket]
    else:
        with opened(cli, store) as opened_store:
            sockets = [lease.socket for lease in opened_store.servers() if lease.socket]
    found = []
    for path in sockets:
        with Client(socket=path) as client:
            found.append(client.status())
    return found


def _show(cli: Cli, status: ServerStatus) -> None:
    limit = status.memory_limit_bytes
    memory = short_size(status.rss_bytes) + (f" / {short_size(limit)}" if limit else "")
    state = cli.texts("status.ready") if status.ready else status.reason
    cli.show(
        cli.texts(
            "status.head",
            url=status.url,
            pid=status.pid,
            version=status.muelle,
            uptime=_uptime(status.uptime_s),
            memory=memory,
            state=state,
        )
    )
    head = [cli.texts(f"table.{k}") for k in ("model", "version", "labels")]
    head += [cli.texts(f"table.status.{k}") for k in ("share", "state", "workers", "memory")]
    rows = [
        (
            model.name,
            version.version,
            _labels(version),
            _share(version),
            _state(version),
            *_workers(version),
        )
        for model in status.models
        for version in model.versions
    ]
    cli.show_table(head, rows)


def _labels(version: VersionStatus) -> str:
    return " ".join(f"@{label}" for label in version.labels)


def _share(version: VersionStatus) -> str:
    if version.shadow:
        return "shadow"
    return f"{100 * version.share:.3g} %" if version.share else "-"


def _state(version: VersionStatus) -> str:
    return f"{version.state}: {version.reason}" if version.reason else version.state


def _workers(version: VersionStatus) -> tuple[str, str]:
    workers: tuple[Any, ...] = version.workers
    return str(len(workers)), short_size(sum(worker.rss_bytes for worker in workers))


def _uptime(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"
