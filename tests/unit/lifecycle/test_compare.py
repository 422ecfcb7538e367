"""Answers are compared within tolerance, and a difference is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muelle.core.records import StoredTensor
from muelle.core.request import encode_array
from muelle.lifecycle.compare import compare_answers, max_difference


def tensor(values: Any, datatype: str = "FP32", name: str = "y") -> StoredTensor:
    """Return a stored tensor."""
    kinds = {"FP16": "f2", "FP32": "f4", "BF16": "f4", "FP64": "f8", "INT64": "i8", "BOOL": "?"}
    array = np.asarray(values, dtype=object if datatype == "BYTES" else kinds[datatype])
    content = encode_array(datatype, array)
    return StoredTensor(name=name, datatype=datatype, shape=array.shape, content=content)


def compare(a: StoredTensor, b: StoredTensor, values: bool = True) -> str:
    """Compare with the tolerance that a push takes by default."""
    return compare_answers([a], [b], rtol=1e-3, atol=1e-5, values=values)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (tensor([1.0, 2.0]), tensor([1.0005, 1.9985])),
        (tensor([np.nan, np.inf, -np.inf, 0.0]), tensor([np.nan, np.inf, -np.inf, -0.0])),
        (tensor([60_000.0], "FP16"), tensor([60_032.0], "FP16")),
        (tensor([1.0, 3.0], "BF16"), tensor([1.0, 3.0], "BF16")),
        (tensor([1e300], "FP64"), tensor([1.0001e300], "FP64")),
        (tensor([3], "INT64"), tensor([3], "INT64")),
        (tensor([b"ab", b""], "BYTES"), tensor([b"ab", b""], "BYTES")),
        (tensor([]), tensor([])),
        (tensor(2.0), tensor(2.0001)),
    ],
)
def test_what_agrees(a: StoredTensor, b: StoredTensor) -> None:
    """Within tolerance; NaN beside NaN; infinities of one sign; scalars and empty tensors."""
    assert compare(a, b) == ""


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (tensor([1.0, 2.0]), tensor([1.0, 2.01]), "y[1]: 2.00999999 instead of 2"),
        (tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[1.0, 2.0], [0.0, 5.0]]), "y[1, 0]: 0 instead"),
        (tensor([1.0]), tensor([np.nan]), "y[0]: nan instead of 1"),
        (tensor([np.inf]), tensor([-np.inf]), "y[0]: -inf instead of inf"),
        (tensor([np.inf]), tensor([1e30]), "y[0]: "),
        (tensor([1e30]), tensor([np.inf]), "y[0]: inf instead of"),
        (tensor([3], "INT64"), tensor([4], "INT64"), "y[0]: 4 instead of 3"),
        (tensor([True], "BOOL"), tensor([False], "BOOL"), "y[0]: False instead of True"),
        (tensor([b"ab"], "BYTES"), tensor([b"ac"], "BYTES"), "y[0]: b'ac' instead of b'ab'"),
        (tensor(2.0), tensor(3.0), "y: 3 instead of 2"),
        (tensor([1.0]), tensor([1.0], "FP64"), "y: FP64 instead of FP32"),
        (tensor([1.0]), tensor([[1.0]]), "y: shape [1, 1] instead of [1]"),
        (tensor([1.0]), tensor([1.0], name="z"), "output 'y' is missing"),
    ],
)
def test_what_differs_is_named(a: StoredTensor, b: StoredTensor, told: str) -> None:
    """Which tensor, which element, what was there and what was expected."""
    assert compare(a, b).startswith(told)


def test_order_does_not_count_and_extra_outputs_do() -> None:
    """Tensors are matched by name."""
    y, z = tensor([1.0]), tensor([2.0], name="z")
    assert compare_answers([y, z], [z, y], rtol=0, atol=0) == ""
    assert compare_answers([y], [y, z], rtol=0, atol=0) == "output 'z' was not there before"


def test_values_may_be_left_out() -> None:
    """A model that is not repeatable is compared by names, datatypes and shapes."""
    assert compare(tensor([1.0]), tensor([9.0]), values=False) == ""
    assert compare(tensor([1.0]), tensor([9.0, 1.0]), values=False)


def test_a_content_that_does_not_fit_raises() -> None:
    """A hostile worker's answer: the caller turns it into a failure."""
    broken = StoredTensor(name="y", datatype="FP32", shape=(2,), content=b"abc")
    with pytest.raises(ValueError):
        compare(tensor([1.0, 2.0]), broken)


FLOATS = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32)
)


@settings(max_examples=100)
@given(array=FLOATS, data=st.data())
def test_one_moved_element_is_found_and_its_place_named(
    array: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    """Equal arrays agree; an element moved by more than the tolerance does not."""
    assert compare(tensor(array), tensor(array.copy())) == ""
    place = tuple(data.draw(st.integers(0, side - 1)) for side in array.shape)
    moved = array.copy()
    moved[place] += 1e-3 * abs(moved[place]) * 2 + 1
    told = compare(tensor(array), tensor(moved))
    assert told.startswith(f"y{list(place)}: ")


def test_the_largest_difference() -> None:
    """Of numbers; nothing for texts and other shapes; infinity where one of them is no number."""
    assert max_difference(tensor([1.0, 2.0]), tensor([1.5, 2.0])) == 0.5
    assert max_difference(tensor([np.nan]), tensor([np.nan])) == 0.0
    assert max_difference(tensor([np.inf]), tensor([np.inf])) == 0.0
    assert max_difference(tensor([np.nan]), tensor([1.0])) == np.inf
    assert max_difference(tensor([b"a"], "BYTES"), tensor([b"a"], "BYTES")) is None
    assert max_difference(tensor([1.0]), tensor([1.0, 2.0])) is None
    assert max_difference(tensor([]), tensor([])) == 0.0
