"""The native codec's requests: what each body means, and what each error says."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from muelle.core.errors import BadRequest, MuelleError, NotAcceptable, UnsupportedMedia
from muelle.core.request import decode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import JSON, HttpRequest
from muelle.protocols.native import ARROW, CSV, NPY, NativeCodec, NativeRequest, example_body
from muelle.protocols.native_plain import NativePlain


def tensor(name: str, datatype: str, *shape: int, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, **more)


def takes(*inputs: TensorSpec, rows: bool = True) -> Signature:
    output = tensor("y", "FP32", -1) if rows else tensor("y", "FP32", 2)
    return Signature(inputs=inputs, outputs=(output,))


NUMBERS = takes(tensor("x", "FP32", -1, 2))
NAMED = takes(tensor("x", "FP32", -1, 2, columns=("age", "income")))
INTS = takes(tensor("x", "INT64", -1, 2))
TEXT = takes(tensor("t", "BYTES", -1))
MIXED = takes(tensor("city", "BYTES", -1), tensor("age", "INT64", -1))
OPTIONAL = takes(tensor("a", "FP32", -1), tensor("b", "FP32", -1, optional=True))
ROWLESS = takes(tensor("x", "FP32", 2), rows=False)


def decode(
    signature: Signature,
    body: Any,
    media: bytes = JSON,
    *,
    query: bytes = b"",
    accept: bytes = b"",
) -> NativeRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {b"content-type": media, b"accept": accept}
    codec = NativeCodec("m", "1", signature, "error", 20, 32)
    return codec.decode(HttpRequest(b"POST", "", query, headers, raw))


def values(request: NativeRequest) -> list[list[Any]]:
    """The flat values of each tensor, read back from its memory."""
    found: list[list[Any]] = []
    for one in request.inputs:
        if one.datatype == "BYTES":
            count = int(np.prod(one.shape))
            found.append(list(decode_bytes_tensor(bytes(one.data), count)))
        else:
            dtype = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[one.datatype]
            found.append(np.frombuffer(bytes(one.data), dtype).tolist())
    return found


def npy_header(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def arrow(table: Any, compression: str | None = None) -> bytes:
    stream = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
        writer.write_table(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[1, 2.5], [3, 4]]},
        {"instances": [{"age": 1, "income": 2.5}, {"income": 4, "age": 3}]},
        {"inputs": {"x": [[1, 2.5], [3, 4]]}},
        {"inputs": [[1, 2.5], [3, 4]]},
        [[1, 2.5], [3, 4]],
        [{"age": 1, "income": 2.5}, [3, 4]],
    ],
)
def test_every_json_form_means_the_same_rows(body: Any) -> None:
    """Rows as lists, records in any order, whole tensors, and a bare list."""
    request = decode(NAMED, body)

    assert values(request) == [[1.0, 2.5, 3.0, 4.0]]
    assert (request.n_rows, list(request.inputs[0].shape)) == (2, [2, 2])


@pytest.mark.parametrize(
    ("signature", "body", "media", "expected"),
    [
        (NAMED, {"age": 1, "income": 2}, JSON, [[1.0, 2.0]]),
        (TEXT, {"instances": ["a", None, {"b64": "/w=="}]}, JSON, [[b"a", None, b"\xff"]]),
        (MIXED, [["Vigo", 3]], JSON, [[b"Vigo"], [3]]),
        (OPTIONAL, [{"a": 1}], JSON, [[1.0]]),
        (ROWLESS, {"inputs": {"x": [1, 2]}}, JSON, [[1.0, 2.0]]),
        (takes(tensor("b", "BOOL", -1)), [True, False], JSON, [[True, False]]),
        (takes(tensor("x", "FP32", -1, 1)), [1, 2], JSON, [[1.0, 2.0]]),
        (INTS, [[2**53 + 1, 2**63 - 1]], JSON, [[2**53 + 1, 2**63 - 1]]),
        (INTS, b"9007199254740993,1.0\n", CSV, [[2**53 + 1, 1]]),
        (NAMED, b"income,age\n2,1\n", CSV, [[1.0, 2.0]]),
        (NAMED, b"1,2\r\n3,4", CSV, [[1.0, 2.0, 3.0, 4.0]]),
        (MIXED, b'age,city\n3,"a ""b"", c\nd"\n4,\n', CSV, [[b'a "b", c\nd', None], [3, 4]]),
        (MIXED, b"age,3\n", CSV, [[b"age"], [3]]),
        (MIXED, "\ufeffcity,age\nCádiz,3\n".encode(), CSV, [["Cádiz".encode()], [3]]),
        (NUMBERS, b"first,second\n1,2\n", CSV, [[1.0, 2.0]]),
        (NUMBERS, npy(np.array([[1, 2], [3, 4]], ">f8")), NPY, [[1.0, 2.0, 3.0, 4.0]]),
        (NUMBERS, npy(np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])), NPY, [[1.0, 2.0, 3.0, 4.0]]),
        (INTS, npy(np.array([[2**53 + 1, 7]])), NPY, [[2**53 + 1, 7]]),
        (TEXT, npy(np.array(["é", "b"])), NPY, [["é".encode(), b"b"]]),
        (MIXED, arrow(pa.table({"age": [3], "city": ["a"]})), ARROW, [[b"a"], [3]]),
        (
            MIXED,
            arrow(pa.table({"age": [3], "city": pa.array(["a"]).dictionary_encode()})),
            ARROW,
            [[b"a"], [3]],
        ),
    ],
)
def test_values_arrive_as_the_model_wants_them(
    signature: Signature, body: Any, media: bytes, expected: Any
) -> None:
    """Each body form, by value. CSV columns of one tensor are taken in the model's order."""
    assert values(decode(signature, body, media)) == expected


def test_missing_numbers_are_nan() -> None:
    """null in JSON and an empty CSV field, for columns of floats."""
    for body, media in (([[None, 1]], JSON), (b",1", CSV)):
        (row,) = values(decode(NUMBERS, body, media))
        assert np.isnan(row[0]) and row[1] == 1.0


@pytest.mark.parametrize(
    ("signature", "body", "text"),
    [
        (NUMBERS, {"instances": []}, "instances: empty; send at least one row"),
        (NUMBERS, [], "instances: empty"),
        (NUMBERS, {"instances": 3}, "instances: an integer, expected a list"),
        (NUMBERS, 3, "request body: an integer"),
        (NUMBERS, {"instances": [[1, 2]], "more": 1}, "more: unknown member"),
        (NUMBERS, [[1, 2], [1]], "instances[1]: 1 values, the model wants 2"),
        (NUMBERS, [[1, 2], 3], "instances[1]: an integer, the model wants x FP32 [-1, 2]"),
        (NUMBERS, [[1, "2"]], "instances[0][1]: a string, the model wants a number"),
        (NUMBERS, [[1, True]], "instances[0][1]: a boolean, the model wants a number"),
        (NUMBERS, [[1, [2]]], "instances[0][1]: a list, the model wants a number"),
        (NUMBERS, [[1, 1e39]], "instances[0][1]: out of range for FP32"),
        (NUMBERS, b"[[1,NaN]]", "NaN and Infinity are not JSON: send null"),
        (NUMBERS, b"[[1,1e999]]", "request body"),
        (NUMBERS, b"[[1,2]", "request body"),
        (NUMBERS, b'["\xff"]', "request body"),
        (NUMBERS, b"", "request body"),
        (NAMED, [{"age": 1}], "instances[0].income: missing; the model wants age, income"),
        (NAMED, [{"age": 1, "incom": 2, "income": 1}], "column 'incom'; did you mean 'income'?"),
        (NAMED, [{"age": 1, "income": "x"}], "instances[0].income: a string"),
        (MIXED, [{"city": "a", "age": 1}, {"city": "b"}], "instances[1].age: missing"),
        (MIXED, [["a"]], "instances[0]: 1 values, the model wants 2: city, age"),
        (MIXED, [{"city": "a", "age": 1.5}], "instances[0].age: a number with a fraction"),
        (MIXED, [{"city": "a", "age": None}], "instances[0].age: null, the model wants an integer"),
        (MIXED, [{"city": "a", "age": 2**63}], "instances[0].age: out of range for INT64"),
        (MIXED, [{"city": 1, "age": 1}], "instances[0].city: an integer, the model wants a string"),
        (MIXED, {"inputs": {"city": ["a"]}}, "inputs.age: missing; the model wants INT64 [-1]"),
        (MIXED, {"inputs": {"city": ["a"], "age": [1, 2]}}, "different numbers of rows"),
        (MIXED, {"inputs": {"town": ["a"]}}, "inputs.town: unknown; the model wants city, age"),
        (OPTIONAL, [{"a": 1}, {"a": 1, "b": 2}], "instances[1]: other columns than in"),
        (TEXT, [{"b64": "%%"}], "instances[0]: not base64"),
        (ROWLESS, [[1, 2]], "this model has no rows"),
        (ROWLESS, {"inputs": {"x": [1]}}, "inputs.x: 1 values, the model wants FP32 [2]"),
        (takes(tensor("x", "BF16", -1)), [3.4e38], "instances[0]: out of range for BF16"),
        (takes(tensor("x", "BF16", -1)), [10**400], "instances[0]: out of range for BF16"),
        (takes(tensor("b", "BOOL", -1)), [1], "instances[0]: an integer, the model wants true"),
    ],
)
def test_a_json_error_names_the_place(signature: Signature, body: Any, text: str) -> None:
    """Row and column, what was wanted and what came."""
    with pytest.raises(BadRequest) as caught:
        decode(signature, body)

    assert text in caught.value.message


@pytest.mark.parametrize(
    ("signature", "body", "text"),
    [
        (NAMED, b"", "CSV: empty"),
        (NAMED, b"age,income\n", "CSV: a header but no row"),
        (NAMED, b"age,incom\n1,2\n", "column 'income': missing"),
        (NAMED, b"age,income,more\n1,2,3\n", "unknown column 'more'"),
        (NAMED, b"age,income,age\n1,2,3\n", "a column is there twice"),
        (NAMED, b"1,2\n1\n", "CSV row 1: 1 values, the model wants 2: age, income"),
        (NAMED, b"1,x\n", "row 0, column income: not a value"),
        (NAMED, b"1,1_000\n", "row 0, column income: not a value"),
        (NAMED, "1,٣\n".encode(), "row 0, column income: not a value"),
        (NAMED, b"1,1e999\n", "row 0, column income: not a value or out of range"),
        (NAMED, b"1,\xff\n", "CSV: is not UTF-8"),
        (INTS, b"1,\n", "row 0, column 1: empty"),
        (INTS, b"1,1.5\n", "row 0, column 1: not a value"),
        (INTS, b"1,1_0\n", "row 0, column 1: not a value"),
        (MIXED, b"cty,ag\nrome,4\n", "column 'city': missing"),
    ],
)
def test_a_csv_error_names_row_and_column(signature: Signature, body: bytes, text: str) -> None:
    """Rows are counted without the header."""
    with pytest.raises(BadRequest) as caught:
        decode(signature, body, CSV)

    assert text in caught.value.message


HUGE = "1" + "0" * 4000


@pytest.mark.parametrize(
    ("signature", "body", "text"),
    [
        (NUMBERS, b"no npy", "header cannot be read"),
        (NUMBERS, npy(np.zeros((1, 3))), "shape [1, 3], the model wants x FP32 [-1, 2]"),
        (NUMBERS, npy(np.zeros(2)), "shape [2], the model wants"),
        (NUMBERS, npy(np.zeros((1, 2), "c8")), "<c8 elements"),
        (NUMBERS, npy(np.zeros((1, 2), "?")), "|b1 elements"),
        (NUMBERS, npy(np.full((1, 2), 1e300)), "out of range for FP32"),
        (takes(tensor("x", "BF16", -1)), npy(np.array([3.4e38])), "out of range for BF16"),
        (takes(tensor("x", "INT8", -1)), npy(np.array([300])), "out of range for INT8"),
        (INTS, npy(np.zeros((1, 2))), "<f8 elements, the model wants INT64"),
        (TEXT, npy(np.zeros(2)), "the model wants text"),
        (NUMBERS, npy_header("'|O'", "(1, 2)", b"\0" * 16), "never unpickled"),
        (NUMBERS, npy_header("'<f4'", "(1, 2)", b"\0" * 7), "needs 8 bytes, 7 are there"),
        (NUMBERS, npy_header("'<f4'", "(1000000000000, 2)"), "more bytes than are there"),
        (NUMBERS, npy_header("'<f4'", f"({HUGE}, {HUGE})"), "more bytes than are there"),
        (NUMBERS, npy_header("'<f4'", f"(0, {HUGE})"), "more bytes than are there"),
        (NUMBERS, npy_header("'<f4'", "(" + "1, " * 3000 + ")", b"\0" * 4), "too many"),
        (NUMBERS, npy_header("'<f4'", "(-1, 2)"), "a dimension is no whole number"),
        (NUMBERS, npy_header("'<f4'", "(True, 2)"), "a dimension is no whole number"),
        (NUMBERS, npy_header("'|V0'", "(9, 2)"), "no size"),
        (TEXT, npy_header("'<U0'", "(9,)"), "no size"),
        (NUMBERS, npy_header("('<f4', (2,))", "(1,)", b"\0" * 8), "several parts"),
        (NUMBERS, npy_header("[('a', '<f4')]", "(1, 2)", b"\0" * 8), "several parts"),
        (TEXT, npy_header("'<U1'", "(1,)", b"\xff\xff\xff\x7f"), "not Unicode"),
        (TEXT, npy_header("'>U1'", "(1,)", b"\x00\x00\xd8\x00"), "not Unicode"),
    ],
)
def test_an_npy_body_is_compared_with_its_claims(
    signature: Signature, body: bytes, text: str
) -> None:
    """Type, shape and size are checked before an array is made; no value is silently lost."""
    with pytest.raises(BadRequest) as caught:
        decode(signature, body, NPY)

    assert text in caught.value.message


FLOAT_COLUMN = takes(tensor("x", "FP32", -1))


@pytest.mark.parametrize(
    ("signature", "table", "compression", "text"),
    [
        (FLOAT_COLUMN, pa.table({"x": pa.nulls(4_000_000)}), None, "more values announced"),
        (FLOAT_COLUMN, pa.table({"x": np.zeros(10**6, "f4")}), "zstd", "compressed"),
        (FLOAT_COLUMN, pa.table({"x": np.zeros(10**6, "f4")}), "lz4", "compressed"),
        (
            FLOAT_COLUMN,
            pa.table({"x": pa.RunEndEncodedArray.from_arrays(pa.array([10**9]), pa.array([1.0]))}),
            None,
            "run_end_encoded",
        ),
        (
            TEXT,
            pa.table({"t": pa.DictionaryArray.from_arrays(np.zeros(10**4, "i1"), ["a" * 10**4])}),
            None,
            "its dictionary stands for 100000000 bytes",
        ),
        (FLOAT_COLUMN, pa.table({"x": pa.array([0], pa.timestamp("ns"))}), None, "timestamp[ns]"),
        (FLOAT_COLUMN, pa.table({"x": [[1.0]]}), None, "list<"),
        (FLOAT_COLUMN, pa.table({"y": [1.0]}), None, "column 'x': missing"),
        (FLOAT_COLUMN, pa.table({"x": ["a"]}), None, "row 0, column x: a string"),
        (FLOAT_COLUMN, pa.table({"x": pa.array([], "f4")}), None, "no rows"),
        (FLOAT_COLUMN, pa.table({"x": [1.0]}).select([]), None, "no columns"),
        (
            takes(tensor("x", "FP32", -1, -1)),
            pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"]),
            None,
            "twice",
        ),
    ],
)
def test_an_arrow_stream_that_outgrows_its_bytes_is_refused(
    signature: Signature, table: Any, compression: str | None, text: str
) -> None:
    """Bufferless, compressed and repeated content, and what a model cannot use, by name."""
    body = arrow(table, compression)
    with pytest.raises(BadRequest) as caught:
        decode(signature, body, ARROW)

    assert text in caught.value.message


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (npy_header("'<f4'", "(1000000000, 2)"), NPY),
        (npy_header("'<f4'", "(0, 1000000000)"), NPY),
        (arrow(pa.table({"x": pa.nulls(4_000_000)})), ARROW),
        (b"[" * 100, JSON),
    ],
)
def test_a_small_body_never_takes_much_memory(body: bytes, media: bytes) -> None:
    """At most one MiB while a body of some hundred bytes is refused."""
    with pytest.raises(BadRequest):  # imports and caches first
        decode(FLOAT_COLUMN, body, media)
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            decode(FLOAT_COLUMN, body, media)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**5,
        b'[{"a":' * 10**4,
        b"[[1" + b"0" * 10**6 + b",1]]",
        b"[{" + b",".join(b'"k%d":1' % i for i in range(10**5)) + b"}]",
    ],
    ids=["lists", "records", "digits", "keys"],
)
def test_hostile_json_is_a_bad_request(body: bytes) -> None:
    """Deep, long or wide without end: refused as any other mistake."""
    with pytest.raises(BadRequest):
        decode(NUMBERS, body)


def test_other_content_types_are_told_the_known_ones() -> None:
    """415 lists what is read; no type at all is JSON; parameters do not matter."""
    with pytest.raises(UnsupportedMedia, match="application/x-npy"):
        decode(NUMBERS, b"", b"image/png")
    assert values(decode(NUMBERS, [[1, 2]], b"Application/JSON; charset=utf-8")) == [[1.0, 2.0]]
    assert values(decode(NUMBERS, [[1, 2]], b"")) == [[1.0, 2.0]]


@pytest.mark.parametrize("media", [CSV, ARROW])
def test_tables_are_for_models_of_columns(media: bytes) -> None:
    """A model of pictures has no table form."""
    with pytest.raises(UnsupportedMedia, match="no table"):
        decode(takes(tensor("x", "FP32", -1, 3, 8, 8)), b"1", media)


def test_npy_is_for_models_of_one_tensor() -> None:
    """Two tensors do not fit one array."""
    with pytest.raises(UnsupportedMedia, match="carries one tensor"):
        decode(MIXED, b"", NPY)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (b"", "json"),
        (b"*/*", "json"),
        (b"text/csv", "csv"),
        (b"text/html, text/*;q=0.5", "csv"),
        (b"application/json;q=0.1, application/x-npy;q=0.9", "npy"),
        (b"application/x-npy;q=0, */*;q=0.1", "json"),
        (b"text/csv;q=nan, application/json;q=0.1", "json"),
    ],
)
def test_accept_chooses_the_form(accept: bytes, form: str) -> None:
    """The highest q among the forms that can be written."""
    assert decode(NUMBERS, [[1, 2]], accept=accept).form == form


def test_nothing_acceptable_is_said() -> None:
    """406 with what there is."""
    with pytest.raises(NotAcceptable, match="text/csv"):
        decode(NUMBERS, [[1, 2]], accept=b"image/png, application/json;q=0")


def test_outputs_are_picked_by_name() -> None:
    """Once each, in the caller's order; an unknown one is told the names."""
    assert decode(NUMBERS, [[1, 2]], query=b"outputs=y,y").picked == ("y",)
    assert decode(NUMBERS, [[1, 2]], query=b"outputs=").picked == ()
    with pytest.raises(BadRequest, match="no output 'z'; there is: y"):
        decode(NUMBERS, [[1, 2]], query=b"outputs=y,z")


@pytest.mark.parametrize("name", ["inputs", "instances"])
@pytest.mark.parametrize(
    "form",
    [
        lambda name: [[1, 2]],
        lambda name: {name: [1, 2]},
        lambda name: {"instances": [[1, 2]]},
        lambda name: {"instances": [{name: [1, 2]}]},
        lambda name: {"inputs": {name: [[1, 2]]}},
    ],
)
def test_a_tensor_may_have_the_protocols_words_as_its_name(name: str, form: Any) -> None:
    """Every form still reaches a tensor that is called `inputs` or `instances`."""
    signature = takes(tensor(name, "FP32", -1, 2))

    assert values(decode(signature, form(name))) == [[1.0, 2.0]]


def test_a_rowless_tensor_may_be_called_inputs() -> None:
    """The only form such a model has reaches it."""
    signature = takes(tensor("inputs", "FP32", 2), rows=False)

    assert values(decode(signature, {"inputs": {"inputs": [1, 2]}})) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "names", [("a", "a"), ('q"x', "b"), ("a\\b", "c"), ("t\tb", "c"), ("", ""), ("ü", "%b")]
)
def test_any_column_names_make_a_codec(names: tuple[str, str]) -> None:
    """What the quick decoder cannot say is left to the whole one, and never stops a model."""
    signature = takes(tensor("x", "FP32", -1, 2, columns=names))
    NativePlain("m", "1", signature)

    if len(set(names)) == 2:
        assert values(decode(signature, [dict(zip(names, (1, 2), strict=True))])) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("signature", "example"),
    [
        (NUMBERS, {"x": [[1, 2]]}),
        (NAMED, {"x": [[1, 2]]}),
        (MIXED, {"city": ["Vigo"], "age": [3]}),
        (TEXT, {"t": ["a"]}),
        (ROWLESS, {"x": [1, 2]}),
        (takes(tensor("instances", "FP32", -1, 2)), {"instances": [[1, 2]]}),
    ],
)
def test_an_example_body_can_be_sent(signature: Signature, example: dict[str, Any]) -> None:
    """It decodes to the example's own values."""
    found = values(decode(signature, example_body(signature, example)))

    flat = [np.array(v, object).reshape(-1).tolist() for v in example.values()]
    assert found == [[v.encode() if isinstance(v, str) else v for v in row] for row in flat]


def test_no_error_shows_a_value() -> None:
    """A secret in a cell is not told back, whatever is wrong with it."""
    secret = "s3cr3t"
    for signature, body, media in (
        (NUMBERS, [[1, secret]], JSON),
        (MIXED, [{"city": "a", "age": secret}], JSON),
        (INTS, f"1,{secret}\n".encode(), CSV),
        (FLOAT_COLUMN, arrow(pa.table({"x": [secret]})), ARROW),
    ):
        with pytest.raises(MuelleError) as caught:
            decode(signature, body, media)
        assert secret not in caught.value.message


def test_a_number_for_a_name_makes_no_header() -> None:
    """Exporters call tensors `0`; a row of numbers with a zero in it stays a row."""
    unnamed = takes(tensor("0", "FP32", -1, 3))

    assert values(decode(unnamed, b"0,1,2\n3,4,5\n", CSV)) == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]


def test_numbers_for_names_are_a_header_when_all_are_names() -> None:
    """Tables of pandas without names count their columns."""
    counted = takes(tensor("x", "FP32", -1, 2, columns=("0", "1")))

    assert values(decode(counted, b"1,0\n7,8\n", CSV)) == [[8.0, 7.0]]
    assert values(decode(counted, b"1,5\n7,8\n", CSV)) == [[1.0, 5.0, 7.0, 8.0]]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (b"application/json;q=0, */*", "csv"),
        (b"*/*, application/x-npy;q=0.5", "json"),
        (b"*/*, text/csv", "csv"),
        (b"application/*;q=0.4, text/*;q=0.6", "csv"),
        (b"text/csv;q=abc, application/x-npy;q=0.1", "npy"),
    ],
)
def test_the_most_specific_range_says_the_quality(accept: bytes, form: str) -> None:
    """RFC 9110, 12.5.1: q=0 of a named form holds against a wildcard."""
    assert decode(NUMBERS, [[1, 2]], accept=accept).form == form
