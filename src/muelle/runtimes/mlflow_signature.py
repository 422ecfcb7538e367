"""Bring MLflow's description of a model and the model's own together. Pure: reads no file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.runtimes.interface import Arrays
from muelle.runtimes.mlflow_folder import Field
from muelle.runtimes.tables import Array, object_array

_NUMBERS = frozenset({"BOOL", "INT32", "INT64", "FP32", "FP64"})


@dataclass(slots=True)
class Adapted:
    """The inputs as callers see them, and how to turn them into what the model itself takes."""

    inputs: tuple[TensorSpec, ...]
    casts: dict[str, Any] = field(default_factory=dict)
    """Tensor -> the NumPy type that the model takes, where MLflow's differs."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Tensor -> its name in the model, where MLflow's differs."""
    notes: list[str] = field(default_factory=list)
    """Where the two contradict each other: the model's own description stands there."""

    def to_native(self, inputs: Arrays) -> Arrays:
        """Return the model's own inputs."""
        if not self.casts and not self.renamed:
            return inputs
        return {
            self.renamed.get(name, name): array.astype(self.casts[name])
            if name in self.casts
            else array
            for name, array in inputs.items()
        }

    def from_native(self, inputs: Arrays) -> Arrays:
        """Return the model's own inputs as callers would send them."""
        types = {spec.name: DATATYPES[spec.datatype].numpy for spec in self.inputs}
        theirs = {own: name for name, own in self.renamed.items()}
        named = {theirs.get(own, own): array for own, array in inputs.items()}
        return {
            name: array.astype(types[name]) if name in self.casts else array
            for name, array in named.items()
        }


def adapt(native: Signature, fields: Sequence[Field] | None, *, keep_types: bool) -> Adapted:
    """Give a model's inputs MLflow's column names and datatypes, where the two agree otherwise.

    `keep_types`: the model's own datatypes are exact (ONNX), only names are taken.
    """
    adapted = Adapted(native.inputs)
    if not fields:
        return adapted
    if len(native.inputs) == 1 and len(native.inputs[0].shape) == 2:
        _adapt_table(adapted, native.inputs[0], fields, keep_types)
    elif all(len(spec.shape) == 1 for spec in native.inputs):
        _adapt_columns(adapted, fields, keep_types)
    elif all(f.name for f in fields):
        _compare({s.name for s in native.inputs}, {f.name for f in fields}, adapted)
    return adapted


def _adapt_table(
    adapted: Adapted, spec: TensorSpec, fields: Sequence[Field], keep_types: bool
) -> None:
    """One tensor [-1, columns]: MLflow has a column each, or one tensor too."""
    n_columns = len(fields) if fields[0].is_column else fields[0].shape[-1]
    if spec.shape[1] not in (-1, n_columns) and n_columns != -1:
        adapted.notes.append(
            f"MLflow's signature has {n_columns} columns, the model takes {spec.shape[1]}: the "
            "model's own signature is used"
        )
        return
    columns = spec.columns
    if fields[0].is_column and spec.shape[1] == n_columns and all(f.name for f in fields):
        names = tuple(f.name for f in fields)
        if not columns or _is_same_but_for_spaces(columns, names):
            columns = names
        elif not _compare(set(columns), set(names), adapted):
            return
    datatypes = {f.datatype for f in fields}
    only = next(iter(datatypes)) if len(datatypes) == 1 else ""
    new = msgspec.structs.replace(spec, columns=columns)
    adapted.inputs = (_retyped(adapted, new, only, keep_types),)


def _adapt_columns(adapted: Adapted, fields: Sequence[Field], keep_types: bool) -> None:
    """A tensor per column, by name."""
    by_name = {f.name: f for f in fields}
    own = tuple(spec.name for spec in adapted.inputs)
    if _is_same_but_for_spaces(own, tuple(by_name)) and own != tuple(by_name):
        adapted.renamed = dict(zip(by_name, own, strict=True))
        adapted.inputs = tuple(
            msgspec.structs.replace(spec, name=name)
            for spec, name in zip(adapted.inputs, by_name, strict=True)
        )
    if not _compare({spec.name for spec in adapted.inputs}, set(by_name), adapted):
        return
    adapted.inputs = tuple(
        _retyped(adapted, spec, by_name[spec.name].datatype, keep_types) for spec in adapted.inputs
    )


def _is_same_but_for_spaces(own: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """LightGBM writes `_` for the spaces of the names that it was trained with."""
    return own == tuple("_".join(name.split(" ")) for name in theirs)


def _compare(own: set[str], theirs: set[str], adapted: Adapted) -> bool:
    if own == theirs:
        return True
    unlike = ", ".join(sorted(own ^ theirs)[:5])
    adapted.notes.append(
        f"MLflow's signature and the model name other columns ({unlike}): the model's own are used"
    )
    return False


def _retyped(adapted: Adapted, spec: TensorSpec, datatype: str, keep_types: bool) -> TensorSpec:
    is_same = datatype == spec.datatype
    if keep_types or is_same or datatype not in _NUMBERS or spec.datatype not in _NUMBERS:
        return spec
    adapted.casts[spec.name] = np.dtype(DATATYPES[spec.datatype].numpy)
    return msgspec.structs.replace(spec, datatype=datatype)


def example_arrays(specs: Sequence[TensorSpec], row: Any, fields: Sequence[Field] | None) -> Arrays:
    """Return the first row of an input example as one row per tensor.

    Raise ValueError, TypeError, KeyError or OverflowError when the two do not fit.
    """
    kinds = {f.name: f.kind for f in fields or ()}
    if len(specs) == 1:
        spec = specs[0]
        if isinstance(row, Mapping):
            row = [row[name] for name in spec.columns] if spec.columns else row[spec.name]
        return {spec.name: _one_row(spec, row, kinds.get(spec.name, ""))}
    if not isinstance(row, Mapping):
        row = dict(zip((spec.name for spec in specs), row, strict=True))
    return {
        spec.name: _one_row(spec, row[spec.name], kinds.get(spec.name, ""))
        for spec in specs
        if spec.name in row or not spec.optional
    }


def _one_row(spec: TensorSpec, value: Any, kind: str) -> Array:
    shape = tuple(spec.row_shape)
    if spec.datatype == "BYTES":
        flat = np.array(value, dtype=object)
        array = object_array([_as_bytes(v, kind) for v in flat.reshape(-1).tolist()])
        return array.reshape(1, *(flat.shape if shape else ()))
    dtype = np.dtype(DATATYPES[spec.datatype].numpy)
    if value is None and dtype.kind == "f":
        value = math.nan
    array = np.array(value, dtype=np.float64 if dtype.kind == "f" else None)
    if not shape and array.shape == (1,):
        array = array[0]  # A table of one column is a row of one value.
    if array.ndim != len(shape) or any(
        d not in (-1, n) for d, n in zip(shape, array.shape, strict=True)
    ):
        raise ValueError(f"{spec.name!r} has shape {[1, *array.shape]}, not {list(spec.shape)}")
    return np.asarray(array).astype(dtype).reshape(1, *array.shape)


def _as_bytes(value: Any, kind: str) -> bytes | None:
    if value is None:
        return None
    # MLflow writes binary columns as base64 into its JSON.
    return base64.b64decode(value) if kind == "binary" else str(value).encode()


def specs_of(fields: Sequence[Field]) -> tuple[TensorSpec, ...]:
    """Return the tensors that a signature of MLflow alone describes.

    Columns of one and the same type of number are one tensor `x`; else a tensor per column. Raise
    ValueError for columns that hold arrays, objects or maps.
    """
    for one in fields:
        if not one.datatype:
            raise ValueError(f"column {one.name!r} is of type {one.kind}, which no tensor carries")
    if not fields[0].is_column:
        return tuple(
            TensorSpec(
                name=one.name or ("x" if len(fields) == 1 else f"x{i}"),
                datatype=one.datatype,
                shape=one.shape,
                optional=not one.required,
            )
            for i, one in enumerate(fields)
        )
    names = [one.name or f"x{i}" for i, one in enumerate(fields)]
    datatypes = {one.datatype for one in fields}
    if len(datatypes) == 1 and datatypes <= _NUMBERS and all(one.required for one in fields):
        columns = tuple(names) if all(one.name for one in fields) else ()
        shape = (-1, len(fields))
        return (TensorSpec(name="x", datatype=datatypes.pop(), shape=shape, columns=columns),)
    return tuple(
        TensorSpec(name=name, datatype=one.datatype, shape=(-1,), optional=not one.required)
        for name, one in zip(names, fields, strict=True)
    )
