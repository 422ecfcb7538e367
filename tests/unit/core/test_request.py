"""Tensors as bytes, as arrays and as JSON text: each form is the same numbers."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muelle.core.request import (
    BatchOutput,
    OutputTensor,
    Tensor,
    as_bytes,
    decode_array,
    decode_bytes_tensor,
    encode_array,
    encode_bytes_tensor,
)
from muelle.core.tensor import DATATYPES

NUMERIC = [name for name in DATATYPES if name not in ("BYTES", "BF16")]
ELEMENTS = st.lists(st.one_of(st.none(), st.binary(max_size=20)), max_size=20)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@st.composite
def arrays(draw: Any, datatypes: list[str] = NUMERIC, shapes: Any = SHAPES) -> tuple[str, Any]:
    """Draw a datatype and an array of it, with NaN, infinities and both zeros."""
    datatype = draw(st.sampled_from(datatypes))
    return datatype, draw(hnp.arrays(DATATYPES[datatype].numpy, draw(shapes)))


def output(datatype: str, array: Any) -> BatchOutput:
    """Wrap an array as a worker's output."""
    return BatchOutput("y", datatype, array.shape, encode_array(datatype, array))


# --- BYTES ---


@given(ELEMENTS)
def test_strings_come_back(values: list[bytes | None]) -> None:
    """Any bytes, empty ones and missing ones survive."""
    assert decode_bytes_tensor(encode_bytes_tensor(values), len(values)) == values


@given(st.binary(max_size=60), st.integers(0, 6))
def test_any_bytes_are_read_or_refused(data: bytes, count: int) -> None:
    """Arbitrary memory raises ValueError or is what its elements encode to; nothing else."""
    try:
        values = decode_bytes_tensor(data, count)
    except ValueError:
        return
    assert len(values) == count
    assert encode_bytes_tensor(values) == data


@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (b"\x01\x00", 1, "element 0: its 4-byte length is cut off"),
        (b"\x05\x00\x00\x00ab", 1, "element 0: 5 bytes announced, 2 present"),
        (b"\xfe\xff\xff\xff", 1, "4294967294 bytes announced, 0 present"),
        (b"\x00\x00\x00\x00", 0, "4 bytes left over after 0 elements"),
        (b"\x00\x00\x00\x00\x01", 1, "1 bytes left over"),
        (b"", 10**15, "element 0"),
    ],
)
def test_wrong_lengths_are_named(data: bytes, count: int, words: str) -> None:
    """The error says which element is at fault; a huge count allocates nothing."""
    with pytest.raises(ValueError, match=words):
        decode_bytes_tensor(data, count)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"raw", b"raw"),
        ("ñ", "ñ".encode()),
        (None, None),
        (math.nan, None),
        (1.5, b"1.5"),
        (True, b"True"),
    ],
)
def test_an_element_becomes_bytes(value: Any, expected: bytes | None) -> None:
    """Text is UTF-8, a missing value (None, NaN) is missing, anything else is its text."""
    assert as_bytes(value) == expected


# --- arrays ---


@given(arrays())
def test_every_datatype_comes_back(drawn: tuple[str, Any]) -> None:
    """Bit by bit, NaN payloads and negative zeros included; empty arrays too."""
    datatype, array = drawn
    memory = encode_array(datatype, array)
    assert len(memory) == array.size * DATATYPES[datatype].size
    back = decode_array(datatype, array.shape, memory)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays("<f4", hnp.array_shapes(max_dims=2)))
def test_bf16_is_rounded_as_everybody_rounds(array: Any) -> None:
    """To nearest, ties to even, as the reference does; a NaN stays a NaN."""
    ours = decode_array("BF16", array.shape, encode_array("BF16", array))
    with np.errstate(over="ignore"):
        reference = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(ours, reference)
    finite = ~np.isnan(array)
    assert ours[finite].tobytes() == reference[finite].tobytes()


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_no_nan_becomes_infinity_in_bf16(bits: int) -> None:
    """The mantissa bits that make it a NaN may be the ones that are cut off."""
    array = np.array([bits], dtype="<u4").view("<f4")
    assert np.isnan(decode_array("BF16", (1,), encode_array("BF16", array)))[0]


@given(ELEMENTS)
def test_strings_as_arrays(values: list[bytes | None]) -> None:
    """An object array holds the elements as they are, in the shape asked for."""
    array = decode_array("BYTES", (len(values), 1), encode_bytes_tensor(values))
    assert array.shape == (len(values), 1)
    assert array[:, 0].tolist() == values
    assert (
        decode_array("BYTES", array.shape, encode_array("BYTES", array)).tolist() == array.tolist()
    )


def test_a_transposed_array_is_written_in_order() -> None:
    """Memory is row-major, whatever the model's array looked like inside."""
    array = np.arange(6, dtype="<i4").reshape(2, 3).T
    assert decode_array("INT32", (3, 2), encode_array("INT32", array)).tolist() == array.tolist()


# --- JSON ---


def _expected(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(arrays(shapes=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)))
def test_json_text_is_the_numbers(drawn: tuple[str, Any]) -> None:
    """Each row reads back as its elements exactly; what JSON cannot say is null."""
    datatype, array = drawn
    rows = output(datatype, array).json_rows()
    assert len(rows) == array.shape[0]
    for text, row in zip(
        rows, array.reshape(array.shape[0], -1) if array.size else [], strict=False
    ):
        read = json.loads(b"[" + text + b"]")
        assert len(read) == row.size
        for got, want in zip(read, row.tolist(), strict=True):
            want = _expected(want)
            if want is None or isinstance(want, bool | int):
                assert got == want and type(got) is type(want)
            else:
                assert np.array(got, row.dtype) == np.array(want, row.dtype)


@given(hnp.arrays("<f4", (3,), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_json_text_of_bf16(array: Any) -> None:
    """BF16 is shown as the number that it is."""
    with np.errstate(over="ignore"):
        want = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    for text, value in zip(output("BF16", array).json_rows(), want, strict=True):
        if np.isinf(value):
            assert text == b"null"
        else:
            assert np.float32(json.loads(text)) == value


@given(st.lists(st.lists(st.one_of(st.none(), st.text(max_size=8)), min_size=2, max_size=2)))
def test_json_text_of_strings(rows: list[list[str | None]]) -> None:
    """Quotes, brackets and control characters in a string split no row."""
    flat = [None if v is None else v.encode("utf-8", "replace") for row in rows for v in row]
    batch = BatchOutput("y", "BYTES", (len(rows), 2), encode_bytes_tensor(flat))
    read = [json.loads(b"[" + text + b"]") for text in batch.json_rows()]
    assert read == [
        [None if v is None else v.encode("utf-8", "replace").decode() for v in row] for row in rows
    ]


def test_bytes_that_are_no_text_make_valid_json() -> None:
    """They are shown with replacement characters."""
    batch = BatchOutput("y", "BYTES", (1,), encode_bytes_tensor([b"\xff\x00"]))
    assert json.loads(batch.json_rows()[0]) == "\ufffd\x00"


@pytest.mark.parametrize("value", [2**53 + 1, 2**64 - 1])
def test_large_integers_keep_every_digit(value: int) -> None:
    """Int64 and uint64 are written as integers, not through a float."""
    assert output("UINT64", np.array([value], "<u8")).json_rows() == [b"%d" % value]


# --- one caller's part ---


@given(arrays(shapes=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)), st.data())
def test_a_part_is_its_rows_in_every_form(drawn: tuple[str, Any], draw: Any) -> None:
    """As array, as bytes, as JSON and in shape: rows start..stop and nothing of the neighbours."""
    datatype, array = drawn
    start = draw.draw(st.integers(0, array.shape[0] - 1))
    stop = draw.draw(st.integers(start + 1, array.shape[0]))
    part = OutputTensor(output(datatype, array), start, stop)
    want = array[start:stop]
    assert part.shape == want.shape
    assert part.raw() == np.ascontiguousarray(want).tobytes()
    assert part.array().tobytes() == np.ascontiguousarray(want).tobytes()
    assert part.flat_json() == b",".join(output(datatype, want).json_rows())
    assert part.has_nonfinite() == (want.dtype.kind == "f" and not np.isfinite(want).all())


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=8), st.data())
def test_a_part_of_strings(values: list[bytes], draw: Any) -> None:
    """Elements of unequal lengths: a caller gets its own."""
    batch = BatchOutput("y", "BYTES", (len(values),), encode_bytes_tensor(values))
    start = draw.draw(st.integers(0, len(values) - 1))
    part = OutputTensor(batch, start, start + 1)
    assert decode_bytes_tensor(part.raw(), 1) == [values[start]]
    assert not part.has_nonfinite()


def test_a_tensor_without_rows_is_given_whole() -> None:
    """Start and stop of -1: shape, bytes and JSON of all of it, also of a scalar."""
    for array in (np.arange(4, dtype="<i4").reshape(2, 2), np.array(7, dtype="<i4")):
        part = OutputTensor(output("INT32", array), -1, -1)
        assert part.shape == array.shape
        assert part.raw() == array.tobytes()
        assert json.loads(b"[" + part.flat_json() + b"]") == array.reshape(-1).tolist()


# --- one caller's input ---


@given(arrays(shapes=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)), st.data())
def test_rows_of_an_input(drawn: tuple[str, Any], draw: Any) -> None:
    """Raw or listed, rows start..stop are the same memory."""
    datatype, array = drawn
    start = draw.draw(st.integers(0, array.shape[0]))
    stop = draw.draw(st.integers(start, array.shape[0]))
    raw = Tensor.raw("x", datatype, array.shape, array.tobytes()).rows(start, stop)
    flat = Tensor.flat("x", datatype, array.shape, array.reshape(-1).tolist()).rows(start, stop)
    want = np.ascontiguousarray(array[start:stop])
    assert bytes(raw.memory()) == want.tobytes()
    assert raw.shape == flat.shape == want.shape
    assert raw.nbytes == flat.nbytes == want.nbytes == len(flat.memory())


@pytest.mark.parametrize(
    ("datatype", "value", "error"),
    [
        ("INT8", 128, struct.error),
        ("UINT8", -1, struct.error),
        ("INT32", 1.5, struct.error),
        ("FP32", 1e39, OverflowError),
        ("FP16", 70_000.0, OverflowError),
        ("FP32", "1", struct.error),
    ],
)
def test_a_value_that_does_not_fit_is_refused(datatype: str, value: Any, error: type) -> None:
    """No wrap-around, no silent rounding to infinity."""
    with pytest.raises(error):
        Tensor.flat("x", datatype, (1,), [value]).memory()
