"""Rows and columns as tensors: what the runtimes of tabular models share. Not for any library.

A table of numbers is one tensor `x` [-1, columns]; as soon as one column holds strings, each column
is a tensor of its own [-1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError
from muelle.core.signature import Role, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.runtimes.interface import Arrays

Array = np.ndarray[Any, Any]

_BY_NUMPY = {
    np.dtype(dt.numpy): dt.name for dt in DATATYPES.values() if dt.name not in ("BYTES", "BF16")
}


def datatype_of(array: Array) -> str:
    """Return the datatype that holds an array's elements. Raise ArtifactError for none."""
    if array.dtype.kind in "OUS":
        return "BYTES"
    name = _BY_NUMPY.get(array.dtype.newbyteorder("="))
    if name is None:
        raise ArtifactError(f"no tensor datatype can hold NumPy's {array.dtype}")
    return name


def output_spec(
    name: str, array: Array, role: Role = "", classes: Sequence[Any] | Array = ()
) -> TensorSpec:
    """Describe an output by what a run on some rows gave: axis 0 is rows, the others are fixed."""
    return TensorSpec(
        name=name,
        datatype=datatype_of(array),
        shape=(-1, *array.shape[1:]),
        role=role,
        classes=plain_classes(classes),
    )


def first_answer(path: Path, run: Callable[[Arrays], Arrays], example: Arrays) -> Arrays:
    """Run the example row. Raise ArtifactError when the model cannot answer it."""
    try:
        return run(example)
    except Exception as exc:
        # Some libraries read a damaged or unfitted model without complaint, and fail here.
        raise ArtifactError(
            f"{path.name}: the model cannot answer one row ({type(exc).__name__}: "
            f"{str(exc)[:300]}); is the file whole, and the model fitted?"
        ) from exc


_ROLES: dict[str, Role] = {"label": "label", "probabilities": "probabilities"}


def describe_outputs(
    outputs: Arrays, classes: Sequence[Any] | Array = ()
) -> tuple[TensorSpec, ...]:
    """Describe outputs whose names say what they are; `classes` (default: 0, 1, …) are those of
    `probabilities`."""
    specs = []
    for name, array in outputs.items():
        is_by_class = name == "probabilities"
        own = (classes if len(classes) else range(array.shape[1])) if is_by_class else ()
        specs.append(output_spec(name, array, _ROLES.get(name, ""), own))
    return tuple(specs)


def plain_classes(classes: Sequence[Any] | Array) -> tuple[str | int | float | bool, ...]:
    """Return class labels as Python values that JSON and MessagePack can carry."""
    values = np.asarray(classes).tolist() if len(classes) else []
    return tuple(v if isinstance(v, str | int | float | bool) else _text(v) for v in values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def object_array(values: Sequence[Any]) -> Array:
    """Return a one-dimensional object array, whatever the values are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_texts(column: Array, missing: Any) -> list[Any]:
    """Decode a BYTES tensor's elements, in order; a missing one becomes `missing`."""
    return [
        missing if v is None else v.decode() if isinstance(v, bytes) else v
        for v in column.reshape(-1).tolist()
    ]


def as_label_bytes(labels: Array) -> Array:
    """Return string labels as a BYTES tensor; others as they are."""
    if labels.dtype.kind not in "OUS":
        return labels
    encoded = [v if isinstance(v, bytes) else str(v).encode() for v in labels.reshape(-1).tolist()]
    return object_array(encoded).reshape(labels.shape)


@dataclass(frozen=True, slots=True)
class Table:
    """The input columns of a tabular model."""

    names: tuple[str, ...]
    strings: frozenset[int] = frozenset()
    """Positions of the columns that hold strings."""
    datatype: str = "FP64"
    """Of the columns that hold numbers."""
    has_names: bool = True
    """Whether the names are the model's own, so that records `{column: value}` make sense."""

    @property
    def is_mixed(self) -> bool:
        """Whether each column is a tensor of its own."""
        return bool(self.strings)

    def specs(self) -> tuple[TensorSpec, ...]:
        """Return the input tensors."""
        if not self.is_mixed:
            columns = self.names if self.has_names else ()
            shape = (-1, len(self.names))
            return (TensorSpec(name="x", datatype=self.datatype, shape=shape, columns=columns),)
        return tuple(
            TensorSpec(
                name=name, datatype="BYTES" if i in self.strings else self.datatype, shape=(-1,)
            )
            for i, name in enumerate(self.names)
        )

    def row(self, values: Sequence[float | str]) -> Arrays:
        """Return one row, as the tensors of `specs`."""
        dtype = np.dtype(DATATYPES[self.datatype].numpy)
        if not self.is_mixed:
            return {"x": np.array([values], dtype=dtype)}
        return {
            name: object_array([str(value).encode()])
            if i in self.strings
            else np.array([value], dtype=dtype)
            for i, (name, value) in enumerate(zip(self.names, values, strict=True))
        }


def rounded(value: float, fallback: float = 0.0) -> float:
    """Return a number to four significant digits, as an example should look; NaN and such as 0."""
    return float(f"{value:.4g}") if np.isfinite(value) else fallback
