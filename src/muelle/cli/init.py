"""`muelle init`: write a small working project."""

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
    from muelle.templates import TEMPLATES

    return new_command(
        "init",
        texts,
        run,
        [
            click.Argument(["folder"], metavar="DIR", type=click.Path(path_type=Path)),
            click.Option(["--template"], type=click.Choice(TEMPLATES), default=TEMPLATES[0],
                         show_default=True, help=texts("help.option.template")),
            click.Option(["--name"], default="", help=texts("help.option.init_name")),
            click.Option(["--force"], is_flag=True, help=texts("help.option.init_force")),
        ],
    )  # fmt: skip


def run(cli: Cli, folder: Path, template: str, name: str, force: bool) -> None:
    """Write it and say what comes next."""
    from muelle.core.ids import to_model_name
    from muelle.templates import project_files, write_project

    files = project_files(template, name or to_model_name(folder.absolute().name))
    write_project(folder, files, force=force)
    cli.show(cli.texts("init.done", folder=folder))
    for path in sorted(files):
        cli.show(f"  {path}")
    cli.show(cli.texts("init.next", folder=folder))
    steps = ["pip install -r requirements.txt pytest", "python train.py", "python -m pytest tests"]
    for step in (f"cd {folder}", *steps, "muelle serve"):
        cli.show(f"  {step}")
