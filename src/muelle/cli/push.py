"""`muelle push`: check a model, try it in a worker, and publish it as a version of the store."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.signing_options import policy, private_key, require_option, sign_option
from muelle.cli.store_access import (
    audited,
    label_text,
    move_label,
    opened,
    servers_of,
    short_size,
    show_json,
    store_options,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from muelle.cli.context import Cli
    from muelle.publishing import PushResult
    from muelle.repository.store import Store
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "push",
        texts,
        run,
        [
            click.Argument(["path"], type=file),
            click.Option(["--name"], default="", help=texts("help.option.push_name")),
            click.Option(["--label"], help=texts("help.option.push_label")),
            click.Option(["--no-label"], is_flag=True, help=texts("help.option.no_label")),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            click.Option(["--example", "examples"], metavar="FILE", multiple=True, type=file,
                         help=texts("help.option.example")),
            click.Option(["--note"], default="", help=texts("help.option.note")),
            click.Option(["--metric", "metrics"], metavar="NAME=NUMBER", multiple=True,
                         help=texts("help.option.metric")),
            click.Option(["--artifact"], metavar="FILE", default="",
                         help=texts("help.option.artifact")),
            click.Option(["--requirements"], metavar="FILE", type=file,
                         help=texts("help.option.requirements")),
            click.Option(["--no-environment"], is_flag=True,
                         help=texts("help.option.no_environment")),
            click.Option(["--wheels"], metavar="DIR", type=file, envvar="MUELLE_WHEELS",
                         help=texts("help.option.wheels")),
            click.Option(["--rtol"], type=click.FloatRange(min=0), default=1e-3,
                         show_default=True, help=texts("help.option.rtol")),
            click.Option(["--atol"], type=click.FloatRange(min=0), default=1e-5,
                         show_default=True, help=texts("help.option.atol")),
            click.Option(["--timeout-s"], type=click.FloatRange(min=0, min_open=True),
                         default=600.0, show_default=True, help=texts("help.option.load_timeout")),
            click.Option(["--force"], is_flag=True, help=texts("help.option.force")),
            sign_option(texts),
            require_option(texts),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    path: Path,
    label: str | None,
    no_label: bool,
    metrics: tuple[str, ...],
    store: str | None,
    as_json: bool,
    timeout_s: float,
    no_environment: bool,
    sign: Path | None,
    require: tuple[str, ...],
    **given: Any,
) -> None:
    """Publish what the path holds; nothing when it does not work."""
    from muelle.core.errors import ConfigError
    from muelle.publishing import Options, push

    if label and no_label:
        raise ConfigError("--label and --no-label: one of them")
    key = private_key(cli, sign)
    required = policy(require)
    with opened(cli, store, create=True) as found:
        servers = servers_of(found, given["name"])
        options = Options(
            metrics=_numbers(metrics),
            load_timeout_s=timeout_s,
            own_environment=not no_environment,
            label="" if no_label else label,
            move_label=not servers,
            sign=key,
            require=required,
            **given,
        )
        with audited(found, "push", options.name) as entry, Phases(cli) as progress:
            results = push(found, path, options, who=user(), progress=progress)
            last = results[-1].record
            entry.model, entry.version, entry.digest = last.model, last.version, last.digest
            entry.detail["pushed"] = len(results)
            if key is not None:
                entry.detail["key"] = key.public.id
        if not as_json:
            for result in results:
                _show(cli, result)
        moved = []
        try:
            if servers:
                moved = [_move(cli, found, result) for result in results if result.label]
        finally:
            # Also when the server refuses the label: the version is published all the same.
            if as_json:
                show_json(cli, [_json(result, moved) for result in results])
        if not as_json:
            _show_end(cli, found, results, moved)


def _move(cli: Cli, store: Store, result: PushResult) -> dict[str, Any]:
    record = result.record
    return move_label(cli, store, record.model, result.label, record.version, reason="push")


def _show(cli: Cli, result: PushResult) -> None:
    """Say what was published, and what is remarkable about it."""
    record = result.record
    key = "push.published" if result.created else "push.unchanged"
    cli.show(
        cli.texts(
            key,
            reference=f"{record.model}:{record.version}",
            format=record.format,
            size=short_size(record.size),
            digest=record.digest[:19],
        )
    )
    for remark in result.remarks:
        cli.say(cli.texts("push.remark", text=remark))


def _show_end(
    cli: Cli, store: Store, results: tuple[PushResult, ...], moved: list[dict[str, Any]]
) -> None:
    """Say which labels moved and how to serve the version."""
    for one in moved:
        cli.show(label_text(cli, one))
    if moved:
        return
    for result in results:
        if result.label:
            record = result.record
            cli.show(
                cli.texts(
                    "store.label_moved",
                    model=record.model,
                    label=result.label,
                    version=record.version,
                )
            )
    last = results[-1].record
    if not store.labels(last.model):
        cli.show(cli.texts("push.no_label", reference=f"{last.model}:{last.version}"))
    cli.show(cli.texts("push.serve", command=f"muelle serve{_store_option(cli, store)}"))


def _store_option(cli: Cli, store: Store) -> str:
    from muelle.repository.store import default_store

    named = store.folder != default_store(cli.env).absolute()
    return f" --store {shlex.quote(str(store.folder))}" if named else ""


def _json(result: PushResult, moved: list[dict[str, Any]]) -> dict[str, Any]:
    from muelle.cli.store_views import record_json

    record = result.record
    labels = [
        one for one in moved if (one["model"], one["version"]) == (record.model, record.version)
    ]
    return {
        "model": record.model,
        "version": record.version,
        "digest": record.digest,
        "created": result.created,
        "label": result.label,
        "moved": labels[0] if labels else None,
        "remarks": list(result.remarks),
        "record": record_json(record),
    }


class Phases:
    """Shows what a push does now: a bar while it copies, a spinner or a line for the rest."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._phase = ""
        self._shown = ExitStack()
        self._bar: Callable[[int, int], None] | None = None

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take one step of the push (see `publishing.push.Progress`)."""
        if phase != self._phase:
            self._phase = phase
            self._shown.close()
            text = self._cli.texts(f"push.{phase}")
            self._bar = None
            if phase == "copying":
                self._bar = self._shown.enter_context(self._cli.progress(text))
            else:
                self._shown.enter_context(self._cli.waiting(text))
        if self._bar is not None:
            self._bar(done, total)


def _numbers(metrics: tuple[str, ...]) -> dict[str, float]:
    from muelle.core.errors import ConfigError

    found = {}
    for text in metrics:
        name, sign, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name.strip():
            raise ConfigError(f"--metric {text!r}: NAME=NUMBER, for example auc=0.94")
    return found
