"""Each real model file, served by its own server and asked in every way: answers equal its library.

Not for hostile bodies: `test_http_edges` and the codecs' unit tests send those.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from tritonclient import http as triton

from tests import models
from tests.models import Arrays, Saved
from tests.serving import Served

PREDICT = "/models/m/predict"
HALVES = {"half": "FP16", "brain": "BF16", "as_half": "FP16", "as_brain": "BF16"}
"""Tensors whose datatype NumPy's own cannot tell."""
CLASSES: dict[Callable[[], Saved], Sequence[str]] = {
    models.onnx_classifier: ("0", "1", "2"),
    models.onnx_zipmap: ("setosa", "versicolor", "virginica"),
    models.sklearn_forest: ("0", "1", "2"),
    models.sklearn_mixed: ("go", "stay"),
    models.sklearn_mixed_pickle: ("go", "stay"),
    models.sklearn_text: (),
    models.xgboost_binary: ("0", "1"),
    models.xgboost_classes: ("0", "1", "2"),
    models.lightgbm_classes: ("0", "1", "2"),
    models.lightgbm_categories: ("0", "1"),
    models.catboost_mixed: ("go", "stay"),
}
"""The classifiers, and the classes that their probabilities are keyed by (none: label only)."""
COLUMNS: dict[Callable[[], Saved], Sequence[str]] = {
    models.sklearn_named: ("sepal length", "sepal width", "petal length"),
    models.xgboost_classes: ("a", "b", "c", "d"),
    models.xgboost_regression: ("a", "b", "c", "d"),
}
"""Models of one tensor whose columns have names."""


@pytest.mark.parametrize("make", models.ALL, ids=lambda make: make.__name__)
def test_a_saved_model_answers_in_every_way(make: Callable[[], Saved]) -> None:
    """Rows, records, tensors, CSV, npy, Arrow, v2 JSON and v2 binary all give the library's values.

    The answers too come as JSON, as CSV, as npy and as v2 of both kinds.
    """
    saved = models.quiet(make)
    runs_code = saved.path.suffix in (".py", ".pkl", ".joblib")
    with Served(f"m={saved.path}", *(["--trust"] if runs_code else [])) as served:
        asked = Asked(served, saved, make)
        asked.by_instances()
        asked.by_tensors()
        asked.by_v2_json()
        asked.by_v2_binary()
        asked.answered_as_csv()
        asked.answered_as_npy()
        if len(saved.inputs) == 1:
            asked.by_npy()
        if asked.is_table:
            asked.by_csv()
            asked.by_arrow()
        else:
            asked.refuses_tables()


class Asked:
    """One served model, what to send to it and what must come back."""

    def __init__(self, served: Served, saved: Saved, make: Callable[[], Saved]) -> None:
        self.served = served
        self.saved = saved
        self.inputs = saved.inputs
        self.columns = COLUMNS.get(make, ())
        self.predictions = predictions_of(saved.expected, CLASSES.get(make))
        self.is_table = all(a.ndim == 1 for a in self.inputs.values()) or (
            len(self.inputs) == 1 and next(iter(self.inputs.values())).ndim == 2
        )
        missing = [[is_missing(value) for value in a.tolist()] for a in self.inputs.values()]
        self.whole = [row for row, gaps in enumerate(zip(*missing, strict=True)) if not any(gaps)]
        """Rows without a missing value: v2 has no word for one."""

    def post(self, body: bytes, content_type: str, path: str = PREDICT, accept: str = "") -> bytes:
        """Ask, and return the body of the 200 that must come."""
        headers = {"content-type": content_type} | ({"accept": accept} if accept else {})
        status, found, answer = self.served.ask("POST", path, body, headers)
        assert status == 200, (content_type, path, accept, answer)
        if accept:
            assert found["content-type"].partition(";")[0] == accept
        return answer

    def predicts(self, body: bytes, content_type: str) -> None:
        """The usual JSON answer has every row's prediction."""
        answer = json.loads(self.post(body, content_type))
        assert answer.keys() == {"model", "version", "predictions"}
        assert (answer["model"], answer["version"]) == ("m", "1")
        assert_same(answer["predictions"], self.predictions, content_type)

    def rows(self) -> list[Any]:
        """The rows as `instances` has them: lists or scalars of one tensor, records of several."""
        lists = {name: plain(array) for name, array in self.inputs.items()}
        if len(lists) == 1:
            (rows,) = lists.values()
            return list(rows)
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

    def by_instances(self) -> None:
        """Rows, records, the bare list, and one bare record."""
        rows = self.rows()
        self.predicts(to_json({"instances": rows}), "application/json")
        self.predicts(to_json(rows), "application/json; charset=utf-8")
        records = rows
        if len(self.inputs) == 1:
            names = self.columns or tuple(self.inputs)
            records = [dict(zip(names, r if self.columns else [r], strict=True)) for r in rows]
        self.predicts(to_json({"instances": records}), "application/json")
        one = json.loads(self.post(to_json(records[0]), "application/json"))
        assert_same(one["predictions"], self.predictions[:1], "a bare record")

    def by_tensors(self) -> None:
        """`inputs`: each tensor as a nested list."""
        nested = {name: plain(array) for name, array in self.inputs.items()}
        self.predicts(to_json({"inputs": nested}), "application/json")

    def by_npy(self) -> None:
        """The only tensor as .npy, in C and in Fortran order."""
        (array,) = self.inputs.values()
        if array.dtype == object:
            array = np.array(plain(array))
        for ordered in (array, np.asfortranarray(array)):
            stream = io.BytesIO()
            np.save(stream, ordered, allow_pickle=False)
            self.predicts(stream.getvalue(), "application/x-npy")

    def table(self) -> dict[str, list[Any]]:
        """The inputs as named columns."""
        if len(self.inputs) > 1 or next(iter(self.inputs.values())).ndim == 1:
            return {name: plain(array) for name, array in self.inputs.items()}
        (array,) = self.inputs.values()
        names = self.columns or [f"f{i}" for i in range(array.shape[1])]
        return {name: plain(array[:, i]) for i, name in enumerate(names)}

    def by_csv(self) -> None:
        """With a header, without one, and with named columns in another order."""
        table = self.table()
        rows = list(zip(*table.values(), strict=True))
        self.predicts(to_csv([list(table), *rows]), "text/csv")
        self.predicts(to_csv(rows), "text/csv; charset=utf-8")
        if self.columns or len(self.inputs) > 1:
            turned = [list(table)[::-1], *(row[::-1] for row in rows)]
            self.predicts(to_csv(turned), "text/csv")

    def by_arrow(self) -> None:
        """An Arrow stream, in record batches of 5 rows."""
        table = pa.table(self.table())
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
        self.predicts(sink.getvalue(), "application/vnd.apache.arrow.stream")

    def refuses_tables(self) -> None:
        """What is no table is not read as one."""
        status, _, body = self.served.ask("POST", PREDICT, b"1,2\n", {"content-type": "text/csv"})
        assert status == 415, body
        assert b"no table" in body

    def by_v2_json(self) -> None:
        """Flat and nested elements; half precision is refused with the way out."""
        want = {name: array[self.whole] for name, array in self.saved.expected.items()}
        halves = any(name in HALVES for name in self.inputs)
        for flat in (True, False):
            inputs = []
            for name, whole in self.inputs.items():
                array = whole[self.whole]
                elements = plain(array.reshape(-1) if flat else array)
                head = {"name": name, "datatype": datatype_of(name, array)}
                inputs.append({**head, "shape": array.shape, "data": elements})
            body = to_json({"id": "7", "inputs": inputs})
            status, _, answer = self.served.ask("POST", "/v2/models/m/infer", body)
            if halves:
                assert status == 400, answer
                assert b"binary" in answer
                continue
            assert status == 200, answer
            found = json.loads(answer)
            assert found["id"] == "7"
            outputs = {
                o["name"]: (o["shape"], np.array(o["data"]).reshape(o["shape"]))
                for o in found["outputs"]
            }
            assert outputs.keys() == want.keys()
            for name, (shape, array) in outputs.items():
                assert shape == list(want[name].shape)
                assert_same(plain(array), plain(want[name]), f"v2 JSON {name}")

    def by_v2_binary(self) -> None:
        """The official client, whose tensors are binary both ways."""
        inputs = []
        for name, whole in self.inputs.items():
            array = whole[self.whole]
            datatype = datatype_of(name, array)
            if datatype == "BF16":
                array = array.astype(ml_dtypes.bfloat16)
            tensor = triton.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        with triton.InferenceServerClient(f"127.0.0.1:{self.served.port}") as client:
            result = client.infer("m", inputs, model_version="1")
            described = client.get_model_metadata("m")
        assert [o["name"] for o in described["outputs"]] == list(self.saved.expected)
        for name, whole in self.saved.expected.items():
            found = result.as_numpy(name)
            assert found is not None
            assert_same(plain(found), plain(whole[self.whole]), f"v2 binary {name}")

    def answered_as_csv(self) -> None:
        """A header of column names, then a line per row with the values of all outputs."""
        answer = self.post(to_json(self.rows()), "application/json", accept="text/csv")
        lines = list(csv.reader(io.StringIO(answer.decode())))
        flat = [a.reshape(len(a), -1) for a in self.saved.expected.values()]
        want = [
            [value for part in row for value in part]
            for row in zip(*(plain(a) for a in flat), strict=True)
        ]
        assert len(lines[0]) == len(set(lines[0])) == len(want[0])
        found = [
            [type(w)(cell == "True" if isinstance(w, bool) else cell) for cell, w in pair]
            for pair in (zip(*both, strict=True) for both in zip(lines[1:], want, strict=True))
        ]
        assert_same(found, want, "CSV answer")

    def answered_as_npy(self) -> None:
        """Each output by name as .npy, read without pickle."""
        for name, want in self.saved.expected.items():
            path = f"{PREDICT}?outputs={name}"
            answer = self.post(
                to_json(self.rows()), "application/json", path, accept="application/x-npy"
            )
            found = np.load(io.BytesIO(answer), allow_pickle=False)
            assert_same(plain(found), plain(want), f"npy answer {name}")


# --- choosing the answer ---


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A classifier, and a model of two outputs that is none."""
    classes, doubler = models.quiet(models.onnx_classifier), models.python_doubler()
    with Served(f"classes={classes.path}", f"doubler={doubler.path}", "--trust") as server:
        yield server


def ask_classes(served: Served, query: str, accept: str = "*/*") -> tuple[int, bytes]:
    """Ask for the first flower."""
    status, _, body = served.ask(
        "POST",
        f"/models/classes/predict{query}",
        to_json([[5.1, 3.5, 1.4, 0.2]]),
        {"content-type": "application/json", "accept": accept},
    )
    return status, body


def test_outputs_are_picked_by_name(served: Served) -> None:
    """`?outputs=` shows the named tensors plainly, in the order asked for, by comma or repeated."""
    status, body = ask_classes(served, "?outputs=label")
    assert (status, json.loads(body)["predictions"]) == (200, [0])
    for query in ("?outputs=probabilities,label", "?outputs=probabilities&outputs=label"):
        status, body = ask_classes(served, query)
        assert status == 200, body
        (row,) = json.loads(body)["predictions"]
        assert list(row) == ["probabilities", "label"]
        assert row["label"] == 0
        assert len(row["probabilities"]) == 3


def test_an_unknown_output_is_named_with_those_that_are(served: Served) -> None:
    """`?outputs=` of a name that is not there: 400 with the names that are."""
    status, body = ask_classes(served, "?outputs=lable")
    assert status == 400
    assert "lable" in json.loads(body)["detail"]
    assert "label, probabilities" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("accept", "status", "content_type"),
    [
        ("*/*", 200, "application/json"),
        ("text/html, application/*;q=0.8", 200, "application/json"),
        ("text/csv;q=0.9, application/json;q=0.5", 200, "text/csv"),
        ("text/csv;q=0, application/json", 200, "application/json"),
        ("image/png", 406, "application/problem+json"),
    ],
)
def test_accept_picks_the_form(served: Served, accept: str, status: int, content_type: str) -> None:
    """The known form with the highest q; 406 with the known ones when none is wanted."""
    path = "/models/classes/predict?outputs=label"
    body = to_json([[5.1, 3.5, 1.4, 0.2]])
    found, headers, answer = served.ask(
        "POST", path, body, {"content-type": "application/json", "accept": accept}
    )
    assert found == status, answer
    assert headers["content-type"].partition(";")[0] == content_type
    if status == 406:
        assert b"text/csv" in answer


def test_npy_carries_one_output_only(served: Served) -> None:
    """npy of a model with two outputs: 406 that says how to pick one."""
    status, body = ask_classes(served, "", "application/x-npy")
    assert status == 406
    assert b"?outputs=" in body


def test_outputs_of_several_tensors_come_as_records(served: Served) -> None:
    """A model of several outputs that is no classifier: a record per row, by output name."""
    body = to_json({"instances": [{"x": [1, 2], "who": "Ana"}]})
    status, _, answer = served.ask("POST", "/models/doubler/predict", body)
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == [{"y": [2.0, 4.0], "hello": "hello Ana"}]


# --- values ---


def test_the_comparison_sees_a_wrong_value() -> None:
    """Negative control: another number, label, length or key fails."""
    good = [{"label": "go", "p": [0.25, math.nan]}]
    assert_same(good, [{"label": "go", "p": [0.25, math.nan]}], "equal")
    for bad in (
        [{"label": "stay", "p": [0.25, math.nan]}],
        [{"label": "go", "p": [0.251, math.nan]}],
        [{"label": "go", "p": [0.25]}],
        [{"label": "go", "q": [0.25, math.nan]}],
        good * 2,
    ):
        with pytest.raises(AssertionError):
            assert_same(bad, good, "different")


def predictions_of(expected: Arrays, classes: Sequence[str] | None) -> list[Any]:
    """What `predictions` must be."""
    columns = {name: plain(array) for name, array in expected.items()}
    if classes is not None:
        label, *probabilities = columns.values()
        if not probabilities:
            return [{"label": one} for one in label]
        return [
            {"label": one, "probabilities": dict(zip(classes, ps, strict=True))}
            for one, ps in zip(label, probabilities[0], strict=True)
        ]
    if len(columns) == 1:
        return list(*columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def datatype_of(name: str, array: Any) -> str:
    """The v2 datatype of a tensor."""
    return HALVES.get(name) or triton_name(array)


def triton_name(array: Any) -> str:
    """What the official client calls an array's datatype."""
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))


def is_missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or value != value


def plain(array: Any) -> list[Any]:
    """Nested lists with text for bytes, and None for NaN in a table's column."""

    def value_of(value: Any) -> Any:
        if isinstance(value, list):
            return [value_of(item) for item in value]
        if isinstance(value, bytes):
            return value.decode()
        return None if value is None or value != value else value

    values: list[Any] = value_of(array.tolist())
    return values


def to_json(value: Any) -> bytes:
    """Strict JSON."""
    return json.dumps(value, allow_nan=False).encode()


def to_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    """CSV with empty cells for what is missing."""
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def assert_same(found: Any, want: Any, where: str) -> None:
    """Equal, with floats within float32's rounding."""
    if isinstance(want, list):
        assert isinstance(found, list) and len(found) == len(want), where
        for index, (f, w) in enumerate(zip(found, want, strict=True)):
            assert_same(f, w, f"{where}[{index}]")
    elif isinstance(want, dict):
        assert found.keys() == want.keys(), where
        for key in want:
            assert_same(found[key], want[key], f"{where}.{key}")
    elif isinstance(want, float):
        assert type(found) in (float, int), (where, found, want)
        same = math.isclose(found, want, rel_tol=2e-5, abs_tol=2e-6)
        assert same or (found != found and want != want), (where, found, want)
    else:
        assert found == want, (where, found, want)
