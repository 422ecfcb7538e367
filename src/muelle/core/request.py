"""One caller's request and its answer, as every protocol sees them. Not for wire formats.

These are the hottest objects of the server: plain slotted classes, filled by a codec, read by the
scheduler, dropped after the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from muelle.core.tensor import DATATYPES, packer

Buffer = bytes | bytearray | memoryview


class Tensor:
    """One input as sent: raw little-endian bytes, or a flat list of Python numbers.

    BYTES tensors are always raw (4-byte length and content per element). `nbytes` is the size in
    the batch's memory, whichever form the data has.
    """

    __slots__ = ("code", "data", "datatype", "name", "nbytes", "shape")

    def __init__(
        self,
        name: str,
        datatype: str,
        shape: Sequence[int],
        data: Buffer | list[Any],
        code: str,
        nbytes: int,
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data
        self.code = code
        """`struct` code when data is a list, empty when it is raw."""
        self.nbytes = nbytes

    @classmethod
    def raw(cls, name: str, datatype: str, shape: Sequence[int], data: Buffer) -> Tensor:
        """Wrap bytes that are already in memory layout."""
        return cls(name, datatype, shape, data, "", len(data))

    @classmethod
    def flat(cls, name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> Tensor:
        """Wrap a flat list of numbers; `memory` packs them later."""
        dt = DATATYPES[datatype]
        return cls(name, datatype, shape, data, dt.code, len(data) * dt.size)

    def memory(self) -> Buffer:
        """Return the elements as bytes. Raise struct.error or OverflowError on a bad value."""
        if isinstance(self.data, list):
            return packer(self.code, len(self.data)).pack(*self.data)
        return self.data

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop of a fixed-size, non-BYTES tensor."""
        per_row = len(self.data) // self.shape[0] if self.shape[0] else 0
        shape = (stop - start, *self.shape[1:])
        part = self.data[start * per_row : stop * per_row]
        size = len(part) * (DATATYPES[self.datatype].size if self.code else 1)
        return Tensor(self.name, self.datatype, shape, part, self.code, size)


class SequenceRef:
    """Which sequence a request belongs to, and where in it. An id of 0 or "" is no sequence."""

    __slots__ = ("end", "id", "start")

    def __init__(self, id: int | str, start: bool = False, end: bool = False) -> None:
        self.id = id
        self.start = start
        self.end = end


class InferRequest:
    """What one caller asked of one model version.

    `inputs` are in the order of the signature (an absent optional input is left out); `n_rows` is
    1 for a model without a rows axis. `timeout_s` is the caller's own limit, or None.
    """

    __slots__ = (
        "id",
        "inputs",
        "n_rows",
        "outputs",
        "parameters",
        "priority",
        "queue_timeout_us",
        "sequence",
        "streams",
        "timeout_s",
    )

    def __init__(
        self,
        inputs: Sequence[Tensor],
        n_rows: int,
        *,
        id: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.inputs = inputs
        self.n_rows = n_rows
        self.id = id
        self.outputs = outputs
        """Names of the wanted outputs, empty for all."""
        self.parameters = parameters
        """What the caller sends along for the model: no reserved names."""
        self.timeout_s = timeout_s
        self.priority = 0
        """1 is the highest, 0 takes the model's default."""
        self.queue_timeout_us = 0
        """How long it may wait before it runs, where the model's queue policy allows it."""
        self.sequence: SequenceRef | None = None
        self.streams = False
        """Whether the caller takes several answers, or none: `done` is then called once for each,
        the last with `final` set."""


class BatchOutput:
    """One output tensor of a whole batch, in memory that is valid until the batch is settled.

    `data` is raw memory layout (BYTES: 4-byte length and content per element). Work that every
    caller of the batch needs, such as JSON text, is done once for all of them.
    """

    __slots__ = ("_array", "_json_rows", "data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], data: Buffer) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data
        self._array: np.ndarray[Any, Any] | None = None
        self._json_rows: list[bytes] | None = None

    def array(self) -> np.ndarray[Any, Any]:
        """Return the batch as an array; BYTES as an object array of bytes, BF16 as float32."""
        if self._array is None:
            self._array = decode_array(self.datatype, self.shape, self.data)
        return self._array

    def json_rows(self) -> list[bytes]:
        """Return, per row, the flat JSON text of its elements without brackets: `b"0.1,0.9"`.

        NaN and infinity come as `null` (JSON has no token); callers that must not lose them ask
        `has_nonfinite`. One encoder call serves the batch: splitting text is cheaper than encoding.
        """
        if self._json_rows is None:
            self._json_rows = _json_rows(self.array())
        return self._json_rows


class OutputTensor:
    """Rows start..stop of a batch output: one caller's part. Valid only while it is settled."""

    __slots__ = ("batch", "start", "stop")

    def __init__(self, batch: BatchOutput, start: int, stop: int) -> None:
        self.batch = batch
        self.start = start
        self.stop = stop

    @property
    def name(self) -> str:
        return self.batch.name

    @property
    def datatype(self) -> str:
        return self.batch.datatype

    @property
    def shape(self) -> tuple[int, ...]:
        """The caller's shape; a tensor without a rows axis is given whole (start = stop = -1)."""
        if self.start < 0:
            return self.batch.shape
        return (self.stop - self.start, *self.batch.shape[1:])

    def array(self) -> np.ndarray[Any, Any]:
        """Return the caller's part as an array (a view: copy it to keep it)."""
        whole = self.batch.array()
        return whole if self.start < 0 else whole[self.start : self.stop]

    def flat_json(self) -> bytes:
        """Return the elements as flat JSON text without brackets; NaN and infinity as `null`."""
        if self.start < 0:
            return b",".join(_json_rows(self.batch.array().reshape(1, -1)))
        rows = self.batch.json_rows()
        if self.stop == self.start + 1:
            return rows[self.start]
        return b",".join(row for row in rows[self.start : self.stop] if row)

    def has_nonfinite(self) -> bool:
        """Whether any element is NaN or infinite."""
        array = self.array()
        return array.dtype.kind == "f" and not bool(np.isfinite(array).all())

    def raw(self) -> bytes:
        """Return the elements as bytes in memory layout (the v2 binary form)."""
        batch = self.batch
        if self.start < 0:
            return bytes(batch.data)
        if batch.datatype == "BYTES":
            return encode_bytes_tensor(self.array().reshape(-1).tolist())
        rows = batch.shape[0]
        per_row = len(batch.data) // rows if rows else 0
        return bytes(batch.data[self.start * per_row : self.stop * per_row])


class InferResponse:
    """The answer to one request. Its tensors are valid only inside the callback that gets it."""

    __slots__ = ("final", "model", "outputs", "parameters", "version")

    def __init__(self, model: str, version: str, outputs: Sequence[OutputTensor]) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        """Of a decoupled model's last answer perhaps none at all."""
        self.parameters: Mapping[str, Any] | None = None
        self.final = True
        """Whether no more answers come to the same request (decoupled models)."""


Done = Callable[["InferResponse | Exception"], None]
"""Receives the answer or a MuelleError on the event loop's thread: exactly once, unless the
request `streams`; then the call with an error, or with `final` set, is the last."""


def encode_bytes_tensor(values: Sequence[bytes | None]) -> bytes:
    """Return BYTES elements in memory layout. None becomes the null marker."""
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(len(value).to_bytes(4, "little"))
            parts.append(value)
    return b"".join(parts)


def decode_bytes_tensor(data: Buffer, count: int) -> list[bytes | None]:
    """Return the elements of a BYTES tensor. Raise ValueError if lengths and content disagree."""
    values: list[bytes | None] = []
    view = memoryview(data)
    at, end = 0, len(view)
    for index in range(count):
        if at + 4 > end:
            raise ValueError(f"element {index}: its 4-byte length is cut off")
        size = int.from_bytes(view[at : at + 4], "little")
        at += 4
        if size == 0xFFFFFFFF:
            values.append(None)
            continue
        if at + size > end:
            raise ValueError(f"element {index}: {size} bytes announced, {end - at} present")
        values.append(bytes(view[at : at + size]))
        at += size
    if at != end:
        raise ValueError(f"{end - at} bytes left over after {count} elements")
    return values


def decode_array(datatype: str, shape: tuple[int, ...], data: Buffer) -> np.ndarray[Any, Any]:
    """Return an array over memory layout: BYTES as object array of bytes, BF16 as float32."""
    if datatype == "BYTES":
        count = 1
        for d in shape:
            count *= d
        array = np.empty(count, dtype=object)
        array[:] = decode_bytes_tensor(data, count)
        return array.reshape(shape)
    if datatype == "BF16":
        halves = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(shape)
    return np.frombuffer(data, dtype=DATATYPES[datatype].numpy).reshape(shape)


def encode_array(datatype: str, array: np.ndarray[Any, Any]) -> bytes:
    """Return an array's elements in memory layout (inverse of decode_array)."""
    if datatype == "BYTES":
        return encode_bytes_tensor([as_bytes(v) for v in array.reshape(-1).tolist()])
    if datatype == "BF16":
        bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # A NaN must stay a NaN: rounding could carry its mantissa away into infinity.
        nan = np.isnan(np.asarray(array, dtype="<f4"))
        return np.where(nan, 0x7FC0, rounded).astype("<u2").tobytes()
    return np.ascontiguousarray(array, dtype=DATATYPES[datatype].numpy).tobytes()


def as_bytes(value: Any) -> bytes | None:
    """Return a text or bytes element as bytes; a missing one (None, NaN) as None."""
    if isinstance(value, bytes):
        return value
    if value is None or value != value:
        return None
    return str(value).encode()


def _json_rows(array: np.ndarray[Any, Any]) -> list[bytes]:
    """Encode each row's elements as JSON text without brackets."""
    n_rows = array.shape[0]
    if array.size == 0:
        return [b""] * n_rows
    flat = array.reshape(n_rows, -1)
    if flat.dtype == object:
        return [orjson.dumps([_text(v) for v in row])[1:-1] for row in flat.tolist()]
    if flat.dtype == np.float16:
        # orjson writes float16 through its own rounding; float32 holds every half exactly.
        flat = flat.astype(np.float32)
    text = orjson.dumps(np.ascontiguousarray(flat), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].split(b"],[")


def _text(value: Any) -> Any:
    """Return a bytes element as JSON text; bytes that are no UTF-8 are shown with replacements."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
