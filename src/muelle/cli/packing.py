"""What `build`, `lock` and `bundle` share: which versions and which app, wheels, shown steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muelle.cli.store_access import opened, user

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.publishing.app_files import AppFiles
    from muelle.publishing.images import Chosen
    from muelle.texts import Texts


def pack_options(texts: Texts) -> list[click.Parameter]:
    """Return the options that say for which machine, and where wheels come from."""
    return [
        click.Option(["--platform"], metavar="OS/ARCH", default="",
                     help=texts("help.option.platform")),
        click.Option(["--python"], metavar="VERSION", default="", help=texts("help.option.python")),
        click.Option(["--wheels"], metavar="DIR|installed", envvar="MUELLE_WHEELS",
                     help=texts("help.option.pack_wheels")),
        click.Option(["--lock"], metavar="DIR", type=click.Path(path_type=Path),
                     help=texts("help.option.lock")),
    ]  # fmt: skip


def split_arguments(what: Sequence[str]) -> tuple[AppFiles | None, list[str]]:
    """Return the application among the arguments, and the rest. Raise ConfigError for two."""
    from muelle.apps.target import is_app
    from muelle.core.errors import ConfigError
    from muelle.publishing.app_files import app_files

    # `fraud:3` has a version behind its colon, an application a name.
    apps = [text for text in what if is_app(text)]
    if len(apps) > 1:
        raise ConfigError(f"{apps[0]} and {apps[1]}: one application at a time")
    return app_files(apps[0]) if apps else None, [text for text in what if text not in apps]


@contextmanager
def chosen_models(
    cli: Cli, models: Sequence[str], store: str | None, *, trust: bool, steps: Steps
) -> Iterator[Chosen]:
    """Yield versions of the store, or of files: those are pushed into a store of their own."""
    from muelle.core.errors import ConfigError
    from muelle.publishing.images import Chosen, choose

    if not models:
        yield Chosen(None)
        return
    files = [text for text in models if _is_path(text)]
    if files and len(files) < len(models):
        raise ConfigError(
            f"{files[0]} is a file, {next(m for m in models if m not in files)!r} a version of "
            "the store; push the file first (muelle push), then name versions only"
        )
    if not files:
        with opened(cli, store) as found:
            yield choose(found, models)
        return
    with ExitStack() as stack:
        yield _pushed(cli, files, stack, trust=trust, steps=steps)


def _pushed(
    cli: Cli, files: Sequence[str], stack: ExitStack, *, trust: bool, steps: Steps
) -> Chosen:
    import tempfile

    from muelle.packaging.wheels import cache_folder
    from muelle.publishing import Options, push
    from muelle.publishing.images import choose
    from muelle.repository.layout import split_spec
    from muelle.repository.store import Store

    cache = cache_folder(cli.env)
    cache.mkdir(parents=True, exist_ok=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix="store-"))
    store = stack.enter_context(Store.open(Path(folder), create=True))
    names = []
    for text in files:
        name, path = split_spec(text)
        options = Options(name=name or "", trust=trust)
        results = push(store, Path(path), options, who=user(), progress=steps.phase)
        names += [f"{one.record.model}:{one.record.version}" for one in results]
    return choose(store, names)


def _is_path(text: str) -> bool:
    # A folder that only happens to be called like a model is no file: `./fraud` names it.
    return "/" in text or "=" in text or Path(text).is_file()


class Steps:
    """Shows what a build does now: a spinner on a terminal, a line per step elsewhere."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._phase = ""
        self._shown = ExitStack()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def phase(self, phase: str, done: int, total: int) -> None:
        """Take one step; each phase has a text of its own."""
        if phase == self._phase:
            return
        self._phase = phase
        self._shown.close()
        text = self._cli.texts.get(f"pack.{phase}") or self._cli.texts(f"push.{phase}")
        self._shown.enter_context(self._cli.waiting(text))

    @contextmanager
    def saying(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show a text while something works; its own lines go beside the spinner."""
        self._shown.close()
        self._phase = ""
        if not self._cli.err_is_terminal():
            self._cli.say(text)
            yield lambda line: None
            return
        with self._cli.console().status(text) as status:
            yield lambda line: status.update(f"{text}  [dim]{_plain(line[:80])}[/dim]")


def _plain(line: str) -> str:
    return line.replace("[", "\\[")
