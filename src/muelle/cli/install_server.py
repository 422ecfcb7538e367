"""`muelle install-server`: a bundle becomes a running server in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "install-server",
        texts,
        run,
        [
            click.Argument(["bundle"], type=file, metavar="FILE.muelle"),
            click.Option(["--to"], metavar="DIR", type=file, default=Path("muelle-server"),
                         show_default=True, help=texts("help.option.install_to")),
            click.Option(["--host"], metavar="ADDRESS", default="127.0.0.1", show_default=True,
                         help=texts("setting.listen.host")),
            click.Option(["-p", "--port"], type=click.IntRange(1, 65535), default=8080,
                         show_default=True, help=texts("help.option.install_port")),
            click.Option(["--no-start"], is_flag=True, help=texts("help.option.no_start")),
            click.Option(["--foreground"], is_flag=True, help=texts("help.option.foreground")),
        ],
    )  # fmt: skip


def run(
    cli: Cli, bundle: Path, to: Path, host: str, port: int, no_start: bool, foreground: bool
) -> int:
    """The same as `python3 FILE.muelle install-server`."""
    from muelle.packaging import bundle_start
    from muelle.packaging.install_server import Options, install

    return install(
        Options(
            bundle=bundle,
            folder=to,
            host=host,
            port=port,
            start=not no_start,
            foreground=foreground,
        ),
        cli.say,
        bundle_start.Texts(cli.texts.language),
    )
