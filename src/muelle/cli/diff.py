"""`muelle diff`: how two versions differ, the answers to the same examples side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.store_access import find, opened, show_json, store_options
from muelle.cli.store_views import shown_spec, shown_tensor, shown_value, shown_values, tensor_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from muelle.cli.context import Cli
    from muelle.repository.diff import AnswerDiff, Change, OutputDiff, VersionDiff
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "diff",
        texts,
        run,
        [
            click.Argument(["old"], metavar="MODEL:VERSION"),
            click.Argument(["new"], metavar="MODEL:VERSION"),
            *store_options(texts),
        ],
    )


def run(cli: Cli, old: str, new: str, store: str | None, as_json: bool) -> None:
    """Print what differs; nothing is loaded or run."""
    from muelle.repository.diff import diff

    with opened(cli, store) as found:
        told = diff(found.record(*find(found, old)), found.record(*find(found, new)))
    if as_json:
        show_json(cli, _json(told))
        return
    cli.show(cli.texts("diff.head", old=told.old, new=told.new))
    if told.same_files:
        cli.show(cli.texts("diff.same_files"))
    _show_signature(cli, told)
    _show_files(cli, told)
    for name in ("facts", "libraries", "params", "metrics"):
        _show_changes(cli, name, getattr(told, name), told)
    _show_answers(cli, told)


def _show_signature(cli: Cli, told: VersionDiff) -> None:
    rows = [
        ("→" if c.side == "input" else "←", c.name, shown_spec(c.old), shown_spec(c.new))
        for c in told.signature
    ]
    _table(cli, "signature", ["", cli.texts("table.tensor"), told.old, told.new], rows)


def _show_files(cli: Cli, told: VersionDiff) -> None:
    rows = [(c.name, _file(c.old), _file(c.new)) for c in told.files]
    _table(cli, "files", [cli.texts("table.file"), told.old, told.new], rows)


def _file(file: Any) -> str:
    return "-" if file is None else f"{file.size:,} B {file.sha256[:12]}"


def _show_changes(cli: Cli, name: str, changes: tuple[Change, ...], told: VersionDiff) -> None:
    rows = [(c.name, shown_value(c.old), shown_value(c.new)) for c in changes]
    _table(cli, name, ["", told.old, told.new], rows)


def _table(cli: Cli, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        cli.show("")
        cli.show(cli.texts(f"diff.{name}"))
        cli.show_table(head, rows)


def _show_answers(cli: Cli, told: VersionDiff) -> None:
    cli.show("")
    n_same = sum(answer.same for answer in told.answers)
    cli.show(cli.texts("diff.answers", n=len(told.answers), same=n_same))
    if told.unpaired_old or told.unpaired_new:
        cli.show(cli.texts("diff.unpaired", old=told.unpaired_old, new=told.unpaired_new))
    for i, answer in enumerate(told.answers, 1):
        cli.show("")
        cli.show(cli.texts("show.example", n=i))
        for tensor in answer.inputs:
            cli.show(f"  → {shown_tensor(tensor)}")
        head = ["", told.old, told.new, cli.texts("diff.difference")]
        rows = [
            (out.name, shown_values(out.old), shown_values(out.new), _difference(cli, out))
            for out in answer.outputs
        ]
        cli.show_table(head, rows)


def _difference(cli: Cli, out: OutputDiff) -> str:
    if not out.comparable:
        return cli.texts("diff.other_shape")
    if out.n_different == 0:
        return "="
    text = cli.texts("diff.n_different", n=out.n_different)
    if out.max_difference is None:
        return text
    return f"{text}, {cli.texts('diff.at_most', value=f'{out.max_difference:.3g}')}"


def _json(told: VersionDiff) -> dict[str, Any]:
    import msgspec

    plain = {name: getattr(told, name) for name in told.__struct_fields__}
    plain["answers"] = [_answer_json(answer) for answer in told.answers]
    found: dict[str, Any] = msgspec.to_builtins(plain)
    return found


def _answer_json(answer: AnswerDiff) -> dict[str, Any]:
    return {
        "same": answer.same,
        "made_up": answer.made_up,
        "repeatable": answer.repeatable,
        "inputs": [tensor_json(tensor) for tensor in answer.inputs],
        "outputs": [
            {
                "name": out.name,
                "old": tensor_json(out.old),
                "new": tensor_json(out.new),
                "comparable": out.comparable,
                "n_different": out.n_different,
                "max_difference": out.max_difference,
            }
            for out in answer.outputs
        ],
    }
