"""How a command is declared: help with examples, and the options that are settings. No work."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from muelle.texts import Texts

_FORMS: dict[str, tuple[list[str], str]] = {
    "listen.host": (["--host"], "ADDRESS"),
    "listen.port": (["-p", "--port"], "PORT"),
    "listen.unix_socket": (["--unix-socket"], "PATH"),
    "listen.grpc_port": (["--grpc-port"], "PORT"),
    "listen.tls_cert": (["--tls-cert"], "FILE"),
    "listen.tls_key": (["--tls-key"], "FILE"),
    "name": (["--name"], "NAME"),
    "store": (["--store"], "DIR"),
    "select": (["--models", "select"], "NAME[@LABEL],..."),
    "worker.workers": (["--workers"], "N"),
    "worker.threads": (["--threads"], "N"),
    "batching.max_batch_size": (["--max-batch-size"], "ROWS"),
    "batching.max_delay_ms": (["--max-delay-ms"], "MS"),
    "batching.max_queue": (["--max-queue"], "N"),
    "timeout_s": (["--timeout-s"], "S"),
    "drain_s": (["--drain-s"], "S"),
    "worker.isolation": (["--isolation"], "process|none"),
    "worker.memory_limit_mb": (["--memory-limit-mb"], "MB"),
    "lifecycle.control": (["--control"], "none|poll|explicit"),
    "lifecycle.poll_s": (["--poll-s"], "S"),
    "lifecycle.update": (["--update"], "availability|resource"),
    "lifecycle.keep_warm_s": (["--keep-warm-s"], "S"),
    "lifecycle.memory_limit_mb": (["--memory-limit"], "MB"),
    "app.workers": (["--app-workers"], "N"),
    "app.threads": (["--app-threads"], "N"),
    "app.timeout_s": (["--app-timeout-s"], "S"),
    "app.concurrency": (["--app-concurrency"], "N"),
    "app.memory_limit_mb": (["--app-memory-limit-mb"], "MB"),
    "admin.socket": (["--admin-socket"], "PATH|none"),
    "admin.listen": (["--admin-listen"], "[HOST:]PORT"),
    "admin.token_file": (["--admin-token-file"], "FILE"),
    "app.path": (["--app-path"], "PATH"),
    "security.require_signature": (["--require-signature"], "NAME.pub"),
    "json_nan": (["--json-nan"], "error|null|string"),
    "log_level": (["--log-level"], "LEVEL"),
    "log_format": (["--log-format"], "FORMAT"),
}


_REPEATABLE = {"security.require_signature"}
"""Settings whose option may be given several times."""


class Command(click.Command):
    """A command whose epilog (its examples) keeps its lines."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are."""
        formatter.write(f"\n{self.epilog}\n")


class Group(click.Group):
    """A group that names the nearest command when there is none of that name."""

    def __init__(self, name: str, *, texts: Texts, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._texts = texts

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; raise UsageError with a proposal."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not ctx.resilient_parsing:
            raise click.UsageError(_no_command(args[0], names, self._texts), ctx)
        return super().resolve_command(ctx, args)


def _no_command(name: str, names: list[str], texts: Texts) -> str:
    text = texts("error.no_command", name=name)
    near = difflib.get_close_matches(name, names, n=1)
    if not near and os.path.exists(name):
        # `muelle model.onnx`: the one thing that everybody tries.
        near = [f"muelle serve {name}"]
    return text + (f"; {texts('error.did_you_mean', name=near[0])}" if near else "")


def new_command(
    name: str, texts: Texts, run: Callable[..., int | None], params: list[click.Parameter]
) -> Command:
    """Return the command `name`, with the help and the examples that the catalogue holds."""
    return Command(
        name,
        help=texts(f"help.{name}"),
        short_help=texts(f"help.{name}.short"),
        epilog=texts(f"help.{name}.examples"),
        callback=click.pass_obj(run),
        params=params,
        no_args_is_help=False,
    )


def setting_options(texts: Texts) -> list[click.Parameter]:
    """Return the options of `serve` that are settings; each comes as text, or None when not given.

    Ranges are not checked here: `config.schema` does it for options, variables and files alike.
    """
    options: list[click.Parameter] = [
        click.Option(
            forms, metavar=metavar, multiple=path in _REPEATABLE, help=texts(f"setting.{path}")
        )
        for path, (forms, metavar) in _FORMS.items()
    ]
    trust = click.Option(["--trust/--no-trust"], default=None, help=texts("setting.trust"))
    on_demand = click.Option(
        ["--on-demand/--no-on-demand"], default=None, help=texts("setting.lifecycle.on_demand")
    )
    config = click.Option(
        ["--config"], metavar="FILE", type=click.Path(), help=texts("help.option.config")
    )
    return [*options, on_demand, trust, config]


def read_settings(cli: Any, models: tuple[str, ...], config: str | None, **flags: Any) -> Any:
    """Resolve options, variables and file. Returns (ServeConfig, origins); raises ConfigError."""
    from pathlib import Path

    from muelle.config.merge import resolve
    from muelle.config.sources import find_file

    file = find_file(Path.cwd(), config or cli.env.get("MUELLE_CONFIG"))
    return resolve({"models": models, **flags}, cli.env, file)
