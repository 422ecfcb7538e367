"""Values as people write them (JSON, CSV, NumPy, Arrow) to tensors as the model wants them.

Every source is turned into one list of row values per input; shapes and counts are found before
anything of that size is made. Errors name the row and the column, what was wanted and what came,
never a value. Not for wire formats: `native` knows those.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from muelle.core.errors import BadRequest
from muelle.core.request import Tensor, encode_array, encode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES, packer

ANY_ROW = "instances[*]."
"""Label of one column of many records: in a place, the row's number stands for the star."""

Where = Callable[[int], str]
"""Index of a flat element -> the name that an error gives it, such as `instances[3].age`."""

BF16_LIMIT = float.fromhex("0x1.ffp127")
"""From here on a float is rounded to infinity: half a step above the largest BF16 number."""
MAX_NEAR = 256
"""Near names are looked for among this many names: each costs microseconds."""

_KIND_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Name a JSON value's type for people."""
    return _KIND_NAMES.get(type(value), type(value).__name__)


def tensor_of_rows(spec: TensorSpec, rows: Sequence[Any], label: str) -> Tensor:
    """Make a tensor from one nested value per row. `label` is what rows are called in errors."""
    flat, shape = _flatten(spec, rows, label)

    def where(index: int) -> str:
        per_row = len(flat) // len(rows) if rows else 1
        row, rest = divmod(index, max(per_row, 1))
        if spec.columns and per_row == len(spec.columns):
            return f"{label}[{row}].{spec.columns[rest]}"
        place = f"[{rest}]" if per_row > 1 else ""
        return f"{label}[{row}]{place}"

    return Tensor.raw(spec.name, spec.datatype, shape, pack(spec, flat, where))


def _flatten(spec: TensorSpec, rows: Sequence[Any], label: str) -> tuple[list[Any], list[int]]:
    """Return the flat elements and the shape. Raise BadRequest for uneven or misfit nesting."""
    level: list[Any] = list(rows)
    shape = [len(level)]
    for depth, want in enumerate(spec.row_shape):
        size = want
        for index, item in enumerate(level):
            if type(item) is not list:
                if depth == 0 and len(spec.row_shape) == 1 and want == 1:
                    # [1.5, 2.5] for a [rows, 1] tensor: a scalar is a row of one.
                    level = [[value] if type(value) is not list else value for value in level]
                    break
                raise BadRequest(
                    f"{_place(label, shape, index)}: {kind_of(item)}, the model wants "
                    f"{spec.name} {spec.describe()}",
                    field=_place(label, shape, index),
                )
        for index, item in enumerate(level):
            if size < 0:
                size = len(item)
            if len(item) != size:
                raise BadRequest(
                    f"{_place(label, shape, index)}: {len(item)} values, the model wants {size}"
                    f" ({spec.name} {spec.describe()})",
                    field=_place(label, shape, index),
                )
        shape.append(max(size, 0))
        level = list(chain.from_iterable(level))
    if not spec.row_shape:
        # [[1.5], [2.5]] for a [rows] tensor, as many clients send one column.
        level = [v[0] if type(v) is list and len(v) == 1 else v for v in level]
    return level, shape


def _place(label: str, shape: Sequence[int], index: int) -> str:
    """Name an element of a level by its indices: `instances[2][0]`."""
    indices = []
    for size in reversed(shape[1:]):
        index, at = divmod(index, max(size, 1))
        indices.append(at)
    indices.append(index)
    if label.startswith(ANY_ROW):
        label = f"instances[{indices.pop()}].{label.removeprefix(ANY_ROW)}"
    return label + "".join(f"[{i}]" for i in reversed(indices))


def tensor_of_nested(spec: TensorSpec, value: Any, has_rows: bool) -> Tensor:
    """Make a tensor from its whole nested value (`{"inputs": {name: value}}`)."""
    label = f"inputs.{spec.name}"
    if has_rows or spec.shape:
        if type(value) is not list:
            raise BadRequest(
                f"{label}: {kind_of(value)}, the model wants a list, {spec.describe()}", field=label
            )
        tensor = tensor_of_rows(spec, value, label)
        if not has_rows and spec.shape[0] >= 0 and tensor.shape[0] != spec.shape[0]:
            raise BadRequest(
                f"{label}: {tensor.shape[0]} values, the model wants {spec.describe()}", field=label
            )
        return tensor
    packed = pack(spec, [value], lambda index: label)
    return Tensor.raw(spec.name, spec.datatype, [], packed)


def pack(spec: TensorSpec, flat: list[Any], where: Where) -> bytes:
    """Return flat values in memory layout. Raise BadRequest, which names the first misfit."""
    datatype = DATATYPES[spec.datatype]
    kinds = set(map(type, flat))
    if datatype.is_float:
        if not kinds <= {float, int}:
            flat = _floats(spec, flat, kinds, where)
        if spec.datatype == "BF16":
            for index, value in enumerate(flat):
                if abs(value) >= BF16_LIMIT and value not in (math.inf, -math.inf):
                    place = where(index)
                    raise BadRequest(f"{place}: out of range for BF16", field=place)
            return encode_array("BF16", np.asarray(flat, dtype=np.float32))
    elif datatype.is_integer:
        if kinds != {int}:
            flat = _integers(spec, flat, where)
    elif spec.datatype == "BOOL":
        if not kinds <= {bool}:
            _misfit(spec, flat, where, lambda v: type(v) is bool, "true or false")
        return bytes(flat)
    else:
        return encode_bytes_tensor(_texts(spec, flat, kinds, where))
    try:
        return packer(datatype.code, len(flat)).pack(*flat)
    except (struct.error, OverflowError) as exc:
        one = packer(datatype.code, 1)
        for index, value in enumerate(flat):
            try:
                one.pack(value)
            except (struct.error, OverflowError):
                place = where(index)
                raise BadRequest(f"{place}: out of range for {spec.datatype}", field=place) from exc
        raise


def _floats(spec: TensorSpec, flat: list[Any], kinds: set[type], where: Where) -> list[Any]:
    if not kinds <= {float, int, type(None)}:
        _misfit(spec, flat, where, lambda v: v is None or type(v) in (float, int), "a number")
    return [float("nan") if value is None else value for value in flat]


def _integers(spec: TensorSpec, flat: list[Any], where: Where) -> list[int]:
    def fits(value: Any) -> bool:
        return type(value) is int or (type(value) is float and value.is_integer())

    _misfit(spec, flat, where, fits, "an integer")
    return [int(value) for value in flat]


def _texts(spec: TensorSpec, flat: list[Any], kinds: set[type], where: Where) -> list[bytes | None]:
    if kinds <= {str}:
        return [value.encode() for value in flat]
    found: list[bytes | None] = []
    for index, value in enumerate(flat):
        if value is None or type(value) is bytes:
            found.append(value)
        elif type(value) is str:
            found.append(value.encode())
        elif type(value) is dict and set(value) == {"b64"} and type(value["b64"]) is str:
            try:
                found.append(base64.b64decode(value["b64"], validate=True))
            except (binascii.Error, ValueError):
                place = where(index)
                raise BadRequest(f"{place}: not base64", field=place) from None
        else:
            place = where(index)
            raise BadRequest(
                f"{place}: {kind_of(value)}, the model wants a string (BYTES)", field=place
            )
    return found


def _misfit(
    spec: TensorSpec, flat: Iterable[Any], where: Where, fits: Callable[[Any], bool], want: str
) -> None:
    for index, value in enumerate(flat):
        if not fits(value):
            place = where(index)
            got = kind_of(value)
            if type(value) is float and want == "an integer":
                got = "a number with a fraction"
            raise BadRequest(
                f"{place}: {got}, the model wants {want} ({spec.datatype})", field=place
            )


# --- rows of several kinds ---


def tensors_of_instances(signature: Signature, instances: list[Any]) -> list[Tensor]:
    """Make the tensors from a list of rows: lists, records or scalars."""
    specs = signature.inputs
    if len(specs) == 1:
        only = specs[0]
        names = only.columns or (only.name,)
        rows = [
            _record_row(only, names, row, index) if type(row) is dict else row
            for index, row in enumerate(instances)
        ]
        return [tensor_of_rows(only, rows, "instances")]
    names = tuple(spec.name for spec in specs)
    required = {spec.name for spec in specs if not spec.optional}
    columns: dict[str, list[Any]] = {name: [] for name in names}
    given: set[str] | None = None
    for index, row in enumerate(instances):
        record = row
        if type(row) is list:
            if len(row) != len(names):
                raise BadRequest(
                    f"instances[{index}]: {len(row)} values, the model wants {len(names)}: "
                    f"{', '.join(names[:20])}",
                    field=f"instances[{index}]",
                )
            record = dict(zip(names, row, strict=True))
        elif type(row) is not dict:
            raise BadRequest(
                f"instances[{index}]: {kind_of(row)}, the model wants a record with "
                f"{', '.join(names[:20])}",
                field=f"instances[{index}]",
            )
        _check_names(record, names, required, index)
        if given is None:
            given = set(record)
        elif given != set(record):
            raise BadRequest(
                f"instances[{index}]: other columns than in instances[0]; optional ones must be in "
                "every row or in none",
                field=f"instances[{index}]",
            )
        for name, value in record.items():
            columns[name].append(value)
    tensors = []
    for spec in specs:
        if given is not None and spec.name in given:
            tensors.append(_column_tensor(spec, columns[spec.name]))
    return tensors


def _column_tensor(spec: TensorSpec, values: list[Any]) -> Tensor:
    flat, shape = _flatten(spec, values, ANY_ROW + spec.name)

    def where(index: int) -> str:
        per_row = max(len(flat) // max(len(values), 1), 1)
        return f"instances[{index // per_row}].{spec.name}"

    return Tensor.raw(spec.name, spec.datatype, shape, pack(spec, flat, where))


def _record_row(spec: TensorSpec, names: tuple[str, ...], record: Any, index: int) -> Any:
    if spec.datatype == "BYTES" and not spec.columns and set(record) == {"b64"}:
        return record
    _check_names(record, names, set(names), index)
    if not spec.columns:
        return record[spec.name]
    return [record[name] for name in names]


def _check_names(
    record: dict[str, Any], names: tuple[str, ...], required: set[str], index: int
) -> None:
    if record.keys() == required:
        return
    for name in names:
        if name in required and name not in record:
            raise BadRequest(
                f"instances[{index}].{name}: missing; the model wants {', '.join(names[:20])}"
                f"{_misspelled(record, names)}",
                field=f"instances[{index}].{name}",
            )
    known = set(names)
    for name in record:
        if name not in known:
            raise BadRequest(
                f"instances[{index}]: unknown column {name[:80]!r}{_hint(name, names)}",
                field=f"instances[{index}]",
            )


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:80], names[:MAX_NEAR], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _misspelled(given: Iterable[str], names: Sequence[str]) -> str:
    """Name a column that the model has not: often it is the missing one, spelled otherwise."""
    known = set(names)
    for name in islice(given, MAX_NEAR):
        if name not in known:
            return f"; unknown column {name[:80]!r}{_hint(name, names)}"
    return ""


def is_named(signature: Signature) -> bool:
    """Whether the model names a table's columns; else only their number and order count."""
    specs = signature.inputs
    return not (len(specs) == 1 and len(specs[0].shape) == 2 and not specs[0].columns)


def tensors_of_columns(
    signature: Signature, columns: dict[str, list[Any]], n_rows: int, from_text: bool
) -> list[Tensor]:
    """Make the tensors from whole columns of a table (CSV: text; Arrow: values)."""
    specs = signature.inputs
    read = _from_text if from_text else _as_is
    if len(specs) == 1 and len(specs[0].shape) == 2:
        spec = specs[0]
        names = list(columns)
        if spec.shape[1] >= 0 and len(names) != spec.shape[1]:
            raise BadRequest(f"{len(names)} columns, the model wants {spec.shape[1]}")
        values = [read(spec, name, columns[name]) for name in names]
        flat = [value for row in zip(*values, strict=True) for value in row]

        def where(index: int) -> str:
            return f"row {index // len(names)}, column {names[index % len(names)]}"

        shape = [n_rows, len(names)]
        return [Tensor.raw(spec.name, spec.datatype, shape, pack(spec, flat, where))]
    tensors = []
    for spec in specs:
        if spec.name not in columns:
            continue
        if any(d != 1 for d in spec.row_shape):
            raise BadRequest(f"{spec.name} {spec.describe()} does not fit one column of a table")
        name = spec.name
        flat = read(spec, name, columns[name])
        shape = [n_rows, *spec.row_shape]
        packed = pack(spec, flat, lambda index, name=name: f"row {index}, column {name}")  # type: ignore[misc]
        tensors.append(Tensor.raw(spec.name, spec.datatype, shape, packed))
    return tensors


def table_names(signature: Signature, width: int) -> tuple[str, ...]:
    """Return the names of a table's columns: the model's, or numbers where it has none."""
    if is_named(signature):
        return signature.column_names
    return tuple(str(i) for i in range(width))


def check_table(signature: Signature, given: Sequence[str]) -> None:
    """Raise BadRequest when a table's named columns are not those of the model."""
    names = signature.column_names
    optional = {s.name for s in signature.inputs if s.optional}
    known, sent = set(names), set(given)
    for name in names:
        if name not in sent and name not in optional:
            raise BadRequest(
                f"column {name!r}: missing; the model wants {', '.join(names[:20])}"
                f"{_misspelled(given, names)}",
                field=name,
            )
    for name in given:
        if name not in known:
            raise BadRequest(f"unknown column {name[:80]!r}{_hint(name, names)}", field=name[:80])
    if len(sent) != len(given):
        raise BadRequest("a column is there twice")


def _as_is(spec: TensorSpec, name: str, values: list[Any]) -> list[Any]:
    return values


def _from_text(spec: TensorSpec, name: str, cells: list[Any]) -> list[Any]:
    """Read a column of CSV cells; an empty one is missing."""
    datatype = DATATYPES[spec.datatype]
    if spec.datatype == "BYTES":
        return [cell if cell else None for cell in cells]
    read: Callable[[str], Any]
    if datatype.is_float:
        read = _float_cell
    elif datatype.is_integer:
        read = _int_cell
    else:
        read = _bool_cell
    found = []
    for index, cell in enumerate(cells):
        try:
            found.append(read(cell.strip()))
        except (ValueError, OverflowError):
            place = f"row {index}, column {name}"
            got = "empty" if not cell.strip() else "not a value or out of range"
            raise BadRequest(
                f"{place}: {got}, the model wants {spec.datatype}", field=name
            ) from None
    return found


def _float_cell(cell: str) -> float:
    if not cell:
        return math.nan
    value = float(_digits(cell))
    if math.isinf(value) and "inf" not in cell.lower():
        raise OverflowError
    return value


def _int_cell(cell: str) -> int:
    text = _digits(cell)
    try:
        return int(text)
    except ValueError:
        # 1.0 is an integer in JSON too, and what tables write once a column had a gap.
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def _digits(cell: str) -> str:
    """Refuse what only Python takes for a number: `1_000`, digits of other scripts."""
    if "_" in cell or not cell.isascii():
        raise ValueError("not a number")
    return cell


def _bool_cell(cell: str) -> bool:
    word = cell.lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError("neither true nor false")
    return word in ("true", "1")
