"""Comparing numbers at both ends of what a double holds."""

from __future__ import annotations

import warnings

import numpy as np

from muelle.core.records import StoredTensor
from muelle.lifecycle.compare import compare_answers, max_difference


def doubles(*values: float) -> StoredTensor:
    """Return a stored FP64 tensor."""
    array = np.array(values, dtype="<f8")
    return StoredTensor(name="y", datatype="FP64", shape=array.shape, content=array.tobytes())


def test_a_difference_too_large_for_a_double_is_one_and_warns_nobody() -> None:
    """It is named like any other; numpy writes nothing about it to the server's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = compare_answers([doubles(0, 1e308)], [doubles(0, -1e308)], rtol=1e-3, atol=0)
        assert max_difference(doubles(1e308), doubles(-1e308)) == np.inf
    assert told == "y[1]: -1e+308 instead of 1e+308"
