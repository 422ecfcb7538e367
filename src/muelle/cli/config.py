"""`muelle config`: every setting, its value and where that came from. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import Command, Group, read_settings, setting_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the group; without a subcommand it shows."""
    group = Group(
        "config",
        texts=texts,
        help=texts("help.config"),
        short_help=texts("help.config.short"),
        callback=click.pass_obj(_maybe_show),
        invoke_without_command=True,
        params=_options(texts),
    )
    group.add_command(_sub("show", texts, show, _options(texts)))
    group.add_command(_sub("limits", texts, limits, _options(texts)))
    group.add_command(_sub("schema", texts, schema, []))
    return group


def _options(texts: Texts) -> list[click.Parameter]:
    as_json = click.Option(["--json", "as_json"], is_flag=True, help=texts("help.option.json"))
    return [as_json, *setting_options(texts)]


def _sub(name: str, texts: Texts, run: Any, params: list[click.Parameter]) -> Command:
    return Command(
        name,
        help=texts(f"help.config.{name}"),
        epilog=texts(f"help.config.{name}.examples"),
        callback=click.pass_obj(run),
        params=params,
    )


def _maybe_show(cli: Cli, **flags: Any) -> None:
    if click.get_current_context().invoked_subcommand is None:
        show(cli, **flags)


def show(cli: Cli, as_json: bool, config: str | None, **flags: Any) -> None:
    """Print setting, value and origin."""
    _show(cli, as_json, config, "", flags)


def limits(cli: Cli, as_json: bool, config: str | None, **flags: Any) -> None:
    """Print the one table of limits on what a client may send and how slowly."""
    _show(cli, as_json, config, "limits.", flags)


def schema(cli: Cli) -> None:
    """Print the JSON Schema of muelle.toml."""
    import json

    from muelle.config.schema import json_schema, settings

    texts = {s.path: cli.texts.get(f"setting.{s.path}") for s in settings()}
    cli.show(json.dumps(json_schema(texts), indent=2, ensure_ascii=False))


def _show(cli: Cli, as_json: bool, config: str | None, prefix: str, flags: Any) -> None:
    import json

    from msgspec import to_builtins

    values, origins = read_settings(cli, (), config, **flags)
    chosen = {path: _value(values, path) for path in origins if path.startswith(prefix)}
    if as_json:
        table = {p: {"value": to_builtins(v), "origin": origins[p]} for p, v in chosen.items()}
        cli.show(json.dumps(table, indent=2))
        return
    head = [cli.texts(f"table.{k}") for k in ("setting", "value", "origin", "meaning")]
    cli.show_table(
        head,
        [(p, _shown(v), origins[p], cli.texts.get(f"setting.{p}")) for p, v in chosen.items()],
    )


def _value(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
