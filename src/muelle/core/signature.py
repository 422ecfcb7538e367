"""What a model takes and gives: named tensors. Not for values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from muelle.core.tensor import DATATYPES, element_count

Role = Literal["", "label", "probabilities"]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One named input or output. Axis 0 is rows when it is -1; any other -1 is a free axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    """Names of the columns of a [rows, columns] tensor, so that records `{column: value}` fit."""
    optional: bool = False
    role: Role = ""
    """What an output of a classifier is: the `label`, or the `probabilities` by class."""
    classes: tuple[str | int | float | bool, ...] = ()
    """Class labels in the order of the last axis of a `probabilities` output."""

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"tensor {self.name!r}: unknown datatype {self.datatype!r}")
        if any(d < -1 for d in self.shape):
            raise ValueError(f"tensor {self.name!r}: negative dimension in {list(self.shape)}")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: everything after axis 0."""
        return self.shape[1:]

    def describe(self) -> str:
        """Return `FP32 [-1, 30]`, as error texts and tables show it."""
        return f"{self.datatype} [{', '.join(map(str, self.shape))}]"


class Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The inputs and outputs of a model version, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    """False: requests are never joined, whatever the shapes would allow."""

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            names = [s.name for s in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"tensor names are not unique: {names}")

    @property
    def has_rows(self) -> bool:
        """Whether requests can be batched: axis 0 of every tensor is the free rows axis."""
        return (
            self.batched
            and bool(self.inputs)
            and all(s.shape and s.shape[0] == -1 for s in (*self.inputs, *self.outputs))
        )

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names that a JSON record or CSV header uses: one tensor's columns, or one tensor each."""
        if len(self.inputs) == 1 and self.inputs[0].columns:
            return self.inputs[0].columns
        return tuple(s.name for s in self.inputs)


def made_up_example(signature: Signature) -> dict[str, Any]:
    """Return one row per input as nested lists: values of the right form, for want of real ones."""
    return {spec.name: _made_up(spec.shape, spec) for spec in signature.inputs}


def _made_up(shape: tuple[int, ...], spec: TensorSpec) -> Any:
    if shape:
        return [_made_up(shape[1:], spec) for _ in range(shape[0] if shape[0] >= 0 else 1)]
    if spec.datatype == "BYTES":
        return "text"
    if spec.datatype == "BOOL":
        return True
    return 0 if DATATYPES[spec.datatype].is_integer else 0.5


def row_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return the bytes of one row over fixed-size tensors, 0 when any has a free axis or BYTES."""
    total = 0
    for spec in specs:
        size = DATATYPES[spec.datatype].size
        if size == 0 or any(d < 0 for d in spec.row_shape):
            return 0
        total += size * element_count(spec.row_shape)
    return total
