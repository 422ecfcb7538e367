"""Open Inference Protocol v2 over REST, with Triton's binary, parameter and class extensions.

Pure functions, no I/O: which model answers, health, and repository calls are not decided here.
Source: Open Inference Protocol v2, "HTTP/REST"; Triton's `protocol` documents; the official client
decides where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from muelle.core.errors import BadRequest, MuelleError
from muelle.core.request import InferRequest, InferResponse, encode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.protocols.http import JSON, Answer
from muelle.protocols.status import V2_STATUS
from muelle.protocols.v2_inputs import InputPlan, clipped, plain_inputs, raw_input, read_inputs
from muelle.protocols.v2_outputs import (
    JsonNan,
    OutputForm,
    V2Request,
    binary_bytes,
    by_name,
    classify,
    json_text,
    output_head,
    refuse_halves,
    wanted_outputs,
)
from muelle.protocols.v2_wire import (
    BODY_FAULTS,
    PlainOutput,
    WireInput,
    WireOutput,
    plain_decoder,
    read_body,
)

EXTENSIONS = ("classification", "binary_tensor_data", "parameters")
"""Extensions of the protocol that this codec speaks, by the names that clients look for."""

BINARY = b"application/octet-stream"
HEADER_LENGTH = b"Inference-Header-Content-Length"

_MAX_TIMEOUT_US = (1 << 63) - 1


class V2Codec:
    """Bytes to request and answer to bytes for one model version. Immutable after construction.

    `json_nan` says what becomes of NaN and infinity in a JSON answer: refuse with an error, write
    `null`, or write the strings "NaN", "Infinity", "-Infinity". `json_depth` limits the nesting of
    a body. A request may have more rows than `max_batch_size`; the scheduler splits it.
    """

    def __init__(
        self,
        model: str,
        version: str,
        signature: Signature,
        json_nan: JsonNan,
        json_depth: int,
        max_batch_size: int,
    ) -> None:
        self.model = model
        self.version = version
        self.signature = signature
        self.max_batch_size = max_batch_size
        self._json_nan: JsonNan = json_nan
        self._json_depth = json_depth
        self._has_rows = signature.has_rows
        self._plans = tuple(InputPlan(spec) for spec in signature.inputs)
        self._plans_by_name = {plan.name: plan for plan in self._plans}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._halves = any(spec.datatype in {"FP16", "BF16"} for spec in signature.outputs)
        self._decode_flat = plain_decoder(signature, json_depth, nested=False)
        self._decode_nested = (
            plain_decoder(signature, json_depth, nested=True)
            if any(plan.nested for plan in self._plans)
            else None
        )
        names = msgspec.json.encode({"model_name": model, "model_version": version})[1:-1]
        self._names = names
        self._head = b"{" + names + b',"outputs":['

    # --- request ---

    def decode(self, body: bytes, header_length: int | None) -> V2Request:
        """Read the body of an infer request. Raise BadRequest, which names the tensor or member.

        `header_length` is the value of Inference-Header-Content-Length, None when it is absent.
        """
        if header_length is None:
            request = self._decode_plain(body)
            if request is not None:
                return request
            return self._decode_any(body, memoryview(b""))
        if not 0 <= header_length <= len(body):
            raise BadRequest(
                "Inference-Header-Content-Length: expected 0 to the body's "
                f"{len(body)} bytes, got another value",
                field="Inference-Header-Content-Length",
            )
        if header_length == 0:
            tensor = raw_input(self.signature, self._plans, body)
            return V2Request([tensor], 1, binary=True)
        return self._decode_any(body[:header_length], memoryview(body)[header_length:])

    def _decode_plain(self, body: bytes) -> V2Request | None:
        """Read a body of the plain form; None when it is not, for whatever reason."""
        decoder = self._decode_flat
        if decoder is None:
            return None
        nested = False
        try:
            wire = decoder.decode(body)
        except BODY_FAULTS:
            if self._decode_nested is None:
                return None
            nested = True
            try:
                wire = self._decode_nested.decode(body)
            except BODY_FAULTS:
                return None
        found = plain_inputs(self._plans, wire.inputs, nested, self._has_rows)
        if found is None:
            return None
        if wire.parameters is None and wire.outputs is None and not self._halves:
            return V2Request(found[0], found[1], wire.id)
        return self._request(found, wire.id, wire.parameters, wire.outputs)

    def _decode_any(self, text: bytes, binary: memoryview) -> V2Request:
        wire = read_body(text, self._json_depth)
        found = read_inputs(self.signature, self._plans_by_name, wire.inputs, binary)
        return self._request(found, wire.id or "", wire.parameters, wire.outputs)

    def request_of(
        self, wires: Sequence[WireInput], id: str, parameters: Mapping[str, Any]
    ) -> V2Request:
        """Return a request whose body another codec has taken apart. Raise BadRequest."""
        found = read_inputs(self.signature, self._plans_by_name, wires, memoryview(b""))
        return self._request(found, id, parameters, None)

    def _request(
        self,
        inputs: tuple[Sequence[Any], int],
        id: str,
        parameters: Mapping[str, Any] | None,
        outputs: Sequence[WireOutput | PlainOutput] | None,
    ) -> V2Request:
        binary, timeout_s, others = _read_parameters(parameters or {})
        forms: Sequence[OutputForm] = ()
        if outputs:
            # A listed output is JSON unless it says otherwise itself, whatever the request says.
            forms, binary = wanted_outputs(self.signature, outputs), False
        elif not binary:
            refuse_halves(self.signature.outputs)
        return V2Request(
            inputs[0],
            inputs[1],
            id,
            forms,
            binary,
            others,
            timeout_s,
        )

    # --- answer ---

    def encode(self, request: V2Request, response: InferResponse) -> Answer:
        """Write the answer in the form that the request asked for.

        Call it while the response is valid. Raise NotAcceptable when an output does not fit JSON.
        """
        if request.forms or request.binary:
            return self._encode_forms(request, response)
        parts = [self._answer_head(request, response)]
        for tensor in response.outputs:
            batch = tensor.batch
            parts += (
                output_head(batch.name, batch.datatype, tensor.shape),
                b',"data":[',
                json_text(tensor, self._json_nan),
                b"]},",
            )
        parts[-1] = b"]}]}" if len(parts) > 1 else parts[0] + b"]}"
        return Answer(200, JSON, b"".join(parts))

    def _answer_head(self, request: InferRequest, response: InferResponse) -> bytes:
        if not request.id and response.parameters is None:
            return self._head
        members = [self._names]
        if request.id:
            members.insert(0, b'"id":' + msgspec.json.encode(request.id))
        if response.parameters is not None:
            members.append(b'"parameters":' + msgspec.json.encode(response.parameters))
        return b"{" + b",".join(members) + b',"outputs":['

    def _encode_forms(self, request: V2Request, response: InferResponse) -> Answer:
        """Write an answer whose outputs are chosen, binary or classified."""
        forms = request.forms or [OutputForm(t.name, True, 0) for t in response.outputs]
        outputs: list[bytes] = []
        binaries: list[bytes] = []
        for form in forms:
            tensor = by_name(response.outputs, form.name)
            shape, datatype, raw, text = tensor.shape, tensor.datatype, b"", b""
            if form.classes:
                spec = self._outputs[form.name]
                datatype = "BYTES"
                shape, texts = classify(tensor, form.classes, spec, self._has_rows)
                if form.binary:
                    raw = encode_bytes_tensor([t.encode() for t in texts])
                else:
                    text = msgspec.json.encode(texts)[1:-1]
            elif form.binary:
                raw = binary_bytes(tensor)
            else:
                text = json_text(tensor, self._json_nan)
            head = output_head(form.name, datatype, shape)
            if form.binary:
                outputs.append(head + b',"parameters":{"binary_data_size":%d}}' % len(raw))
                binaries.append(raw)
            else:
                outputs.append(head + b',"data":[' + text + b"]}")
        json = self._answer_head(request, response) + b",".join(outputs) + b"]}"
        if not any(binaries):
            return Answer(200, JSON, json)
        headers = ((HEADER_LENGTH, b"%d" % len(json)),)
        return Answer(200, BINARY, b"".join((json, *binaries)), headers)

    # --- metadata ---

    def metadata(self, platform: str, versions: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the "Model Metadata Response JSON Object"; `versions` None: this one only."""
        return {
            "name": self.model,
            "versions": list(versions) if versions is not None else [self.version],
            "platform": platform,
            "inputs": [_tensor_metadata(spec) for spec in self.signature.inputs],
            "outputs": [_tensor_metadata(spec) for spec in self.signature.outputs],
        }


def server_metadata(name: str, version: str, extensions: Sequence[str]) -> dict[str, Any]:
    """Return the "Server Metadata Response JSON Object"."""
    return {"name": name, "version": version, "extensions": list(extensions)}


def encode_error(error: Exception, request_id: str) -> Answer:
    """Write an error in the protocol's form. An error without a code tells nothing but the id."""
    if not isinstance(error, MuelleError):
        return _error(500, f"internal error, request id {request_id}", ())
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_s is not None:
        headers = ((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    return _error(V2_STATUS[error.code], error.message, headers)


def _error(status: int, text: str, headers: tuple[tuple[bytes, bytes], ...]) -> Answer:
    return Answer(status, JSON, msgspec.json.encode({"error": text}), headers)


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _read_parameters(
    parameters: Mapping[str, Any],
) -> tuple[bool, float | None, dict[str, Any] | None]:
    """Return binary_data_output, the timeout in seconds, and what is left for others to read.

    Source: Triton's parameters extension. A null is as good as absent.
    """
    binary, timeout_s = False, None
    others: dict[str, Any] = {}
    for key, value in parameters.items():
        if key.startswith("triton_"):
            raise _bad_parameter(key, "names that start with triton_ are reserved")
        if isinstance(value, dict | list):
            raise _bad_parameter(key, "expected a string, number or boolean, got another type")
        if value is None:
            continue
        if key == "binary_data_output":
            if type(value) is not bool:
                raise _bad_parameter(key, "expected true or false")
            binary = value
        elif key == "timeout":
            if type(value) is not int or not 0 <= value <= _MAX_TIMEOUT_US:
                raise _bad_parameter(key, "expected microseconds as an unsigned integer")
            timeout_s = value / 1e6 if value else None
        else:
            others[key] = value
    return binary, timeout_s, others or None


def _bad_parameter(key: str, what: str) -> BadRequest:
    return BadRequest(f"parameter {clipped(key)}: {what}", field=f"parameters.{key[:200]}")
