"""`muelle rollout`: shift traffic to a version step by step, and watch it. The server does it.

Exit code 0 when the version has all traffic, 1 when it was rolled back, has failed or was aborted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import find, opened, servers_of, show_json, store_options
from muelle.core.errors import ConfigError

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.cli.store_access import Servers
    from muelle.core.admin import RolloutStatus
    from muelle.repository.store import Store
    from muelle.texts import Texts

LOOK_S = 0.5
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def command(texts: Texts) -> click.Command:
    """Return the command."""

    def option(name: str, metavar: str, default: str | None = None) -> click.Option:
        key = name.removeprefix("--").replace("-", "_")
        return click.Option(
            [name], metavar=metavar, default=default, help=texts(f"help.option.rollout.{key}")
        )

    return new_command(
        "rollout",
        texts,
        run,
        [
            click.Argument(["reference"], metavar="MODEL[:VERSION]"),
            option("--canary", "PERCENT,...", "5,25,100"),
            option("--watch", "DURATION", "10m"),
            option("--max-error-rate", "RATE", "0.5%"),
            option("--max-p99-ms", "MS"),
            option("--max-disagreement", "RATE"),
            click.Option(["--min-requests"], type=click.IntRange(min=0), default=20,
                         help=texts("help.option.rollout.min_requests")),
            click.Option(["--note"], default="", help=texts("help.option.note")),
            click.Option(["--detach"], is_flag=True, help=texts("help.option.rollout.detach")),
            click.Option(["--status", "only_status"], is_flag=True,
                         help=texts("help.option.rollout.status")),
            click.Option(["--abort"], is_flag=True, help=texts("help.option.rollout.abort")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    reference: str,
    only_status: bool,
    abort: bool,
    detach: bool,
    store: str | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Start a rollout and follow it; or show or abort the one that there is."""
    if only_status and abort:
        raise ConfigError("--status or --abort, not both")
    with opened(cli, store) as found:
        model = reference.partition(":")[0].partition("@")[0]
        found.versions(model)  # raises, with near names
        servers = servers_of(found, model)
        if not servers:
            raise ConfigError(cli.texts("rollout.no_server", model=model))
        if abort:
            status = servers.change(cli, lambda client: client.abort_rollout(model))
        elif only_status:
            status = servers.ask(lambda client: client.rollout(model))
        else:
            status = _start(cli, found, servers, reference, limits)
            if not detach:
                status = _follow(cli, servers, status)
    if as_json:
        show_json(cli, status)
    else:
        cli.show(_line(cli, status))
    good = status.state == "done" or not status.ended or (abort and status.state == "aborted")
    return 0 if good else 1


def _start(
    cli: Cli, store: Store, servers: Servers, reference: str, limits: dict[str, Any]
) -> RolloutStatus:
    model, version = find(store, reference)
    if ":" not in reference and "@" not in reference:
        raise ConfigError(f"{reference!r}: name the version too, for example {model}:{version}")
    disagreement, p99 = limits["max_disagreement"], limits["max_p99_ms"]
    wanted: dict[str, Any] = {
        "steps": tuple(_number("--canary", part) for part in limits["canary"].split(",")),
        "watch_s": duration_s("--watch", limits["watch"]),
        "max_error_rate": share("--max-error-rate", limits["max_error_rate"]),
        "max_p99_ms": None if p99 is None else _number("--max-p99-ms", p99),
        "max_disagreement": (
            None if disagreement is None else share("--max-disagreement", disagreement)
        ),
        "min_requests": limits["min_requests"],
        "note": limits["note"],
    }
    return servers.ask(lambda client: client.start_rollout(model, version, **wanted))


def _follow(cli: Cli, servers: Servers, status: RolloutStatus) -> RolloutStatus:
    """Tell each change of state, step or reason until it has ended."""
    told = None
    model = status.model

    def watch(client: Any) -> RolloutStatus:
        nonlocal status, told
        for status in client.watch_rollout(model, LOOK_S):
            now = (status.state, status.step, status.reason.partition(":")[0])
            if now != told and not status.ended:
                cli.say(_line(cli, status))
            told = now
        return status

    return servers.ask(watch)


def _line(cli: Cli, status: RolloutStatus) -> str:
    percent = f"{status.steps[status.step]:g}" if status.steps else ""
    text = cli.texts(
        f"rollout.{status.state}", model=status.model, version=status.version, percent=percent
    )
    facts = []
    if status.requests:
        facts.append(
            cli.texts(
                "rollout.facts",
                requests=status.requests,
                errors=f"{100 * status.error_rate:.3g}",
                p99=f"{status.p99_ms:.3g}",
            )
        )
    if status.disagreement is not None:
        value = f"{100 * status.disagreement:.3g}"
        facts.append(cli.texts("rollout.disagreement", value=value))
    if status.reason:
        text += f": {status.reason}"
    return f"{text} ({'; '.join(facts)})" if facts else text


def duration_s(option: str, text: str) -> float:
    """Read `90s`, `10m`, `1h`, or plain seconds. Raise ConfigError."""
    found = _DURATION.match(text.strip())
    if found is None:
        raise ConfigError(f"{option}: {text!r} is no duration; write 90s, 10m or 1h")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def share(option: str, text: str) -> float:
    """Read `0.5%` or `0.005`. Raise ConfigError."""
    text = text.strip()
    value = _number(option, text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ConfigError(f"{option}: {text!r} is no share; write 0.5% or 0.005")
    return value


def _number(option: str, text: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a number") from None
