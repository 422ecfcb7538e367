"""The generate codec: members to tensors and parameters by the rules, and flat answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muelle.core.errors import BadRequest, MuelleError, NotAcceptable
from muelle.core.request import BatchOutput, InferResponse, OutputTensor, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES, element_count
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_generate import GenerateCodec, event, shape_for
from muelle.protocols.v2_outputs import V2Request

JSON_TYPES = sorted(set(DATATYPES) - {"FP16", "BF16"})


def codec_of(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> GenerateCodec:
    """The codec of a model with such tensors."""
    signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs), batched=False)
    return GenerateCodec(
        V2Codec("m", "7", signature, "error", 20, 32), json_nan="error", json_depth=20
    )


def spec(name: str, datatype: str, *shape: int, optional: bool = False) -> TensorSpec:
    """One tensor."""
    return TensorSpec(name=name, datatype=datatype, shape=shape, optional=optional)


TEXT = codec_of(
    [spec("text_input", "BYTES", 1), spec("n", "INT32", 1, optional=True)],
    [spec("text_output", "BYTES", -1)],
)


def decode(
    codec: GenerateCodec, value: Any, headers: dict[bytes, bytes] | None = None
) -> V2Request:
    """Decode a value as the body."""
    return codec.decode(json.dumps(value).encode(), headers or {})


def output(name: str, datatype: str, array: Any) -> OutputTensor:
    """An output of one request."""
    array = np.asarray(array, dtype=object if datatype == "BYTES" else None)
    content = encode_array(datatype, array)
    return OutputTensor(BatchOutput(name, datatype, array.shape, content), -1, -1)


def encoded(codec: GenerateCodec, *outputs: OutputTensor, id: str = "", **more: Any) -> Any:
    """Encode an answer and read it as JSON, in which no name may come twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    response = InferResponse("m", "7", list(outputs))
    response.parameters = more or None
    text = codec.encode(V2Request([], 1, id), response)
    return json.loads(text, object_pairs_hook=once)


# --- requests ---


def test_members_become_tensors_parameters_and_the_id() -> None:
    """By name: an input, the id, and whatever is left; `parameters` is no different inside."""
    request = decode(
        TEXT,
        {
            "id": "a",
            "text_input": "hola, ¿qué?",
            "stream": True,
            "top": 0.5,
            "parameters": {"n": 3, "k": -2, "id": "inner", "word": "x"},
        },
    )
    text, n = request.inputs
    assert (text.name, list(text.shape), bytes(text.memory())[4:]) == (
        "text_input", [1], "hola, ¿qué?".encode(),
    )  # fmt: skip
    assert (n.name, bytes(n.memory())) == ("n", (3).to_bytes(4, "little"))
    assert request.id == "a"
    assert request.parameters == {"stream": True, "top": 0.5, "k": -2, "id": "inner", "word": "x"}


def test_a_tensor_may_be_named_as_a_member_of_the_protocol() -> None:
    """What the model's author named is what a caller means by it."""
    codec = codec_of(
        [spec("id", "INT64", 2), spec("parameters", "FP32", -1)], [spec("id", "INT64", 1)]
    )
    request = decode(codec, {"id": [1, 2], "parameters": 1})
    assert [(t.name, list(t.shape)) for t in request.inputs] == [("id", [2]), ("parameters", [1])]
    assert encoded(codec, output("id", "INT64", [5]), id="asked") == {
        "model_name": "m",
        "model_version": "7",
        "id": 5,
    }


@pytest.mark.parametrize(
    ("shape", "count", "made"),
    [
        ((1,), 1, [1]),
        ((-1,), 5, [5]),
        ((-1, 1), 3, [3, 1]),
        ((-1, 4), 8, [2, 4]),
        ((-1, -1), 6, [1, 6]),
        ((-1, -1, 2), 6, [1, 3, 2]),
        ((2, -1, 3, -1), 12, [2, 1, 3, 2]),
        ((), 1, []),
        ((-1,), 0, [0]),
        ((2,), 3, None),
        ((-1, 4), 6, None),
        ((), 2, None),
    ],
)
def test_shapes(shape: tuple[int, ...], count: int, made: list[int] | None) -> None:
    """Fixed dimensions stay; the innermost free one takes the rest, the others are 1."""
    assert shape_for(shape, count) == made


@given(
    shape=st.lists(st.integers(-1, 4), max_size=4).map(tuple),
    count=st.integers(0, 200),
)
def test_any_shape_holds_its_elements_or_is_refused(shape: tuple[int, ...], count: int) -> None:
    """No more and no fewer, and nothing that the signature fixes is changed."""
    made = shape_for(shape, count)
    free = [axis for axis, size in enumerate(shape) if size < 0]
    each = math.prod(size for size in shape if size >= 0)
    if made is None:
        assert count % each if free and each else count != each
        return
    assert element_count(made) == count
    assert all(given in (-1, size) for given, size in zip(shape, made, strict=True))
    assert all(made[axis] == 1 for axis in free[:-1])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "'text_input': is missing"),
        ({"text_input": 3}, "expected a string"),
        ({"text_input": None}, "expected a string"),
        ({"text_input": ["a", "b"]}, "2 elements do not fill BYTES [1]"),
        ({"text_input": [["a"]]}, "flat array"),
        ({"text_input": {"a": 1}}, "flat array"),
        ({"text_input": ["[", ["x"]]}, "flat array"),
        ({"text_input": "a", "n": 1 << 31}, "does not fit INT32"),
        ({"text_input": "a", "n": 1.5}, "expected an integer"),
        ({"text_input": "a", "id": 3}, "id: expected a string"),
        ({"text_input": "a", "stop": ["x"]}, "'stop'"),
        ({"text_input": "a", "stop": None}, "'stop'"),
        ({"text_input": "a", "parameters": {"stop": {}}}, "'stop'"),
        ({"text_input": "a", "parameters": 3}, "parameters"),
        ({"text_input": "a", "k": 1, "parameters": {"k": 2}}, "'k': is given twice"),
        ({"text_input": "a", "parameters": {"text_input": "b"}}, "is given twice"),
        ({"text_input": "a", "k": 1 << 63}, "over 64 bits"),
        ({"text_input": "a", "triton_x": 1}, "reserved"),
        ([], "request body"),
        ("x", "request body"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, says: str) -> None:
    """One error, which says which member."""
    with pytest.raises(BadRequest) as caught:
        decode(TEXT, value)
    assert says in caught.value.message


def test_compressed_and_deep_bodies_are_refused() -> None:
    """400, whatever is in them."""
    for encoding in (b"gzip", b"deflate", b"br"):
        with pytest.raises(BadRequest, match="compressed"):
            decode(TEXT, {"text_input": "a"}, {b"content-encoding": encoding})
    assert decode(TEXT, {"text_input": "a"}, {b"content-encoding": b"identity"})
    with pytest.raises(BadRequest, match="deeper"):
        TEXT.decode(b"[" * 100, {})


@pytest.mark.parametrize("text", ["a,b", '"', "\\", '\\"],[', "[", "]", "{", "\n\n", "\u2028", ""])
def test_signs_inside_a_string_are_no_structure(text: str) -> None:
    """Alone or in an array, the elements are what was sent."""
    codec = codec_of([spec("x", "BYTES", -1)], [])
    for value in (text, [text, text]):
        (tensor,) = decode(codec, {"x": value}).inputs
        elements = [text] if value is text else [text, text]
        assert bytes(tensor.memory()) == encode_array(
            "BYTES", np.array([e.encode() for e in elements], dtype=object)
        )


# --- answers ---


def test_an_answer_is_flat() -> None:
    """Id, names, parameters and outputs side by side; one element stands alone."""
    found = encoded(
        codec_of([], []),
        output("text_output", "BYTES", ["¡hola!\n".encode()]),
        output("two", "INT64", [[1, 2]]),
        output("none", "FP32", np.zeros((0, 2), np.float32)),
        output("yes", "BOOL", [[True]]),
        id="a",
        finish="length",
        two="hidden by the tensor",
    )
    assert found == {
        "id": "a",
        "model_name": "m",
        "model_version": "7",
        "finish": "length",
        "text_output": "¡hola!\n",
        "two": [1, 2],
        "none": [],
        "yes": True,
    }


def test_what_json_cannot_carry_is_refused() -> None:
    """As everywhere in v2."""
    with pytest.raises(NotAcceptable):
        encoded(codec_of([], []), output("y", "FP32", np.array([math.nan], np.float32)))
    with pytest.raises(NotAcceptable):
        encoded(codec_of([], []), output("y", "BYTES", [b"\xff"]))


@given(st.lists(st.text(max_size=8), max_size=3), st.text(max_size=8))
def test_an_event_is_one_line(texts: list[str], id: str) -> None:
    """Whatever line feeds the model writes: an event ends only where we end it."""
    codec = codec_of([], [])
    response = InferResponse("m", "7", [output("t", "BYTES", [t.encode() for t in texts])])
    framed = event(codec.encode(V2Request([], 1, id), response))
    assert framed.startswith(b"data: {")
    assert framed.endswith(b"}\n\n")
    assert framed.count(b"\n") == 2
    assert b"\r" not in framed
    value = json.loads(framed[6:])["t"]
    assert (texts if len(texts) != 1 else texts[0]) == value


@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    """What is sent as a flat array is what the model gets, and comes back the same."""
    datatype = data.draw(st.sampled_from(JSON_TYPES))
    codec = codec_of([spec("x", datatype, -1)], [])
    if datatype == "BYTES":
        values: list[Any] = data.draw(st.lists(st.text(max_size=5), max_size=5))
        array = np.array([v.encode() for v in values], dtype=object)
    else:
        dtype = np.dtype(DATATYPES[datatype].numpy)
        elements: Any = None
        if dtype.kind == "f":
            elements = st.floats(allow_nan=False, allow_infinity=False, width=8 * dtype.itemsize)  # type: ignore[call-overload]
        array = data.draw(hnp.arrays(dtype, st.integers(0, 5), elements=elements))
        values = array.tolist()
    sent = values[0] if len(values) == 1 and data.draw(st.booleans()) else values
    (tensor,) = decode(codec, {"x": sent}).inputs
    assert list(tensor.shape) == [len(values)]
    assert bytes(tensor.memory()) == encode_array(datatype, array)
    back = encoded(codec, output("x", datatype, array))["x"]
    assert isinstance(back, list) is (len(values) != 1)
    got = back if isinstance(back, list) else [back]
    if datatype != "BYTES":
        got = np.array(got, array.dtype).tolist()  # Text has the fewest digits that tell it apart.
    assert got == values


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["text_input", "n", "id", "parameters", "x"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.binary(max_size=40) | JSONISH.map(lambda v: json.dumps(v).encode()))
def test_any_body_is_a_request_or_one_error(body: bytes) -> None:
    """Nothing else is ever raised, and a request has what the signature needs."""
    try:
        request = TEXT.decode(body, {})
    except MuelleError as exc:
        assert exc.message
    else:
        assert request.inputs[0].name == "text_input"
