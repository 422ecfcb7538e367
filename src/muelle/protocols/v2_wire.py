"""The JSON bodies of Open Inference Protocol v2 as typed structs, and how bytes become them.

Not for meaning: whether a tensor fits the model is decided in `v2_inputs` and `v2_outputs`.
"""

from __future__ import annotations

import re
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np

from muelle.core.errors import BadRequest
from muelle.core.signature import Signature
from muelle.core.tensor import DATATYPES

NameT = TypeVar("NameT")
DatatypeT = TypeVar("DatatypeT")
ElementT = TypeVar("ElementT")
InputsT = TypeVar("InputsT")

BODY_FAULTS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""What reading hostile bytes may raise: bad UTF-8 and deep nesting do not come as DecodeError."""

Scalar = bool | int | float | str


class WireOutput(msgspec.Struct, gc=False):
    """One wanted output, "Request Output JSON Object"."""

    name: str
    parameters: dict[str, Any] | None = None


class WireInput(msgspec.Struct, gc=False):
    """One input of any form, "Request Input JSON Object". `data` is left as text."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class WireBody(msgspec.Struct, gc=False):
    """A request of any form, "Inference Request JSON Object". Unknown members are left out."""

    inputs: list[WireInput]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[WireOutput] | None = None


# The two below are the plain form that most requests have: every input in the signature's order
# with its elements as JSON. Unknown members are refused, so that nesting is bounded by the types;
# whatever does not fit is read again as a WireBody, which knows every form and every error.
class PlainInput(
    msgspec.Struct,
    Generic[NameT, DatatypeT, ElementT],
    gc=False,
    forbid_unknown_fields=True,
):
    """One input whose elements are all in `data`. Name and datatype are literals of the model."""

    name: NameT
    shape: list[int]
    datatype: DatatypeT
    data: list[ElementT]


class PlainOutput(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One wanted output with simple parameters."""

    name: str
    parameters: dict[str, Scalar] | None = None


class PlainBody(msgspec.Struct, Generic[InputsT], gc=False, forbid_unknown_fields=True):
    """A plain request; its inputs are a fixed tuple of PlainInput, one per input of the model."""

    inputs: InputsT
    id: str = ""
    parameters: dict[str, Scalar] | None = None
    outputs: list[PlainOutput] | None = None


_PLAIN_DEPTH = 4
"""Brackets around an element of flat data: body, inputs, input, data."""

_any_body = msgspec.json.Decoder(WireBody)


def plain_decoder(
    signature: Signature, json_depth: int, *, nested: bool
) -> msgspec.json.Decoder[Any] | None:
    """Return the decoder of the signature's plain form, flat or nested to each tensor's rank.

    None when there is none: a datatype that JSON cannot carry, or nesting above `json_depth`.
    """
    kinds: list[Any] = []
    depth = _PLAIN_DEPTH
    for spec in signature.inputs:
        kind = element_kind(spec.datatype)
        if kind is None:
            return None
        leaf: Any = kind
        if nested:
            for _ in spec.shape[1:]:
                leaf = list[leaf]
            depth = max(depth, _PLAIN_DEPTH - 1 + len(spec.shape))
        name: Any = Literal[spec.name]
        datatype: Any = Literal[spec.datatype]
        kinds.append(PlainInput[name, datatype, leaf])
    if not kinds or depth > json_depth:
        return None
    return msgspec.json.Decoder(PlainBody[tuple[tuple(kinds)]])  # type: ignore[misc]


def element_kind(datatype: str) -> type | None:
    """Return the Python type of one JSON element, None where JSON has none (FP16, BF16)."""
    if datatype in {"FP16", "BF16"}:
        return None
    if DATATYPES[datatype].is_float:
        return float
    return {"BOOL": bool, "BYTES": str}.get(datatype, int)


def read_body(text: bytes, json_depth: int) -> WireBody:
    """Read the JSON part of a request of any form. Raise BadRequest, which names the member."""
    if is_deeper(text, json_depth):
        raise BadRequest(f"request body: JSON is nested deeper than {json_depth}")
    try:
        return _any_body.decode(text)
    except BODY_FAULTS as exc:
        raise bad_json("request body", exc, text) from None


def bad_json(where: str, exc: Exception, text: bytes) -> BadRequest:
    """Turn a decoder's error into a BadRequest. Never shows a value of the body."""
    match exc:
        case UnicodeError():
            what = "is not UTF-8"
        case RecursionError():
            what = "JSON is nested too deep"
        case _:
            what = str(exc)
    if _NOT_JSON.search(text) and not isinstance(exc, msgspec.ValidationError):
        what += "; NaN and Infinity are not JSON: send that tensor as binary data"
    path = _PATH.search(what)
    return BadRequest(f"{where}: {what}", field=path[1] if path else "")


_NOT_JSON = re.compile(rb"\b(?:NaN|Infinity)\b")
_PATH = re.compile(r"at `\$\.?([^`]*)`")

_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b'[]{},"')))
_QUOTE = ord('"')
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def structure(text: bytes) -> bytes:
    """Return the brackets and commas of JSON that are not inside strings, in order.

    Made of whole-buffer steps only, since it is meant for text that may be hostile and large.
    """
    # Escaped backslashes first: what is left before a quote then escapes it.
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    signs = np.frombuffer(text.translate(None, _NOT_STRUCTURE), np.uint8)
    quotes = signs == _QUOTE
    inside = np.logical_xor.accumulate(quotes)
    kept: bytes = signs[~(inside | quotes)].tobytes()
    return kept


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether JSON nests deeper than `limit`. Linear in the text, whatever it holds."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    signs = structure(text)
    depth, chunk = 0, 1 << 20
    for start in range(0, len(signs), chunk):
        part = np.frombuffer(signs, np.uint8, min(chunk, len(signs) - start), start)
        depths = np.cumsum(_STEPS[part], dtype=np.int64)
        if depth + int(depths.max()) > limit:
            return True
        depth += int(depths[-1])
    return False
