"""What every command is given: texts, environment, the two streams. Not a place for what they do.

Answers go to stdout, everything else to stderr. Colour and moving lines only on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from muelle.texts import Texts


class Cli:
    """Owned by `main`, one per run. Called from the main thread only."""

    def __init__(
        self, *, texts: Texts, env: Mapping[str, str], stdout: TextIO, stderr: TextIO
    ) -> None:
        self.texts = texts
        self.env = env
        self._stdout = stdout
        self._stderr = stderr

    def show(self, text: str) -> None:
        """Print an answer (stdout)."""
        print(text, file=self._stdout)

    def say(self, text: str) -> None:
        """Print a message for a person (stderr)."""
        print(text, file=self._stderr, flush=True)

    def out_is_terminal(self) -> bool:
        """Whether answers are read by a person now."""
        return self._stdout.isatty()

    def err_is_terminal(self) -> bool:
        """Whether messages are read by a person now."""
        return self._stderr.isatty() and self.env.get("TERM") != "dumb"

    def console(self) -> Console:
        """Return rich's console on stderr; it honours NO_COLOR. Only for a terminal."""
        from rich.console import Console

        return Console(file=self._stderr, highlight=False, soft_wrap=True)

    def show_table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table as an answer: drawn on a terminal, aligned columns elsewhere."""
        if self.out_is_terminal():
            from rich.console import Console

            Console(file=self._stdout, highlight=False).print(rich_table(head, rows))
        else:
            self.show("\n".join(aligned(head, rows)))

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function `(done, total)`: it moves a bar on a terminal, silent elsewhere."""
        if not self.err_is_terminal():
            yield lambda done, total: None
            return
        from rich.progress import BarColumn, DownloadColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn(text), BarColumn(), DownloadColumn())
        with Bars(*columns, console=self.console(), transient=True) as bars:
            task = bars.add_task("", total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Turn a spinner beside `text` on a terminal; print the text once elsewhere."""
        if not self.err_is_terminal():
            self.say(text)
            yield
            return
        with self.console().status(text):
            yield


def rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> object:
    """Return rich's table; cells are plain text, never markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, title in enumerate(head):
        table.add_column(title, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns line up; no line ends in spaces."""
    lines = [head, *rows] if any(head) else list(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
