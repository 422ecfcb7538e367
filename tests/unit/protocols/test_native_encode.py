"""The native codec's answers: predictions per row, forms, NaN policies, and errors."""

from __future__ import annotations

import csv
import io
import json
from typing import Any, Literal

import numpy as np
import pytest

from muelle.core.errors import ErrorCode, ModelFailed, MuelleError, NotAcceptable, QueueFull
from muelle.core.request import BatchOutput, InferResponse, OutputTensor, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import HttpRequest
from muelle.protocols.native import NativeCodec, encode_error
from muelle.protocols.native_plain import NativePlain
from muelle.protocols.status import HTTP_STATUS, V2_STATUS

Policy = Literal["error", "null", "string"]
NAN, INF = float("nan"), float("inf")


def gives(*outputs: TensorSpec, rows: bool = True) -> Signature:
    shape = (-1, 1) if rows else (1,)
    return Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=shape),), outputs=outputs)


def tensor(name: str, datatype: str, *shape: int, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, **more)


def batch(spec: TensorSpec, values: Any) -> BatchOutput:
    array = np.array(values, object if spec.datatype == "BYTES" else None)
    if spec.datatype in ("FP16", "FP32"):
        array = array.astype({"FP16": "f2", "FP32": "f4"}[spec.datatype])
    return BatchOutput(spec.name, spec.datatype, array.shape, encode_array(spec.datatype, array))


def answer(
    signature: Signature,
    *values: Any,
    query: bytes = b"",
    accept: bytes = b"",
    nan: Policy = "error",
    part: slice | None = None,
) -> bytes:
    """The body for the rows of `part` (default: all) of a batch with these output values."""
    codec = NativeCodec("m", "7", signature, nan, 20, 32)
    body = b"[[1]]" if signature.has_rows else b'{"inputs":{"x":[1]}}'
    request = codec.decode(HttpRequest(b"POST", "", query, {b"accept": accept}, body))
    batches = [batch(s, v) for s, v in zip(signature.outputs, values, strict=True)]
    start, stop = -1, -1
    if signature.has_rows:
        part = part or slice(0, len(values[0]))
        start, stop = part.start, part.stop
    outputs = [OutputTensor(b, start, stop) for b in batches]
    return codec.encode(request, InferResponse("m", "7", outputs)).body


def strict(body: bytes) -> Any:
    """Read JSON as the standard has it: NaN and infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(body, parse_constant=refuse)


Y = tensor("y", "FP32", -1)
Y2 = tensor("y", "FP32", -1, 2)
LABEL = tensor("output_label", "BYTES", -1, role="label")
CHANCES = tensor("p", "FP32", -1, 2, role="probabilities", classes=("no", "yes"))


@pytest.mark.parametrize(
    ("outputs", "values", "predictions"),
    [
        ((Y,), ([0.1, 2],), [0.1, 2]),
        ((Y2,), ([[0.1, 2]],), [[0.1, 2]]),
        ((tensor("y", "FP32", -1, 1, 2),), ([[[0.1, 2]]],), [[[0.1, 2]]]),
        ((tensor("y", "FP32", -1, 2), tensor("n", "INT64", -1)), ([[1, 2]], [2**53 + 1]), None),
        ((tensor("y", "BYTES", -1),), ([b"a", None, b'"],["'],), ["a", None, '"],["']),
        ((tensor("y", "BOOL", -1, 2),), ([[True, False]],), [[True, False]]),
        ((LABEL, CHANCES), ([b"yes"], [[0.1, 0.9]]), "classifier"),
        ((CHANCES,), ([[0.1, 0.9]],), "classifier"),
        ((LABEL,), ([b"yes"],), [{"label": "yes"}]),
        ((tensor("p", "FP32", -1, 2, role="probabilities"),), ([[0.25, 0.75]],), [[0.25, 0.75]]),
        (
            (tensor("p", "FP32", -1, role="probabilities", classes=("no", "yes")),),
            ([0.75],),
            [0.75],
        ),
        (
            (tensor("p", "FP32", -1, 2, role="probabilities", classes=(0, "a%b")),),
            ([[0.75, 0.25]],),
            [{"label": 0, "probabilities": {"0": 0.75, "a%b": 0.25}}],
        ),
    ],
)
def test_a_prediction_per_row(outputs: Any, values: Any, predictions: Any) -> None:
    """One output is the value, several are an object, a classifier has label and chances."""
    if predictions == "classifier":
        predictions = [{"label": "yes", "probabilities": {"no": 0.1, "yes": 0.9}}]
    if predictions is None:
        predictions = [{"y": [1.0, 2.0], "n": 2**53 + 1}]

    found = strict(answer(gives(*outputs), *values))

    assert found == {"model": "m", "version": "7", "predictions": predictions}


def test_a_caller_gets_only_its_own_rows() -> None:
    """Rows 1 and 2 of a batch of four."""
    found = strict(answer(gives(Y), [0, 1, 2, 3], part=slice(1, 3)))

    assert found["predictions"] == [1.0, 2.0]


def test_a_model_without_rows_gives_one_prediction() -> None:
    """The whole tensor, a scalar written as short as anywhere else."""
    for spec, value in ((tensor("y", "FP32", 2), [0.1, 2.0]), (tensor("y", "FP32"), 0.1)):
        assert strict(answer(gives(spec, rows=False), value))["predictions"] == [value]


def test_picked_outputs_come_plain() -> None:
    """`?outputs=` undresses a classifier."""
    signature = gives(LABEL, CHANCES)
    codec = NativeCodec("m", "7", signature, "error", 20, 32)
    request = codec.decode(HttpRequest(b"POST", "", b"outputs=p", {}, b"[[1]]"))
    tensors = [OutputTensor(batch(CHANCES, [[0.1, 0.9]]), 0, 1)]

    found = strict(codec.encode(request, InferResponse("m", "7", tensors)).body)

    assert found["predictions"] == [[0.1, 0.9]]


SHAPES = ((Y, [NAN]), (Y2, [[0.1, -INF]]), (tensor("y", "FP32", -1, 2, 1), [[[INF], [0.1]]]))


@pytest.mark.parametrize(("spec", "value"), SHAPES)
def test_nonfinite_numbers_follow_the_policy(spec: TensorSpec, value: Any) -> None:
    """Refused by default with what to do; null or a string where set. Other numbers unchanged."""

    def told(item: Any, policy: str) -> Any:
        if isinstance(item, list):
            return [told(one, policy) for one in item]
        words = {INF: "Infinity", -INF: "-Infinity"}
        if item == 0.1:
            return item
        return None if policy == "null" else words.get(item, "NaN")

    with pytest.raises(NotAcceptable, match=r"x-npy or text/csv, or set json_nan"):
        answer(gives(spec), value)
    for policy in ("null", "string"):
        body = answer(gives(spec), value, nan=policy)
        assert strict(body)["predictions"] == told(value, policy)


@pytest.mark.parametrize("policy", ["null", "string"])
def test_nan_is_never_the_likeliest_class(policy: Policy) -> None:
    """The label is the highest number."""
    (found,) = strict(answer(gives(CHANCES), [[NAN, 0.1]], nan=policy))["predictions"]

    assert found["label"] == "yes"


def test_csv_has_a_header_and_every_value() -> None:
    """Quoted text, missing as empty, short floats; `label` and `probability_<class>` as names."""
    body = answer(
        gives(LABEL, CHANCES), [b'a,"b\n', None], [[0.1, 0.9], [NAN, 1e-8]], accept=b"text/csv"
    )
    rows = list(csv.reader(io.StringIO(body.decode())))

    assert rows == [
        ["label", "probability_no", "probability_yes"],
        ['a,"b\n', "0.1", "0.9"],
        ["", "nan", "1e-08"],
    ]
    assert answer(gives(Y2), [[1, 2]], accept=b"text/csv") == b"y_0,y_1\n1.0,2.0\n"


def test_npy_carries_one_output() -> None:
    """As it is, NaN too; text as Unicode, missing text empty; several are told what to do."""
    npy = b"application/x-npy"
    found = np.load(io.BytesIO(answer(gives(Y2), [[NAN, 2]], accept=npy)))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array([[NAN, 2]], "f4"), equal_nan=True)
    text = answer(gives(tensor("y", "BYTES", -1)), ["é".encode(), None], accept=npy)
    assert np.load(io.BytesIO(text)).tolist() == ["é", ""]
    with pytest.raises(NotAcceptable, match=r"\?outputs="):
        answer(gives(LABEL, CHANCES), [b"a"], [[0.5, 0.5]], accept=npy)


def test_a_model_that_gives_another_number_of_classes_failed() -> None:
    """An error of the model, on both ways; no answer with classes in the wrong places."""
    spec = tensor("p", "FP32", -1, -1, role="probabilities", classes=("a", "b", "c"))
    with pytest.raises(ModelFailed, match="2 probabilities for 3 classes"):
        answer(gives(spec), [[0.5, 0.5]])
    assert NativePlain("m", "7", gives(spec)).rows([batch(spec, [[0.5, 0.5]])]) is None


@pytest.mark.parametrize(
    ("outputs", "values"),
    [
        ((Y,), ([0.1, NAN, 3],)),
        ((Y2,), ([[0.1, 2], [3, 4]],)),
        ((tensor("y", "FP16", -1, 2),), ([[0.1, 2], [3, 4]],)),
        ((tensor("y", "BYTES", -1, 2),), ([[b"],[", b"null"], [None, b"\xff"]],)),
        ((tensor("y", "INT64", -1), tensor("z", "BOOL", -1)), ([2**53 + 1, 0], [True, False])),
        ((tensor("y", "FP32", -1, -1),), (np.zeros((2, 0)),)),
        ((tensor("y", "FP32", -1, 1, 2),), ([[[1, 2]]],)),
        ((LABEL, CHANCES), ([b"a", None], [[0.1, 0.9], [1, 0]])),
        ((CHANCES,), ([[0.1, 0.9], [1, 0]],)),
    ],
)
def test_plain_answers_are_the_whole_codecs(outputs: Any, values: Any) -> None:
    """Byte for byte, row by row, wherever the plain way does not pass."""
    signature = gives(*outputs)
    batches = [batch(s, v) for s, v in zip(outputs, values, strict=True)]
    bodies = NativePlain("m", "7", signature).rows(batches)
    if bodies is None:
        return
    assert bodies == [
        answer(signature, *values, part=slice(i, i + 1)) for i in range(len(values[0]))
    ]


def test_the_plain_way_does_write() -> None:
    """Negative control: the comparison above compares something."""
    body = b'{"model":"m","version":"7","predictions":[[0.1,2.0]]}'
    assert NativePlain("m", "7", gives(Y2)).rows([batch(Y2, [[0.1, 2]])]) == [body]


def test_errors_are_problem_details() -> None:
    """Status by code, the field, Retry-After; text that JSON cannot say is replaced."""
    error = MuelleError("bad \ud800", field="x\ud800")
    found = strict(encode_error(error, "r1").body)
    assert (found["status"], found["detail"], found["field"]) == (500, "bad ?", "x?")
    assert (found["request_id"], found["code"], found["type"]) == ("r1", "internal", "about:blank")
    full = encode_error(QueueFull("m", 3), "r2")
    assert (full.status, full.headers) == (503, ((b"retry-after", b"1"),))
    assert full.content_type == b"application/problem+json"


def test_a_strange_error_tells_nothing() -> None:
    """A path in an exception stays in the log."""
    found = encode_error(OSError("/secret/model.onnx"), "r1")

    assert found.status == 500
    assert b"secret" not in found.body and b"r1" in found.body


@pytest.mark.parametrize("table", [HTTP_STATUS, V2_STATUS])
def test_every_code_has_a_status(table: Any) -> None:
    """The tables are total."""
    assert set(table) == set(ErrorCode)


def test_texts_that_npy_would_blow_up_are_refused() -> None:
    """npy pads each text to the longest: one long among many short ones is told what to do."""
    texts = gives(tensor("t", "BYTES", -1))
    uneven = [b"x" * 100_000] + [b""] * 1_000

    with pytest.raises(NotAcceptable, match="unequal lengths.*text/csv"):
        answer(texts, uneven, accept=b"application/x-npy")
    even = answer(texts, [b"x" * 100] * 1_000, accept=b"application/x-npy")
    assert np.load(io.BytesIO(even)).tolist() == ["x" * 100] * 1_000
