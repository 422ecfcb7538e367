"""What people pass as inputs becomes arrays; arrays a v2 request; its answer arrays again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from muelle.core.errors import BadRequest, Internal
from muelle.core.request import decode_array, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES

Array: TypeAlias = "np.ndarray[Any, Any]"

HEADER_LENGTH = "inference-header-content-length"


def to_arrays(inputs: Any, signature: Signature) -> dict[str, Array]:
    """Return arrays by input name, of the signature's datatypes.

    `inputs` is a mapping name -> array or list; records (a list of mappings column -> value, or
    anything with `to_dict(orient="records")`, such as a DataFrame); or rows for a model with one
    input. Raise BadRequest, naming what does not fit.
    """
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        inputs = inputs.to_dict(orient="records")
    if isinstance(inputs, Mapping):
        known = {spec.name: spec for spec in signature.inputs}
        unknown = sorted(set(inputs) - set(known))
        if unknown:
            raise BadRequest(
                f"no input is named {unknown[0]!r}; there are: {', '.join(known)}", field=unknown[0]
            )
        return {name: _cast(value, known[name]) for name, value in inputs.items()}
    if isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], Mapping):
        return _from_records(inputs, signature)
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadRequest(f"the model has several inputs ({names}): pass a dict of them")
    (spec,) = signature.inputs
    return {spec.name: _cast(inputs, spec)}


def _from_records(records: Sequence[Mapping[str, Any]], signature: Signature) -> dict[str, Array]:
    if len(signature.inputs) == 1 and signature.inputs[0].columns:
        (spec,) = signature.inputs
        rows = [[_member(record, column) for column in spec.columns] for record in records]
        return {spec.name: _cast(rows, spec)}
    arrays = {}
    for spec in signature.inputs:
        if spec.optional and not any(spec.name in record for record in records):
            continue
        values = [_member(record, spec.name) for record in records]
        if spec.row_shape == (1,):
            values = [[value] for value in values]
        arrays[spec.name] = _cast(values, spec)
    return arrays


def _member(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise BadRequest(f"a record has no {name!r}; it has: {', '.join(map(str, record))}")
    return record[name]


def _cast(value: Any, spec: TensorSpec) -> Array:
    try:
        if spec.datatype == "BYTES":
            return np.asarray(value, dtype=object)
        dtype = np.dtype(np.float32 if spec.datatype == "BF16" else DATATYPES[spec.datatype].numpy)
        array = np.asarray(value)
        if array.dtype.kind == "f" and dtype.kind in "iu" and not bool((array % 1 == 0).all()):
            raise ValueError("fractions cannot become integers")
        return array.astype(dtype)
    except (TypeError, ValueError, OverflowError) as exc:
        raise BadRequest(f"{spec.name}: wants {spec.describe()}: {exc}", field=spec.name) from exc


def encode_request(
    arrays: Mapping[str, Array], signature: Signature, outputs: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a v2 request with all tensors in binary form.

    Source: Open Inference Protocol v2, binary tensor data extension.
    """
    known = {spec.name: spec for spec in signature.inputs}
    tensors, blobs = [], []
    for name, array in arrays.items():
        blob = encode_array(known[name].datatype, array)
        blobs.append(blob)
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": known[name].datatype,
                "parameters": {"binary_data_size": len(blob)},
            }
        )
    head: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if outputs:
        binary = {"binary_data": True}
        head["outputs"] = [{"name": name, "parameters": binary} for name in outputs]
    text = msgspec.json.encode(head)
    headers = {HEADER_LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    return text + b"".join(blobs), headers


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None


class _Answer(msgspec.Struct):
    model_name: str
    outputs: list[_Output]
    model_version: str = ""


def decode_answer(body: bytes, head_length: str | None) -> dict[str, Array]:
    """Return the outputs of a v2 answer by name. Raise Internal when it is not one."""
    try:
        length = len(body) if head_length is None else int(head_length)
        answer = msgspec.json.decode(body[:length], type=_Answer)
        outputs, at = {}, length
        for output in answer.outputs:
            size = output.parameters.get("binary_data_size")
            shape = tuple(output.shape)
            if size is None:
                if output.datatype == "BYTES":
                    outputs[output.name] = np.asarray(output.data, dtype=object).reshape(shape)
                else:
                    dtype = DATATYPES[output.datatype].numpy
                    outputs[output.name] = np.asarray(output.data, dtype=dtype).reshape(shape)
                continue
            content = body[at : at + size]
            at += size
            outputs[output.name] = decode_array(output.datatype, shape, content)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as exc:
        raise Internal(f"the server's answer cannot be read: {exc}") from exc
    return outputs
