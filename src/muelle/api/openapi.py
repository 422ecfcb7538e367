"""The OpenAPI 3.1 document of a running server, made from its models. Pure; no web framework.

One typed operation per model (and per version, when there are several) and protocol, with the
model's own example; then the control endpoints. Not for pages: `page` shows it to people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from muelle.api import schemas
from muelle.api.answers import EXAMPLE_LIMIT_BYTES
from muelle.api.examples import example_body, example_of, v2_example_body
from muelle.api.schemas import Schema
from muelle.core.signature import Signature
from muelle.core.status import ModelStatus, VersionStatus
from muelle.protocols.native import JsonNan

PROBLEM = "application/problem+json"
JSON = "application/json"

_ERRORS: Mapping[int, str] = {
    400: "The request does not say what the model wants; the text names the field",
    404: "No such model or version; the text lists near names",
    406: "No accepted form can carry the answer",
    408: "The body came too slowly",
    413: "The body is over the limit",
    415: "The body's type or encoding is not read here",
    422: "The values cannot be used by this model",
    431: "The headers are over the limit",
    500: "The model failed, or the server; the log has more under the request id",
    503: "Too many requests wait, or the model does not answer now; retry later",
    504: "The deadline passed first",
}


def describe(
    models: Sequence[ModelStatus], server_version: str, json_nan: JsonNan = "error"
) -> dict[str, Any]:
    """Return the whole document. Versions that were never loaded have no typed operation."""
    paths: dict[str, Any] = {}
    tags: list[dict[str, str]] = []
    component_schemas: dict[str, Schema] = dict(_COMMON_SCHEMAS)
    names = _Identifiers()
    for model in models:
        tags.append({"name": model.name, "description": _about(model)})
        for version, address in _served(model):
            assert version.signature is not None
            identifier = names.unique(address)
            for path, operation, made in (
                _native(model, version, address, identifier, json_nan),
                _v2(model, version, address, identifier),
                *_generate(model, version, address, identifier),
            ):
                paths[path] = {"post": operation}
                component_schemas |= made
    tags.append({"name": "control", "description": "What is served, and how it is"})
    tags.append({"name": "Open Inference Protocol", "description": "Health and metadata of v2"})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Muelle",
            "version": server_version,
            "description": "Predictions by the models that this server has loaded.",
        },
        "tags": tags,
        "paths": paths | _control_paths(),
        "components": {
            "schemas": component_schemas,
            "parameters": _PARAMETERS | {"name": _name_parameter(models)},
            "responses": _RESPONSES,
        },
    }


def _name_parameter(models: Sequence[ModelStatus]) -> Schema:
    """Return the parameter of a model's name: those that are served now."""
    names = [model.name for model in models]
    schema: Schema = {"type": "string", **({"enum": names} if names else {})}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


class _Identifiers:
    """Turns addresses into identifiers that stay unique: `a.b` and `a-b` are two models."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, address: str) -> str:
        base = name = re.sub(r"[^a-z0-9]+", "_", address.removeprefix("models/"))
        count = 2
        while name in self._taken:
            name = f"{base}_{count}"
            count += 1
        self._taken.add(name)
        return name


def _served(model: ModelStatus) -> Iterator[tuple[VersionStatus, str]]:
    default = model.default_version
    if default is not None and default.signature is not None:
        yield default, f"models/{model.name}"
    if len(model.versions) > 1:
        for version in model.versions:
            if version.signature is not None:
                yield version, f"models/{model.name}/versions/{version.version}"


def _about(model: ModelStatus) -> str:
    numbers = ", ".join(v.version for v in model.versions)
    default = model.default_version
    kind = f"{default.format}, " if default is not None else ""
    return f"{kind}version {model.default} answers by default; versions: {numbers}"


# --- predictions ---

Operation = tuple[str, dict[str, Any], dict[str, Schema]]


def _native(
    model: ModelStatus, version: VersionStatus, address: str, name: str, json_nan: JsonNan
) -> Operation:
    signature = _signature(version)
    request, response = f"{name}.request", f"{name}.response"
    content: dict[str, Any] = {JSON: {"schema": _schema(request)}}
    body = example_body(signature, example_of(version))
    content[JSON] |= _examples(body, f"{address}/example")
    content["text/csv"] = {"schema": {"type": "string"}}
    if len(signature.inputs) == 1:
        content["application/x-npy"] = {"schema": _BYTES}
    answer = {
        JSON: {"schema": _schema(response)},
        "text/csv": {"schema": {"type": "string"}},
        "application/x-npy": {"schema": _BYTES},
    }
    operation = {
        "operationId": f"predict_{name}",
        "tags": [model.name],
        "summary": f"Predict with {model.name}" + _which(model, version, address),
        "description": _signature_text(signature),
        "parameters": [
            _parameter("timeout"),
            {
                "name": "outputs",
                "in": "query",
                "description": "Outputs to return, by name; all when absent",
                "explode": False,
                "schema": {
                    "type": "array",
                    "items": {"enum": [s.name for s in signature.outputs]},
                    "minItems": 1,
                },
            },
        ],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": _ok("One prediction per row", answer, predicted=True),
            **_errors("problem", (400, 404, 406, 408, 413, 415, 422, 431, 500, 503, 504)),
        },
    }
    made = {
        request: schemas.native_request(signature),
        response: schemas.native_response(signature, json_nan),
    }
    return f"/{address}/predict", operation, made


def _v2(model: ModelStatus, version: VersionStatus, address: str, name: str) -> Operation:
    signature = _signature(version)
    request, response = f"{name}.v2.request", f"{name}.v2.response"
    body = v2_example_body(signature, example_of(version))
    described = _examples(body, f"{address}/example?protocol=v2")
    content: dict[str, Any] = {JSON: {"schema": _schema(request), **described}}
    if schemas.has_halves(signature.inputs):
        content = {"application/octet-stream": {"schema": _BYTES}}
    operation = {
        "operationId": f"infer_{name}",
        "tags": [model.name],
        "summary": f"Infer with {model.name}"
        + _which(model, version, address)
        + " (Open Inference Protocol v2)",
        "description": _signature_text(signature)
        + "\n\nTensors may also follow the JSON as bytes, whose start the header "
        "Inference-Header-Content-Length tells (binary tensor data extension).",
        "parameters": [_parameter("timeout")],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": _ok(
                "The output tensors",
                {
                    JSON: {"schema": _schema(response)},
                    "application/octet-stream": {"schema": _BYTES},
                },
                predicted=True,
            ),
            **_errors("v2_error", (400, 404, 406, 408, 413, 415, 431, 500, 503, 504)),
        },
    }
    made = {request: schemas.v2_request(signature), response: schemas.v2_response(signature)}
    return f"/v2/{address}/infer", operation, made


def _generate(
    model: ModelStatus, version: VersionStatus, address: str, name: str
) -> Iterator[Operation]:
    signature = _signature(version)
    if schemas.has_halves((*signature.inputs, *signature.outputs)):
        return
    request, response = f"{name}.generate.request", f"{name}.generate.response"
    made = {
        request: schemas.generate_request(signature),
        response: schemas.generate_response(signature),
    }
    events: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for one event.
    for last, operation_id, text, content, form in (
        ("generate", "generate", "Generate with", _json(response), "v2_error"),
        ("generate_stream", "stream", "Generate a stream with", events, "v2_event"),
    ):
        statuses = (400, 404, 406, 408, 413, 415, 431, 500, 503, 504)
        operation = {
            "operationId": f"{operation_id}_{name}",
            "tags": [model.name],
            "summary": f"{text} {model.name}" + _which(model, version, address),
            "description": _signature_text(signature),
            "parameters": [_parameter("timeout")],
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {
                "200": _ok("The output tensors by name", content, predicted=True),
                **_errors(form, statuses),
            },
        }
        yield f"/v2/{address}/{last}", operation, made


def _signature(version: VersionStatus) -> Signature:
    assert version.signature is not None
    return version.signature


def _which(model: ModelStatus, version: VersionStatus, address: str) -> str:
    return f" version {version.version}" if "/versions/" in address else ""


def _signature_text(signature: Signature) -> str:
    lines = ["| tensor | datatype and shape |", "|---|---|"]
    lines += (f"| in: `{s.name}` | {s.describe()} |" for s in signature.inputs)
    lines += (f"| out: `{s.name}` | {s.describe()} |" for s in signature.outputs)
    return "\n".join(lines)


def _examples(body: Any, address: str) -> dict[str, Any]:
    if body is None:
        return {}
    if len(msgspec.json.encode(body)) > EXAMPLE_LIMIT_BYTES:
        return {"examples": {"one row": {"externalValue": address}}}
    return {"example": body}


# --- control ---


def _control_paths() -> dict[str, Any]:
    name, version = _parameter("name"), _parameter("version")
    listed = (
        ("/models", "list_models", "All models", "Models", (), ()),
        ("/models/{name}", "get_model", "One model", "Model", (name,), (404,)),
        (
            "/models/{name}/versions/{version}",
            "get_version",
            "One version of a model",
            "Version",
            (name, version),
            (404,),
        ),
    )
    paths: dict[str, Any] = {
        path: {"get": _question(id_, text, "control", _json(schema), parameters, errors)}
        for path, id_, text, schema, parameters, errors in listed
    }
    paths |= _example_paths()
    for path, id_, text, schema, failing in (
        ("/live", "is_live", "Whether the server runs", "Live", "503"),
        ("/ready", "is_ready", "Whether all models answer", "Ready", "503"),
    ):
        question = _question(id_, text, "control", _json(schema), (), ())
        question["responses"][failing] = {"description": "No", "content": _json(schema)}
        paths[path] = {"get": question}
    text_content = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {
        "get": _question("get_metrics", "Prometheus metrics", "control", text_content, (), ())
    }
    return paths | _v2_control_paths()


def _example_paths() -> dict[str, Any]:
    """Describe where a body lies that predicts as it stands."""
    protocol = {
        "name": "protocol",
        "in": "query",
        "schema": {"enum": ["native", "v2"], "default": "native"},
    }
    content = {JSON: {"schema": {"type": "object"}}}
    return {
        path: {
            "get": _question(
                id_,
                "An example body, ready to be sent",
                "control",
                content,
                (*parameters, protocol),
                (400, 404, 406, 503),
            )
        }
        for path, id_, parameters in (
            ("/models/{name}/example", "get_example", (_parameter("name"),)),
            (
                "/models/{name}/versions/{version}/example",
                "get_version_example",
                (_parameter("name"), _parameter("version")),
            ),
        )
    }


def _v2_control_paths() -> dict[str, Any]:
    name, version = _parameter("name"), _parameter("version")
    paths: dict[str, Any] = {}
    for path, id_, text, schema, parameters, failing in (
        ("/v2", "v2_server", "Server metadata", "V2Server", (), ()),
        ("/v2/health/live", "v2_live", "Whether the server runs", "Live", (), (503,)),
        ("/v2/health/ready", "v2_ready", "Whether all models answer", "Ready", (), (400,)),
        ("/v2/models", "v2_models", "Names of all models", "V2Models", (), ()),
        ("/v2/models/{name}", "v2_model", "Metadata", "V2Model", (name,), (400, 404, 503)),
        (
            "/v2/models/{name}/ready",
            "v2_model_ready",
            "Whether a model answers",
            "V2Ready",
            (name,),
            (400, 404, 503),
        ),
        (
            "/v2/models/{name}/versions/{version}",
            "v2_version",
            "Metadata of a version",
            "V2Model",
            (name, version),
            (400, 404, 503),
        ),
        (
            "/v2/models/{name}/versions/{version}/ready",
            "v2_version_ready",
            "Whether a version answers",
            "V2Ready",
            (name, version),
            (400, 404, 503),
        ),
    ):
        question = _question(
            id_, text, "Open Inference Protocol", _json(schema), parameters, failing, "v2_error"
        )
        if schema in ("Live", "Ready", "V2Ready"):
            # A plain no has the same form as a yes.
            for status in failing:
                no = {"anyOf": [_schema(schema), _schema("V2Error")]}
                question["responses"][str(status)] = {
                    "description": "No",
                    "content": {JSON: {"schema": no}},
                }
        paths[path] = {"get": question}
    return paths


def _question(
    operation_id: str,
    summary: str,
    tag: str,
    content: dict[str, Any],
    parameters: Sequence[Schema],
    errors: Sequence[int],
    form: str = "problem",
) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        **({"parameters": list(parameters)} if parameters else {}),
        "responses": {
            "200": _ok("Here it is", content),
            **_errors(form, tuple(sorted({*errors, 431, 500, 503}))),
        },
    }


# --- small parts ---


def _ok(text: str, content: dict[str, Any], *, predicted: bool = False) -> dict[str, Any]:
    names = ["X-Request-Id", *(("Muelle-Model", "Muelle-Version") if predicted else ())]
    headers = {name: {"schema": {"type": "string"}} for name in names}
    return {"description": text, "headers": headers, "content": content}


def _errors(form: str, statuses: Sequence[int]) -> dict[str, Any]:
    return {str(s): {"$ref": f"#/components/responses/{form}_{s}"} for s in statuses}


def _json(name: str) -> dict[str, Any]:
    return {JSON: {"schema": _schema(name)}}


def _schema(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str) -> Schema:
    return {"$ref": f"#/components/parameters/{name}"}


def _closed(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _responses() -> dict[str, Any]:
    error = {JSON: {"schema": _schema("V2Error")}}
    forms = (
        ("problem", {PROBLEM: {"schema": _schema("Problem")}}),
        ("v2_error", error),
        # Once the model was asked for a stream, an error is an event, too.
        ("v2_event", {**error, "text/event-stream": {}}),
    )
    made: dict[str, Any] = {}
    for form, content in forms:
        for status, text in _ERRORS.items():
            response: dict[str, Any] = {"description": text, "content": content}
            if status == 503:
                response["headers"] = {
                    "Retry-After": {
                        "description": "Seconds, when a time is known",
                        "schema": {"type": "string"},
                    }
                }
            made[f"{form}_{status}"] = response
    return made


_TEXT: Schema = {"type": "string"}
_BYTES: Schema = {"contentMediaType": "application/octet-stream"}

_PARAMETERS: dict[str, Any] = {
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    "timeout": {
        "name": "timeout-ms",
        "in": "header",
        "description": "How long the caller waits, in milliseconds; the server's limit if shorter",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 999_999_999_999},
    },
}

_RESPONSES = _responses()

_TENSOR = _closed(
    name=_TEXT,
    datatype=_TEXT,
    shape={"type": "array", "items": {"type": "integer", "minimum": -1}},
)
_TENSORS: Schema = {"type": "array", "items": _TENSOR}

_COMMON_SCHEMAS: dict[str, Schema] = {
    "Problem": {
        **_closed(type=_TEXT, title=_TEXT, status={"type": "integer"}, code=_TEXT),
        "description": "Problem details, RFC 9457",
    },
    "Models": _closed(models={"type": "array", "items": _schema("Model")}),
    "Model": _closed(
        name=_TEXT,
        ready={"type": "boolean"},
        default={"type": ["string", "null"]},
        versions={"type": "array", "items": _schema("Version")},
    ),
    "Version": _closed(
        version=_TEXT,
        state={"enum": ["LOADING", "READY", "UNAVAILABLE", "QUARANTINED", "FAILED", "UNLOADING"]},
        reason=_TEXT,
        digest={"type": "string", "description": "sha256:… of the artifact, empty while unknown"},
        format=_TEXT,
        runtime=_TEXT,
        signature={"anyOf": [_closed(inputs=_TENSORS, outputs=_TENSORS), {"type": "null"}]},
        example={"type": ["object", "null"], "description": "null also when it is large"},
        info={"type": "object"},
        workers={"type": "array", "items": {"type": "object"}},
        queue_depth={"type": "integer", "minimum": 0},
        max_batch_size={"type": "integer", "minimum": 1},
    ),
    "Live": _closed(live={"type": "boolean"}),
    "Ready": _closed(ready={"type": "boolean"}),
    "V2Error": _closed(error=_TEXT),
    "V2Server": _closed(name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT}),
    "V2Models": _closed(models={"type": "array", "items": _TEXT}),
    "V2Model": _closed(
        name=_TEXT,
        versions={"type": "array", "items": _TEXT},
        platform=_TEXT,
        inputs=_TENSORS,
        outputs=_TENSORS,
    ),
    "V2Ready": _closed(name=_TEXT, ready={"type": "boolean"}),
}
