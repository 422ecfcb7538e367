"""Triton's generate extension: one flat JSON object in, one flat object or a stream of them out.

Pure functions over a version's v2 codec, which checks the tensors. Not for how many answers there
are or how they leave: that is `generate`. Source: Triton's "Generate Extension".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from muelle.core.errors import BadRequest
from muelle.core.request import InferResponse
from muelle.core.signature import TensorSpec
from muelle.core.tensor import element_count
from muelle.protocols import v2
from muelle.protocols.http import Headers
from muelle.protocols.v2_inputs import clipped
from muelle.protocols.v2_outputs import JsonNan, V2Request, json_text
from muelle.protocols.v2_wire import BODY_FAULTS, WireInput, bad_json, is_deeper, structure

EVENTS = b"text/event-stream; charset=utf-8"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


class GenerateCodec:
    """Body to request and answer to text for one model version. Immutable after construction."""

    def __init__(self, codec: v2.V2Codec, *, json_nan: JsonNan, json_depth: int) -> None:
        self._codec = codec
        self._json_nan: JsonNan = json_nan
        self._json_depth = json_depth
        self._inputs = {spec.name: spec for spec in codec.signature.inputs}
        outputs = {spec.name for spec in codec.signature.outputs}
        names = {"model_name": codec.model, "model_version": codec.version}
        # A tensor of such a name is what its author wants to be found there.
        self._names = [_member(k, _text(v)) for k, v in names.items() if k not in outputs]
        self._shows_id = "id" not in outputs

    def decode(self, body: bytes, headers: Headers) -> V2Request:
        """Read a request. Raise BadRequest, which names the member.

        A member named as an input is that tensor, `id` the request's id, those of `parameters` are
        taken like members beside it; what is left are parameters for the model.
        """
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in (b"", b"identity"):
            raise BadRequest("Content-Encoding: generate takes no compressed body; send it plain")
        if is_deeper(body, self._json_depth):
            raise BadRequest(f"request body: JSON is nested deeper than {self._json_depth}")
        wires: list[WireInput] = []
        parameters: dict[str, Any] = {}
        request_id = ""
        for place, name, raw in _walk(body, self._inputs):
            spec = self._inputs.get(name)
            if spec is not None:
                wires.append(_tensor(spec, raw))
            elif name in parameters:
                raise BadRequest(f"parameter {clipped(name)}: is given twice", field=name[:200])
            elif name == "id" and not place:
                request_id = _identifier(raw)
            else:
                parameters[name] = _parameter(name, raw)
        return self._codec.request_of(wires, request_id, parameters)

    def encode(self, request: V2Request, response: InferResponse) -> bytes:
        """Write one answer as a flat object: id, names, parameters, then every output by its name.

        An output of one element is that element, any other a flat array. Raise NotAcceptable when
        one does not fit JSON. Call it while the response is valid.
        """
        members = list(self._names)
        if request.id and self._shows_id:
            members.insert(0, _member("id", _text(request.id)))
        names = {tensor.name for tensor in response.outputs}
        for key, value in (response.parameters or {}).items():
            if key not in names:
                members.append(_member(key, _text(value)))
        for tensor in response.outputs:
            text = json_text(tensor, self._json_nan)
            if element_count(tensor.shape) != 1:
                text = b"[%b]" % text
            members.append(_member(tensor.name, text))
        return b"{%b}" % b",".join(members)


def event(text: bytes) -> bytes:
    """Frame one object of a stream. Its JSON has no line feed, so one `data:` line holds it."""
    return b"data: %b\n\n" % text


def shape_for(shape: tuple[int, ...], count: int) -> list[int] | None:
    """Return the shape of so many elements in a flat array, None when they do not fill it.

    Fixed dimensions stay, free ones become 1, but for the innermost, which takes the rest.
    """
    made = [size if size >= 0 else 1 for size in shape]
    free = [axis for axis, size in enumerate(shape) if size < 0]
    each = element_count(made)
    if free and each:
        made[free[-1]] = count // each
    return made if element_count(made) == count else None


def _walk(body: bytes, inputs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, str, msgspec.Raw]]:
    """Yield every member, and those of `parameters`, with where it stands: "" is the top."""
    for name, raw in _object("request body", body).items():
        if name != "parameters" or name in inputs:
            yield "", name, raw
            continue
        for inner, inner_raw in _object("parameters", bytes(raw)).items():
            yield name, inner, inner_raw


def _object(where: str, text: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _members.decode(text)
    except BODY_FAULTS as exc:
        raise bad_json(where, exc, text) from None


def _tensor(spec: TensorSpec, raw: msgspec.Raw) -> WireInput:
    """Return a scalar or a flat array as a v2 input, whose shape follows from its length."""
    text = bytes(raw).strip()
    signs = structure(text) if b'"' in text else text
    nests = signs.count(b"[") + signs.count(b"{")
    if text.startswith(b"["):
        nests -= 1
        count = signs.count(b",") + 1 if text[1:-1].strip() else 0
    else:
        text, count = b"[%b]" % text, 1
    if nests:
        raise _bad(spec, "expected a value, or a flat array of values in row-major order")
    shape = shape_for(spec.shape, count)
    if shape is None:
        raise _bad(spec, f"{count} elements do not fill {spec.describe()}")
    return WireInput(spec.name, shape, spec.datatype, None, msgspec.Raw(text))


def _identifier(raw: msgspec.Raw) -> str:
    value = msgspec.json.decode(raw)
    if type(value) is not str:
        raise BadRequest("id: expected a string", field="id")
    return value


def _parameter(name: str, raw: msgspec.Raw) -> str | int | bool | float:
    try:
        value = msgspec.json.decode(raw)
    except BODY_FAULTS as exc:
        raise bad_json(f"parameter {clipped(name)}", exc, bytes(raw)) from None
    if type(value) is int and not _LEAST <= value <= _MOST:
        raise BadRequest(f"parameter {clipped(name)}: over 64 bits", field=name[:200])
    if type(value) in (str, int, bool, float):
        return value  # type: ignore[no-any-return]
    raise BadRequest(
        f"{clipped(name)}: the model has no input of that name, and a parameter is a string, "
        "a number or a boolean",
        field=name[:200],
    )


def _bad(spec: TensorSpec, what: str) -> BadRequest:
    return BadRequest(f"input {clipped(spec.name)}: {what}", field=spec.name[:200])


def _member(name: str, text: bytes) -> bytes:
    return b"%b:%b" % (_text(name), text)


_text = msgspec.json.encode
