"""`table`: rows, records and columns to tensors, and what an error says of the place."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muelle.core.errors import BadRequest
from muelle.core.request import Tensor, decode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.protocols import table


def spec(datatype: str, *shape: int, name: str = "x", **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, **more)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(spec("FP32", -1, name="y"),))


def array(tensor: Tensor) -> Any:
    assert not isinstance(tensor.data, list)
    return decode_array(tensor.datatype, tuple(tensor.shape), tensor.data)


def refused(call: Any, *arguments: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(*arguments)
    return caught.value


# --- nested values ---


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES", "BF16"}))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_nested_lists_come_back_as_the_same_array(datatype: str, data: st.DataObject) -> None:
    """Any values of any datatype, rank 1 to 3: what NumPy lists, packed, is the same memory."""
    dtype = np.dtype(DATATYPES[datatype].numpy)
    elements: Any = None
    if dtype.kind == "f":
        elements = st.floats(-60_000, 60_000, width=16)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=3))
    want = data.draw(hnp.arrays(dtype, shape, elements=elements))
    tensor = table.tensor_of_rows(spec(datatype, -1, *shape[1:]), want.tolist(), "instances")

    assert tuple(tensor.shape) == shape
    assert tensor.data == want.tobytes()


def test_bf16_is_rounded_to_the_nearest() -> None:
    """Half of the bits of an FP32, rounded, not cut off."""
    tensor = table.tensor_of_rows(spec("BF16", -1), [1.0, 1.00390625 * 1.001, -2], "instances")

    assert array(tensor).tolist() == [1.0, 1.0078125, -2.0]


@pytest.mark.parametrize(
    ("want", "rows"),
    [(spec("FP32", -1), [[1.5], [2.5]]), (spec("FP32", -1, 1), [1.5, 2.5])],
    ids=["a column for scalars", "scalars for a column"],
)
def test_one_value_per_row_fits_with_and_without_brackets(want: TensorSpec, rows: Any) -> None:
    """Clients send a lone column either way; it means the same."""
    tensor = table.tensor_of_rows(want, rows, "instances")

    assert array(tensor).reshape(-1).tolist() == [1.5, 2.5]
    assert len(tensor.shape) == len(want.shape)


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1, -(2**63), float(2**53)])
def test_int64_is_exact(value: float) -> None:
    """No way by way of a float: 2**53 + 1 survives, and 4.0 is the integer 4."""
    tensor = table.tensor_of_rows(spec("INT64", -1), [value], "instances")

    assert tensor.data == struct.pack("<q", int(value))


def test_text_is_utf8_base64_or_missing() -> None:
    """A string, {"b64": …} for bytes that are no text, and null."""
    raw = {"b64": base64.b64encode(b"\xff\0").decode()}
    tensor = table.tensor_of_rows(spec("BYTES", -1), ["é", raw, None, ""], "instances")

    assert array(tensor).tolist() == ["é".encode(), b"\xff\0", None, b""]


CUBE = spec("INT8", -1, 2, 2)
COLUMNS = spec("FP32", -1, 2, columns=("age", "income"))


@pytest.mark.parametrize(
    ("want", "rows", "text"),
    [
        (CUBE, [[[1, 2], [3, 4]], 5], "instances[1]: an integer, the model wants x INT8 [-1, 2"),
        (CUBE, [[[1, 2], [3]]], "instances[0][1]: 1 values, the model wants 2"),
        (CUBE, [[[1, 2], "a"]], "instances[0][1]: a string, the model wants x INT8"),
        (CUBE, [[[1, 2]]], "instances[0]: 1 values, the model wants 2"),
        (CUBE, [[[1, 2], [3, 200]]], "instances[0][3]: out of range for INT8"),
        (COLUMNS, [[1, 2], [3, True]], "instances[1].income: a boolean, the model wants a number"),
        (COLUMNS, [[1, {}]], "instances[0].income: an object, the model wants a number"),
        (spec("INT8", -1), [1, 2.5], "instances[1]: a number with a fraction, the model wants an"),
        (spec("INT8", -1), [None], "instances[0]: null, the model wants an integer (INT8)"),
        (spec("UINT8", -1), [-1], "instances[0]: out of range for UINT8"),
        (spec("BOOL", -1), [True, 1], "instances[1]: an integer, the model wants true or false"),
        (spec("BOOL", -1), [None], "instances[0]: null, the model wants true or false"),
        (spec("FP16", -1), [0, 70_000], "instances[1]: out of range for FP16"),
        (spec("FP32", -1), [1e39], "instances[0]: out of range for FP32"),
        (spec("BF16", -1), [1e39], "instances[0]: out of range for BF16"),
        (spec("FP64", -1), [10**400], "instances[0]: out of range for FP64"),
        (spec("BF16", -1), [10**400], "instances[0]: out of range for BF16"),
        (spec("BYTES", -1), ["a", 1], "instances[1]: an integer, the model wants a string"),
        (spec("BYTES", -1), [{"b64": "eA=="}, 5], "instances[1]: an integer, the model wants a s"),
        (spec("BYTES", -1), [{"b64": "%"}], "instances[0]: not base64"),
        (spec("BYTES", -1), [{"b64": 1}], "instances[0]: an object, the model wants a string"),
        (spec("FP32", -1, -1), [[1], [1, 2]], "instances[1]: 2 values, the model wants 1"),
    ],
)
def test_a_misfit_is_named_by_its_place(want: TensorSpec, rows: Any, text: str) -> None:
    """The first value at fault by row and column, what came, and what the model wants."""
    error = refused(table.tensor_of_rows, want, rows, "instances")

    assert error.message.startswith(text)
    assert error.field == text.partition(":")[0]


# --- records ---

PAIR = signature(spec("FP32", -1, name="age"), spec("BYTES", -1, name="city"))
VECTORS = signature(spec("FP32", -1, 2, name="v"), spec("FP32", -1, name="n", optional=True))
ONE = signature(COLUMNS)


@pytest.mark.parametrize(
    ("model", "rows", "text"),
    [
        (PAIR, [[1, "a"], [1]], "instances[1]: 1 values, the model wants 2: age, city"),
        (PAIR, [3], "instances[0]: an integer, the model wants a record with age, city"),
        (PAIR, [{"age": 1}], "instances[0].city: missing; the model wants age, city"),
        (
            PAIR,
            [{"age": 1, "ctiy": "a"}],
            "instances[0].city: missing; the model wants age, city; "
            "unknown column 'ctiy'; did you mean 'city'?",
        ),
        (
            PAIR,
            [{"age": 1, "city": "a", "cities": 1}],
            "instances[0]: unknown column 'cities'; did you mean 'city'?",
        ),
        (PAIR, [{"age": 1, "city": "a"}, {"age": "b", "city": ""}], "instances[1].age: a string,"),
        (ONE, [{"age": 1, "income": 2}, {"age": 1}], "instances[1].income: missing; the model "),
        (VECTORS, [{"v": [1, 2]}, {"v": [1]}], "instances[1].v: 1 values, the model wants 2"),
        (VECTORS, [{"v": [1, 2]}, {"v": 1}], "instances[1].v: an integer, the model wants v FP32"),
        (
            VECTORS,
            [{"v": [1, 2], "n": 1}, {"v": [1, 2]}],
            "instances[1]: other columns than in instances[0]",
        ),
    ],
)
def test_a_record_at_fault_is_named(model: Signature, rows: Any, text: str) -> None:
    """Row and column, and a near name where one is spelled wrong."""
    error = refused(table.tensors_of_instances, model, rows)

    assert error.message.startswith(text)
    assert error.field.startswith("instances[")


def test_an_absent_optional_column_is_left_out() -> None:
    """Of every row or of none."""
    assert [t.name for t in table.tensors_of_instances(VECTORS, [{"v": [1, 2]}])] == ["v"]


def test_a_wide_record_is_refused_without_looking_at_every_name() -> None:
    """A million columns: one error, short, about one of them."""
    error = refused(table.tensors_of_instances, ONE, [dict.fromkeys(map(str, range(10**6)), 1)])

    assert len(error.message) < 200


# --- tables ---


def test_columns_are_taken_by_name_where_the_model_has_names() -> None:
    """`is_named` and the names that follow from it."""
    assert table.is_named(ONE)
    assert table.table_names(ONE, 9) == ("age", "income")
    assert not table.is_named(signature(spec("FP32", -1, 3)))
    assert table.table_names(signature(spec("FP32", -1, 3)), 2) == ("0", "1")


@pytest.mark.parametrize(
    ("names", "text", "field"),
    [
        (["age"], "column 'income': missing; the model wants age, income", "income"),
        (["age", "incone"], "column 'income': missing; the model wants age, income; unk", "income"),
        (["age", "income", "more"], "unknown column 'more'", "more"),
        (["age", "income", "age"], "a column is there twice", ""),
    ],
)
def test_a_tables_names_are_the_models(names: list[str], text: str, field: str) -> None:
    """Each once, and no others."""
    error = refused(table.check_table, ONE, names)

    assert error.message.startswith(text)
    assert error.field == field


@pytest.mark.parametrize(
    ("datatype", "cells", "want"),
    [
        ("FP64", ["1.5", " 2 ", "", "-inf"], [1.5, 2.0, None, float("-inf")]),
        ("INT64", ["9007199254740993", "1.0", "-1"], [2**53 + 1, 1, -1]),
        ("BOOL", ["true", "FALSE", "1", "0"], [True, False, True, False]),
        ("BYTES", ["a", "", " b "], [b"a", None, b" b "]),
    ],
)
def test_cells_are_read_by_datatype(datatype: str, cells: list[str], want: list[Any]) -> None:
    """An empty cell is missing; text keeps its spaces; long integers keep every digit."""
    (tensor,) = table.tensors_of_columns(
        signature(spec(datatype, -1)), {"x": cells}, len(cells), from_text=True
    )

    assert [None if v != v else v for v in array(tensor).tolist()] == want


@pytest.mark.parametrize(
    ("datatype", "cell"),
    [
        ("FP32", "zzz"),
        ("FP32", "1_0"),
        ("FP32", "١"),
        ("FP64", "1e999"),
        ("FP32", "1e39"),
        ("INT8", ""),
        ("INT8", "128"),
        ("INT64", "1.5"),
        ("INT64", "1_0"),
        ("INT64", "9" * 100_000),
        ("BOOL", "yes"),
        ("BOOL", ""),
    ],
)
def test_a_cell_that_does_not_fit_is_named(datatype: str, cell: str) -> None:
    """Row, column and the wanted datatype; never the cell."""
    good = {"BOOL": "1"}.get(datatype, "7")
    model = signature(spec(datatype, -1))
    error = refused(table.tensors_of_columns, model, {"x": [good, cell]}, 2, True)

    assert error.message.startswith("row 1, column x: ")
    assert datatype in error.message
    assert not cell or cell not in error.message.removeprefix("row 1")


def test_a_tensor_per_row_does_not_fit_a_column() -> None:
    """A picture in a table's cell is refused, not guessed at."""
    model = signature(spec("FP32", -1, 2, name="a"), spec("FP32", -1, name="b"))
    error = refused(table.tensors_of_columns, model, {"a": ["1"], "b": ["1"]}, 1, True)

    assert error.message == "a FP32 [-1, 2] does not fit one column of a table"
