"""Properties of the native codec: all body forms agree, both decoders agree, bytes never crash."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.core.errors import MuelleError
from muelle.core.request import BatchOutput, InferResponse, OutputTensor, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import JSON, HttpRequest
from muelle.protocols.native import ARROW, CSV, NPY, NativeCodec
from muelle.protocols.native_plain import NativePlain

OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1,)),)


def takes(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=OUTPUTS)


NAMED = takes(TensorSpec(name="x", datatype="FP32", shape=(-1, 2), columns=("a", "b")))
DOUBLES = takes(TensorSpec(name="x", datatype="FP64", shape=(-1, 2), columns=("a", "b")))
INTS = takes(TensorSpec(name="x", datatype="INT64", shape=(-1, 2), columns=("a", "b")))
MIXED = takes(
    TensorSpec(name="a", datatype="BYTES", shape=(-1,)),
    TensorSpec(name="b", datatype="INT64", shape=(-1,)),
    TensorSpec(name="c", datatype="FP64", shape=(-1,)),
)
TEXT = takes(TensorSpec(name="t", datatype="BYTES", shape=(-1,)))
FREE = takes(TensorSpec(name="x", datatype="BF16", shape=(-1, -1)))
SIGNATURES = (NAMED, DOUBLES, INTS, MIXED, TEXT, FREE)

Memory = list[tuple[str, list[int], bytes]]


def decode(signature: Signature, body: bytes, media: bytes = JSON) -> Memory:
    codec = NativeCodec("m", "1", signature, "error", 20, 32)
    request = codec.decode(HttpRequest(b"POST", "", b"", {b"content-type": media}, body))
    return [(t.name, list(t.shape), bytes(t.data)) for t in request.inputs]


def as_csv(header: tuple[str, ...], rows: list[Any]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_arrow(names: tuple[str, ...], rows: list[Any]) -> bytes:
    stream = io.BytesIO()
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    table = pa.Table.from_arrays(columns, names=list(names))
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def as_npy(rows: list[Any], dtype: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(rows, dtype))
    return stream.getvalue()


numbers = {
    NAMED: (st.floats(width=32, allow_nan=False, allow_infinity=False), "<f4"),
    DOUBLES: (st.floats(allow_nan=False, allow_infinity=False), "<f8"),
    INTS: (st.integers(-(2**63), 2**63 - 1), "<i8"),
}


@pytest.mark.parametrize("signature", list(numbers), ids=["FP32", "FP64", "INT64"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_body_form_gives_the_same_memory(signature: Signature, data: st.DataObject) -> None:
    """JSON lists, records and tensors, CSV, npy and Arrow of the same numbers."""
    element, dtype = numbers[signature]
    rows = data.draw(st.lists(st.lists(element, min_size=2, max_size=2), min_size=1, max_size=4))
    records = [dict(zip("ab", row, strict=True)) for row in rows]
    memory = [("x", [len(rows), 2], np.array(rows, dtype).tobytes())]

    for body in ({"instances": rows}, {"instances": records}, {"inputs": {"x": rows}}, rows):
        assert decode(signature, json.dumps(body).encode()) == memory
    assert decode(signature, as_csv(("a", "b"), rows), CSV) == memory
    assert decode(signature, as_npy(rows, dtype), NPY) == memory
    assert decode(signature, as_arrow(("a", "b"), rows), ARROW) == memory


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)


@given(st.lists(st.tuples(words, st.integers(-9, 9), st.floats(-9, 9)), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_mixed_columns_are_the_same_in_every_table(rows: list[tuple[str, int, float]]) -> None:
    """Text, integers and floats as records, CSV and Arrow."""
    names = ("a", "b", "c")
    memory = decode(MIXED, json.dumps([dict(zip(names, r, strict=True)) for r in rows]).encode())

    assert decode(MIXED, as_csv(names, rows), CSV) == memory
    assert decode(MIXED, as_arrow(names, rows), ARROW) == memory


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, 1e39, 3.4e38, 1.0, -0.0]),
    st.sampled_from(["", "x", "é\0", "\ud800", "1"]),
    st.floats(),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "x", "b64"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def row_of(signature: Signature) -> st.SearchStrategy[Any]:
    """One row, right or nearly so: a list or a record."""
    kinds: dict[str, st.SearchStrategy[Any]] = {"INT64": st.integers(-9, 9), "BYTES": st.text()}
    specs = signature.inputs
    if len(specs) > 1:
        right = [kinds.get(s.datatype, st.floats(-9, 9)) for s in specs]
        names = [s.name for s in specs]
    else:
        right = [kinds.get(specs[0].datatype, st.floats(-9, 9))] * 2
        names = ["a", "b"]
    cells = [kind | scalars for kind in right]
    listed = st.tuples(*cells).map(list)
    record = st.fixed_dictionaries(dict(zip(names, cells, strict=True)))
    return st.one_of(listed, record, anything)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """JSON bodies, right, nearly right, or broken by a few bytes."""
    signature = draw(st.sampled_from(SIGNATURES))
    rows = draw(st.lists(row_of(signature), max_size=2))
    word = draw(st.sampled_from(["instances", "inputs", "", "more"]))
    raw = bytearray(json.dumps({word: rows} if word else rows).encode())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        stop = min(len(raw), at + draw(st.integers(0, 3)))
        raw[at:stop] = draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"]", b"{", b'"', b"NaN", b"1e999"])
        )
    return signature, bytes(raw)


@given(bodies())
@settings(max_examples=500, deadline=None)
def test_the_plain_decoder_agrees_with_the_whole_one(case: tuple[Signature, bytes]) -> None:
    """Whatever it reads, the whole codec reads as one row of the same memory."""
    signature, body = case
    read = NativePlain("m", "1", signature).read
    columns = read(body) if read is not None else None
    if columns is None:
        return
    whole = decode(signature, body)
    assert list(columns) == [memory for _, _, memory in whole]
    assert {shape[0] for _, shape, _ in whole} == {1}


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (NAMED, b'{"instances":[[1,2.5]]}'),
        (NAMED, b'{"instances":[{"b":1,"a":2.5}]}'),
        (MIXED, b'{"instances":[{"a":"x","b":1,"c":2}]}'),
    ],
)
def test_the_plain_decoder_does_read(signature: Signature, body: bytes) -> None:
    """Negative control: the agreement above is about something."""
    read = NativePlain("m", "1", signature).read
    assert read is not None
    columns = read(body)
    assert columns is not None
    assert list(columns) == [memory for _, _, memory in decode(signature, body)]


SINGLE = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
LABEL = TensorSpec(name="l", datatype="BYTES", shape=(-1,), role="label")
CHANCES = TensorSpec(
    name="p", datatype="FP32", shape=(-1, 3), role="probabilities", classes=("a%b", 2, True)
)
ANSWERS = (
    (CHANCES,),
    (LABEL, CHANCES),
    (LABEL,),
    (TensorSpec(name="y", datatype="FP64", shape=(-1,)),),
    (TensorSpec(name="y", datatype="FP16", shape=(-1, 2)), LABEL),
    (TensorSpec(name='i"', datatype="INT64", shape=(-1, 1)), SINGLE),
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Signature, list[BatchOutput], int]:
    """A batch's outputs with any values: text with quotes, NaN, infinity."""
    specs = draw(st.sampled_from(ANSWERS))
    n_rows = draw(st.integers(1, 3))
    outputs = []
    for spec in specs:
        shape = (n_rows, *spec.row_shape)
        kinds: dict[str, st.SearchStrategy[Any]] = {
            "BYTES": st.none() | st.text(max_size=3).map(str.encode) | st.binary(max_size=2),
            "INT64": st.integers(-(2**63), 2**63 - 1),
            "FP16": st.floats(width=16),
            "FP32": st.floats(width=32),
        }
        element = kinds.get(spec.datatype, st.floats())
        size = int(np.prod(shape))
        flat = draw(st.lists(element, min_size=size, max_size=size))
        array = np.empty(size, {"BYTES": "O", "INT64": "i8", "FP64": "f8"}.get(spec.datatype, "f4"))
        array[:] = flat
        memory = encode_array(spec.datatype, array)
        outputs.append(BatchOutput(spec.name, spec.datatype, shape, memory))
    return Signature(inputs=(SINGLE,), outputs=specs), outputs, n_rows


@given(batches())
@settings(max_examples=300, deadline=None)
def test_the_plain_writer_agrees_with_the_whole_one(
    case: tuple[Signature, list[BatchOutput], int],
) -> None:
    """Byte for byte, whatever the values; the whole codec's text is JSON or it is an error."""
    signature, outputs, n_rows = case
    codec = NativeCodec("m", "1", signature, "error", 20, 32)
    request = codec.decode(HttpRequest(b"POST", "", b"", {}, b"[[1]]"))
    rows = NativePlain("m", "1", signature).rows(outputs)

    for index in range(n_rows):
        tensors = [OutputTensor(output, index, index + 1) for output in outputs]
        try:
            body = codec.encode(request, InferResponse("m", "1", tensors)).body
        except MuelleError:
            assert rows is None
            continue
        (_,) = json.loads(body, parse_constant=pytest.fail)["predictions"]
        assert rows is None or rows[index] == body


SEEDS = {
    CSV: [as_csv(("a", "b"), [[1, 2]]), b'a,b,c\n"x",1,2\n'],
    NPY: [as_npy([[1, 2]], "<f4"), as_npy(["x"], "<U3"), as_npy([b"x"], "S3")],
    ARROW: [
        as_arrow(("a", "b"), [[1.0, 2.0]]),
        as_arrow(("a", "b", "c"), [["x", 1, 2.0]]),
        as_arrow(("t",), [["x"]]),
    ],
}


@st.composite
def hostile(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body of any type with some bytes changed, or bytes from nowhere."""
    media = draw(st.sampled_from([CSV, NPY, ARROW]))
    raw = bytearray(draw(st.sampled_from(SEEDS[media]) | st.binary(max_size=60)))
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return media, bytes(raw)


def survive(signature: Signature, body: bytes, media: bytes) -> None:
    try:
        decode(signature, body, media)
    except MuelleError:
        pass


@given(bodies())
@settings(max_examples=400, deadline=None)
def test_any_json_is_a_request_or_a_muelle_error(case: tuple[Signature, bytes]) -> None:
    """Nothing else is raised."""
    survive(*case, JSON)


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@given(hostile(), st.sampled_from(SIGNATURES))
@settings(max_examples=1500, deadline=None)
def test_any_table_is_a_request_or_a_muelle_error(
    case: tuple[bytes, bytes], signature: Signature
) -> None:
    """Nothing else is raised for CSV, npy and Arrow either."""
    media, body = case
    survive(signature, body, media)
