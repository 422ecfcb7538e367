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
from muelle.core.tensor import DATATYPES
from muelle.lifecycle.compare import compare_answers, max_difference


def tensor(values: Any, datatype: str = "FP32", name: str = "y") -> StoredTensor:
    """Return a stored tensor."""
    array = np.asarray(values, dtype="f4" if datatype == "BF16" else DATATYPES[datatype].numpy)
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
        (tensor([256.0, np.nan], "BF16"), tensor([256.0, np.nan], "BF16")),
        (tensor([65_504.0, np.inf], "FP16"), tensor([65_472.0, np.inf], "FP16")),
        (tensor([1e-7], "FP64"), tensor([-1e-7], "FP64")),
        (tensor([b"a", None], "BYTES"), tensor([b"a", None], "BYTES")),
        (tensor(b"a", "BYTES"), tensor(b"a", "BYTES")),
        (tensor(np.empty((0, 3))), tensor(np.empty((0, 3)))),
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
        (
            tensor([2**63], "UINT64"),
            tensor([2**63 + 1], "UINT64"),
            "y[0]: 9223372036854775809 instead of 9223372036854775808",
        ),
        (tensor([1000], "INT64"), tensor([1001], "INT64"), "y[0]: 1001 instead of 1000"),
        (tensor([1.0], "BF16"), tensor([1.0078125], "BF16"), "y[0]: 1.0078125 instead of 1"),
        (tensor([65_504.0], "FP16"), tensor([-65_504.0], "FP16"), "y[0]: -65504 instead of 65504"),
        (tensor([np.nan], "FP16"), tensor([0.0], "FP16"), "y[0]: 0 instead of nan"),
        (tensor([b"a"], "BYTES"), tensor([None], "BYTES"), "y[0]: None instead of b'a'"),
        (tensor(b"a", "BYTES"), tensor(b"b", "BYTES"), "y: b'b' instead of b'a'"),
        (tensor([0.0] * 5), tensor([0.0, 1, 2, 3, 0]), "y[1]: 1 instead of 0, and 2 more"),
        (tensor([]), tensor(np.empty((0, 1))), "y: shape [0, 1] instead of [0]"),
        (tensor(1.0), tensor([1.0]), "y: shape [1] instead of []"),
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


def test_a_tolerance_finer_than_half_floats_counts() -> None:
    """It is not rounded to the datatype of the answer: 4e-8 would become 6e-8."""
    zero, least = tensor([0.0], "FP16"), tensor([6e-8], "FP16")
    assert compare_answers([zero], [least], rtol=0, atol=4e-8)
    assert compare_answers([zero], [least], rtol=0, atol=7e-8) == ""


def test_order_does_not_count_and_extra_outputs_do() -> None:
    """Tensors are matched by name."""
    y, z = tensor([1.0]), tensor([2.0], name="z")
    assert compare_answers([y, z], [z, y], rtol=0, atol=0) == ""
    assert compare_answers([y], [y, z], rtol=0, atol=0) == "output 'z' was not there before"


def test_an_output_given_twice_is_one_too_many() -> None:
    """The second must not hide the first."""
    twice = [tensor([9.0]), tensor([1.0])]
    assert compare_answers([tensor([1.0])], twice, rtol=0, atol=0) == "output 'y' was given twice"


def test_no_outputs_at_all_agree() -> None:
    """Nothing is equal to nothing, and something is not."""
    assert compare_answers([], [], rtol=0, atol=0) == ""
    assert compare_answers([], [tensor([1.0])], rtol=0, atol=0)
    assert compare_answers([tensor([1.0])], [], rtol=0, atol=0)


def test_a_long_text_is_cut() -> None:
    """The line stays one that can be read."""
    told = compare(tensor([b"a" * 1000], "BYTES"), tensor([b"b" * 1000], "BYTES"))
    assert len(told) < 200


def test_values_may_be_left_out() -> None:
    """A model that is not repeatable is compared by names, datatypes and shapes."""
    y = tensor([1.0])
    assert compare(y, tensor([9.0]), values=False) == ""
    assert compare(y, tensor([9.0, 1.0]), values=False)
    assert compare(y, tensor([9.0], "FP64"), values=False)
    assert compare(y, tensor([9.0], name="z"), values=False)
    assert compare_answers([y], [y, tensor([9.0], name="z")], rtol=0, atol=0, values=False)


def test_a_content_that_does_not_fit_raises() -> None:
    """A hostile worker's answer: the caller turns it into a failure."""
    broken = StoredTensor(name="y", datatype="FP32", shape=(2,), content=b"abc")
    with pytest.raises(ValueError):
        compare(tensor([1.0, 2.0]), broken)


LARGEST = {"FP16": 1e4, "BF16": 1e6, "FP32": 1e6, "FP64": 1e6}
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
ANY_NUMBER = st.floats(width=16)
"""NaN, infinities and zeros of both signs too."""


@pytest.mark.parametrize("datatype", sorted(LARGEST))
@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_one_moved_element_is_found_and_its_place_named(
    datatype: str, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    """An element moved by more than the tolerance is named, one moved by less is none."""
    largest = LARGEST[datatype]
    floats = st.integers(-100, 100).map(lambda n: n / 100 * largest)
    array = data.draw(hnp.arrays(np.float64, shape, elements=floats))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    moved, nudged = array.copy(), array.copy()
    # Twice the tolerance, and more than the coarsest of the datatypes rounds away.
    moved[place] += 0.02 * abs(array[place]) + 1
    nudged[place] += 0.004 * abs(array[place])
    told = compare_answers(
        [tensor(array, datatype)], [tensor(moved, datatype)], rtol=9e-3, atol=0.4
    )
    assert told.startswith(f"y{list(place)}: " if shape else "y: ")
    assert "more" not in told
    near = compare_answers([tensor(array, datatype)], [tensor(nudged, datatype)], rtol=2e-2, atol=0)
    assert near == ""


@settings(max_examples=100, deadline=None)
@given(array=hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, min_side=0), elements=ANY_NUMBER))
def test_equal_arrays_agree(array: np.ndarray[Any, Any]) -> None:
    """Without any tolerance, NaN and infinities included, and whatever the bits of a NaN are."""
    same = array.copy()
    same[np.isnan(same)] = -np.nan
    for datatype in LARGEST:
        a, b = tensor(array, datatype), tensor(same, datatype)
        assert compare_answers([a], [b], rtol=0, atol=0) == ""
        assert max_difference(a, b) == 0.0


@settings(max_examples=50, deadline=None)
@given(
    datatype=st.sampled_from(sorted(name for name, d in DATATYPES.items() if d.is_integer)),
    data=st.data(),
)
def test_integers_are_compared_exactly(datatype: str, data: st.DataObject) -> None:
    """One more or less is a difference, however large the number and the tolerance."""
    array = data.draw(hnp.arrays(DATATYPES[datatype].numpy, st.integers(1, 5)))
    at = data.draw(st.integers(0, len(array) - 1))
    moved = array.copy()
    moved[at] ^= 1
    assert compare(tensor(array, datatype), tensor(array.copy(), datatype)) == ""
    told = compare_answers([tensor(array, datatype)], [tensor(moved, datatype)], rtol=1, atol=1e9)
    assert told == f"y[{at}]: {moved[at]} instead of {array[at]}"


def test_the_largest_difference() -> None:
    """Of numbers; nothing for texts and other shapes; infinity where one of them is no number."""
    assert max_difference(tensor([1.0, 2.0]), tensor([1.5, 2.0])) == 0.5
    assert max_difference(tensor([np.nan]), tensor([np.nan])) == 0.0
    assert max_difference(tensor([np.inf]), tensor([np.inf])) == 0.0
    assert max_difference(tensor([np.nan]), tensor([1.0])) == np.inf
    assert max_difference(tensor([b"a"], "BYTES"), tensor([b"a"], "BYTES")) is None
    assert max_difference(tensor([1.0]), tensor([1.0, 2.0])) is None
    assert max_difference(tensor([]), tensor([])) == 0.0
    assert max_difference(tensor(2.0), tensor(1.5)) == 0.5
    assert max_difference(tensor([3], "INT64"), tensor([-4], "INT64")) == 7.0
    assert max_difference(tensor([True], "BOOL"), tensor([False], "BOOL")) == 1.0
