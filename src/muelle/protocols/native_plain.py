"""The plain case of the native protocol: `{"instances": [one row]}` in, JSON out.

Rows of numbers, as a list or as a record. The whole codec (`native`) reads everything else, and
says what is wrong. Both must agree: a test holds them together.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from muelle.core.errors import ModelFailed
from muelle.core.request import BatchOutput, Buffer
from muelle.core.signature import Signature
from muelle.core.tensor import DATATYPES, packer
from muelle.protocols.native_answers import dressing, object_text

FAULTS = (
    msgspec.DecodeError,
    UnicodeError,
    RecursionError,
    struct.error,
    OverflowError,
    TypeError,
    ValueError,
)


_ESCAPED = re.compile(r'["\\\x00-\x1f]')


class ListRows(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The body `{"instances": [[…]]}`."""

    instances: list[list[float]]


class NativePlain:
    """Made once per model version whose rows all have the same size."""

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        self.read: Callable[[bytes], Sequence[Buffer] | None] | None = None
        """Body -> the columns of its one row in memory layout; None: not plain (or wrong)."""
        if signature.has_rows and "instances" not in signature.column_names:
            self.read = _reader(signature)
        head = msgspec.json.encode({"model": model, "version": version})[:-1]
        self._opening = head + b',"predictions":['
        self._specs = signature.outputs
        self._dress = dressing(signature)
        self._names = [msgspec.json.encode(spec.name) + b":" for spec in signature.outputs]
        self._writable = all(
            len(spec.shape) <= 2 and spec.datatype != "BF16" for spec in signature.outputs
        )

    def rows(self, outputs: Sequence[BatchOutput]) -> list[bytes] | None:
        """Return the answer's body for each row of a batch; None when a row needs more thought."""
        if not self._writable:
            return None
        columns = []
        for output, spec in zip(outputs, self._specs, strict=True):
            texts = output.json_rows()
            if DATATYPES[spec.datatype].is_float and b"null" in b"".join(texts):
                return None
            columns.append(texts if len(output.shape) == 1 else [b"[" + t + b"]" for t in texts])
        if self._dress is not None:
            try:
                rows = self._dress(columns)
            except ModelFailed:
                return None
        elif len(columns) == 1:
            rows = columns[0]
        else:
            rows = [object_text(self._names, row) for row in zip(*columns, strict=True)]
        opening = self._opening
        return [opening + row + b"]}" for row in rows]


def _reader(signature: Signature) -> Callable[[bytes], Sequence[bytes] | None] | None:
    specs = signature.inputs
    if len(specs) == 1 and len(specs[0].shape) == 2 and specs[0].shape[1] > 0:
        spec = specs[0]
        datatype = DATATYPES[spec.datatype]
        if not datatype.is_float or not datatype.code:
            return None
        pack = packer(datatype.code, spec.shape[1]).pack
        lists = msgspec.json.Decoder(ListRows).decode
        records = _record_decoder(spec.columns, float) if _can_be_fields(spec.columns) else None

        def read(body: bytes) -> Sequence[bytes] | None:
            try:
                (row,) = lists(body).instances
                return (pack(*row),)
            except FAULTS:
                pass
            if records is None:
                return None
            try:
                (record,) = records(body).instances
                return (pack(*msgspec.structs.astuple(record)),)
            except FAULTS:
                return None

        return read
    plain = all(len(s.shape) == 1 and _column_kind(s.datatype) for s in specs)
    if len(specs) > 1 and plain and _can_be_fields([s.name for s in specs]):
        kinds = [_column_kind(spec.datatype) for spec in specs]
        decode = _record_decoder(tuple(s.name for s in specs), *kinds)
        packs = [
            _pack_text if s.datatype == "BYTES" else packer(DATATYPES[s.datatype].code, 1).pack
            for s in specs
        ]

        def read_record(body: bytes) -> Sequence[bytes] | None:
            try:
                (record,) = decode(body).instances
                values = msgspec.structs.astuple(record)
                return [pack(value) for pack, value in zip(packs, values, strict=True)]
            except FAULTS:
                return None

        return read_record
    return None


def _column_kind(datatype: str) -> Any:
    """Return the JSON type of a column that may be plain, None for the others."""
    if datatype in ("FP32", "FP64"):
        return float
    if datatype == "BYTES":
        return str
    return int if DATATYPES[datatype].is_integer else None


def _can_be_fields(names: Sequence[str]) -> bool:
    """Whether msgspec can have these as a struct's fields: unique, and without escapes in JSON."""
    return 0 < len(set(names)) == len(names) and not any(_ESCAPED.search(name) for name in names)


def _record_decoder(names: tuple[str, ...], *kinds: Any) -> Callable[[bytes], Any]:
    """Return a decoder of `{"instances": [{name: value, …}]}` with exactly these columns."""
    if len(kinds) == 1:
        kinds = kinds * len(names)
    fields = [(f"f{i}", kind) for i, kind in enumerate(kinds)]
    rename = {f"f{i}": name for i, name in enumerate(names)}
    record = msgspec.defstruct(
        "Record", fields, rename=rename, forbid_unknown_fields=True, gc=False
    )
    body = msgspec.defstruct(
        "RecordRows",
        [("instances", list[record])],  # type: ignore[valid-type]
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(body).decode


def _pack_text(value: str) -> bytes:
    text = value.encode()
    return len(text).to_bytes(4, "little") + text
