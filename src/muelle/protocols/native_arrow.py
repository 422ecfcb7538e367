"""Arrow streams to columns of Python values. Not for meaning: `table` fits them to the model.

An Arrow stream can announce far more rows than it has bytes (columns without buffers, compressed
buffers, strings told once and meant often). All of that is refused before anything is expanded.
"""

from __future__ import annotations

import importlib.util
import struct
from typing import Any

from muelle.core.errors import BadRequest, UnsupportedMedia

CELLS_PER_BYTE = 8
"""A boolean takes one bit; nothing that a model wants takes less."""
TEXT_PER_BYTE = 32
FREE_TEXT = 1 << 20
"""Text told by a dictionary may grow to this many bytes, or to TEXT_PER_BYTE times the body."""

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
"""Source: Arrow's Message.fbs, `union MessageHeader`."""

Columns = dict[str, list[Any]]


def read_arrow(body: bytes) -> tuple[list[str], Columns, int]:
    """Return the names, the values by name, and the number of rows of a stream.

    Raise UnsupportedMedia without pyarrow, BadRequest for a stream that cannot be used.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UnsupportedMedia(
            "Arrow bodies need pyarrow on the server: pip install 'muelle[arrow]'"
        )
    import pyarrow as pa

    try:
        _refuse_compressed(pa, body)
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            names = [str(name) for name in reader.schema.names]
            _check_columns(pa, reader.schema, names)
            found = reader.read_all()
        found.validate(full=True)
        if found.num_rows * len(names) > CELLS_PER_BYTE * len(body):
            raise BadRequest("Arrow: more values announced than the body has bytes for")
        for name, column in zip(names, found.columns, strict=True):
            _check_growth(pa, name, column, len(body))
        columns = {name: found.column(i).to_pylist() for i, name in enumerate(names)}
    except (pa.ArrowException, ValueError, TypeError, OverflowError, OSError, struct.error) as exc:
        raise BadRequest(f"Arrow: not a readable stream ({type(exc).__name__})") from None
    return names, columns, found.num_rows


def _check_columns(pa: Any, schema: Any, names: list[str]) -> None:
    if not names:
        raise BadRequest("Arrow: no columns")
    if len(set(names)) != len(names):
        raise BadRequest("Arrow: a column is there twice")
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not any(fits(kind) for fits in _plain_kinds(pa)):
            shown = str(field.type)[:80]
            raise BadRequest(
                f"column {field.name[:80]!r}: Arrow type {shown} is not read here; numbers, "
                "booleans, text and binary are",
                field=field.name[:80],
            )


def _plain_kinds(pa: Any) -> tuple[Any, ...]:
    is_ = pa.types
    return (
        is_.is_null,
        is_.is_boolean,
        is_.is_integer,
        is_.is_floating,
        is_.is_string,
        is_.is_large_string,
        is_.is_binary,
        is_.is_large_binary,
    )


def _check_growth(pa: Any, name: str, column: Any, body_bytes: int) -> None:
    """Refuse a dictionary whose texts, written out row by row, are out of all proportion."""
    if not pa.types.is_dictionary(column.type):
        return
    import pyarrow.compute as pc

    kind = column.type.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and not (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    ):
        return
    total = 0
    for chunk in column.chunks:
        sizes = pc.binary_length(chunk.dictionary).cast(pa.int64())
        total += pc.sum(sizes.take(chunk.indices)).as_py() or 0
    if total > max(FREE_TEXT, TEXT_PER_BYTE * body_bytes):
        raise BadRequest(
            f"column {name[:80]!r}: its dictionary stands for {total} bytes of text, far more than "
            "the body has; send plain text",
            field=name[:80],
        )


def _refuse_compressed(pa: Any, body: bytes) -> None:
    """Look at the headers only: reading a compressed batch already expands it."""
    with pa.BufferReader(body) as source:
        reader = pa.ipc.MessageReader.open_stream(source)
        while True:
            try:
                message = reader.read_next_message()
            except StopIteration:
                return
            if message is None:
                return
            if _is_compressed(bytes(message.metadata)):
                raise BadRequest(
                    "Arrow: compressed batches are not read here; write the stream without "
                    "compression"
                )


def _is_compressed(header: bytes) -> bool:
    """Whether a message is a batch with `RecordBatch.compression`. pyarrow has verified it before.

    Source: Arrow's Message.fbs; FlatBuffers' internals, "Tables".
    """
    message = _u32(header, 0)
    kind_at = _member(header, message, 1)
    batch = _target(header, _member(header, message, 2))
    kind = header[kind_at] if kind_at else 0
    if kind == _DICTIONARY_BATCH and batch:
        batch = _target(header, _member(header, batch, 1))
    elif kind != _RECORD_BATCH:
        return False
    return bool(batch and _member(header, batch, 3))


def _member(header: bytes, table: int, index: int) -> int:
    """Return where a table's member lies, 0 when it is not there."""
    (back,) = struct.unpack_from("<i", header, table)
    vtable = table - back
    slot = 4 + 2 * index
    if slot >= struct.unpack_from("<H", header, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", header, vtable + slot)[0]
    return table + offset if offset else 0


def _target(header: bytes, at: int) -> int:
    return at + _u32(header, at) if at else 0


def _u32(header: bytes, at: int) -> int:
    found: int = struct.unpack_from("<I", header, at)[0]
    return found
