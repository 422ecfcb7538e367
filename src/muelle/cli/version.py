"""`muelle version`: what is installed. Imports no runtime's library, only asks for its version."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import click

from muelle import __version__
from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.runtimes.interface import Runtime
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    as_json = click.Option(["--json", "as_json"], is_flag=True, help=texts("help.option.json"))
    return new_command("version", texts, run, [as_json])


def run(cli: Cli, as_json: bool) -> None:
    """Print the versions of Muelle, Python and each runtime's libraries."""
    from muelle.runtimes.registry import Registry

    found = {runtime.name: _libraries(runtime) for runtime in Registry().runtimes()}
    if as_json:
        import json

        facts: dict[str, Any] = {
            "muelle": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "runtimes": found,
        }
        cli.show(json.dumps(facts, indent=2))
        return
    cli.show(f"muelle {__version__}, Python {platform.python_version()}, {platform.platform()}")
    rows = [(name, _line(cli.texts, libraries)) for name, libraries in sorted(found.items())]
    cli.show_table([cli.texts("table.runtime"), cli.texts("table.libraries")], rows)


def _libraries(runtime: Runtime) -> dict[str, str | None]:
    from importlib.util import find_spec

    modules = dict.fromkeys(runtime.modules)
    for names in runtime.modules_by_format.values():
        modules.update(dict.fromkeys(names))
    return {m: _version_of(m) if find_spec(m) is not None else None for m in modules}


def _version_of(module: str) -> str:
    """Return the version of the distribution that holds a module, which may be named otherwise."""
    from importlib import metadata

    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(module, [])
        return metadata.version(names[0]) if names else "?"


def _line(texts: Texts, libraries: dict[str, str | None]) -> str:
    if not libraries:
        return texts("version.builtin")
    missing = texts("version.missing")
    return ", ".join(f"{name} {version or missing}" for name, version in libraries.items())
