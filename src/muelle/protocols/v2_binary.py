"""The plain case of v2 with binary data: one row in, all outputs as binary, nothing else asked.

A client repeats its JSON part; it is learned from a body that the whole codec has read, the next
ones are compared with it and cut. Not for any other form: the whole codec (`v2`) reads those, and
both must agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from muelle.core.errors import MuelleError
from muelle.core.request import BatchOutput, Buffer
from muelle.core.signature import Signature, row_bytes
from muelle.core.tensor import DATATYPES, element_count
from muelle.protocols.http import Answer, HttpRequest
from muelle.protocols.v2 import BINARY, HEADER_LENGTH, V2Codec

MAX_LEARNED = 64
LARGE_BYTES = 16 * 1024


class V2BinaryPlain:
    """Made once per model version whose rows all have the same size."""

    def __init__(self, codec: V2Codec) -> None:
        signature = codec.signature
        self._codec = codec
        self._names = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._sizes = [row_bytes((spec,)) for spec in signature.inputs]
        fits = signature.has_rows and all(self._sizes)
        # Each byte of a BOOL is looked at: the whole codec does that.
        fits = fits and not any(spec.datatype == "BOOL" for spec in signature.inputs)
        self.usable = fits and bool(signature.outputs) and row_bytes(signature.outputs) > 0
        self._learned: set[bytes] = set()
        self._size = sum(self._sizes)
        self._head = _head(codec.model, codec.version, signature) if self.usable else b""
        self.answer = Answer(200, BINARY, b"", ((HEADER_LENGTH, b"%d" % len(self._head)),))
        """What stands around every answer."""

    def read(self, body: bytes, json_bytes: int) -> Sequence[Buffer] | None:
        """Return the columns of a body's one row in memory layout; None: not plain (or wrong)."""
        if len(body) - json_bytes != self._size or json_bytes <= 0:
            return None
        if body[:json_bytes] not in self._learned and not self._learn(body, json_bytes):
            return None
        if len(self._sizes) == 1 and len(body) < LARGE_BYTES:
            return (body[json_bytes:],)
        view = memoryview(body)
        columns: list[Buffer] = []
        for size in self._sizes:
            columns.append(view[json_bytes : json_bytes + size])
            json_bytes += size
        return columns

    def _learn(self, body: bytes, json_bytes: int) -> bool:
        if len(self._learned) >= MAX_LEARNED:
            return False
        headers = {b"inference-header-content-length": b"%d" % json_bytes}
        request = HttpRequest(b"POST", "", b"", headers, body)
        try:
            wire = self._codec.decode(request.body, json_bytes)
            given = [i.name for i in msgspec.json.decode(body[:json_bytes], type=_Names).inputs]
        except (MuelleError, msgspec.MsgspecError):
            return False
        forms = [(form.name, form.binary, form.classes) for form in wire.forms]
        plain = (
            wire.n_rows == 1
            and not wire.id
            and not wire.parameters
            and wire.timeout_s is None
            and not wire.priority
            and not wire.queue_timeout_us
            and wire.sequence is None
            and given == self._names
            and [t.nbytes for t in wire.inputs] == self._sizes
            and (
                forms == [(name, True, 0) for name in self._outputs] or (wire.binary and not forms)
            )
        )
        if plain:
            self._learned.add(body[:json_bytes])
        return plain

    def rows(self, outputs: Sequence[BatchOutput]) -> list[bytes] | None:
        """Return the body of each row's answer, None when the whole codec must write it."""
        head = self._head
        n_rows = outputs[0].shape[0]
        bodies = [head] * n_rows
        for output in outputs:
            data = output.data
            size = len(data) // n_rows
            bodies = [
                body + bytes(data[i * size : (i + 1) * size]) for i, body in enumerate(bodies)
            ]
        if len(bodies[0]) - len(head) != self._answer_bytes(outputs):
            return None
        return bodies

    def _answer_bytes(self, outputs: Sequence[BatchOutput]) -> int:
        return row_bytes(self._codec.signature.outputs)


class _Name(msgspec.Struct):
    name: str


class _Names(msgspec.Struct):
    inputs: list[_Name]


def _head(model: str, version: str, signature: Signature) -> bytes:
    """Return the JSON part of every answer."""
    outputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": [1, *spec.row_shape],
            "parameters": {
                "binary_data_size": DATATYPES[spec.datatype].size * element_count(spec.row_shape)
            },
        }
        for spec in signature.outputs
    ]
    return msgspec.json.encode({"model_name": model, "model_version": version, "outputs": outputs})
