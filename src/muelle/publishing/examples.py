"""Examples of a version: requests read from files, and the answers that a worker gives to them.

Not for protocols: the codecs of the server read the files, so that what is an example here is a
request there, and an error names the same field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from muelle.core.errors import ArtifactError, MuelleError, Unprocessable
from muelle.core.records import Example, StoredTensor
from muelle.core.request import InferRequest
from muelle.core.signature import Signature, made_up_example
from muelle.lifecycle.compare import compare_answers
from muelle.protocols.http import JSON, HttpRequest
from muelle.protocols.native import ARROW, CSV, NPY, NativeCodec, example_body
from muelle.protocols.v2 import V2Codec

MAX_BYTES = 16 * 1024 * 1024
"""Of all requests of a version together: they are run at each load."""

_JSON_DEPTH = 64
_MEDIA = {".csv": CSV, ".npy": NPY, ".arrow": ARROW, ".arrows": ARROW}

Inputs = tuple[StoredTensor, ...]
Answer = Callable[[Sequence[StoredTensor]], tuple[StoredTensor, ...]]
"""Runs one batch in a worker. Raises ModelFailed or ArtifactError."""


def read_examples(signature: Signature, files: Sequence[Path]) -> tuple[Inputs, ...]:
    """Return one request per file: a body as the native API reads it (JSON, or CSV, npy or Arrow by
    the file's ending), or a v2 request.

    Raise ArtifactError, which names the file and the field at fault.
    """
    found = [_read_file(signature, file) for file in files]
    total = sum(len(tensor.content) for inputs in found for tensor in inputs)
    if total > MAX_BYTES:
        raise ArtifactError(
            f"the examples have {total / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.1f} MB are kept; a "
            "few rows are enough: they are run at each load"
        )
    return tuple(found)


def decode_body(signature: Signature, body: bytes, media: bytes = JSON) -> Inputs:
    """Return the tensors of one request body. Raise BadRequest, which names the field."""
    request: InferRequest
    if media == JSON and _is_v2(body):
        request = V2Codec("example", "1", signature, "null", _JSON_DEPTH, 1).decode(body, None)
    else:
        codec = NativeCodec("example", "1", signature, "null", _JSON_DEPTH, 1)
        headers = {b"content-type": media}
        request = codec.decode(HttpRequest(b"POST", "/", b"", headers, body))
    return tuple(
        StoredTensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tuple(tensor.shape),
            content=bytes(tensor.memory()),
        )
        for tensor in request.inputs
    )


def own_example(signature: Signature, row: dict[str, Any] | None) -> tuple[Inputs, bool]:
    """Return one request for want of a file: the artifact's own row, else a made-up one; and
    whether it is made up. Raise BadRequest when the row does not fit the signature."""
    made_up = row is None
    values = made_up_example(signature) if row is None else row
    body = msgspec.json.encode(example_body(signature, values))
    return decode_body(signature, body), made_up


def answer_twice(
    inputs: Inputs, answer: Answer, *, rtol: float, atol: float, made_up: bool = False
) -> tuple[Example, str]:
    """Run one request twice; return the example, and how the answers differ ("" when equal)."""
    first, second = answer(inputs), answer(inputs)
    trouble = compare_answers(first, second, rtol=rtol, atol=atol)
    example = Example(inputs=inputs, outputs=first, made_up=made_up, repeatable=not trouble)
    return example, trouble


def _read_file(signature: Signature, file: Path) -> Inputs:
    try:
        if file.stat().st_size > 4 * MAX_BYTES:
            raise ArtifactError(f"{file}: too large for an example; a few rows are enough")
        body = file.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"{file}: cannot be read: {exc.strerror}") from exc
    try:
        return decode_body(signature, body, _MEDIA.get(file.suffix.lower(), JSON))
    except MuelleError as exc:
        raise Unprocessable(f"{file}: {exc.message}", field=exc.field) from exc


def _is_v2(body: bytes) -> bool:
    """Whether a JSON body is a v2 request: its inputs are a list of named, typed tensors."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    inputs = value.get("inputs") if isinstance(value, dict) else None
    return isinstance(inputs, list) and any(
        isinstance(one, dict) and {"name", "datatype", "shape"} <= one.keys() for one in inputs
    )
