"""`muelle lock`: lay the wheels ready that versions need, by hash, to build without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.command import new_command
from muelle.cli.packing import Steps, chosen_models, pack_options, split_arguments
from muelle.cli.store_access import short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    options = [one for one in pack_options(texts) if one.name != "lock"]
    return new_command(
        "lock",
        texts,
        run,
        [
            click.Argument(["what"], nargs=-1, required=True, metavar="MODEL|FILE|APP.py:NAME..."),
            click.Option(["-o", "--output"], metavar="DIR", required=True,
                         type=click.Path(path_type=Path), help=texts("help.option.lock_output")),
            *options,
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    what: tuple[str, ...],
    output: Path,
    platform: str,
    python: str,
    wheels: str | None,
    trust: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Resolve, fetch, write."""
    import shutil

    from muelle.core.errors import StoreError
    from muelle.packaging.lock import write_lock
    from muelle.packaging.targets import Target
    from muelle.publishing.images import lock_chosen

    target = Target.parse(platform, python)
    app, models = split_arguments(what)
    with Steps(cli) as steps, chosen_models(cli, models, store, trust=trust, steps=steps) as chosen:
        lock = lock_chosen(
            chosen, target, wheels=wheels, app=app, env=cli.env, progress=steps.phase
        )
        try:
            write_lock(lock, output, shutil.copyfile)
        except OSError as exc:
            raise StoreError(f"{exc.filename or output}: cannot be written: {exc}") from exc
    found = lock.all_wheels()
    if as_json:
        show_json(
            cli,
            {
                "folder": str(output),
                "platform": target.platform,
                "python": target.python,
                "wheels": [
                    {"name": w.name, "version": w.version, "sha256": w.sha256, "size": w.size}
                    for w in found
                ],
            },
        )
        return
    size = short_size(sum(wheel.size for wheel in found))
    where = {"folder": output, "platform": target.platform, "python": target.python}
    cli.show(cli.texts("lock.done", n=len(found), size=size, **where))
    cli.show(cli.texts("lock.next", what=" ".join(what), folder=output))
