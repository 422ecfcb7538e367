"""V2Codec.decode: every form of a request, and every error with the name of what is wrong."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from muelle.core.errors import BadRequest
from muelle.core.request import decode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.v2 import V2Codec


def spec(name: str, datatype: str, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, optional=optional)


def codec(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), depth: int = 20) -> V2Codec:
    outputs = outputs or (spec("y", "FP32", -1, 2), spec("label", "BYTES", -1))
    return V2Codec("m", "3", Signature(inputs=inputs, outputs=outputs), "error", depth, 32)


X = spec("x", "FP32", -1, 2)
X_JSON: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def body(*inputs: Any, **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def changed(**members: Any) -> dict[str, Any]:
    merged = {**X_JSON, **members}
    return {key: value for key, value in merged.items() if value is not ...}


def mixed(header: bytes, *parts: bytes) -> tuple[bytes, int]:
    return b"".join((header, *parts)), len(header)


def values(tensor: Any) -> list[Any]:
    found: list[Any] = decode_array(tensor.datatype, tuple(tensor.shape), tensor.data).tolist()
    return found


@pytest.mark.parametrize(
    "data", [[1.5, 2, 3, 4], [[1.5, 2], [3, 4]], [[[1.5], [2]], 3, [[[4]]]]], ids=repr
)
def test_json_data_is_read_flat_or_nested_in_any_way(data: list[Any]) -> None:
    """Only the number of elements and their order count, not the brackets between them."""
    request = codec(X).decode(body(changed(shape=[2, 2], data=data)), None)

    assert request.n_rows == 2
    assert values(request.inputs[0]) == [[1.5, 2.0], [3.0, 4.0]]


def test_inputs_come_out_in_the_order_of_the_signature() -> None:
    """The scheduler relies on the signature's order, a caller may list inputs in any."""
    two = codec(X, spec("n", "INT64", -1))
    n = {"name": "n", "shape": [1], "datatype": "INT64", "data": [2**63 - 1]}

    for inputs in ((X_JSON, n), (n, X_JSON)):
        request = two.decode(body(*inputs), None)
        assert [t.name for t in request.inputs] == ["x", "n"]
        assert values(request.inputs[1]) == [2**63 - 1]


def test_an_optional_input_may_be_left_out() -> None:
    """An absent optional input is no error and is not in the request."""
    request = codec(X, spec("bias", "FP32", -1, optional=True)).decode(body(X_JSON), None)

    assert [t.name for t in request.inputs] == ["x"]


def test_a_request_may_have_more_rows_than_a_batch() -> None:
    """The scheduler splits: the codec must not refuse."""
    request = codec(X).decode(body(changed(shape=[1000, 2], data=[0] * 2000)), None)

    assert request.n_rows == 1000


def test_a_model_without_rows_has_one_row() -> None:
    """Axis 0 means rows only when every tensor has it."""
    whole = codec(spec("x", "FP32", 4), outputs=(spec("y", "FP32", 2),))

    assert whole.decode(body(changed(shape=[4], data=[1, 2, 3, 4])), None).n_rows == 1


def test_members_that_are_null_or_unknown_count_as_absent() -> None:
    """Clients that write every member of their model, null or not, are served."""
    text = body(changed(parameters=None), id=None, parameters=None, outputs=None, more={"a": [1]})
    request = codec(X).decode(text, None)

    assert (request.id, request.parameters, list(request.outputs)) == ("", None, [])


def test_id_parameters_and_timeout_are_read() -> None:
    """`timeout` is microseconds; parameters that the codec does not know go to the model."""
    text = body(X_JSON, id="r-1", parameters={"timeout": 250_000, "priority": 1, "mode": "fast"})
    request = codec(X).decode(text, None)

    assert request.id == "r-1"
    assert request.timeout_s == 0.25
    assert request.parameters == {"priority": 1, "mode": "fast"}


def test_wanted_outputs_are_read_in_the_callers_order() -> None:
    """Each output says its own form; binary_data_output does not change a listed one."""
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "y", "parameters": {"classification": 2}},
    ]
    text = body(X_JSON, outputs=outputs, parameters={"binary_data_output": True})
    request = codec(X).decode(text, None)

    assert list(request.outputs) == ["label", "y"]
    assert [(f.binary, f.classes) for f in request.forms] == [(True, 0), (False, 2)]
    assert not request.binary


@pytest.mark.parametrize("binary", [True, False])
def test_a_body_of_the_official_client_is_read(binary: bool) -> None:
    """What tritonclient writes, binary or JSON, with BYTES beside FP32, is what comes out."""
    x = triton.InferInput("x", [2, 2], "FP32")
    x.set_data_from_numpy(np.array([[1, 2], [3, 4]], np.float32), binary_data=binary)
    s = triton.InferInput("s", [2], "BYTES")
    s.set_data_from_numpy(np.array([b"ol\xc3\xa9", b""], object), binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=True)
    text, header = triton.InferenceServerClient.generate_request_body(
        [s, x], outputs=[wanted], request_id="7", timeout=1_000_000
    )
    request = codec(X, spec("s", "BYTES", -1)).decode(bytes(text), header)

    assert values(request.inputs[0]) == [[1.0, 2.0], [3.0, 4.0]]
    assert values(request.inputs[1]) == ["olé".encode(), b""]
    assert (request.id, request.timeout_s, request.n_rows) == ("7", 1.0, 2)
    assert request.forms[0].binary


def test_binary_and_json_inputs_may_be_mixed() -> None:
    """Binary inputs take from the binary part in the order listed, whatever stands between."""
    model = codec(X, spec("a", "UINT8", -1), spec("b", "BOOL", -1))
    a = {
        "name": "a",
        "shape": [1],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 1},
    }
    b = {**a, "name": "b", "datatype": "BOOL"}
    request = model.decode(*mixed(body(b, X_JSON, a), b"\x01", b"\x07"))

    assert [values(t) for t in request.inputs] == [[[1.0, 2.0]], [7], [True]]


def test_a_raw_body_is_the_only_input() -> None:
    """Header value 0: no JSON; the free axis comes from the size, all outputs are binary."""
    free = codec(spec("x", "FP32", -1, -1))
    request = free.decode(struct.pack("<3f", 1, 2, 3), 0)

    assert list(request.inputs[0].shape) == [1, 3]
    assert values(request.inputs[0]) == [[1.0, 2.0, 3.0]]
    assert (request.n_rows, request.binary) == (1, True)

    text = codec(spec("s", "BYTES", -1, 1)).decode(b"hola", 0)
    assert values(text.inputs[0]) == [[b"hola"]]


RAW = [
    (codec(X, spec("z", "FP32", -1)), b"1234", "1 input"),
    (codec(spec("x", "FP32", -1, -1, -1)), b"1234", "2 free axes"),
    (codec(spec("x", "FP32", -1, -1)), b"12345", "1 elements of FP32 are 4 bytes, got 5"),
    (codec(spec("x", "FP32", -1, 2)), b"1234", "2 elements of FP32 are 8 bytes, got 4"),
    (codec(spec("x", "FP32", -1, -1, 0)), b"1234", "0 elements"),
    (codec(spec("s", "BYTES", -1, 2)), b"1234", "1 BYTES element"),
]


@pytest.mark.parametrize(("model", "text", "says"), RAW, ids=[r[2] for r in RAW])
def test_a_raw_body_that_does_not_fit_is_refused(model: V2Codec, text: bytes, says: str) -> None:
    """The size of a raw body must be one that the only input can have."""
    with pytest.raises(BadRequest, match=says):
        model.decode(text, 0)


BAD_INPUTS: list[tuple[Any, str]] = [
    (changed(name="z"), "'z': the model has no input of that name, only x"),
    (changed(datatype="FP64"), "'x': expected datatype FP32, got 'FP64'"),
    (changed(datatype="float"), "'x': expected datatype FP32, got 'float'"),
    (changed(shape=[2]), r"'x': expected 2 dimensions \[-1, 2\], got 1"),
    (changed(shape=[1, 3], data=[1, 2, 3]), r"'x': expected shape \[-1, 2\], got \[1, 3\]"),
    (changed(shape=[2, 2]), "'x': shape .* has 4 elements, data has 2"),
    (changed(shape=[-1, 2]), r"'x': shape\[0\]"),
    (changed(shape=[-1, -2]), r"'x': shape\[0\]"),
    (changed(shape=[2**63, 2]), r"'x': shape\[0\]"),
    (changed(shape=[2**62, 2]), "has 9223372036854775808 elements, data has 2"),
    (changed(shape=[1.5, 2]), r"Expected `int`, got `float` - at `\$\.inputs\[0\]\.shape\[0\]`"),
    (changed(shape="12"), r"Expected `array`, got `str`"),
    (changed(data=[1, "2"]), "'x': data element 1: expected a number, got a string"),
    (changed(data=[1, True]), "data element 1: expected a number, got true or false"),
    (changed(data=[1, None]), "data element 1: expected a number, got null"),
    (changed(data=[[1], {}]), "data element 1: expected a number, got an object"),
    (changed(data={"a": 1}), "'x': data: expected an array, got an object"),
    (changed(data=3), "'x': data: expected an array, got an integer"),
    (changed(data=[1, 1e39]), "'x': data element 1 does not fit FP32"),
    (changed(data=[1, 10**400]), "data element 1 does not fit FP32"),
    (changed(data=...), "'x': has neither data nor binary_data_size"),
    (changed(data=None), "'x': has neither data nor binary_data_size"),
    (changed(parameters={"binary_data_size": 8}), "'x': has both data and binary_data_size"),
    (
        changed(data=..., parameters={"binary_data_size": 8}),
        "'x': binary_data_size is 8, only 0 bytes are left",
    ),
    (changed(data=..., parameters={"binary_data_size": -1}), "expected an unsigned integer"),
    (changed(data=..., parameters={"binary_data_size": True}), "expected an unsigned integer"),
    (changed(data=..., parameters={"binary_data_size": "8"}), "expected an unsigned integer"),
    (changed(data=..., parameters={"shared_memory_region": "r"}), "shared memory is not offered"),
    (changed(name=...), "missing required field `name`"),
    (changed(shape=...), "missing required field `shape`"),
    ("x", "Expected `object`, got `str`"),
]


@pytest.mark.parametrize(("wire", "says"), BAD_INPUTS, ids=[str(b[1]) for b in BAD_INPUTS])
def test_a_bad_input_is_refused_by_name(wire: Any, says: str) -> None:
    """Each way in which an input can be wrong is a BadRequest that says which and why."""
    with pytest.raises(BadRequest, match=says) as caught:
        codec(X).decode(body(wire), None)

    assert caught.value.field


def test_the_table_of_bad_inputs_starts_from_a_good_one() -> None:
    """Negative control: unchanged, the input of the table is accepted."""
    assert values(codec(X).decode(body(X_JSON), None).inputs[0]) == [[1.0, 2.0]]


INTEGERS = [
    ("INT8", -(2**7), 2**7 - 1),
    ("UINT8", 0, 2**8 - 1),
    ("INT16", -(2**15), 2**15 - 1),
    ("UINT16", 0, 2**16 - 1),
    ("INT32", -(2**31), 2**31 - 1),
    ("UINT32", 0, 2**32 - 1),
    ("INT64", -(2**63), 2**63 - 1),
    ("UINT64", 0, 2**64 - 1),
]


@pytest.mark.parametrize(("datatype", "low", "high"), INTEGERS)
def test_integers_are_exact_to_their_edges_and_refused_beyond(
    datatype: str, low: int, high: int
) -> None:
    """The least and the greatest value survive; one less and one more are refused by index."""
    model = codec(spec("x", datatype, -1))

    def sent(*data: Any) -> bytes:
        return body({"name": "x", "shape": [len(data)], "datatype": datatype, "data": list(data)})

    assert values(model.decode(sent(low, high), None).inputs[0]) == [low, high]
    for beyond in (low - 1, high + 1):
        with pytest.raises(BadRequest, match=f"'x': data element 1 does not fit {datatype}"):
            model.decode(sent(low, beyond), None)
    with pytest.raises(BadRequest, match="element 0: expected an integer, got a number"):
        model.decode(sent(1.0), None)


def test_bool_and_bytes_take_only_their_own_kind() -> None:
    """BOOL is true or false, BYTES is a string; 1 and 0 are neither."""
    for datatype, good, kind in (("BOOL", True, "true or false"), ("BYTES", "é", "a string")):
        model = codec(spec("x", datatype, -1))
        wire = {"name": "x", "shape": [1], "datatype": datatype}
        assert model.decode(body({**wire, "data": [good]}), None).n_rows == 1
        with pytest.raises(BadRequest, match=f"element 0: expected {kind}, got an integer"):
            model.decode(body({**wire, "data": [1]}), None)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_binary_only(datatype: str) -> None:
    """JSON data of a half float is refused in both directions; binary is accepted."""
    half = spec("x", datatype, -1)
    wire = {"name": "x", "shape": [1], "datatype": datatype}
    with pytest.raises(BadRequest, match=f"'x': JSON cannot carry {datatype}"):
        codec(half).decode(body({**wire, "data": [1.0]}), None)
    binary = body({**wire, "parameters": {"binary_data_size": 2}})
    assert bytes(codec(half).decode(*mixed(binary, b"\0\x3c")).inputs[0].data) == b"\0\x3c"

    gives_half = codec(X, outputs=(spec("h", datatype, -1),))
    for refused in (body(X_JSON), body(X_JSON, outputs=[{"name": "h"}])):
        with pytest.raises(BadRequest, match=f"'h': JSON cannot carry {datatype}"):
            gives_half.decode(refused, None)
    assert gives_half.decode(body(X_JSON, parameters={"binary_data_output": True}), None).binary


BINARY = [
    ("FP32", [1], b"123", "1 elements of FP32 are 4 bytes, got 3"),
    ("FP32", [2**60], b"1234", "are 4611686018427387904 bytes, got 4"),
    ("BOOL", [2], b"\0\2", "neither 0 nor 1"),
    ("BYTES", [2**60], b"\0\0\0\0", "need at least"),
    ("BYTES", [1], b"\0\0\0", "need at least 4 bytes, got 3"),
    ("BYTES", [1], b"\5\0\0\0abcd", "element 0: length 5 announced, 4 bytes present"),
    ("BYTES", [2], b"\3\0\0\0abc\0", "element 1: its 4-byte length is cut off"),
    ("BYTES", [1], b"\1\0\0\0ab", "1 bytes left over after 1 elements"),
    ("BYTES", [1], b"\xff\xff\xff\xff", "element 0: length 4294967295 announced"),
]


@pytest.mark.parametrize(("datatype", "shape", "raw", "says"), BINARY)
def test_binary_data_must_be_exactly_its_elements(
    datatype: str, shape: list[int], raw: bytes, says: str
) -> None:
    """Lengths are compared with the bytes present before anything is allocated."""
    wire = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    with pytest.raises(BadRequest, match=says):
        codec(spec("x", datatype, -1)).decode(*mixed(body(wire), raw))


def test_bytes_behind_the_last_binary_input_are_refused() -> None:
    """Left-over bytes mean that client and server disagree about the sizes."""
    wire = changed(data=..., parameters={"binary_data_size": 8})
    text, header = mixed(body(wire), bytes(8))
    assert codec(X).decode(text, header).n_rows == 1

    with pytest.raises(BadRequest, match="3 bytes left over"):
        codec(X).decode(text + b"abc", header)


@pytest.mark.parametrize("header", [-1, 10_000, 2**70])
def test_the_header_length_must_lie_in_the_body(header: int) -> None:
    """A value outside 0..body length is refused by the header's name."""
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        codec(X).decode(body(X_JSON), header)


N_JSON = {"name": "n", "shape": [1], "datatype": "INT64", "data": [0]}
BAD_BODIES = [
    ((X_JSON,), {}, "'n': is missing; expected INT64"),
    ((), {}, "'x': is missing; expected FP32"),
    ((X_JSON, X_JSON, N_JSON), {}, "'x': is given twice"),
    ((X_JSON, {**N_JSON, "shape": [2], "data": [0, 0]}), {}, "'n': 2 rows, but input 'x' has 1"),
    ((X_JSON, N_JSON), {"outputs": [{"name": "z"}]}, "'z': the model has no output of that name"),
    ((X_JSON, N_JSON), {"outputs": [{"name": "y"}] * 2}, "'y': is asked for twice"),
    ((X_JSON, N_JSON), {"outputs": [{}]}, "missing required field `name`"),
    ((X_JSON, N_JSON), {"outputs": {"name": "y"}}, "Expected `array"),
    ((X_JSON, N_JSON), {"id": 7}, r"Expected `str \| null`, got `int`"),
    ((X_JSON, N_JSON), {"parameters": [1]}, r"Expected `object \| null`, got `array`"),
    ((X_JSON, N_JSON), {"parameters": {"triton_x": 1}}, "'triton_x': .* reserved"),
    ((X_JSON, N_JSON), {"parameters": {"a": [1]}}, "'a': expected a string, number or boolean"),
    ((X_JSON, N_JSON), {"parameters": {"a": {}}}, "'a': expected a string, number or boolean"),
    ((X_JSON, N_JSON), {"parameters": {"binary_data_output": 1}}, "expected true or false"),
    ((X_JSON, N_JSON), {"parameters": {"timeout": -1}}, "'timeout': expected microseconds"),
    ((X_JSON, N_JSON), {"parameters": {"timeout": 1.5}}, "'timeout': expected microseconds"),
    ((X_JSON, N_JSON), {"parameters": {"timeout": True}}, "'timeout': expected microseconds"),
    ((X_JSON, N_JSON), {"parameters": {"timeout": 10**400}}, "'timeout': expected microseconds"),
]
BAD_OUTPUT_PARAMETERS = [
    ("y", {"binary_data": 1}, "'y': binary_data: expected true or false"),
    ("y", {"classification": 0}, "'y': classification: expected an integer of at least 1"),
    ("y", {"classification": True}, "'y': classification: expected an integer"),
    ("y", {"classification": "3"}, "'y': classification: expected an integer"),
    ("label", {"classification": 1}, "'label': classification does not work on BYTES"),
    ("y", {"shared_memory_region": "r"}, "'y': shared memory is not offered"),
]


@pytest.mark.parametrize(
    ("inputs", "members", "says"),
    BAD_BODIES
    + [
        ((X_JSON, N_JSON), {"outputs": [{"name": name, "parameters": parameters}]}, says)
        for name, parameters, says in BAD_OUTPUT_PARAMETERS
    ],
)
def test_a_bad_body_is_refused(inputs: Any, members: dict[str, Any], says: str) -> None:
    """What is wrong around the inputs is named as well."""
    with pytest.raises(BadRequest, match=says):
        codec(X, spec("n", "INT64", -1)).decode(body(*inputs, **members), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs":[]} x', "trailing"),
        (b'{"id":"\xff","inputs":[]}', "not UTF-8"),
        (
            b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,-Infinity]}]}',
            "NaN and Infinity are not JSON: send that tensor as binary data",
        ),
    ],
)
def test_what_is_no_json_is_refused(text: bytes, says: str) -> None:
    """The reason is told, and for NaN the way that works."""
    with pytest.raises(BadRequest, match=says):
        codec(X).decode(text, None)


def test_nesting_is_limited_wherever_it_is() -> None:
    """One level above the limit is refused, in data and in unknown members; strings are not."""
    model = codec(X, depth=20)

    def deep(levels: int) -> list[Any]:
        nested: list[Any] = [1, 2]
        for _ in range(levels - 1):
            nested = [nested]
        return nested

    for inside in ({"data": deep(17)}, {"extra": deep(17)}, {"extra": "[" * 99 + '\\"[['}):
        assert model.decode(body(changed(**inside)), None).n_rows == 1
    for inside in ({"data": deep(18)}, {"extra": deep(18)}):
        with pytest.raises(BadRequest, match="nested deeper than 20"):
            model.decode(body(changed(**inside)), None)
    for bomb in (b"[" * 300_000, b'{"a":' * 300_000, b'"' + b'\\"' * 300_000 + b"[" * 300_000):
        with pytest.raises(BadRequest):
            model.decode(bomb, None)


def test_data_that_cannot_fit_its_shape_is_refused_before_it_is_built() -> None:
    """Arrays without elements, or many more elements than the shape has, cost a scan only."""
    wire = {"name": "s", "shape": [1], "datatype": "BYTES"}
    for data, says in (([[]] * 1000 + ["a"], "data 1001 arrays"), (["a"] * 3, "data has more")):
        with pytest.raises(BadRequest, match=says):
            codec(spec("s", "BYTES", -1)).decode(body({**wire, "data": data}), None)

    signs = {**wire, "data": ['[,[\\",' * 1000]}
    assert codec(spec("s", "BYTES", -1)).decode(body(signs), None).n_rows == 1
    assert codec(X).decode(body(changed(data=[[], [1, 2]])), None).n_rows == 1


def test_error_texts_never_show_a_value_of_the_body() -> None:
    """A value may be a patient's: texts have names, types, counts and shapes only."""
    secret = 918273645
    for wire in (
        changed(data=[secret, str(secret)]),
        changed(data=str(secret)),
        changed(data=[secret]),
        changed(data=[secret * 10**40, 0]),
    ):
        with pytest.raises(BadRequest) as caught:
            codec(X).decode(body(wire), None)
        assert str(secret) not in caught.value.message


def test_error_texts_are_short_whatever_the_body_holds() -> None:
    """A caller's megabyte of name or parameter key does not come back."""
    long = "n" * 100_000
    for text in (
        body(changed(name=long)),
        body(changed(datatype=long)),
        body(X_JSON, parameters={"triton_" + long: 1}),
        body(X_JSON, outputs=[{"name": long}]),
        body(changed(shape=[1] * 100_000)),
    ):
        with pytest.raises(BadRequest) as caught:
            codec(X).decode(text, None)
        assert len(caught.value.message) < 500
        assert len(caught.value.field) < 500


@pytest.mark.parametrize("rows", [1025, 10**18])
@pytest.mark.parametrize("binary", [True, False])
def test_rows_of_nothing_are_not_believed(rows: int, binary: bool) -> None:
    """A row that costs no bytes could be there any number of times: a small body, endless work."""
    given = changed(shape=[rows, 0], data=... if binary else [])
    if binary:
        given["parameters"] = {"binary_data_size": 0}
    text = body(given)
    free = codec(spec("x", "FP32", -1, -1))

    with pytest.raises(BadRequest, match="at most 1024 rows without elements"):
        free.decode(text, len(text) if binary else None)
    few = body(changed(shape=[3, 0], data=[]))
    assert free.decode(few, None).n_rows == 3
