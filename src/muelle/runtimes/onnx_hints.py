"""What an ONNX file's metadata tells people: column names and an example row.

`muelle.columns` is a JSON list of names for the one [rows, columns] input, `muelle.example` a JSON
object tensor -> one row (nested list). A hint that does not fit is left out: it is never an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from muelle.core.signature import TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.runtimes.interface import Arrays

COLUMNS = "muelle.columns"
EXAMPLE = "muelle.example"


def with_columns(
    metadata: Mapping[str, str], specs: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Return the inputs with the column names that the metadata gives."""
    if COLUMNS not in metadata or len(specs) != 1 or len(specs[0].shape) != 2:
        return specs
    try:
        names = msgspec.json.decode(metadata[COLUMNS], type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeError):
        return specs
    if len(names) != specs[0].shape[1] or len(set(names)) != len(names):
        return specs
    return (msgspec.structs.replace(specs[0], columns=names),)


def example(metadata: Mapping[str, str], specs: tuple[TensorSpec, ...]) -> Arrays | None:
    """Return the metadata's example as arrays of one row, None when there is none that fits."""
    if EXAMPLE not in metadata:
        return None
    try:
        values = msgspec.json.decode(metadata[EXAMPLE], type=dict[str, list[object]])
        arrays: Arrays = {}
        for spec in specs:
            if spec.datatype in ("BYTES", "BF16"):
                return None
            dtype = DATATYPES[spec.datatype].numpy
            arrays[spec.name] = np.asarray(values[spec.name], dtype=dtype)
    except (msgspec.DecodeError, UnicodeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    fits = all(
        len(arrays[s.name].shape) == len(s.shape) and arrays[s.name].shape[:1] == (1,)
        for s in specs
    )
    return arrays if fits else None
