"""How a version is named: `fraud`, `fraud:3`, `fraud@canary`. Not for looking anything up."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muelle.core.errors import BadRequest
from muelle.core.ids import is_model_name, to_model_name

_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")
_FORMS = "fraud, fraud:3 or fraud@stable"


@dataclass(frozen=True, slots=True)
class Reference:
    """A model, and perhaps one of its versions by number or by label; never both."""

    model: str
    version: int | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference. Raise BadRequest, which says what a right one looks like."""
        model, colon, number = text.partition(":")
        model, at, label = model.partition("@")
        if colon and "@" in text:
            raise BadRequest(f"{text!r}: a version's number or a label, not both; write {_FORMS}")
        if not is_model_name(model):
            raise BadRequest(
                f"{text!r}: {model!r} cannot be a model's name (a-z, 0-9, '.', '_' and '-', at "
                f"most 63); perhaps {to_model_name(model)!r}"
            )
        if colon and not _VERSION.match(number):
            raise BadRequest(
                f"{text!r}: {number!r} is no version's number; write {_FORMS}{_label_hint(number)}"
            )
        if at and not is_label(label):
            raise BadRequest(f"{text!r}: {label!r} cannot be a label; write {_FORMS}")
        return cls(model, int(number) if colon else None, label if at else None)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.model}:{self.version}"
        return self.model if self.label is None else f"{self.model}@{self.label}"


def is_label(text: str) -> bool:
    """Whether `text` may name a version: a token like a model's name, but not all digits."""
    return is_model_name(text) and not text.isdigit()


def near(name: str, names: Iterable[str]) -> str:
    """Return `; near it is: fraud` for a name that was probably mistyped, else ""."""
    found = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; near it is: {', '.join(found)}" if found else ""


def earlier(moves: Sequence[tuple[int | None, bool]]) -> list[int]:
    """Return what a label named before, nearest first, from its movements, oldest first.

    A movement is (version, whether it was a rollback). A rollback takes back the movements after
    the one it returns to, so that a second one goes further back and not to and fro. A label that
    was taken away last named its top version: that comes first.
    """
    stack: list[int] = []
    gone = False
    for version, is_rollback in moves:
        gone = version is None
        if version is None:
            continue
        if is_rollback and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif not stack or stack[-1] != version:
            stack.append(version)
    return list(reversed(stack if gone else stack[:-1]))


def _label_hint(text: str) -> str:
    return f" (a label is written with @: @{text})" if is_label(text) else ""
