"""Schemas of a model's requests: they accept what is right and refuse what is wrong."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.api import schemas
from muelle.api.examples import example_body, example_of, v2_example_body
from muelle.core.errors import MuelleError
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import HttpRequest
from muelle.protocols.native import NativeCodec
from tests.unit.api.served import CHURN, HALF, IMAGE, IRIS, SCALAR, example, version

ROW = {"sepal length": 1, "sepal width": 2.5, "petal length": None, "petal width": 0}


COLUMN = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)
WORD = Signature(
    inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)


def bodies(signature: Signature) -> st.SearchStrategy[Any]:
    """Bodies of about the right form with values of any kind.

    What a schema cannot say is left out: with several tensors there is one row at most.
    """
    n_rows = 3 if len(signature.inputs) == 1 else 1
    leaves = st.sampled_from([None, True, 1, 2.0, 2.5, 1e300, 2**70, "a", {"b64": "AA=="}])
    short = st.lists(leaves, max_size=n_rows)
    width = max(len(signature.column_names), signature.inputs[0].shape[-1])
    numbers = st.lists(st.sampled_from([1, 2.5, None]), min_size=width, max_size=width)
    in_order = st.lists(leaves, min_size=width, max_size=width)
    values = leaves | short | numbers
    names = st.sampled_from([*signature.column_names, "other"])
    records = st.fixed_dictionaries(
        dict.fromkeys(signature.column_names, leaves | short)
    ) | st.dictionaries(names, values, max_size=4)
    rows = st.lists(values | in_order | records, max_size=n_rows)
    tensors = values | rows | st.fixed_dictionaries({s.name: rows for s in signature.inputs})
    members = st.dictionaries(st.sampled_from(["instances", "inputs"]), tensors | records)
    return values | rows | records | members | nearly_right(signature)


def nearly_right(signature: Signature) -> st.SearchStrategy[Any]:
    """Bodies of one row in every form, most of whose values fit."""
    good = {"BYTES": ["a", None, {"b64": "AA=="}], "INT64": [1, -7, 2.0]}

    def leaf(spec: TensorSpec) -> st.SearchStrategy[Any]:
        return st.sampled_from([*good.get(spec.datatype, [1, 2.5, None]), True])

    names = signature.column_names
    specs = signature.inputs if len(signature.inputs) > 1 else signature.inputs * len(names)
    record = st.fixed_dictionaries({n: leaf(s) for n, s in zip(names, specs, strict=True)})
    in_order = st.tuples(*map(leaf, specs)).map(list)
    row = record | in_order
    tensors = st.fixed_dictionaries(
        {s.name: st.lists(leaf(s), min_size=1, max_size=2) for s in signature.inputs[:1]}
        | {s.name: st.lists(leaf(s), min_size=1, max_size=1) for s in signature.inputs[1:]}
    ).filter(lambda t: len(t) == 1 or len({len(v) for v in t.values()}) == 1)
    return (
        row
        | row.map(lambda r: [r])
        | row.map(lambda r: {"instances": [r]})
        | tensors.map(lambda t: {"inputs": t})
        | in_order.map(lambda v: {"inputs": v if len(signature.inputs) == 1 else [v]})
    )


def takes(codec: NativeCodec, body: Any) -> bool:
    """Whether the codec reads a body."""
    try:
        codec.decode(HttpRequest(b"POST", "", b"", {}, json.dumps(body).encode()))
    except MuelleError:
        return False
    return True


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value fits, after the schema itself has been checked."""
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (IRIS, {"instances": [[1, 2.5, 3, 4], ROW]}),
        (IRIS, [[1, 2.5, 3, 4]]),
        (IRIS, ROW),
        (IRIS, {"inputs": {"input": [[1, 2, 3, 4]]}}),
        (CHURN, {"instances": [{"age": 3, "city": "x"}]}),
        (CHURN, {"instances": [{"age": 3, "city": None, "note": "n"}]}),
        (CHURN, {"age": 3, "city": "x"}),
        (CHURN, {"inputs": {"age": [3], "city": ["x"]}}),
        (CHURN, {"instances": [[3, "x", {"b64": "AA=="}]]}),
        (CHURN, {"instances": [{"age": [3], "city": ["x"]}]}),
        (SCALAR, {"inputs": {"x": [1, 2]}}),
        (SCALAR, {"inputs": [1, 2]}),
    ],
)
def test_native_bodies_that_are_right(signature: Signature, body: Any) -> None:
    """Rows, records, scalars, tensors; bare or under their member."""
    assert fits(schemas.native_request(signature), body)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (IRIS, {"instances": [[1, 2.5, 3]]}),
        (IRIS, {"instances": [{**ROW, "extra": 1}]}),
        (IRIS, {"instances": [{"sepal length": 1}]}),
        (IRIS, {"instances": [["1", 2, 3, 4]]}),
        (IRIS, {"instances": []}),
        (IRIS, {"inputs": {}}),
        (IRIS, {"instances": [[1e300, 2, 3, 4]]}),
        (IRIS, {}),
        (IRIS, 7),
        (CHURN, {"instances": [{"age": 3.5, "city": "x"}]}),
        (CHURN, {"instances": [{"age": 2**63, "city": "x"}]}),
        (CHURN, {"instances": [{"age": None, "city": "x"}]}),
        (CHURN, {"instances": [{"city": "x"}]}),
        (CHURN, {"instances": [[3, "x"]]}),
        (CHURN, {"instances": [{"age": 3, "city": {"b65": "AA=="}}]}),
        (CHURN, {"inputs": [[3], ["x"]]}),
        (SCALAR, {"instances": [[1, 2]]}),
        (SCALAR, {"inputs": {"x": [1, 2, 3]}}),
    ],
)
def test_native_bodies_that_are_wrong(signature: Signature, body: Any) -> None:
    """Wrong lengths, types, ranges and members are found by the schema alone."""
    assert not fits(schemas.native_request(signature), body)


@pytest.mark.parametrize("signature", [IRIS, CHURN, SCALAR, COLUMN, WORD])
def test_native_schemas_say_what_the_codec_takes(signature: Signature) -> None:
    """Over generated bodies, right and wrong, schema and codec agree on what is well formed."""
    codec = NativeCodec("m", "1", signature, "error", 64, 32)
    validator = jsonschema.Draft202012Validator(schemas.native_request(signature))
    seen = {True: 0, False: 0}

    @settings(max_examples=300)
    @given(bodies(signature))
    def agree(body: Any) -> None:
        taken = takes(codec, body)
        seen[taken] += 1
        assert validator.is_valid(body) is taken

    agree()
    assert min(seen.values()) > 5, "both sides have been tried"


@pytest.mark.parametrize("signature", [IRIS, CHURN, IMAGE, HALF, SCALAR])
def test_examples_fit_their_schemas(signature: Signature) -> None:
    """What the docs offer is what the docs describe."""
    values = example(signature)
    assert fits(schemas.native_request(signature), example_body(signature, values))
    v2 = v2_example_body(signature, values)
    assert v2 is None if signature is HALF else fits(schemas.v2_request(signature), v2)
    made_up = example_of(version(signature, example=None))
    assert fits(schemas.native_request(signature), example_body(signature, made_up))


def test_v2_bodies_that_are_wrong() -> None:
    """Another tensor, datatype or fixed dimension is found by the schema."""
    schema = schemas.v2_request(IRIS)
    right = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    assert fits(schema, {"inputs": [right], "id": "x", "outputs": [{"name": "label"}]})
    for change in ({"name": "x"}, {"datatype": "FP64"}, {"shape": [1, 5]}, {"shape": [4]}):
        assert not fits(schema, {"inputs": [right | change]}), change
    assert not fits(schema, {"inputs": [right, right]})
    assert not fits(schema, {"inputs": [right], "outputs": [{"name": "other"}]})


def test_v2_needs_each_input_once() -> None:
    """With several inputs the required ones are all there, none twice."""
    schema = schemas.v2_request(CHURN)
    body = v2_example_body(CHURN, example(CHURN))
    assert body is not None
    age, city, note = body["inputs"]
    assert fits(schema, {"inputs": [city, age]})
    assert not fits(schema, {"inputs": [age, note]})
    assert not fits(schema, {"inputs": [age, age, city]})


@pytest.mark.parametrize(
    ("datatype", "right", "wrong"),
    [
        ("BOOL", True, 1),
        ("UINT8", 255, 256),
        ("INT8", -128, -129),
        ("UINT64", 2**64 - 1, 2**64),
        ("FP16", 65519, 65520),
        ("FP32", 3.4e38, 3.5e38),
        ("FP64", 1e308, "1"),
        ("BYTES", "text", 1),
    ],
)
def test_elements_have_their_datatype_s_range(datatype: str, right: Any, wrong: Any) -> None:
    """A value that memory cannot hold does not fit."""
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
    schema = schemas.element(spec, native=False)
    assert fits(schema, right) and not fits(schema, wrong)
    assert not fits(schema, None)


def test_a_classifier_s_answer() -> None:
    """Label and a probability per class, no other."""
    schema = schemas.native_response(IRIS)
    classes = {"setosa": 1, "versicolor": 0, "virginica": 0}
    one = {"label": "setosa", "probabilities": classes}
    assert fits(schema, {"model": "iris", "version": "1", "predictions": [one]})
    assert not fits(schemas.prediction(IRIS, "error"), {**one, "probabilities": {"setosa": 1}})
    assert not fits(schema, {"model": "iris", "predictions": [one]})
