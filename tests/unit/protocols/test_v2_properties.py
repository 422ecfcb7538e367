"""Properties of the v2 codec: round trips of every datatype, and hostile bytes of any kind."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muelle.core.errors import MuelleError
from muelle.core.request import BatchOutput, InferResponse, OutputTensor
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_outputs import V2Request
from muelle.protocols.v2_wire import is_deeper

JSON_TYPES = sorted(set(DATATYPES) - {"FP16", "BF16"})
RANK = 3


def echo(datatype: str) -> V2Codec:
    """A codec whose model has one input and one output of a datatype and any shape of rank 3."""
    x = TensorSpec(name="x", datatype=datatype, shape=(-1,) * RANK)
    y = TensorSpec(name="y", datatype=datatype, shape=(-1,) * RANK)
    return V2Codec("m", "1", Signature(inputs=(x,), outputs=(y,)), "error", 20, 32)


def without_plain(codec: V2Codec) -> V2Codec:
    """The same codec with the general decoder only."""
    codec._decode_flat = None
    return codec


@st.composite
def arrays(draw: st.DrawFn, datatype: str, *, finite: bool) -> np.ndarray[Any, Any]:
    shape = draw(hnp.array_shapes(min_dims=RANK, max_dims=RANK, min_side=0, max_side=3))
    if datatype == "BYTES":
        element = st.text(max_size=5).map(str.encode) if finite else st.binary(max_size=5)
        found = draw(st.lists(element, min_size=math.prod(shape), max_size=math.prod(shape)))
        array = np.empty(len(found), dtype=object)
        array[:] = found
        return array.reshape(shape)
    if datatype == "BF16":
        halves = draw(hnp.arrays("<u2", shape, elements=st.integers(0, 0x7F7F)))
        return halves.view(ml_dtypes.bfloat16)
    dtype = np.dtype(DATATYPES[datatype].numpy)
    elements: Any = None
    if dtype.kind == "f" and finite:
        elements = st.floats(allow_nan=False, allow_infinity=False, width=8 * dtype.itemsize)
    return draw(hnp.arrays(dtype, shape, elements=elements))


def there_and_back(codec: V2Codec, array: np.ndarray[Any, Any], datatype: str, binary: bool) -> Any:
    """Send an array as the official client does, return the same bytes as the model's output."""
    wire = triton.InferInput("x", list(array.shape), datatype)
    wire.set_data_from_numpy(array, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    body, header = triton.InferenceServerClient.generate_request_body([wire], outputs=[wanted])
    request = codec.decode(bytes(body), header)
    (sent,) = request.inputs
    assert request.n_rows == array.shape[0]
    batch = BatchOutput("y", datatype, tuple(sent.shape), bytes(sent.data))
    response = InferResponse("m", "1", [OutputTensor(batch, 0, request.n_rows)])
    answer = codec.encode(request, response)
    length = dict(answer.headers).get(b"Inference-Header-Content-Length")
    result = triton.InferResult.from_response_body(
        answer.body, header_length=length and int(length)
    )
    if array.size == 0:
        # The client turns no bytes into no array; shape and datatype are all there is to compare.
        output = result.get_output("y")
        assert (tuple(output["shape"]), output["datatype"]) == (array.shape, datatype)
        return array
    return result.as_numpy("y")


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.dtype == object:
        return bool(left.tolist() == right.tolist())
    if right.dtype == ml_dtypes.bfloat16:
        # Clients before 26.06 give float32 for BF16; every half is exact in it.
        left, right = left.astype("<f4"), right.astype("<f4")
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_binary_tensors_come_back_bit_for_bit(datatype: str, data: st.DataObject) -> None:
    """Any value of any datatype and shape, NaN payloads and zero sizes too."""
    array = data.draw(arrays(datatype, finite=False))

    assert same(there_and_back(echo(datatype), array, datatype, True), array)


@pytest.mark.parametrize("datatype", JSON_TYPES)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_json_tensors_come_back_exactly(datatype: str, data: st.DataObject) -> None:
    """Any value that JSON can say; text for BYTES, and floats to the last bit."""
    array = data.draw(arrays(datatype, finite=True))
    found = there_and_back(echo(datatype), array, datatype, False)

    if datatype == "BYTES":
        found = np.array(
            [v if isinstance(v, bytes) else v.encode() for v in found.reshape(-1)], object
        )
        array = array.reshape(-1)
    assert same(found, array)


@pytest.mark.parametrize("datatype", JSON_TYPES)
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_nested_and_flat_data_mean_the_same(datatype: str, data: st.DataObject) -> None:
    """Nested to the shape, flat, and through either decoder: the same bytes in memory."""
    array = data.draw(arrays(datatype, finite=True))
    assume(array.size)
    codec = echo(datatype)

    def text(nested: bool) -> bytes:
        listed = (array if nested else array.reshape(-1)).tolist()
        wire = {"name": "x", "shape": array.shape, "datatype": datatype, "data": listed}
        return json.dumps({"inputs": [wire]}, default=bytes.decode).encode()

    found = {bytes(codec.decode(text(nested), None).inputs[0].data) for nested in (True, False)}
    found |= {
        bytes(without_plain(echo(datatype)).decode(text(nested), None).inputs[0].data)
        for nested in (True, False)
    }
    assert len(found) == 1


# --- hostile bytes ---

FLOATS = Signature(
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="f", datatype="FP64", shape=(-1, -1, 1)),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)
KINDS = Signature(
    inputs=(
        TensorSpec(name="i", datatype="INT8", shape=(-1,)),
        TensorSpec(name="s", datatype="BYTES", shape=(-1, 1)),
        TensorSpec(name="b", datatype="BOOL", shape=(-1,)),
    ),
    outputs=(TensorSpec(name="h", datatype="FP16", shape=(-1,)),),
)
ONE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)
SIGNATURES = (FLOATS, KINDS, ONE)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e39, 0.5, -0.0]),
    st.sampled_from(["", "x", "FP32", "INT8", "BYTES", "é\0", "\ud800"]),
    st.floats(),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
members = st.sampled_from(
    ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "more"]
)


@st.composite
def nearly_right(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """A right body, of which at most two members, anywhere, are something else or not there."""
    signature = draw(st.sampled_from(SIGNATURES))
    rows = draw(st.integers(0, 3))
    inputs: list[Any] = []
    for spec in signature.inputs:
        shape = [draw(st.integers(0, 2)) if d == -1 else d for d in spec.shape]
        if signature.has_rows:
            shape[0] = rows
        kinds: dict[str, st.SearchStrategy[Any]] = {
            "INT8": st.integers(-128, 127),
            "BYTES": st.text(max_size=3),
            "BOOL": st.booleans(),
        }
        kind = kinds.get(spec.datatype, st.floats(-9, 9) | st.integers(-9, 9))
        n = math.prod(shape)
        listed: Any = draw(st.lists(kind, min_size=n, max_size=n))
        if draw(st.booleans()) and n:
            listed = np.array(listed, object).reshape(shape).tolist()
        inputs.append(
            {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": listed}
        )
    body: dict[str, Any] = {"inputs": draw(st.permutations(inputs))}
    body |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.text(max_size=3),
                "parameters": st.fixed_dictionaries(
                    {}, optional={"timeout": st.integers(0, 9), "binary_data_output": st.booleans()}
                ),
                "outputs": st.just([{"name": signature.outputs[0].name}]),
            },
        )
    )
    for _ in range(draw(st.integers(0, 2))):
        place: Any = body
        if draw(st.booleans()) and isinstance(body.get("inputs"), list) and body["inputs"]:
            place = draw(st.sampled_from(body["inputs"]))
        if isinstance(place, dict):
            place[draw(members)] = draw(anything)
    return signature, json.dumps(body).encode()


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """Nearly right bodies, also with bytes cut, put in or changed."""
    signature, text = draw(nearly_right())
    raw = bytearray(text)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        stop = min(len(raw), at + draw(st.integers(0, 4)))
        raw[at:stop] = draw(
            st.binary(max_size=3)
            | st.sampled_from([b"[", b"]", b"{", b'"', b",", b"NaN", b"1e999"])
        )
    return signature, bytes(raw)


def outcome(codec: V2Codec, body: bytes, header: int | None) -> Any:
    """What a decoder makes of a body, as a value: the whole request, or the kind of error."""
    try:
        request: V2Request = codec.decode(body, header)
    except MuelleError as exc:
        return type(exc)
    tensors = [(t.name, t.datatype, list(t.shape), bytes(t.data), t.nbytes) for t in request.inputs]
    return (
        tensors,
        request.n_rows,
        request.id,
        list(request.outputs),
        list(request.forms),
        request.binary,
        request.parameters,
        request.timeout_s,
    )


def make(signature: Signature) -> V2Codec:
    return V2Codec("m", "1", signature, "error", 12, 32)


@given(hostile())
@settings(max_examples=800, deadline=None)
def test_both_decoders_agree_on_any_body(case: tuple[Signature, bytes]) -> None:
    """The quick decoder gives what the general one gives: the same request or the same error."""
    signature, body = case

    assert outcome(make(signature), body, None) == outcome(
        without_plain(make(signature)), body, None
    )


@given(hostile(), st.integers(-1, 200) | st.none(), st.binary(max_size=20))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_request_or_a_muelle_error(
    case: tuple[Signature, bytes], header: int | None, tail: bytes
) -> None:
    """Nothing but a MuelleError is raised, whatever the bytes and the header say."""
    signature, body = case

    outcome(make(signature), body + tail, header)
    outcome(make(signature), body + tail, len(body))
    outcome(make(signature), tail, header)


def test_the_comparison_of_decoders_sees_both() -> None:
    """Negative control: the quick decoder really reads plain bodies, and does so by itself."""
    body = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}]}'

    assert make(ONE)._decode_plain(body) is not None
    assert without_plain(make(ONE))._decode_plain(body) is None
    assert isinstance(outcome(make(ONE), body, None), tuple)


@given(text=st.text(alphabet='[]{}"\\a,', max_size=60).map(str.encode), limit=st.integers(0, 5))
@settings(max_examples=500, deadline=None)
def test_the_depth_check_counts_as_a_scanner_does(text: bytes, limit: int) -> None:
    """Compared with a plain scan, character by character, that knows strings and escapes."""
    depth = deepest = 0
    inside = escaped = False
    for char in text.decode():
        if inside:
            inside = escaped or char != '"'
            escaped = not escaped and char == "\\"
        elif char == '"':
            inside, escaped = True, False
        elif char == "\\":
            reject()  # no JSON: the decoder refuses it whatever its depth
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    assert is_deeper(text, limit) == (deepest > limit)
