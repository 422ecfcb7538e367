"""The native protocol: rows in, one prediction per row out. JSON, CSV, NumPy and Arrow bodies.

Pure functions over whole requests. Conversion of values is in `table`, answers' forms are in
`native_answers`; the common one-row case has a short cut in `native_plain`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec
import numpy as np

from muelle.core.errors import BadRequest, MuelleError, NotAcceptable, UnsupportedMedia
from muelle.core.request import InferRequest, InferResponse, Tensor, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES, element_count
from muelle.protocols import table
from muelle.protocols.http import JSON, Answer, HttpRequest
from muelle.protocols.native_answers import AnswerWriter
from muelle.protocols.native_arrow import read_arrow
from muelle.protocols.status import HTTP_STATUS
from muelle.protocols.v2_wire import is_deeper

CSV = b"text/csv"
NPY = b"application/x-npy"
ARROW = b"application/vnd.apache.arrow.stream"
PROBLEM = b"application/problem+json"
READABLE = (JSON, CSV, NPY, ARROW)
MAX_NPY_HEADER = 10_000
MAX_NPY_RANK = 32

Form = Literal["json", "csv", "npy"]
JsonNan = Literal["error", "null", "string"]

_FORMS: Mapping[bytes, Form] = {JSON: "json", CSV: "csv", NPY: "npy"}
_NOT_JSON = re.compile(rb"\b(?:NaN|Infinity)\b")
_FAULTS = (msgspec.DecodeError, UnicodeError, RecursionError)


class NativeRequest(InferRequest):
    """A request with the form of the answer that its caller wants."""

    __slots__ = ("form", "picked")

    def __init__(
        self, inputs: list[Tensor], n_rows: int, form: Form, picked: tuple[str, ...]
    ) -> None:
        super().__init__(inputs, n_rows, outputs=picked)
        self.form: Form = form
        self.picked = picked
        """Outputs named by `?outputs=`, shown as they are; empty for the usual answer."""


class NativeCodec:
    """The native codec of one model version. Immutable; may be used from any thread."""

    def __init__(
        self,
        model: str,
        version: str,
        signature: Signature,
        json_nan: JsonNan,
        json_depth: int,
        max_batch_size: int,
    ) -> None:
        self.signature = signature
        self._has_rows = signature.has_rows
        self._json_depth = json_depth
        self._output_names = tuple(spec.name for spec in signature.outputs)
        self._writer = AnswerWriter(model, version, signature, json_nan)
        self._readers: Mapping[bytes, Callable[[bytes], list[Tensor]]] = {
            JSON: self._read_json,
            CSV: self._read_csv,
            NPY: self._read_npy,
            ARROW: self._read_arrow,
        }

    # --- request ---

    def decode(self, request: HttpRequest) -> NativeRequest:
        """Read a request by its Content-Type (none: JSON).

        Raise UnsupportedMedia, NotAcceptable, or BadRequest, which names the field at fault.
        """
        form = _wanted_form(request.headers.get(b"accept", b""))
        picked = self._picked(request.query)
        media = request.headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()
        reader = self._readers.get(media or JSON)
        if reader is None:
            known = ", ".join(name.decode() for name in READABLE)
            raise UnsupportedMedia(
                f"content type {_shown(media)!r} is not read here; known: {known}"
            )
        inputs = reader(request.body)
        n_rows = self._rows(inputs)
        return NativeRequest(inputs, n_rows, form, picked)

    def _rows(self, inputs: list[Tensor]) -> int:
        if not self._has_rows:
            return 1
        counts = {tensor.name: tensor.shape[0] for tensor in inputs}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise BadRequest(f"inputs: the tensors have different numbers of rows: {told}")
        n_rows = next(iter(counts.values()), 0)
        if n_rows == 0:
            raise BadRequest("instances: empty; send at least one row", field="instances")
        return n_rows

    def _picked(self, query: bytes) -> tuple[str, ...]:
        if not query:
            return ()
        wanted = parse_qs(query.decode("latin-1")).get("outputs", [])
        # Twice the same name would be twice the same key.
        names = tuple(dict.fromkeys(name for text in wanted for name in text.split(",") if name))
        for name in names:
            if name not in self._output_names:
                raise BadRequest(
                    f"outputs: no output {name[:80]!r}; there is: {', '.join(self._output_names)}",
                    field="outputs",
                )
        return names

    # --- bodies ---

    def _read_json(self, body: bytes) -> list[Tensor]:
        value = self._json(body)
        if type(value) is list:
            return self._instances(value)
        if type(value) is not dict:
            raise BadRequest(
                f"request body: {table.kind_of(value)}; send "
                '{"instances": [...]}, {"inputs": {...}}, a list of rows or one record'
            )
        if self._is_envelope(value, "instances"):
            _only(value, "instances")
            rows = value["instances"]
            if type(rows) is not list:
                raise BadRequest(
                    f"instances: {table.kind_of(rows)}, expected a list of rows", field="instances"
                )
            return self._instances(rows)
        if self._is_envelope(value, "inputs"):
            _only(value, "inputs")
            return self._tensors(value["inputs"])
        return self._instances([value])

    def _is_envelope(self, value: dict[str, Any], word: str) -> bool:
        """Whether a member is the protocol's word, and no bare record's column of that name."""
        if word not in value:
            return False
        names = self.signature.column_names
        if word not in names:
            return True
        inner = value[word]
        if len(value) > 1:
            return False
        if not self._has_rows:
            return word == "inputs"
        specs = self.signature.inputs
        if word == "inputs" and type(inner) is dict:
            return inner.keys() <= {spec.name for spec in specs}
        if type(inner) is not list:
            return False
        if len(specs) > 1 or specs[0].columns:
            return word == "instances"
        # One row of this tensor is nested one level less deep than all rows.
        return _depth(inner) >= len(specs[0].shape) or (bool(inner) and type(inner[0]) is dict)

    def _instances(self, rows: list[Any]) -> list[Tensor]:
        if not self._has_rows:
            raise BadRequest(
                'instances: this model has no rows; send {"inputs": {tensor: value}}',
                field="instances",
            )
        if not rows:
            raise BadRequest("instances: empty; send at least one row", field="instances")
        return table.tensors_of_instances(self.signature, rows)

    def _tensors(self, value: Any) -> list[Tensor]:
        specs = {spec.name: spec for spec in self.signature.inputs}
        if type(value) is not dict:
            if len(specs) != 1:
                raise BadRequest(
                    f"inputs: {table.kind_of(value)}, expected an object with {', '.join(specs)}",
                    field="inputs",
                )
            value = {next(iter(specs)): value}
        for name in value:
            if name not in specs:
                raise BadRequest(
                    f"inputs.{name[:80]}: unknown; the model wants {', '.join(specs)}",
                    field=f"inputs.{name[:80]}",
                )
        tensors = []
        for name, spec in specs.items():
            if name in value:
                tensors.append(table.tensor_of_nested(spec, value[name], self._has_rows))
            elif not spec.optional:
                raise BadRequest(
                    f"inputs.{name}: missing; the model wants {spec.describe()}",
                    field=f"inputs.{name}",
                )
        return tensors

    def _json(self, body: bytes) -> Any:
        if is_deeper(body, self._json_depth):
            raise BadRequest(f"request body: JSON is nested deeper than {self._json_depth}")
        try:
            return msgspec.json.decode(body)
        except _FAULTS as exc:
            what = "is not UTF-8" if isinstance(exc, UnicodeError) else str(exc)
            if isinstance(exc, RecursionError):
                what = "JSON is nested too deep"
            if _NOT_JSON.search(body):
                what += "; NaN and Infinity are not JSON: send null for a missing number"
            raise BadRequest(f"request body: {what}") from None

    def _read_csv(self, body: bytes) -> list[Tensor]:
        self._tables_only("text/csv")
        try:
            rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"))) if row]
        except (UnicodeError, csv.Error) as exc:
            text = "is not UTF-8" if isinstance(exc, UnicodeError) else str(exc)
            raise BadRequest(f"CSV: {text}") from None
        if not rows:
            raise BadRequest("CSV: empty; send at least one row")
        names = table.table_names(self.signature, len(rows[0]))
        known = set(self.signature.column_names)
        first = [cell.strip() for cell in rows[0]]
        if _is_header(first, names, self.signature):
            if table.is_named(self.signature):
                table.check_table(self.signature, first)
                names = tuple(first)
            rows = rows[1:]
        if not rows:
            raise BadRequest("CSV: a header but no row")
        for index, row in enumerate(rows):
            if len(row) != len(names):
                raise BadRequest(
                    f"CSV row {index}: {len(row)} values, the model wants {len(names)}"
                    f"{': ' + ', '.join(names[:20]) if names[0] != '0' else ''}"
                )
        at = {name: i for i, name in enumerate(names)}
        # A header may name the columns in any order; a tensor has them in the model's.
        own = self.signature.column_names if set(names) <= known else names
        columns = {name: [row[at[name]] for row in rows] for name in own if name in at}
        return table.tensors_of_columns(self.signature, columns, len(rows), from_text=True)

    def _read_npy(self, body: bytes) -> list[Tensor]:
        spec = self._only_input("application/x-npy")
        array = _npy_array(body)
        return [_tensor_of_array(spec, array)]

    def _read_arrow(self, body: bytes) -> list[Tensor]:
        self._tables_only("Arrow")
        names, columns, n_rows = read_arrow(body)
        if n_rows == 0:
            raise BadRequest("Arrow: no rows; send at least one")
        own = table.table_names(self.signature, len(names))
        if table.is_named(self.signature):
            table.check_table(self.signature, names)
            columns = {name: columns[name] for name in own if name in columns}
        return table.tensors_of_columns(self.signature, columns, n_rows, from_text=False)

    def _tables_only(self, what: str) -> None:
        specs = self.signature.inputs
        flat = all(element_count(spec.row_shape) == 1 for spec in specs)
        if not (self._has_rows and (flat or (len(specs) == 1 and len(specs[0].shape) == 2))):
            raise UnsupportedMedia(f"{what}: this model's inputs are no table; send JSON or npy")

    def _only_input(self, what: str) -> TensorSpec:
        if len(self.signature.inputs) != 1:
            names = ", ".join(spec.name for spec in self.signature.inputs)
            raise UnsupportedMedia(f"{what} carries one tensor, the model wants {names}; send JSON")
        return self.signature.inputs[0]

    # --- answer ---

    def encode(self, request: NativeRequest, response: InferResponse) -> Answer:
        """Write the answer in the form asked for. Raise NotAcceptable when it does not fit."""
        return self._writer.write(request.form, request.picked, response)


def encode_error(error: Exception, request_id: str) -> Answer:
    """Write an error as problem details (RFC 9457). What is no MuelleError tells no detail."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: dict[str, Any]
    if isinstance(error, MuelleError):
        status = HTTP_STATUS[error.code]
        body = {"type": "about:blank", "title": _title(status), "status": status}
        body |= {"detail": _sayable(error.message), "code": error.code.value}
        if error.field:
            body["field"] = _sayable(error.field)
        if error.retry_after_s is not None:
            headers = ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    else:
        status = 500
        body = {"type": "about:blank", "title": _title(status), "status": status}
        body |= {"detail": "internal error; the log has it under the request id"}
        body |= {"code": "internal"}
    body["request_id"] = request_id
    return Answer(status, PROBLEM, msgspec.json.encode(body), headers)


def example_body(signature: Signature, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON body that answers 200, from one example row per tensor (nested lists)."""
    specs = [spec for spec in signature.inputs if spec.name in example]
    if not signature.has_rows:
        return {"inputs": {spec.name: example[spec.name] for spec in specs}}
    if len(signature.inputs) == 1:
        row = example[specs[0].name][0]
        if specs[0].columns:
            return {"instances": [dict(zip(specs[0].columns, row, strict=True))]}
        return {"instances": [row]}
    return {"instances": [{spec.name: example[spec.name][0] for spec in specs}]}


def _sayable(text: str) -> str:
    """Replace lone surrogates, which JSON cannot carry: an error must always be answered."""
    return text.encode("utf-8", "replace").decode()


def _depth(value: Any) -> int:
    """Return how deep the first elements of nested lists lie."""
    depth = 0
    while type(value) is list:
        depth += 1
        value = value[0] if value else None
    return depth


def _title(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"


def _only(value: dict[str, Any], name: str) -> None:
    for other in value:
        if other != name:
            raise BadRequest(f"{other[:80]}: unknown member beside {name!r}", field=other[:80])


def _shown(text: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:80].decode("latin-1"))


def _wanted_form(accept: bytes) -> Form:
    """Choose the answer's form from Accept: the highest q of those that we can write.

    The most specific range that fits a form says its q. Between equals, what is named goes before
    what a wildcard lets in, then the first named. Source: RFC 9110, section 12.5.1.
    """
    if not accept or accept == b"*/*":
        return "json"
    ranges: dict[bytes, tuple[int, float]] = {}
    for place, part in enumerate(accept.split(b",")):
        media, _, parameters = part.partition(b";")
        ranges.setdefault(media.strip().lower(), (place, _quality(parameters)))
    if PROBLEM in ranges:
        # Who names the form of our errors wants JSON of the answers.
        ranges.setdefault(JSON, ranges[PROBLEM])
    best: tuple[float, int, Form] | None = None
    for media, form in _FORMS.items():
        for name in (media, media.partition(b"/")[0] + b"/*", b"*/*"):
            if name in ranges:
                place, q = ranges[name]
                order = place if name == media else len(ranges)
                if q > 0 and (best is None or (-q, order) < best[:2]):
                    best = (-q, order, form)
                break
    if best is None:
        known = ", ".join(name.decode() for name in _FORMS)
        raise NotAcceptable(f"Accept: {_shown(accept)!r}; answers come as {known}")
    return best[2]


def _quality(parameters: bytes) -> float:
    """Return q of a media range: 1 when there is none, 0 when it is no number."""
    for parameter in parameters.split(b";"):
        name, _, text = parameter.strip().partition(b"=")
        if name.lower() == b"q":
            try:
                return float(text)
            except ValueError:
                return 0.0
    return 1.0


def _is_header(first: list[str], names: tuple[str, ...], signature: Signature) -> bool:
    """Whether the first CSV row names columns, as far as that can be told.

    Where the model wants text, a cell may be equal to a column's name by chance: then the row is
    a header only if every cell is a name, or if a column of numbers holds one.
    """
    known = set(signature.column_names)
    found = [cell in known for cell in first]
    if not any(spec.datatype == "BYTES" for spec in signature.inputs):
        numeric = [_is_number(cell) for cell in first]
        if any(named and not number for named, number in zip(found, numeric, strict=True)):
            return True
        # A column may be called `0`: a number is then a name only among nothing but names.
        return not any(numeric) or (len(first) > 1 and table.is_named(signature) and all(found))
    if all(found):
        return True
    wants_text = {spec.name: spec.datatype == "BYTES" for spec in signature.inputs}
    return any(
        not wants_text.get(name, True) and not _is_number(cell)
        for name, cell in zip(names, first, strict=False)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in ("true", "false", "")
    return True


def _npy_array(body: bytes) -> np.ndarray[Any, Any]:
    """Read a .npy body without pickle. Its claims are compared with the bytes that are there."""
    stream = io.BytesIO(body)
    try:
        major, minor = np.lib.format.read_magic(stream)
        if (major, minor) == (1, 0):
            read = np.lib.format.read_array_header_1_0
        elif (major, minor) == (2, 0):
            read = np.lib.format.read_array_header_2_0
        else:
            raise BadRequest(f"npy: format version {major}.{minor}; 1.0 and 2.0 are read here")
        shape, fortran, dtype = read(stream, max_header_size=MAX_NPY_HEADER)
    except BadRequest:
        raise
    except Exception:
        # The header is a Python literal: NumPy's parser raises whatever it stumbles over.
        raise BadRequest("npy: the header cannot be read") from None
    if dtype.hasobject:
        raise BadRequest("npy: Python objects are never unpickled; save numbers or strings")
    if dtype.itemsize == 0 or dtype.subdtype is not None or dtype.names is not None:
        raise BadRequest("npy: elements of no size, or of several parts; save numbers or strings")
    if len(shape) > MAX_NPY_RANK or any(type(d) is not int or d < 0 for d in shape):
        raise BadRequest("npy: a dimension is no whole number, or there are too many")
    # One by one first: their product may have more digits than Python writes.
    if any(d > len(body) for d in shape):
        raise BadRequest("npy: the shape needs more bytes than are there")
    count, left = element_count(shape), len(body) - stream.tell()
    if count * dtype.itemsize != left:
        raise BadRequest(
            f"npy: shape {list(shape)} of {dtype.str} needs {count * dtype.itemsize} bytes, "
            f"{left} are there"
        )
    flat: np.ndarray[Any, Any] = np.frombuffer(body, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _tensor_of_array(spec: TensorSpec, array: np.ndarray[Any, Any]) -> Tensor:
    wanted = spec.describe()
    if array.ndim != len(spec.shape) or any(
        want >= 0 and got != want for got, want in zip(array.shape, spec.shape, strict=False)
    ):
        raise BadRequest(f"npy: shape {list(array.shape)}, the model wants {spec.name} {wanted}")
    if spec.datatype == "BYTES":
        if array.dtype.kind not in "SU":
            raise BadRequest(f"npy: {array.dtype.str} elements, the model wants text ({wanted})")
        if array.dtype.kind == "U" and not _is_unicode(array):
            raise BadRequest("npy: a string is not Unicode text")
        raw = encode_array("BYTES", array.astype(object))
        return Tensor.raw(spec.name, "BYTES", list(array.shape), raw)
    target = np.dtype(np.float32 if spec.datatype == "BF16" else DATATYPES[spec.datatype].numpy)
    if not np.can_cast(array.dtype, target, casting="same_kind") or array.dtype.kind == "c":
        raise BadRequest(f"npy: {array.dtype.str} elements, the model wants {wanted}")
    if (array.dtype.kind == "b") != (target.kind == "b"):
        raise BadRequest(f"npy: {array.dtype.str} elements, the model wants {wanted}")
    # What does not fit becomes infinite, and is found below.
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(target, order="C")
        if target.kind in "iu":
            lost = not np.array_equal(cast, array)
        else:
            limit = table.BF16_LIMIT if spec.datatype == "BF16" else np.inf
            lost = bool(np.any(np.isfinite(array) & ~(np.abs(cast) < limit)))
    if lost:
        raise BadRequest(f"npy: a value is out of range for {spec.datatype}")
    raw = encode_array(spec.datatype, cast)
    return Tensor.raw(spec.name, spec.datatype, list(array.shape), raw)


def _is_unicode(array: np.ndarray[Any, Any]) -> bool:
    """Whether every code point of a string array is one: NumPy itself does not look."""
    flat = np.ascontiguousarray(array).reshape(-1)
    points = flat.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return not bool(np.any((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))))
