"""The root of the command line: which commands there are, and what becomes of errors.

Not the commands: each has a module of its own, imported when it is called or its help is asked for.
This module is on the path of `muelle --help` and imports nothing heavier than click.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click

from muelle import __version__
from muelle.cli.command import Group
from muelle.cli.context import Cli
from muelle.texts import Texts, language_of

COMMANDS = (
    "serve", "inspect", "predict",
    "push", "list", "show", "diff", "label", "rollback", "route", "rollout",
    "status", "history", "audit", "rm", "gc", "keygen", "sign", "verify", "export", "pull",
    "build", "lock", "bundle", "import", "install-server",
    "init", "demo", "config", "version", "completion",
)  # fmt: skip
"""In the order of the help. Module `muelle.cli.<name>` holds `command(texts) -> click.Command`."""

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class Root(Group):
    """The group of all commands; knows their names without importing them."""

    def __init__(self, texts: Texts) -> None:
        super().__init__(
            "muelle",
            texts=texts,
            help=texts("help.root"),
            epilog=texts("help.root.examples"),
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            params=[
                click.Option(
                    ["-V", "--version"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_print_version,
                    help=texts("help.option.version"),
                )
            ],
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command's module and build it."""
        if cmd_name not in COMMANDS:
            return None
        # `import` is a word of Python's own, and no module's name holds a hyphen.
        name = "import_" if cmd_name == "import" else cmd_name.replace("-", "_")
        module = importlib.import_module(f"muelle.cli.{name}")
        command: click.Command = module.command(self._texts)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the catalogue, so that help imports none of them."""
        with formatter.section(self._texts("help.commands")):
            formatter.write_dl([(n, self._texts(f"help.{n}.short")) for n in COMMANDS])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are, without joining their lines."""
        formatter.write("\n" + (self.epilog or "") + "\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 it failed, 2 it was asked wrongly.

    Every error becomes one line on stderr here, and nowhere else:
    `muelle: what, where, what to do`.
    """
    texts = Texts(language_of(os.environ))
    cli = Cli(texts=texts, env=os.environ, stdout=sys.stdout, stderr=sys.stderr)
    try:
        result = Root(texts).main(
            args=None if args is None else list(args),
            prog_name="muelle",
            standalone_mode=False,
            obj=cli,
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.UsageError as exc:
        if exc.ctx is not None and isinstance(exc, click.exceptions.NoArgsIsHelpError):
            cli.say(exc.ctx.get_help())
            return WRONG_USE
        return _complain(cli, _usage_text(exc, texts), WRONG_USE)
    except click.ClickException as exc:
        return _complain(cli, exc.format_message(), FAILED)
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            # The reader (head, less) has seen enough; Python must not complain at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        where = f"{exc.filename}: " if exc.filename else ""
        return _complain(cli, f"{where}{exc.strerror or exc}", FAILED)
    except Exception as exc:
        return _from_muelle(cli, exc)


def _from_muelle(cli: Cli, exc: Exception) -> int:
    # Imported here: the errors' module is small, but help needs none of it.
    from muelle.core.errors import ConfigError, MuelleError

    if isinstance(exc, MuelleError):
        return _complain(cli, exc.message, WRONG_USE if isinstance(exc, ConfigError) else FAILED)
    if cli.env.get("MUELLE_LOG_LEVEL") == "debug":
        raise exc
    text = cli.texts("error.bug", kind=type(exc).__name__, reason=exc)
    return _complain(cli, text, FAILED)


def _complain(cli: Cli, text: str, code: int) -> int:
    cli.say(f"muelle: {' '.join(text.split())}")
    return code


def _usage_text(exc: click.UsageError, texts: Texts) -> str:
    command = exc.ctx.command_path if exc.ctx else "muelle"
    if isinstance(exc, click.NoSuchOption) and exc.ctx is not None:
        text = _no_option(exc.option_name, exc.ctx, texts)
    else:
        text = exc.format_message().rstrip(".")
    if text.endswith("?"):
        return text  # the nearest name says more than the help's address
    return f"{text}; {texts('error.see_help', command=command)}"


def _no_option(name: str, ctx: click.Context, texts: Texts) -> str:
    known = [o for p in ctx.command.get_params(ctx) for o in p.opts if o.startswith("--")]
    near = difflib.get_close_matches(name, known, n=1)
    text = texts("error.no_option", name=name)
    return text + (f"; {texts('error.did_you_mean', name=near[0])}" if near else "")


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(__version__)
        ctx.exit()


if __name__ == "__main__":
    raise SystemExit(main())
