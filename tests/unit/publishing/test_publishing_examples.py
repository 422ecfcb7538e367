"""Examples from files: every form of the server's own codecs, errors that name file and field."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.core.errors import ArtifactError, Unprocessable
from muelle.core.records import StoredTensor
from muelle.core.request import decode_array, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.publishing.examples import answer_twice, decode_body, own_example, read_examples

TABLE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2), columns=("age", "income")),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)
MIXED = Signature(
    inputs=(
        TensorSpec(name="age", datatype="INT64", shape=(-1,)),
        TensorSpec(name="city", datatype="BYTES", shape=(-1,)),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)


def values(inputs: Sequence[StoredTensor]) -> dict[str, Any]:
    """Tensor name -> nested list."""
    return {t.name: decode_array(t.datatype, t.shape, t.content).tolist() for t in inputs}


def npy() -> bytes:
    """The rows as a NumPy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1.5, 2.0], [3.0, 4.0]], np.float32))
    return buffer.getvalue()


V2 = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 2, 3, 4]}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("rows.json", b'{"instances": [[1.5, 2], [3, 4]]}'),
        ("rows.json", b"[[1.5, 2], [3, 4]]"),
        ("rows.json", b'[{"age": 1.5, "income": 2}, {"income": 4, "age": 3}]'),
        ("rows.json", b'{"inputs": {"x": [[1.5, 2], [3, 4]]}}'),
        ("rows.json", b'{"inputs": [[1.5, 2], [3, 4]]}'),
        ("v2.json", json.dumps({"inputs": [V2]}).encode()),
        ("rows.csv", b"income,age\n2,1.5\n4,3\n"),
        ("rows.csv", b"1.5,2\n3,4\n"),
        ("rows.npy", npy()),
        ("no-ending", b"[[1.5, 2], [3, 4]]"),
    ],
)
def test_every_form_of_a_request_is_an_example(tmp_path: Path, name: str, body: bytes) -> None:
    """The same rows in each form that the server reads give the same tensors."""
    (tmp_path / name).write_bytes(body)
    ((x,),) = read_examples(TABLE, [tmp_path / name])
    assert (x.name, x.datatype, x.shape) == ("x", "FP32", (2, 2))
    assert values([x]) == {"x": [[1.5, 2.0], [3.0, 4.0]]}


def test_texts_and_numbers_of_several_tensors() -> None:
    """Records of a model with one tensor per column come in the signature's order."""
    inputs = decode_body(MIXED, b'[{"city": "Vigo", "age": 41}]')
    assert [tensor.name for tensor in inputs] == ["age", "city"]
    assert values(inputs) == {"age": [41], "city": [b"Vigo"]}


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b'[{"age": 1, "incom": 2}]', "incom", "incom"),
        (b'{"inputs": {"z": [[1, 2]]}}', "inputs.z", "the model wants x"),
        (b'[["a", 2]]', "instances[0].age", "a string"),
        (b"{", "", "request body"),
        (json.dumps({"inputs": [V2 | {"shape": [3, 2]}]}).encode(), "", "x"),
    ],
)
def test_an_error_names_the_file_and_the_field(
    tmp_path: Path, body: bytes, field: str, said: str
) -> None:
    """What does not fit the signature is refused with the file's name and the field at fault."""
    file = tmp_path / "rows.json"
    file.write_bytes(body)
    with pytest.raises(Unprocessable) as caught:
        read_examples(TABLE, [file])
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert field in caught.value.field


def test_what_is_too_large_or_not_there_is_refused(tmp_path: Path) -> None:
    """Examples run at each load: a whole data set is no example."""
    file = tmp_path / "rows.npy"
    np.save(file, np.zeros((3_000_000, 2), np.float32))
    with pytest.raises(ArtifactError, match="a few rows are enough"):
        read_examples(TABLE, [file])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_examples(TABLE, [tmp_path / "none.json"])


def test_without_a_file_the_artifact_own_row_comes_first() -> None:
    """The artifact's example is used when it has one; else values are made up, and said to be."""
    own, made_up = own_example(TABLE, {"x": [[6.5, 7.0]]})
    assert (values(own), made_up) == ({"x": [[6.5, 7.0]]}, False)
    invented, made_up = own_example(MIXED, None)
    assert made_up
    assert [t.shape for t in invented] == [(1,), (1,)]


def answer(*results: float) -> Any:
    """A model that gives these results, one per call."""
    left = list(results)

    def run(_: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        array = np.array([left.pop(0)], np.float32)
        content = encode_array("FP32", array)
        return (StoredTensor(name="y", datatype="FP32", shape=(1,), content=content),)

    return run


@pytest.mark.parametrize(
    ("results", "repeatable"),
    [((1.0, 1.0), True), ((1.0, 1.00001), True), ((1.0, 1.5), False), ((np.nan, np.nan), True)],
)
def test_an_answer_that_changes_is_marked(results: tuple[float, ...], repeatable: bool) -> None:
    """Each request is asked twice; unequal beyond the tolerance means that values prove nothing."""
    inputs = decode_body(TABLE, b"[[1, 2]]")
    example, trouble = answer_twice(inputs, answer(*results), rtol=1e-3, atol=1e-5)
    assert example.repeatable is repeatable
    assert bool(trouble) is not repeatable
    assert example.inputs == inputs
