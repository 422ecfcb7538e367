"""The native protocol's answers: JSON, CSV and npy. Not for requests (`native`)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import orjson

from muelle.core.errors import ModelFailed, NotAcceptable
from muelle.core.request import InferResponse, OutputTensor
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import JSON, Answer

CSV = b"text/csv; charset=utf-8"
NPY = b"application/x-npy"
JsonNan = Literal["error", "null", "string"]
FREE_PADDING = 1 << 20
MAX_PADDING = 16
"""Characters of an npy answer of texts: FREE_PADDING, and so many for each one that is there."""
Texts = list[bytes]
"""JSON text of one output, one item per row."""


class AnswerWriter:
    """Writes the answers of one model version."""

    def __init__(self, model: str, version: str, signature: Signature, json_nan: JsonNan) -> None:
        self._json_nan = json_nan
        self._has_rows = signature.has_rows
        self._specs = {spec.name: spec for spec in signature.outputs}
        self._dress = dressing(signature)
        head = msgspec.json.encode({"model": model, "version": version})[:-1]
        self.opening = head + b',"predictions":['

    def write(
        self, form: Literal["json", "csv", "npy"], picked: tuple[str, ...], response: InferResponse
    ) -> Answer:
        """Write one answer. Raise NotAcceptable when its form cannot carry it."""
        outputs = list(response.outputs)
        if picked:
            by_name = {tensor.name: tensor for tensor in outputs}
            outputs = [by_name[name] for name in picked]
        if form == "npy":
            return self._npy(outputs)
        if form == "csv":
            return self._csv(outputs)
        rows = self._rows(outputs, plain=bool(picked))
        return Answer(200, JSON, self.opening + b",".join(rows) + b"]}")

    def _rows(self, outputs: Sequence[OutputTensor], plain: bool) -> Texts:
        columns = [self._texts(tensor) for tensor in outputs]
        if not plain and self._dress is not None:
            return self._dress(columns)
        if len(columns) == 1:
            return columns[0]
        names = [msgspec.json.encode(tensor.name) + b":" for tensor in outputs]
        return [object_text(names, row) for row in zip(*columns, strict=True)]

    def _texts(self, tensor: OutputTensor) -> Texts:
        """Return the JSON text of each row of an output (of the whole, without a rows axis)."""
        array = tensor.array()
        if not self._has_rows:
            array = array[np.newaxis]
        if array.dtype.kind == "f" and self._json_nan != "null" and tensor.has_nonfinite():
            if self._json_nan == "error":
                raise NotAcceptable(
                    f"output {tensor.name!r} holds NaN or infinity, which JSON has no word for; "
                    "ask for application/x-npy or text/csv, or set json_nan to null or string"
                )
            return [orjson.dumps(_spelled(row)) for row in _shortest(array).tolist()]
        if self._has_rows and array.ndim <= 2:
            texts = tensor.batch.json_rows()[tensor.start : tensor.stop]
            return texts if array.ndim == 1 else [b"[" + text + b"]" for text in texts]
        if array.dtype == object:
            return [orjson.dumps(_text(row)) for row in array.tolist()]
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        return [
            orjson.dumps(
                np.ascontiguousarray(row) if np.ndim(row) else row,
                option=orjson.OPT_SERIALIZE_NUMPY,
            )
            for row in array
        ]

    def _npy(self, outputs: Sequence[OutputTensor]) -> Answer:
        if len(outputs) != 1:
            names = ", ".join(tensor.name for tensor in outputs)
            raise NotAcceptable(
                f"application/x-npy carries one output, there are {names}; pick one by ?outputs="
            )
        array = outputs[0].array()
        if array.dtype == object:
            array = _padded(outputs[0].name, array)
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return Answer(200, NPY, stream.getvalue())

    def _csv(self, outputs: Sequence[OutputTensor]) -> Answer:
        header: list[str] = []
        columns: list[list[Any]] = []
        for tensor in outputs:
            array = tensor.array()
            if not self._has_rows:
                array = array[np.newaxis]
            flat = array.reshape(array.shape[0], -1)
            if flat.dtype in (np.float32, np.float16):
                # The shortest text that gives the same number back, as JSON has it.
                flat = flat.astype(str)
            values = _text(flat.tolist())
            header += column_names(self._specs[tensor.name], flat.shape[1])
            columns += [list(column) for column in zip(*values, strict=True)]
        if len(set(header)) != len(header):
            # Two targets with the same classes: then each column says whose it is.
            header = [
                f"{tensor.name}_{name}"
                for tensor in outputs
                for name in column_names(self._specs[tensor.name], _width(tensor, self._has_rows))
            ]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
        return Answer(200, CSV, stream.getvalue().encode())


def _width(tensor: OutputTensor, has_rows: bool) -> int:
    """Return how many columns of a table an output fills."""
    return math.prod(tensor.shape[1:] if has_rows else tensor.shape)


def dressing(signature: Signature) -> Callable[[Sequence[Texts]], Texts] | None:
    """Return what turns a classifier's outputs into `{"label", "probabilities": {class: p}}`.

    None when the outputs are no classifier's. Takes JSON texts per output, gives them per row.
    """
    if not signature.has_rows:
        return None
    roles = {spec.role: index for index, spec in enumerate(signature.outputs) if spec.role}
    if len(roles) != len(signature.outputs):
        return None
    label_at, probabilities_at = roles.get("label"), roles.get("probabilities")
    if probabilities_at is None:
        if label_at is None or len(signature.outputs) != 1:
            return None
        return lambda columns: [b'{"label":' + text + b"}" for text in columns[0]]
    spec = signature.outputs[probabilities_at]
    classes = spec.classes
    if not classes or len(spec.shape) != 2 or spec.shape[1] not in (-1, len(classes)):
        return None
    labels = [msgspec.json.encode(c) for c in classes]
    # One `%` per row: cheaper than joining the pairs.
    keys = [msgspec.json.encode(class_text(c)).replace(b"%", b"%%") + b":%b" for c in classes]
    form = b'{"label":%b,"probabilities":{' + b",".join(keys) + b"}}"

    def dress(columns: Sequence[Texts]) -> Texts:
        rows = []
        for index, text in enumerate(columns[probabilities_at]):
            values = text[1:-1].split(b",")
            if len(values) != len(labels):
                raise ModelFailed(
                    f"output {spec.name}: {len(values)} probabilities for {len(labels)} classes"
                )
            if label_at is None:
                numbers = [_rank(value) for value in values]
                label = labels[numbers.index(max(numbers))]
            else:
                label = columns[label_at][index]
            rows.append(form % (label, *values))
        return rows

    return dress


def object_text(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Join `"key":` and value texts to a JSON object."""
    pairs = [key + value for key, value in zip(keys, values, strict=True)]
    return b"{" + b",".join(pairs) + b"}"


def class_text(label: Any) -> str:
    """Return a class as a JSON key: numbers and booleans as JSON writes them."""
    return label if isinstance(label, str) else msgspec.json.encode(label).decode()


def column_names(spec: TensorSpec, width: int) -> list[str]:
    """Return the CSV column names of an output."""
    if spec.classes and len(spec.classes) == width:
        return [f"probability_{class_text(c)}" for c in spec.classes]
    if width == 1:
        return [spec.role if spec.role == "label" else spec.name]
    return [f"{spec.name}_{i}" for i in range(width)]


def _rank(text: bytes) -> float:
    """Read a probability's JSON text. What is no number is never the largest."""
    value = -math.inf if text == b"null" else float(text.strip(b'"'))
    return -math.inf if math.isnan(value) else value


def _shortest(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Widen floats so that they are written as short as `json_rows` does: 0.1, not 0.1000000015."""
    if array.dtype == np.float64:
        return array
    return array.astype(np.float32).astype(str).astype(np.float64)


def _spelled(value: Any) -> Any:
    """Return nested numbers with NaN and infinity as strings."""
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _padded(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return texts as NumPy has them: each as wide as the widest, and a missing one empty, as v2.

    Raise NotAcceptable where that would be far more than the texts themselves.
    """
    texts = ["" if v is None else _text(v) for v in array.reshape(-1).tolist()]
    widest = max(map(len, texts), default=0)
    if len(texts) * widest > FREE_PADDING + MAX_PADDING * sum(map(len, texts)):
        raise NotAcceptable(
            f"output {name!r}: texts of too unequal lengths for application/x-npy, which pads each "
            "to the longest; ask for application/json or text/csv"
        )
    return np.array(texts, dtype=np.str_).reshape(array.shape)


def _text(value: Any) -> Any:
    """Return nested bytes as text."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
