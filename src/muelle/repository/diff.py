"""Say how two versions differ, from their records alone. Pure; loads and runs nothing.

Answers are compared on the examples that both versions have: the same request, two stored answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from muelle.core.records import Example, StoredTensor, VersionRecord
from muelle.core.request import decode_array
from muelle.core.signature import TensorSpec
from muelle.core.tensor import DATATYPES


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that differs. None: the version does not have it."""

    name: str
    old: Any
    new: Any


class TensorChange(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the signature that differs."""

    side: Literal["input", "output"]
    name: str
    old: TensorSpec | None
    new: TensorSpec | None


class OutputDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One output of one example, answered by both versions."""

    name: str
    old: StoredTensor
    new: StoredTensor
    comparable: bool
    """Whether both have the same datatype and shape."""
    n_different: int = 0
    """Elements that are not equal, NaN and NaN being equal. 0 when not comparable."""
    max_difference: float | None = None
    """Largest absolute difference; None for what is no number, or not finite on one side."""


class AnswerDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One request that both versions have as an example, and their answers side by side."""

    inputs: tuple[StoredTensor, ...]
    outputs: tuple[OutputDiff, ...]
    made_up: bool
    repeatable: bool

    @property
    def same(self) -> bool:
        """Whether the answers are equal to the last bit."""
        return all(out.comparable and out.n_different == 0 for out in self.outputs)


class VersionDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How version `new` differs from `old`. Empty tuples: it does not."""

    old: str
    """`model:version`."""
    new: str
    same_files: bool
    facts: tuple[Change, ...]
    """Format, runtime, Python, environment, tolerances."""
    signature: tuple[TensorChange, ...]
    files: tuple[Change, ...]
    libraries: tuple[Change, ...]
    params: tuple[Change, ...]
    metrics: tuple[Change, ...]
    answers: tuple[AnswerDiff, ...]
    unpaired_old: int
    """Examples that only the old version has."""
    unpaired_new: int


_FACTS = ("format", "runtime", "artifact", "python", "environment", "requirements", "rtol", "atol")


def diff(old: VersionRecord, new: VersionRecord) -> VersionDiff:
    """Compare two records, which may be of different models."""
    answers, left_old, left_new = _answers(old.examples, new.examples)
    facts = {name: (getattr(old, name), getattr(new, name)) for name in _FACTS}
    return VersionDiff(
        old=f"{old.model}:{old.version}",
        new=f"{new.model}:{new.version}",
        same_files=old.digest == new.digest,
        facts=tuple(Change(name=k, old=a, new=b) for k, (a, b) in facts.items() if a != b),
        signature=_signature(old, new),
        files=_changes(
            {file.path: file for file in old.files}, {file.path: file for file in new.files}
        ),
        libraries=_changes(old.libraries, new.libraries),
        params=_changes(_flat(old.params), _flat(new.params)),
        metrics=_changes(old.metrics, new.metrics),
        answers=answers,
        unpaired_old=left_old,
        unpaired_new=left_new,
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys((*old, *new))
    return tuple(
        Change(name=name, old=old.get(name), new=new.get(name))
        for name in names
        if old.get(name) != new.get(name)
    )


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects with joined names, so that one changed parameter is one line."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _signature(old: VersionRecord, new: VersionRecord) -> tuple[TensorChange, ...]:
    changes = []
    sides: tuple[Literal["input", "output"], ...] = ("input", "output")
    for side in sides:
        before, after = _specs(old, side), _specs(new, side)
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                changes.append(
                    TensorChange(side=side, name=name, old=before.get(name), new=after.get(name))
                )
    return tuple(changes)


def _specs(record: VersionRecord, side: str) -> dict[str, TensorSpec]:
    if record.signature is None:
        return {}
    specs = record.signature.inputs if side == "input" else record.signature.outputs
    return {spec.name: spec for spec in specs}


def _answers(
    old: Sequence[Example], new: Sequence[Example]
) -> tuple[tuple[AnswerDiff, ...], int, int]:
    """Pair the examples by equal requests; each is used once."""
    left = list(new)
    pairs = []
    for before in old:
        key = _request(before)
        after = next((example for example in left if _request(example) == key), None)
        if after is not None:
            left.remove(after)
            pairs.append(_answer(before, after))
    return tuple(pairs), len(old) - len(pairs), len(left)


def _request(example: Example) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return sorted((t.name, t.datatype, t.shape, t.content) for t in example.inputs)


def _answer(old: Example, new: Example) -> AnswerDiff:
    after = {tensor.name: tensor for tensor in new.outputs}
    outputs = [_output(t, after[t.name]) for t in old.outputs if t.name in after]
    return AnswerDiff(
        inputs=old.inputs,
        outputs=tuple(outputs),
        made_up=old.made_up,
        repeatable=old.repeatable and new.repeatable,
    )


def _output(old: StoredTensor, new: StoredTensor) -> OutputDiff:
    comparable = (old.datatype, old.shape) == (new.datatype, new.shape)
    if not comparable:
        return OutputDiff(name=old.name, old=old, new=new, comparable=False)
    a = decode_array(old.datatype, old.shape, old.content)
    b = decode_array(new.datatype, new.shape, new.content)
    if old.datatype == "BYTES":
        return OutputDiff(
            name=old.name, old=old, new=new, comparable=True, n_different=int(np.sum(a != b))
        )
    if not DATATYPES[old.datatype].is_float:
        # Integers of 64 bits do not fit a float: their difference is taken as Python's numbers.
        gaps = [abs(int(x) - int(y)) for x, y in zip(a.flat, b.flat, strict=True)]
        return OutputDiff(
            name=old.name,
            old=old,
            new=new,
            comparable=True,
            n_different=sum(gap != 0 for gap in gaps),
            max_difference=float(max(gaps, default=0)),
        )
    different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))[different]
    largest = float(gap.max()) if gap.size else 0.0
    return OutputDiff(
        name=old.name,
        old=old,
        new=new,
        comparable=True,
        n_different=int(different.sum()),
        max_difference=largest if np.isfinite(largest) else None,
    )
