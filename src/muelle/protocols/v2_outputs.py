"""Wanted outputs of a v2 request, and output tensors as v2 JSON, binary data or classes.

Not for the answer around them (`v2`). Tensors of an answer are valid only while it is settled, so
everything here returns copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from muelle.core.errors import BadRequest, ModelFailed, NotAcceptable, Unprocessable
from muelle.core.request import InferRequest, OutputTensor, Tensor, encode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import element_count
from muelle.protocols.v2_inputs import clipped
from muelle.protocols.v2_wire import PlainOutput, WireOutput

JsonNan = Literal["error", "null", "string"]

MAX_CLASSIFIED = 1_000_000
"""Elements of one output that are sorted for a classification at most (as Triton limits it)."""


class OutputForm(NamedTuple):
    """How a caller wants one output. `classes` is the k of the classification extension, or 0."""

    name: str
    binary: bool
    classes: int


class V2Request(InferRequest):
    """A request with what the answer's form needs.

    `forms` are the wanted outputs in the order asked for; empty means all, as JSON or `binary`.
    """

    __slots__ = ("binary", "forms")

    def __init__(
        self,
        inputs: Sequence[Tensor],
        n_rows: int,
        id: str = "",
        forms: Sequence[OutputForm] = (),
        binary: bool = False,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        # Set here and not by the base class, and without keyword-only arguments: this is made once
        # per request, and either would double its cost.
        self.inputs = inputs
        self.n_rows = n_rows
        self.id = id
        self.outputs = [form.name for form in forms] if forms else ()
        self.parameters = parameters
        self.timeout_s = timeout_s
        self.priority = 0
        self.queue_timeout_us = 0
        self.sequence = None
        self.streams = False
        self.forms = forms
        self.binary = binary


def wanted_outputs(
    signature: Signature, wires: Sequence[WireOutput | PlainOutput]
) -> list[OutputForm]:
    """Check the outputs that a request lists. Raise BadRequest, which names the output."""
    specs = {spec.name: spec for spec in signature.outputs}
    forms: dict[str, OutputForm] = {}
    for wire in wires:
        spec = specs.get(wire.name)
        if spec is None:
            known = ", ".join(specs)
            raise _bad(wire.name, f"the model has no output of that name, only {known}")
        if wire.name in forms:
            raise _bad(wire.name, "is asked for twice")
        forms[wire.name] = _form(spec, wire.parameters or {})
    return list(forms.values())


def _form(spec: TensorSpec, parameters: Mapping[str, Any]) -> OutputForm:
    if any(key.startswith("shared_memory_") for key in parameters):
        raise _bad(spec.name, "shared memory is not offered: ask for binary data instead")
    binary = parameters.get("binary_data")
    if binary is not None and type(binary) is not bool:
        raise _bad(spec.name, "binary_data: expected true or false")
    classes = parameters.get("classification")
    if classes is not None:
        if type(classes) is not int or classes < 1:
            raise _bad(spec.name, "classification: expected an integer of at least 1")
        if spec.datatype in {"BYTES", "FP16", "BF16"}:
            raise _bad(spec.name, f"classification does not work on {spec.datatype}")
    elif not binary:
        refuse_halves((spec,))
    return OutputForm(spec.name, bool(binary), classes or 0)


def refuse_halves(specs: Sequence[TensorSpec]) -> None:
    """Raise BadRequest if one of the outputs has a datatype that JSON cannot carry."""
    for spec in specs:
        if spec.datatype in {"FP16", "BF16"}:
            raise _bad(spec.name, _NO_HALVES.format(spec.datatype))


_NO_HALVES = "JSON cannot carry {}: ask for it with parameters.binary_data true"


def _bad(name: str, what: str) -> BadRequest:
    return BadRequest(f"output {clipped(name)}: {what}", field=name[:200])


# --- encoding ---


@lru_cache(maxsize=1024)
def output_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Return the JSON text of an output up to its shape, without the closing brace."""
    head = msgspec.json.encode({"name": name, "datatype": datatype, "shape": shape})
    return head[:-1]


# What in the JSON text of a tensor shows that it may not be faithful. An empty mark is in any text.
_MARKS = {
    "FP32": b"null",
    "FP64": b"null",
    "BYTES": "\N{REPLACEMENT CHARACTER}".encode(),
    "FP16": b"",
    "BF16": b"",
}


def json_text(tensor: OutputTensor, json_nan: JsonNan) -> bytes:
    """Return the elements as flat JSON without brackets. Raise NotAcceptable if JSON cannot."""
    text = tensor.flat_json()
    mark = _MARKS.get(tensor.batch.datatype)
    if mark is not None and mark in text:
        return _doubtful_text(tensor, text, json_nan)
    return text


def _doubtful_text(tensor: OutputTensor, text: bytes, json_nan: JsonNan) -> bytes:
    name = clipped(tensor.name)
    if tensor.datatype in {"FP16", "BF16"}:
        raise NotAcceptable(f"output {name}: {_NO_HALVES.format(tensor.datatype)}")
    if tensor.datatype == "BYTES":
        for value in tensor.array().reshape(-1).tolist():
            try:
                value is None or value.decode()
            except UnicodeDecodeError:
                raise NotAcceptable(
                    f"output {name}: an element is not UTF-8 text, which JSON cannot carry; "
                    "ask for it with parameters.binary_data true"
                ) from None
        return text
    if json_nan == "null":
        return text
    if json_nan == "error":
        raise NotAcceptable(
            f"output {name}: an element is NaN or infinite, which JSON cannot carry; ask for it "
            "with parameters.binary_data true, or set json_nan to null or string on the server"
        )
    numbers = text.split(b",")
    flat = tensor.array().reshape(-1)
    for index in np.flatnonzero(~np.isfinite(flat)).tolist():
        numbers[index] = _nonfinite_text(float(flat[index]))
    return b",".join(numbers)


def _nonfinite_text(value: float) -> bytes:
    if value != value:
        return b'"NaN"'
    return b'"Infinity"' if value > 0 else b'"-Infinity"'


def binary_bytes(tensor: OutputTensor) -> bytes:
    """Return the elements in memory layout. A missing string becomes an empty one."""
    if tensor.datatype == "BYTES":
        values = tensor.array().reshape(-1).tolist()
        # The null marker is Muelle's own: a client would read it as a length.
        return encode_bytes_tensor([b"" if value is None else value for value in values])
    return tensor.raw()


def by_name(outputs: Sequence[OutputTensor], name: str) -> OutputTensor:
    """Return one output of an answer. Raise ModelFailed if the model gave none of that name."""
    for tensor in outputs:
        if tensor.name == name:
            return tensor
    raise ModelFailed(f"output {clipped(name)}: the model did not return it")


def classify(
    tensor: OutputTensor, k: int, spec: TensorSpec, has_rows: bool
) -> tuple[tuple[int, ...], list[str]]:
    """Return shape and texts of the k highest values: `value:index` or `value:index:label`.

    Source: Triton's classification extension. Raise Unprocessable if there is too much to sort.
    """
    array = tensor.array()
    if array.size > MAX_CLASSIFIED:
        raise Unprocessable(
            f"output {clipped(spec.name)}: classification of {array.size} elements, "
            f"at most {MAX_CLASSIFIED}"
        )
    n_rows = array.shape[0] if has_rows else 1
    n_classes = element_count(array.shape[1:] if has_rows else array.shape)
    labels = spec.classes if len(spec.classes) == n_classes else ()
    # Ascending and reversed twice, and not negated: -x does not exist for unsigned and int minima.
    rows = array.reshape(n_rows, n_classes)[:, ::-1]
    order = (n_classes - 1 - np.argsort(rows, axis=1, kind="stable"))[:, ::-1]
    count = min(k, n_classes)
    texts = []
    for row, indexes in zip(array.reshape(n_rows, n_classes), order, strict=True):
        for index in _nan_last(row, indexes)[:count]:
            text = f"{_value_text(row[index])}:{index}"
            texts.append(f"{text}:{labels[index]}" if labels else text)
    return ((n_rows, count) if has_rows else (count,)), texts


def _nan_last(row: np.ndarray[Any, Any], indexes: np.ndarray[Any, Any]) -> list[int]:
    """Sorting puts NaN above every number; a caller wants the best number first."""
    found: list[int] = indexes.tolist()
    if row.dtype.kind == "f" and np.isnan(row).any():
        found.sort(key=lambda index: bool(np.isnan(row[index])))
    return found


def _value_text(value: Any) -> str:
    return f"{value:.6f}" if value.dtype.kind == "f" else str(int(value))
