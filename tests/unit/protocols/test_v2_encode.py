"""V2Codec.encode, errors and metadata: answers as the official client reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferResult

from muelle.core.errors import (
    BadRequest,
    Internal,
    ModelFailed,
    ModelNotFound,
    MuelleError,
    NotAcceptable,
    QueueFull,
    Unavailable,
    Unprocessable,
)
from muelle.core.request import BatchOutput, InferResponse, OutputTensor, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.protocols.http import Answer
from muelle.protocols.v2 import V2Codec, encode_error, server_metadata
from muelle.protocols.v2_outputs import MAX_CLASSIFIED, JsonNan, OutputForm, V2Request


def codec(*outputs: TensorSpec, nan: JsonNan = "error", rows: bool = True) -> V2Codec:
    x = TensorSpec(name="x", datatype="FP32", shape=(-1, 2) if rows else (2,))
    return V2Codec("m", "3", Signature(inputs=(x,), outputs=outputs), nan, 20, 32)


def spec(name: str, datatype: str, *shape: int, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, **more)


def tensor(
    name: str, datatype: str, values: Any, start: int = 0, stop: int | None = None
) -> OutputTensor:
    """Rows start..stop of a batch (start -1: all of it, without rows)."""
    dtype = object if datatype == "BYTES" else None
    array = np.array(values, dtype=dtype)
    batch = BatchOutput(name, datatype, array.shape, encode_array(datatype, array))
    if start < 0:
        return OutputTensor(batch, -1, -1)
    return OutputTensor(batch, start, len(array) if stop is None else stop)


def answer_of(*outputs: OutputTensor) -> InferResponse:
    return InferResponse("m", "3", outputs)


def request(*forms: OutputForm, id: str = "", binary: bool = False) -> V2Request:
    return V2Request([], 1, id, forms, binary)


def as_client_reads(answer: Answer) -> InferResult:
    length = dict(answer.headers).get(b"Inference-Header-Content-Length")
    return InferResult.from_response_body(answer.body, header_length=length and int(length))


def strict_json(text: bytes) -> Any:
    """Read JSON as strict parsers do: no NaN, no Infinity."""

    def refuse(token: str) -> None:
        raise ValueError(token)

    return json.loads(text, parse_constant=refuse)


Y = spec("y", "FP32", -1, 2)
Y_VALUES = [[0.5, 1.0], [0.25, -2.0], [3.0, 4.0]]


def test_a_json_answer_has_the_members_in_the_protocols_order() -> None:
    """Flat data, only the caller's rows, and the exact text that the protocol shows."""
    response = answer_of(tensor("y", "FP32", Y_VALUES, 1, 2), tensor("n", "INT64", [1, 2, 3], 1, 2))
    answer = codec(Y, spec("n", "INT64", -1)).encode(request(), response)

    assert (answer.status, answer.content_type, answer.headers) == (200, b"application/json", ())
    assert answer.body == (
        b'{"model_name":"m","model_version":"3","outputs":['
        b'{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.25,-2.0]},'
        b'{"name":"n","datatype":"INT64","shape":[1],"data":[2]}]}'
    )


def test_id_and_parameters_stand_where_the_protocol_has_them() -> None:
    """id comes first, parameters before the outputs; both only when there are any."""
    response = answer_of(tensor("y", "FP32", Y_VALUES, 0, 1))
    response.parameters = {"seconds": 1.5}
    answer = codec(Y).encode(request(id='a"ñ'), response)

    assert list(json.loads(answer.body)) == [
        "id",
        "model_name",
        "model_version",
        "parameters",
        "outputs",
    ]
    assert json.loads(answer.body)["id"] == 'a"ñ'


def test_an_answer_without_outputs_is_valid_json() -> None:
    """A model may return nothing."""
    assert json.loads(codec().encode(request(), answer_of()).body)["outputs"] == []


def test_binary_and_json_outputs_come_in_the_order_asked_for() -> None:
    """Binary parts follow the JSON in the order of the outputs, with sizes and the header."""
    response = answer_of(
        tensor("y", "FP32", Y_VALUES, 1, 3), tensor("s", "BYTES", [b"a", b"\xff\0", b""], 1, 3)
    )
    forms = OutputForm("s", True, 0), OutputForm("y", False, 0)
    answer = codec(Y, spec("s", "BYTES", -1)).encode(request(*forms), response)
    result = as_client_reads(answer)

    assert answer.content_type == b"application/octet-stream"
    assert [o["name"] for o in result.get_response()["outputs"]] == ["s", "y"]
    assert result.get_output("s")["parameters"] == {"binary_data_size": 10}
    assert result.as_numpy("s").tolist() == [b"\xff\0", b""]
    assert result.as_numpy("y").tolist() == Y_VALUES[1:]


def test_binary_for_all_outputs_needs_no_list() -> None:
    """binary_data_output, or a raw request: every output is binary."""
    answer = codec(Y).encode(
        request(binary=True), answer_of(tensor("y", "FP32", Y_VALUES), tensor("h", "FP16", [1.5]))
    )

    assert as_client_reads(answer).as_numpy("y").tolist() == Y_VALUES
    assert as_client_reads(answer).as_numpy("h").tolist() == [1.5]


def test_an_empty_binary_output_leaves_plain_json() -> None:
    """Content type and header tell of binary bytes only when there are some."""
    empty = answer_of(tensor("y", "FP32", np.zeros((0, 2))))
    answer = codec(Y).encode(request(OutputForm("y", True, 0)), empty)

    assert (answer.content_type, answer.headers) == (b"application/json", ())
    assert strict_json(answer.body)["outputs"] == [
        {
            "name": "y",
            "datatype": "FP32",
            "shape": [0, 2],
            "parameters": {"binary_data_size": 0},
        }
    ]


def test_a_tensor_without_rows_is_given_whole() -> None:
    """A model without a rows axis, down to a scalar."""
    answer = codec(spec("y", "FP64"), rows=False).encode(
        request(), answer_of(tensor("y", "FP64", 2.5, -1))
    )

    assert strict_json(answer.body)["outputs"][0] == {
        "name": "y",
        "datatype": "FP64",
        "shape": [],
        "data": [2.5],
    }


NONFINITE = [[1.5, float("nan")], [float("inf"), -float("inf")]]
FORMS: list[tuple[JsonNan, list[Any]]] = [
    ("null", [1.5, None, None, None]),
    ("string", [1.5, "NaN", "Infinity", "-Infinity"]),
]


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize(("nan", "expected"), FORMS)
def test_nan_and_infinity_never_make_invalid_json(
    datatype: str, nan: JsonNan, expected: list[Any]
) -> None:
    """null or strings, as the server is set; finite elements are untouched."""
    answer = codec(Y, nan=nan).encode(request(), answer_of(tensor("y", datatype, NONFINITE)))

    assert strict_json(answer.body)["outputs"][0]["data"] == expected


def test_nan_is_an_error_by_default_for_its_own_caller_only() -> None:
    """The text names the output and both ways out; a batch mate's finite rows are answered."""
    mates = [[1.0, 2.0], [float("nan"), 1.0]]
    with pytest.raises(NotAcceptable, match=r"'y'.*binary_data true, or set json_nan") as caught:
        codec(Y).encode(request(), answer_of(tensor("y", "FP32", mates, 1, 2)))
    assert "1.0" not in caught.value.message

    answer = codec(Y).encode(request(), answer_of(tensor("y", "FP32", mates, 0, 1)))
    assert strict_json(answer.body)["outputs"][0]["data"] == [1.0, 2.0]
    binary = codec(Y).encode(request(binary=True), answer_of(tensor("y", "FP32", mates, 1, 2)))
    assert np.isnan(as_client_reads(binary).as_numpy("y")[0, 0])


def test_the_word_null_in_a_string_is_no_nan() -> None:
    """Negative control: the search for null looks at float tensors only."""
    answer = codec(spec("s", "BYTES", -1)).encode(
        request(), answer_of(tensor("s", "BYTES", [b"null", "\N{REPLACEMENT CHARACTER}".encode()]))
    )

    assert strict_json(answer.body)["outputs"][0]["data"] == ["null", "\ufffd"]


def test_bytes_that_are_no_text_are_refused_in_json() -> None:
    """JSON would change them silently; binary carries them."""
    response = answer_of(tensor("s", "BYTES", [b"a", b"\xff"]))
    with pytest.raises(NotAcceptable, match="'s'.*not UTF-8.*binary_data true"):
        codec(spec("s", "BYTES", -1)).encode(request(), response)


def test_a_missing_string_is_null_in_json_and_empty_in_binary() -> None:
    """Muelle's null marker never leaves: a client would take it for a length."""
    response = answer_of(tensor("s", "BYTES", [None, b"a"]))
    model = codec(spec("s", "BYTES", -1))

    assert strict_json(model.encode(request(), response).body)["outputs"][0]["data"] == [None, "a"]
    binary = model.encode(request(binary=True), response)
    assert as_client_reads(binary).as_numpy("s").tolist() == [b"", b"a"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_refused_in_json(datatype: str) -> None:
    """Should a model return one unannounced, JSON still does not carry it."""
    with pytest.raises(NotAcceptable, match=f"'h': JSON cannot carry {datatype}"):
        codec(Y).encode(request(), answer_of(tensor("h", datatype, [1.0])))


def test_an_output_that_the_model_did_not_return_is_its_failure() -> None:
    """A wanted output that is not there is not left out silently."""
    with pytest.raises(ModelFailed, match="'y'"):
        codec(Y).encode(request(OutputForm("y", False, 0)), answer_of())


def classified(values: Any, datatype: str, k: int, **more: Any) -> Any:
    out = spec("y", datatype, *(-1 for _ in np.shape(values)), **more)
    answer = codec(out).encode(
        request(OutputForm("y", False, k)), answer_of(tensor("y", datatype, values))
    )
    return strict_json(answer.body)["outputs"][0]


def test_classification_gives_the_highest_values_with_labels() -> None:
    """value:index:label by descending value, k per row, six decimals."""
    found = classified(
        [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]],
        "FP32",
        2,
        role="probabilities",
        classes=("cat", "dog", "ñu"),
    )

    assert found == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.700000:1:dog", "0.200000:2:ñu", "0.500000:0:cat", "0.300000:1:dog"],
    }


@pytest.mark.parametrize(
    ("values", "datatype", "expected"),
    [
        ([[-128, 127, 0]], "INT8", ["127:1", "0:2", "-128:0"]),
        ([[2**64 - 1, 0, 2**64 - 2]], "UINT64", [f"{2**64 - 1}:0", f"{2**64 - 2}:2", "0:1"]),
        ([[2**63 - 1, -(2**63), 2**63 - 2]], "INT64", [f"{2**63 - 1}:0", f"{2**63 - 2}:2"]),
        ([[float("nan"), 1.0, float("-inf")]], "FP64", ["1.000000:1", "-inf:2", "nan:0"]),
        ([[1.0, 1.0, 1.0]], "FP32", ["1.000000:0", "1.000000:1", "1.000000:2"]),
        ([[[1, 2], [4, 3]]], "INT32", ["4:2", "3:3", "2:1", "1:0"]),
    ],
)
def test_classification_sorts_every_kind_exactly(
    values: Any, datatype: str, expected: list[str]
) -> None:
    """Integer edges are exact, NaN comes last, ties keep their order, k is cut to the classes."""
    # Without a dtype, numpy would take large unsigned integers for floats.
    dtype = DATATYPES[datatype].numpy
    assert classified(np.array(values, dtype), datatype, 1000)["data"][: len(expected)] == expected


def test_classification_works_in_binary_and_without_rows() -> None:
    """Shape is [count] for a model without rows; elements have the 4-byte length form."""
    model = codec(spec("y", "FP32", 3), rows=False)
    response = answer_of(tensor("y", "FP32", [0.5, 2.0, 1.0], -1))
    result = as_client_reads(model.encode(request(OutputForm("y", True, 2)), response))

    assert result.as_numpy("y").tolist() == [b"2.000000:1", b"1.000000:2"]
    assert result.get_output("y")["shape"] == [2]


def test_classification_of_too_many_elements_is_refused() -> None:
    """Sorting is work that a caller asks for: it has a limit."""
    response = answer_of(tensor("y", "INT8", np.zeros((1, MAX_CLASSIFIED + 1), np.int8)))
    with pytest.raises(Unprocessable, match="'y'"):
        codec(spec("y", "INT8", -1, -1)).encode(request(OutputForm("y", False, 1)), response)


ERRORS: list[tuple[Exception, int, str | None]] = [
    (BadRequest("x: wrong"), 400, None),
    (Unprocessable("x: wrong"), 400, None),
    (ModelNotFound("no such model"), 400, None),
    (NotAcceptable("y: NaN"), 406, None),
    (QueueFull("m", 5), 503, "1"),
    (Unavailable("loading", retry_after_s=2.1), 503, "3"),
    (Unavailable("loading", retry_after_s=0), 503, "1"),
    (Unavailable("gone"), 503, None),
    (Internal("internal error"), 500, None),
]


@pytest.mark.parametrize(
    ("error", "status", "retry_after"), ERRORS, ids=[str(e) for e, *_ in ERRORS]
)
def test_an_error_has_the_form_that_clients_parse(
    error: MuelleError, status: int, retry_after: str | None
) -> None:
    """One member `error`, the protocol's status, Retry-After in whole seconds of at least 1."""
    answer = encode_error(error, "r1")

    assert (answer.status, answer.content_type) == (status, b"application/json")
    assert json.loads(answer.body) == {"error": error.message}
    expected = [] if retry_after is None else [(b"Retry-After", retry_after.encode())]
    assert list(answer.headers) == expected


def test_an_unforeseen_error_tells_only_the_request_id() -> None:
    """No text of a foreign exception, which may have a path or an address, goes out."""
    answer = encode_error(KeyError("/srv/models/secret 0x7f00"), "r1")

    assert answer.status == 500
    assert json.loads(answer.body) == {"error": "internal error, request id r1"}


def test_metadata_has_the_protocols_members() -> None:
    """Model and server metadata, as the protocol's objects have them."""
    assert codec(Y).metadata("onnx", ["2", "3"]) == {
        "name": "m",
        "versions": ["2", "3"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert codec(Y).metadata("onnx")["versions"] == ["3"]
    assert server_metadata("muelle", "1", ("parameters",)) == {
        "name": "muelle",
        "version": "1",
        "extensions": ["parameters"],
    }
