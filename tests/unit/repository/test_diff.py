"""How two records differ: every kind of difference is told, and equal things are not."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from muelle.core.records import Example, StoredFile, StoredTensor, VersionRecord
from muelle.core.request import encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.repository.diff import Change, diff

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1,))


def tensor(name: str, values: Any, datatype: str = "FP32") -> StoredTensor:
    """A stored tensor of these values."""
    kind = object if datatype == "BYTES" else {"FP32": "f4", "FP64": "f8", "INT64": "i8"}[datatype]
    array = np.array(values, kind)
    return StoredTensor(
        name=name, datatype=datatype, shape=array.shape, content=encode_array(datatype, array)
    )


def example(x: Any, y: Any, datatype: str = "FP32") -> Example:
    """One request and its answer."""
    return Example(inputs=(tensor("x", x),), outputs=(tensor("y", y, datatype),))


def record(**changes: Any) -> VersionRecord:
    """A version, and what is different about it."""
    base = VersionRecord(
        model="fraud",
        version=1,
        digest="sha256:" + "a" * 64,
        artifact="model.onnx",
        runtime="onnx",
        format="ONNX",
        files=(StoredFile(path="model.onnx", size=3, sha256="a" * 64),),
        signature=Signature(inputs=(X,), outputs=(Y,)),
        examples=(example([[1, 2]], [0.5]),),
        libraries={"numpy": "2.0"},
        params={"depth": 3, "tree": {"leaves": 7}},
        metrics={"auc": 0.9},
        python="3.11.7",
    )
    return msgspec.structs.replace(base, **changes)


def test_a_version_does_not_differ_from_itself() -> None:
    """Equal records give an empty difference, whatever their number, date and author."""
    told = diff(record(), record(version=2, created="2026-01-01T00:00:00Z", who="ana", note="n"))
    assert told.same_files
    assert told.signature == told.files == told.libraries == told.params == told.metrics == ()
    assert told.facts == ()
    assert [answer.same for answer in told.answers] == [True]
    assert (told.unpaired_old, told.unpaired_new) == (0, 0)


def test_every_fact_that_differs_is_named() -> None:
    """Files, signature, libraries, parameters (nested ones by path), metrics and surroundings."""
    wider = msgspec.structs.replace(X, shape=(-1, 3))
    extra = TensorSpec(name="score", datatype="FP64", shape=(-1,))
    file = StoredFile(path="model.ubj", size=4, sha256="b" * 64)
    told = diff(
        record(),
        record(
            digest="sha256:" + "b" * 64,
            files=(file,),
            format="XGBoost UBJSON",
            signature=Signature(inputs=(wider,), outputs=(Y, extra)),
            libraries={"numpy": "2.1", "xgboost": "3.0"},
            params={"depth": 3, "tree": {"leaves": 8}},
            metrics={},
            environment="sha256:e",
        ),
    )
    assert not told.same_files
    assert [(c.side, c.name, c.old is None, c.new is None) for c in told.signature] == [
        ("input", "x", False, False),
        ("output", "score", True, False),
    ]
    assert {(c.name, c.old is None) for c in told.files} == {
        ("model.onnx", False),
        ("model.ubj", True),
    }
    assert told.libraries == (
        Change(name="numpy", old="2.0", new="2.1"),
        Change(name="xgboost", old=None, new="3.0"),
    )
    assert told.params == (Change(name="tree.leaves", old=7, new=8),)
    assert told.metrics == (Change(name="auc", old=0.9, new=None),)
    assert {c.name for c in told.facts} == {"format", "environment"}


@pytest.mark.parametrize(
    ("old", "new", "datatype", "n", "largest"),
    [
        ([0.5, 1.0], [0.5, 1.25], "FP32", 1, 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], "FP64", 0, 0.0),
        ([np.nan, 1.0], [0.0, 1.0], "FP64", 1, None),
        ([np.inf], [np.inf], "FP64", 0, 0.0),
        ([np.inf], [-np.inf], "FP64", 1, None),
        ([2**62], [2**62 + 1], "INT64", 1, 1.0),
        ([b"go", b"stay"], [b"go", b"go"], "BYTES", 1, None),
        ([], [], "FP32", 0, 0.0),
    ],
)
def test_answers_are_compared_by_value(
    old: Any, new: Any, datatype: str, n: int, largest: float | None
) -> None:
    """Counts of different elements and the largest difference, with NaN, infinity and text."""
    told = diff(
        record(examples=(example([[1, 2]], old, datatype),)),
        record(examples=(example([[1, 2]], new, datatype),)),
    )
    ((out,),) = (answer.outputs for answer in told.answers)
    assert (out.comparable, out.n_different, out.max_difference) == (True, n, largest)
    assert told.answers[0].same is (n == 0)


def test_examples_are_paired_by_their_requests() -> None:
    """Order does not matter, each is used once, and what has no partner is counted."""
    a, b, c = (example([[i, i]], [i]) for i in range(3))
    told = diff(record(examples=(a, b, b)), record(examples=(c, b, a)))
    assert [answer.inputs for answer in told.answers] == [a.inputs, b.inputs]
    assert (told.unpaired_old, told.unpaired_new) == (1, 1)


def test_another_shape_is_not_compared() -> None:
    """Answers of another type or shape are shown, never subtracted."""
    told = diff(
        record(examples=(example([[1, 2]], [0.5]),)),
        record(examples=(example([[1, 2]], [0.5, 0.5]),)),
    )
    (out,) = told.answers[0].outputs
    assert (out.comparable, out.max_difference) == (False, None)
    assert not told.answers[0].same
