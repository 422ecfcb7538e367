"""The answers of the control endpoints, as values. Imports no web framework; no I/O.

Native answers follow Muelle's own form, those under `/v2` the Open Inference Protocol with Triton's
statuses (spec page, sections 4 and 21).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from muelle.api.examples import example_body, example_of, v2_example_body
from muelle.core.errors import BadRequest, NotAcceptable, Unavailable, VersionNotFound
from muelle.core.signature import TensorSpec
from muelle.core.status import ModelStatus, VersionStatus
from muelle.protocols.http import JSON, Answer
from muelle.protocols.v2 import EXTENSIONS, server_metadata

RETRY = ((b"Retry-After", b"1"),)

EXAMPLE_LIMIT_BYTES = 16 * 1024
"""A larger example is not repeated in lists and pages: it has an address of its own."""


def json_answer(value: Any, status: int = 200) -> Answer:
    """Return a JSON answer."""
    return Answer(status, JSON, msgspec.json.encode(value))


# --- health ---


def live(is_live: bool) -> Answer:
    """Answer GET /live and GET /v2/health/live."""
    return json_answer({"live": is_live}, 200 if is_live else 503)


def ready(is_ready: bool, reason: str, failing: int) -> Answer:
    """Answer a readiness question; `failing` is the protocol's status for no."""
    if is_ready:
        return json_answer({"ready": True})
    answer = json_answer({"ready": False, "reason": reason}, failing)
    answer.headers = RETRY
    return answer


# --- native ---


def models(served: Sequence[ModelStatus]) -> Answer:
    """Answer GET /models."""
    return json_answer({"models": [_model(model) for model in served]})


def model(served: ModelStatus) -> Answer:
    """Answer GET /models/{name}."""
    return json_answer(_model(served))


def version(served: ModelStatus, number: str) -> Answer:
    """Answer GET /models/{name}/versions/{version}. Raise VersionNotFound."""
    return json_answer(_version(find_version(served, number)))


def example(served: ModelStatus, number: str | None, protocol: str) -> Answer:
    """Answer GET /models/{name}[/versions/{version}]/example: a body that predicts as it stands.

    `protocol` is native or v2. Raise BadRequest, VersionNotFound, NotAcceptable or Unavailable.
    """
    body = {"native": example_body, "v2": v2_example_body}.get(protocol)
    if body is None:
        raise BadRequest("protocol: expected native or v2", field="protocol")
    one = find_version(served, number)
    if one.signature is None:
        raise Unavailable(f"{served.name}: {one.reason}", retry_after_s=1.0)
    made = body(one.signature, example_of(one))
    if made is None:
        raise NotAcceptable(f"{served.name}: JSON cannot carry its inputs in this protocol")
    return json_answer(made)


def find_version(served: ModelStatus, number: str | None) -> VersionStatus:
    """Return a version, the default one for None. Raise VersionNotFound, which lists what is."""
    wanted = served.default if number is None else number
    for one in served.versions:
        if one.version == wanted:
            return one
    have = ", ".join(v.version for v in served.versions) or "none"
    shown = f"version {number[:40]!r}" if number is not None else "version is ready"
    raise VersionNotFound(f"{served.name}: no {shown}; there is: {have}")


def _model(served: ModelStatus) -> dict[str, Any]:
    return {
        "name": served.name,
        "ready": served.ready,
        "default": served.default,
        "versions": [_version(one) for one in served.versions],
    }


def _version(served: VersionStatus) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(served)
    if len(msgspec.json.encode(served.example)) > EXAMPLE_LIMIT_BYTES:
        told["example"] = None
    # Process ids mean nothing outside the machine.
    told["workers"] = [{k: v for k, v in w.items() if k != "pid"} for w in told["workers"]]
    return told


# --- Open Inference Protocol v2 ---


def v2_server(name: str, server_version: str) -> Answer:
    """Answer GET /v2."""
    return json_answer(server_metadata(name, server_version, EXTENSIONS))


def v2_models(served: Sequence[ModelStatus]) -> Answer:
    """Answer GET /v2/models, which is KServe's addition to the protocol."""
    return json_answer({"models": [one.name for one in served]})


def v2_model(served: ModelStatus, number: str | None) -> Answer:
    """Answer GET /v2/models/{m}[/versions/{v}]. Raise VersionNotFound or Unavailable."""
    one = find_version(served, _digits(number))
    if one.signature is None:
        raise Unavailable(f"{served.name}: {one.reason}", retry_after_s=1.0)
    ready_ones = [v.version for v in served.versions if v.state == "READY"]
    return json_answer(
        {
            "name": served.name,
            "versions": ready_ones if number is None else [one.version],
            "platform": one.runtime,
            "inputs": [_tensor(spec) for spec in one.signature.inputs],
            "outputs": [_tensor(spec) for spec in one.signature.outputs],
        }
    )


def v2_model_ready(served: ModelStatus, number: str | None) -> Answer:
    """Answer GET /v2/models/{m}[/versions/{v}]/ready. Raise VersionNotFound."""
    one = find_version(served, _digits(number))
    if one.state == "READY":
        return json_answer({"name": served.name, "ready": True})
    answer = json_answer({"name": served.name, "ready": False}, 503)
    answer.headers = RETRY
    return answer


def _digits(number: str | None) -> str | None:
    if number is not None and not (number.isascii() and number.isdigit()):
        raise BadRequest(f"version {number[:40]!r}: expected decimal digits", field="version")
    return number


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
