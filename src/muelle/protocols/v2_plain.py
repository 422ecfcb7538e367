"""The plain case of v2: JSON of one row in, JSON of all outputs out, and nothing else asked.

Most requests of small models are this; the whole codec (`v2`) reads everything else, and says what
is wrong. Both must agree: a property test holds them together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from muelle.core.request import BatchOutput, Buffer
from muelle.core.signature import Signature
from muelle.core.tensor import DATATYPES, element_count, packer
from muelle.protocols.v2_wire import BODY_FAULTS, plain_decoder

FAULTS = (*BODY_FAULTS, struct.error, OverflowError, TypeError, ValueError)


class V2Plain:
    """Made once per model version whose rows all have the same size."""

    def __init__(self, model: str, version: str, signature: Signature, json_depth: int) -> None:
        decoder = plain_decoder(signature, json_depth, nested=False)
        self.read: Callable[[bytes], Sequence[Buffer] | None] | None = None
        """Body -> the columns of its one row in memory layout; None: not plain (or wrong)."""
        fits = all(
            DATATYPES[s.datatype].code and s.datatype != "BOOL" and -1 not in s.row_shape
            for s in signature.inputs
        )
        # Half floats have no JSON: the whole codec refuses them before anything runs.
        fits = fits and not any(s.datatype in ("FP16", "BF16") for s in signature.outputs)
        if decoder is not None and fits and signature.has_rows:
            self.read = _reader(decoder, signature)
        head = msgspec.json.encode({"model_name": model, "model_version": version})[:-1]
        self._pieces = []
        opening = head + b',"outputs":['
        for spec in signature.outputs:
            name = msgspec.json.encode({"name": spec.name, "datatype": spec.datatype})[:-1]
            is_float = DATATYPES[spec.datatype].is_float
            self._pieces.append((opening + name + b',"shape":[1', is_float))
            opening = b"]},"
        self._writable = not any(s.datatype in ("FP16", "BF16", "BYTES") for s in signature.outputs)

    def rows(self, outputs: Sequence[BatchOutput]) -> list[bytes] | None:
        """Return the answer's body for each row of a batch; None when a row needs more thought.

        NaN, infinity, text and half floats are left to the whole codec.
        """
        if not self._writable:
            return None
        columns: list[list[bytes]] = []
        heads: list[bytes] = []
        for output, (opening, is_float) in zip(outputs, self._pieces, strict=True):
            texts = output.json_rows()
            if is_float and b"null" in b"".join(texts):
                return None
            shape = b"".join(b",%d" % d for d in output.shape[1:])
            heads.append(opening + shape + b'],"data":[')
            columns.append(texts)
        if len(columns) == 1:
            head = heads[0]
            return [head + text + b"]}]}" for text in columns[0]]
        bodies = []
        for texts_of_row in zip(*columns, strict=True):
            parts: list[bytes] = []
            for head, text in zip(heads, texts_of_row, strict=True):
                parts += (head, text)
            bodies.append(b"".join(parts) + b"]}]}")
        return bodies


def _reader(
    decoder: msgspec.json.Decoder[Any], signature: Signature
) -> Callable[[bytes], Sequence[bytes] | None]:
    decode = decoder.decode
    one_rows = [[1, *spec.row_shape] for spec in signature.inputs]
    packs = [
        packer(DATATYPES[s.datatype].code, element_count(s.row_shape)).pack
        for s in signature.inputs
    ]
    if len(packs) == 1:
        one_row, pack = one_rows[0], packs[0]

        def read_one(body: bytes) -> Sequence[bytes] | None:
            try:
                wire = decode(body)
                (only,) = wire.inputs
                if only.shape != one_row or wire.id or wire.parameters or wire.outputs:
                    return None
                # struct checks the count and every value.
                return (pack(*only.data),)
            except FAULTS:
                return None

        return read_one

    def read_all(body: bytes) -> Sequence[bytes] | None:
        try:
            wire = decode(body)
            if wire.id or wire.parameters or wire.outputs:
                return None
            columns = []
            for given, one_row, pack in zip(wire.inputs, one_rows, packs, strict=True):
                if given.shape != one_row:
                    return None
                columns.append(pack(*given.data))
            return columns
        except FAULTS:
            return None

    return read_all
