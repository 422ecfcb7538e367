"""Column names and examples from an ONNX file's metadata."""

from __future__ import annotations

import json

import pytest

from muelle.core.signature import TensorSpec
from muelle.runtimes import onnx_hints

SPECS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)


def test_columns_and_example_are_taken() -> None:
    """Names that fit become the input's columns; a row that fits becomes the example."""
    metadata = {"muelle.columns": '["a","b"]', "muelle.example": '{"x":[[1.5,2]]}'}
    (spec,) = onnx_hints.with_columns(metadata, SPECS)
    assert spec.columns == ("a", "b")
    found = onnx_hints.example(metadata, SPECS)
    assert found is not None
    assert found["x"].tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize("value", ['["a"]', '["a","a"]', "[1,2]", "nonsense", '{"a":1}'])
def test_columns_that_do_not_fit_are_left_out(value: str) -> None:
    """Too few, doubled or misspelt names leave the input as it is."""
    assert onnx_hints.with_columns({"muelle.columns": value}, SPECS) == SPECS


@pytest.mark.parametrize(
    "value", [{"y": [[1, 2]]}, {"x": [1, 2]}, {"x": [["a", "b"]]}, {"x": [[1, 2], [3, 4]]}, 5]
)
def test_an_example_that_does_not_fit_is_left_out(value: object) -> None:
    """Another tensor, rank, type or number of rows: there is no example."""
    assert onnx_hints.example({"muelle.example": json.dumps(value)}, SPECS) is None
