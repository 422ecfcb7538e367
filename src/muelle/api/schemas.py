"""JSON Schemas (2020-12, as in OpenAPI 3.1) of what one model version takes and gives. Pure.

They say what the codecs accept, no more and no less: a body that fits its schema is not refused for
its form. Whether the model can use the values is another matter.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES

Schema: TypeAlias = dict[str, Any]

_FLOAT_MAX = {"FP16": 65504.0, "BF16": 3.3895313892515355e38, "FP32": 3.4028234663852886e38}


# --- one tensor ---


def element(spec: TensorSpec, *, missing: bool) -> Schema:
    """Return the schema of one element. `missing`: whether null may stand for a missing value."""
    null = ["null"] if missing else []
    if spec.datatype == "BYTES":
        text: Schema = {"type": ["string", *null] if null else "string"}
        return text
    if spec.datatype == "BOOL":
        return {"type": "boolean"}
    datatype = DATATYPES[spec.datatype]
    if datatype.is_float:
        number: Schema = {"type": ["number", *null] if null else "number"}
        if spec.datatype in _FLOAT_MAX:
            most = _FLOAT_MAX[spec.datatype]
            number |= {"minimum": -most, "maximum": most}
        return number
    bits = datatype.size * 8
    low, high = (
        (0, 2**bits - 1)
        if spec.datatype.startswith("U")
        else (
            -(2 ** (bits - 1)),
            2 ** (bits - 1) - 1,
        )
    )
    return {"type": "integer", "minimum": low, "maximum": high}


def nested(shape: tuple[int, ...], leaf: Schema) -> Schema:
    """Return nested arrays of a shape; a free axis (-1) has any length."""
    schema = leaf
    for size in reversed(shape):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def described(schema: Schema, spec: TensorSpec) -> Schema:
    """Add the datatype and shape in words."""
    return {**schema, "description": spec.describe()}


# --- native ---


def native_request(signature: Signature) -> Schema:
    """Return the body of a native prediction."""
    by_tensor = _object(
        {s.name: described(nested(s.shape, element(s, missing=True)), s) for s in signature.inputs},
        [s.name for s in signature.inputs if not s.optional],
    )
    inputs = _object({"inputs": by_tensor}, ["inputs"])
    if not signature.has_rows:
        return inputs
    rows = _rows(signature)
    instances: Schema = {"type": "array", "minItems": 1, "items": rows}
    forms = [_object({"instances": instances}, ["instances"]), inputs, instances]
    record = record_schema(signature)
    if record is not None:
        forms.append(record)
    return {"anyOf": forms}


def record_schema(signature: Signature) -> Schema | None:
    """Return the schema of a `{column: value}` row, None when the model has no column names."""
    if len(signature.inputs) > 1:
        return _object(
            {
                s.name: described(nested(s.row_shape, element(s, missing=True)), s)
                for s in signature.inputs
            },
            [s.name for s in signature.inputs if not s.optional],
        )
    spec = signature.inputs[0]
    leaf = element(spec, missing=True)
    if spec.columns:
        return _object(dict.fromkeys(spec.columns, leaf), list(spec.columns))
    return _object({spec.name: described(nested(spec.row_shape, leaf), spec)}, [spec.name])


def _rows(signature: Signature) -> Schema:
    record = record_schema(signature)
    if len(signature.inputs) > 1:
        return record or {}
    spec = signature.inputs[0]
    row = described(nested(spec.row_shape, element(spec, missing=True)), spec)
    return {"anyOf": [row, record]} if record is not None else row


def native_response(signature: Signature, *, json_nan: str = "error") -> Schema:
    """Return the JSON answer of a native prediction, with `?outputs=` and without."""
    picked = {
        "type": "object",
        "description": "By output, when the request picked some with ?outputs=",
        "additionalProperties": True,
    }
    return {
        "type": "object",
        "required": ["model", "version", "predictions"],
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "string"},
            "predictions": {
                "type": "array",
                "description": "One per row",
                "items": {"anyOf": [prediction(signature, json_nan), picked]},
            },
        },
    }


def prediction(signature: Signature, json_nan: str) -> Schema:
    """Return the answer to one row as the codec writes it when nothing is picked."""
    roles = {s.role: s for s in signature.outputs if s.role}
    probabilities = roles.get("probabilities")
    label = roles.get("label")
    if probabilities is not None and probabilities.classes:
        return _classified(probabilities, label, json_nan)
    whole = not signature.has_rows
    each = {s.name: _output(s, whole, json_nan) for s in signature.outputs}
    if len(each) == 1 and not whole:
        return next(iter(each.values()))
    return _object(each, list(each))


def _classified(probabilities: TensorSpec, label: TensorSpec | None, json_nan: str) -> Schema:
    by_class = {str(name): _leaf(probabilities, json_nan) for name in probabilities.classes}
    labels: Schema = {"enum": list(probabilities.classes)}
    if label is not None:
        labels = _leaf(label, json_nan)
    return {
        "type": "object",
        "required": ["label", "probabilities"],
        "properties": {"label": labels, "probabilities": _object(by_class, list(by_class))},
    }


def _output(spec: TensorSpec, whole: bool, json_nan: str) -> Schema:
    shape = spec.shape if whole else spec.row_shape
    return described(nested(shape, _leaf(spec, json_nan)), spec)


def _leaf(spec: TensorSpec, json_nan: str) -> Schema:
    if DATATYPES[spec.datatype].is_float:
        return {
            "type": {"null": ["number", "null"], "string": ["number", "string"]}.get(
                json_nan, "number"
            )
        }
    if spec.datatype == "BYTES":
        return {"type": ["string", "null"]}
    return {"type": "boolean" if spec.datatype == "BOOL" else "integer"}


# --- v2 ---


def v2_request(signature: Signature) -> Schema:
    """Return the "Inference Request JSON Object" of one model; binary tensors are not in it."""
    tensors = [_v2_input(spec) for spec in signature.inputs]
    required = [s.name for s in signature.inputs if not s.optional]
    inputs: Schema = {
        "type": "array",
        "items": {"anyOf": tensors},
        "minItems": len(required),
        "maxItems": len(tensors),
    }
    if len(tensors) > 1:
        inputs["allOf"] = [
            {"contains": {"properties": {"name": {"const": name}}}, "maxContains": 1}
            for name in required
        ]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": inputs,
            "outputs": {"type": "array", "items": _v2_wanted(signature)},
        },
    }


def v2_response(signature: Signature) -> Schema:
    """Return the "Inference Response JSON Object" of one model, JSON outputs."""
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"enum": [s.name for s in signature.outputs]},
                        "datatype": {
                            "enum": sorted({*(s.datatype for s in signature.outputs), "BYTES"})
                        },
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                        "data": {"type": "array", "description": "Flat, row-major"},
                        "parameters": {"type": "object"},
                    },
                },
            },
        },
    }


def _v2_input(spec: TensorSpec) -> Schema:
    sizes = [{"const": d} if d >= 0 else {"type": "integer", "minimum": 0} for d in spec.shape]
    shape: Schema = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    if sizes:
        shape |= {"prefixItems": sizes, "items": False}
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "description": spec.describe(),
        "properties": {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": spec.datatype},
            "data": {"type": "array", "description": "Row-major; nested to the shape, or flat"},
            "parameters": {"type": "object"},
        },
    }


def _v2_wanted(signature: Signature) -> Schema:
    return {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": [s.name for s in signature.outputs]},
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data": {"type": "boolean"},
                    "classification": {"type": "integer", "minimum": 1},
                },
            },
        },
    }


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
