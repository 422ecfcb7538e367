"""JSON Schemas (2020-12, as in OpenAPI 3.1) of what one model version takes and gives. Pure.

They accept what the codecs accept, as far as JSON Schema can say it: it has no words for "as many
elements as the shape says" (v2), for "the same free size in every row", nor for "the same optional
columns in every row". Whether the model can use the values is another matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES, element_count
from muelle.protocols.native import JsonNan
from muelle.protocols.native_answers import class_text

Schema: TypeAlias = dict[str, Any]

# The last double that still rounds to the greatest number of the type, not to infinity.
_FLOAT_MAX = {"FP16": 65519.99999999999, "FP32": 3.4028235677973362e38}
_HALVES = ("FP16", "BF16")


# --- one tensor ---


def element(spec: TensorSpec, *, native: bool) -> Schema:
    """Return the schema of one element. The native protocol also takes null for a missing number
    or text, and bytes as base64."""
    null = ["null"] if native else []
    if spec.datatype == "BYTES":
        return {"anyOf": [{"type": ["string", "null"]}, _B64]} if native else {"type": "string"}
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
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if spec.datatype.startswith("U"):
        low, high = 0, 2**bits - 1
    return {"type": "integer", "minimum": low, "maximum": high}


def nested(shape: Sequence[int], leaf: Schema) -> Schema:
    """Return nested arrays of a shape; a free axis (-1) has any length."""
    schema = leaf
    for size in reversed(shape):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def has_halves(specs: Sequence[TensorSpec]) -> bool:
    """Whether v2 can carry these tensors as bytes only."""
    return any(spec.datatype in _HALVES for spec in specs)


def _described(schema: Schema, spec: TensorSpec) -> Schema:
    return {**schema, "description": spec.describe()}


# --- native ---


def native_request(signature: Signature) -> Schema:
    """Return the body of a native prediction: any of its JSON forms."""
    values = {s.name: _described(_whole(s, signature.has_rows), s) for s in signature.inputs}
    required = [s.name for s in signature.inputs if not s.optional]
    tensors: Schema = _object(values, required)
    if len(values) == 1:
        tensors = {"anyOf": [tensors, next(iter(values.values()))]}
    inputs = _object({"inputs": tensors}, ["inputs"])
    if not signature.has_rows:
        return inputs
    rows: Schema = {"type": "array", "minItems": 1, "items": {"anyOf": _row_forms(signature)}}
    forms = [_object({"instances": rows}, ["instances"]), inputs, rows, _record(signature)]
    only = signature.inputs[0]
    if len(signature.inputs) == 1 and only.datatype == "BYTES" and not only.columns:
        forms.append(_B64)
    return {"anyOf": forms}


def _whole(spec: TensorSpec, has_rows: bool) -> Schema:
    """Return a whole tensor; the axis of rows is never empty."""
    if not has_rows:
        return nested(spec.shape, element(spec, native=True))
    return {"type": "array", "items": _row(spec), "minItems": 1}


def _row(spec: TensorSpec) -> Schema:
    """Return one row of a tensor; a row of one value may come with or without brackets."""
    row = nested(spec.row_shape, element(spec, native=True))
    if spec.row_shape == (1,):
        return {"anyOf": [row, element(spec, native=True)]}
    if spec.row_shape == ():
        return {"anyOf": [row, nested((1,), row)]}
    return row


def _row_forms(signature: Signature) -> list[Schema]:
    record = _record(signature)
    if len(signature.inputs) == 1:
        return [record, _described(_row(signature.inputs[0]), signature.inputs[0])]
    in_order: Schema = {
        "type": "array",
        "prefixItems": [_described(_row(spec), spec) for spec in signature.inputs],
        "items": False,
        "minItems": len(signature.inputs),
        "maxItems": len(signature.inputs),
        "description": ", ".join(spec.name for spec in signature.inputs),
    }
    return [record, in_order]


def _record(signature: Signature) -> Schema:
    """Return a row as `{column: value}`: by tensor, or by the only tensor's columns."""
    only = signature.inputs[0]
    if len(signature.inputs) == 1 and only.columns:
        leaf = element(only, native=True)
        return _object(dict.fromkeys(only.columns, leaf), list(only.columns))
    optional = len(signature.inputs) > 1
    return _object(
        {s.name: _described(_row(s), s) for s in signature.inputs},
        [s.name for s in signature.inputs if not (s.optional and optional)],
    )


def native_response(signature: Signature, json_nan: JsonNan = "error") -> Schema:
    """Return the JSON answer of a native prediction, with `?outputs=` and without."""
    values = {s.name: _output(s, signature.has_rows, json_nan) for s in signature.outputs}
    usual = prediction(signature, json_nan)
    picked: list[Schema] = [value for value in values.values() if value != usual]
    if len(values) > 1:
        picked.append({**_object(values, []), "description": "Outputs picked by ?outputs="})
    return {
        "type": "object",
        "required": ["model", "version", "predictions"],
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "string"},
            "predictions": {
                "type": "array",
                "description": "One per row",
                "items": {"anyOf": [usual, *picked]} if picked else usual,
            },
        },
    }


def prediction(signature: Signature, json_nan: JsonNan) -> Schema:
    """Return the answer to one row as the codec writes it when nothing is picked."""
    roles = {s.role: s for s in signature.outputs if s.role}
    if signature.has_rows and len(roles) == len(signature.outputs):
        label, probabilities = roles.get("label"), roles.get("probabilities")
        if probabilities is not None and probabilities.classes:
            return _classified(probabilities, label, json_nan)
        if probabilities is None and label is not None:
            return _object({"label": _leaf(label, json_nan)}, ["label"])
    each = {s.name: _output(s, signature.has_rows, json_nan) for s in signature.outputs}
    return next(iter(each.values())) if len(each) == 1 else _object(each, list(each))


def _classified(probabilities: TensorSpec, label: TensorSpec | None, json_nan: JsonNan) -> Schema:
    leaf = _leaf(probabilities, json_nan)
    by_class = {class_text(name): leaf for name in probabilities.classes}
    labels: Schema = {"enum": list(probabilities.classes)}
    if label is not None:
        labels = _leaf(label, json_nan)
    members = {"label": labels, "probabilities": _object(by_class, list(by_class))}
    return _object(members, list(members))


def _output(spec: TensorSpec, has_rows: bool, json_nan: JsonNan) -> Schema:
    shape = spec.row_shape if has_rows else spec.shape
    return _described(nested(shape, _leaf(spec, json_nan)), spec)


def _leaf(spec: TensorSpec, json_nan: JsonNan) -> Schema:
    if DATATYPES[spec.datatype].is_float:
        also = {"error": [], "null": ["null"], "string": ["string"]}[json_nan]
        return {"type": ["number", *also] if also else "number"}
    if spec.datatype == "BYTES":
        return {"type": ["string", "null"]}
    return {"type": "boolean" if spec.datatype == "BOOL" else "integer"}


# --- v2 ---


def v2_request(signature: Signature) -> Schema:
    """Return the "Inference Request JSON Object" of one model; binary tensors are not in it."""
    required = [s.name for s in signature.inputs if not s.optional]
    inputs: Schema = {
        "type": "array",
        "items": {"anyOf": [_v2_input(spec, signature.has_rows) for spec in signature.inputs]},
        "minItems": len(required),
        "maxItems": len(signature.inputs),
    }
    if len(signature.inputs) > 1:
        inputs["allOf"] = [
            {"contains": {"properties": {"name": {"const": name}}}, "maxContains": 1}
            for name in required
        ]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "inputs": inputs,
            "outputs": {"type": ["array", "null"], "items": _v2_wanted(signature)},
        },
    }


def v2_response(signature: Signature) -> Schema:
    """Return the "Inference Response JSON Object" of one model."""
    datatypes = {*(s.datatype for s in signature.outputs), "BYTES"}
    output = _object(
        {
            "name": {"enum": [s.name for s in signature.outputs]},
            "datatype": {"enum": sorted(datatypes), "description": "BYTES also for classes"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array", "description": "Flat, row-major"},
            "parameters": {"type": "object"},
        },
        ["name", "datatype", "shape"],
    )
    return _object(
        {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": output},
        },
        ["model_name", "model_version", "outputs"],
    )


def generate_request(signature: Signature) -> Schema:
    """Return the flat body of the generate extension: inputs by name, and parameters."""
    inputs = {s.name: _described(_flat(s), s) for s in signature.inputs}
    return {
        "type": "object",
        "required": [s.name for s in signature.inputs if not s.optional],
        "properties": {"id": {"type": "string"}, "parameters": {"type": "object"}} | inputs,
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }


def generate_response(signature: Signature) -> Schema:
    """Return the flat answer of the generate extension."""
    names: dict[str, Schema] = {
        name: {"type": "string"} for name in ("id", "model_name", "model_version")
    }
    outputs: dict[str, Schema] = {
        s.name: {"description": f"{s.describe()}, flat; one element stands alone"}
        for s in signature.outputs
    }
    return {"type": "object", "properties": names | outputs, "required": list(outputs)}


def _flat(spec: TensorSpec) -> Schema:
    """Return one value, or a flat array in row-major order."""
    leaf = element(spec, native=False)
    array: Schema = {"type": "array", "items": leaf}
    if -1 in spec.shape:
        return {"anyOf": [leaf, array | {"minItems": 1}]}
    count = element_count(spec.shape)
    array |= {"minItems": count, "maxItems": count}
    return {"anyOf": [leaf, array]} if count == 1 else array


def _v2_input(spec: TensorSpec, has_rows: bool) -> Schema:
    sizes: list[Schema] = [
        {"const": d} if d >= 0 else {"type": "integer", "minimum": 0} for d in spec.shape
    ]
    if has_rows:
        sizes[0] = {"type": "integer", "minimum": 1}
    shape: Schema = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    if sizes:
        shape |= {"prefixItems": sizes, "items": False}
    leaf = element(spec, native=False)
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "description": spec.describe(),
        "properties": {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": spec.datatype},
            "data": {
                "type": "array",
                "items": {"anyOf": [leaf, {"type": "array"}]},
                "description": "Row-major; nested to the shape, or flat",
            },
            "parameters": {"type": ["object", "null"]},
        },
    }


def _v2_wanted(signature: Signature) -> Schema:
    return {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": [s.name for s in signature.outputs]},
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "binary_data": {"type": ["boolean", "null"]},
                    "classification": {"type": ["integer", "null"], "minimum": 1},
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


_B64 = _object({"b64": {"type": "string", "contentEncoding": "base64"}}, ["b64"])
