"""The plain case of v2 reads and writes what the whole codec does, or leaves it alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import MuelleError
from muelle.core.request import BatchOutput, InferResponse, OutputTensor
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_plain import V2Plain

ONE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)
TWO = Signature(
    inputs=(
        TensorSpec(name="a", datatype="INT64", shape=(-1, 2)),
        TensorSpec(name="b", datatype="FP64", shape=(-1,)),
    ),
    outputs=(
        TensorSpec(name="y", datatype="FP64", shape=(-1,)),
        TensorSpec(name='z "q"', datatype="INT32", shape=(-1, 2)),
    ),
)
SIGNATURES = {"one": ONE, "two": TWO}
VALUES = st.one_of(
    st.floats(width=32), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.text(max_size=3)
)


def both(signature: Signature) -> tuple[V2Plain, V2Codec]:
    """Return the two ways for a signature."""
    codec = V2Codec("m", "1", signature, json_nan="error", json_depth=64, max_batch_size=8)
    return V2Plain("m", "1", signature, 64), codec


@st.composite
def bodies(draw: st.DrawFn, signature: Signature) -> bytes:
    """Make bodies that are right, nearly right, or cut."""
    inputs = []
    for spec in signature.inputs:
        size = int(np.prod(spec.row_shape, dtype=int))
        size += draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        good = st.floats(-1e6, 1e6) if spec.datatype.startswith("FP") else st.integers(-9, 9)
        element = draw(st.sampled_from([good, good, good, VALUES]))
        inputs.append(
            {
                "name": draw(st.sampled_from([spec.name, spec.name, spec.name, "other"])),
                "shape": [draw(st.sampled_from([1, 1, 1, 2, -1])), *spec.row_shape],
                "datatype": draw(st.sampled_from([spec.datatype, spec.datatype, "INT8"])),
                "data": draw(st.lists(element, min_size=max(size, 0), max_size=max(size, 0))),
            }
        )
    body: dict[str, Any] = {"inputs": inputs}
    extra = draw(st.sampled_from([{}, {}, {"id": "7"}, {"outputs": []}, {"parameters": {"k": 1}}]))
    text = json.dumps({**body, **extra}).encode()
    if draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 3)) :]


@pytest.mark.parametrize("name", sorted(SIGNATURES))
@given(data=st.data())
def test_what_is_read_is_what_the_whole_codec_reads(name: str, data: st.DataObject) -> None:
    """A body that is taken as plain has one row, and the same columns in the whole codec."""
    plain, codec = both(SIGNATURES[name])
    assert plain.read is not None
    body = data.draw(bodies(SIGNATURES[name]))
    columns = plain.read(body)
    if columns is None:
        return
    try:
        request = codec.decode(body, None)
    except MuelleError as exc:
        raise AssertionError(f"plain took what the whole codec refuses: {exc}") from exc
    assert request.n_rows == 1
    assert not request.id and not request.forms and not request.binary
    assert [bytes(t.memory()) for t in request.inputs] == [bytes(c) for c in columns]


def test_a_clean_body_is_taken() -> None:
    """Negative control: the plain way does take ordinary bodies."""
    plain, _ = both(ONE)
    assert plain.read is not None
    wire = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, 3]}
    assert plain.read(json.dumps({"inputs": [wire]}).encode()) is not None


@pytest.mark.parametrize("name", sorted(SIGNATURES))
@given(values=st.lists(st.floats(width=32), min_size=3, max_size=3), whole=st.integers(-9, 9))
def test_what_is_written_is_what_the_whole_codec_writes(
    name: str, values: list[float], whole: int
) -> None:
    """Each row's body is the whole codec's, byte for byte; NaN and infinity are left to it."""
    signature = SIGNATURES[name]
    plain, codec = both(signature)
    outputs = []
    for spec in signature.outputs:
        shape = (3, *spec.row_shape)
        kind = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4"}[spec.datatype]
        source = np.array(values if kind != "<i4" else [whole] * 3)
        array = np.resize(source, shape).astype(kind)
        outputs.append(BatchOutput(spec.name, spec.datatype, shape, array.tobytes()))
    rows = plain.rows(outputs)
    if not all(np.isfinite(values)):
        assert rows is None
        return
    assert rows is not None
    wire = {
        "inputs": [
            {
                "name": s.name,
                "shape": [1, *s.row_shape],
                "datatype": s.datatype,
                "data": [1] * int(np.prod(s.row_shape, dtype=int)),
            }
            for s in signature.inputs
        ]
    }
    request = codec.decode(json.dumps(wire).encode(), None)
    for index, row in enumerate(rows):
        tensors = [OutputTensor(output, index, index + 1) for output in outputs]
        assert codec.encode(request, InferResponse("m", "1", tensors)).body == row


def test_half_floats_in_the_answer_leave_it_to_the_whole_codec() -> None:
    """It refuses such a request before the model runs; the plain way must not let it run."""
    halves = Signature(
        inputs=ONE.inputs, outputs=(TensorSpec(name="h", datatype="FP16", shape=(-1,)),)
    )
    assert V2Plain("m", "1", halves, 64).read is None


def test_free_axes_and_halves_are_left_alone() -> None:
    """Signatures whose rows have no fixed size, or that JSON cannot carry, have no plain way."""
    for datatype, shape in (
        ("FP32", (-1, -1)),
        ("BYTES", (-1,)),
        ("BF16", (-1, 2)),
        ("BOOL", (-1,)),
    ):
        spec = TensorSpec(name="x", datatype=datatype, shape=shape)
        assert V2Plain("m", "1", Signature(inputs=(spec,), outputs=ONE.outputs), 64).read is None
