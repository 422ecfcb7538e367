"""`muelle route`: how a model's traffic is shared between versions; show, set or clear it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import (
    audited,
    model_of,
    opened,
    servers_of,
    show_json,
    store_options,
    user,
)
from muelle.cli.store_views import shown_route

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.records import RouteSpec
    from muelle.repository.store import Store
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "route",
        texts,
        run,
        [
            click.Argument(["model"]),
            click.Argument(["weights"], required=False, metavar="[TARGET=SHARE,...]"),
            click.Option(["--sticky"], default="", metavar="header:NAME|query:NAME",
                         help=texts("help.option.sticky")),
            click.Option(["--shadow"], default="", metavar="TARGET",
                         help=texts("help.option.shadow")),
            click.Option(["--clear"], is_flag=True, help=texts("help.option.clear")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    model: str,
    weights: str | None,
    sticky: str,
    shadow: str,
    clear: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Set the route, or show it when nothing is to be set."""
    from muelle.core.errors import ConfigError

    model = model_of(model)
    if clear and (weights or sticky or shadow):
        raise ConfigError("--clear takes the route away; give no weights with it")
    with opened(cli, store) as found:
        route = found.route(model)
        server = ""
        if clear or weights or sticky or shadow:
            route = None if clear else _spec(route, weights, sticky, shadow)
            server = _set(cli, found, model, route)
    if as_json:
        show_json(cli, {"model": model, "route": route, "server": server})
    else:
        key = "route.is" if route else "route.none"
        cli.show(cli.texts(key, model=model, route=shown_route(route)))


def _spec(old: RouteSpec | None, weights: str | None, sticky: str, shadow: str) -> RouteSpec:
    """Return the new route: given weights make it anew, without them the rest is added to it."""
    import msgspec

    from muelle.core.records import STABLE, RouteSpec
    from muelle.routing.weights import parse_weights

    if weights:
        return RouteSpec(weights=parse_weights(weights), sticky=sticky, shadow=shadow)
    old = old or RouteSpec(weights={STABLE: 1.0})
    return msgspec.structs.replace(old, sticky=sticky or old.sticky, shadow=shadow or old.shadow)


def _set(cli: Cli, store: Store, model: str, route: RouteSpec | None) -> str:
    servers = servers_of(store, model)
    if servers:
        servers.change(cli, lambda client: client.set_route(model, route))
        return servers.url
    with audited(store, "route", model) as entry:
        entry.detail["route"] = shown_route(route)
        store.set_route(model, route, who=user())
    return ""
