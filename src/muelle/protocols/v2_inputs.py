"""The inputs of a v2 request: do they fit the signature, and their bytes in memory layout.

Not for the body around them (`v2_wire`). Sizes are compared in Python's unbounded integers with
what is present before anything of that size is made. Error texts show types, counts and shapes,
never a value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from muelle.core.errors import BadRequest
from muelle.core.request import Buffer, Tensor, encode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES, NULL_LENGTH, element_count, packer
from muelle.protocols.v2_wire import BODY_FAULTS, WireInput, bad_json, element_kind, structure

VALUE_FAULTS = (struct.error, OverflowError, TypeError, ValueError)
"""What packing a Python value that does not fit its datatype may raise."""

_JSON_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


MAX_EMPTY_ROWS = 1024
"""Rows without elements cost the caller no bytes, and so could be any number of them."""

Pack = Callable[[list[Any]], bytes]
"""Flat elements to memory layout. Raises one of VALUE_FAULTS."""


class InputPlan:
    """One input of the signature with what is needed to read it, made once per codec."""

    __slots__ = (
        "datatype",
        "name",
        "nested",
        "one_count",
        "one_row",
        "pack",
        "pack_one",
        "rank",
        "shape",
        "size",
        "spec",
    )

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.datatype = spec.datatype
        self.shape = spec.shape
        self.rank = len(spec.shape)
        self.nested = max(self.rank - 1, 0)
        """Levels of brackets that nested data has more than flat data."""
        self.size = DATATYPES[spec.datatype].size
        self.pack = _packing(spec.datatype)
        # Most requests are one row of a fixed size: that shape is compared in one step.
        one_row = [1, *spec.shape[1:]] if self.rank and spec.shape[0] == -1 else [*spec.shape]
        self.one_row = None if -1 in one_row else one_row
        self.one_count = element_count(one_row)
        self.pack_one = self.pack
        code = DATATYPES[spec.datatype].code
        if self.one_row is not None and code and spec.datatype != "BOOL":
            one = packer(code, self.one_count).pack
            self.pack_one = lambda elements: one(*elements)


def _packing(datatype: str) -> Pack:
    if datatype == "BOOL":
        return bytes
    if datatype == "BYTES":
        return _pack_strings
    code = DATATYPES[datatype].code
    return lambda elements: packer(code, len(elements)).pack(*elements)


def _pack_strings(values: list[str]) -> bytes:
    return encode_bytes_tensor([value.encode() for value in values])


def plain_inputs(
    plans: Sequence[InputPlan], wires: Sequence[Any], nested: bool, has_rows: bool
) -> tuple[list[Tensor], int] | None:
    """Return the tensors and rows of a plain body, None when anything about it is not right.

    The hottest function of the codec: one pass, no error texts. `read_inputs` finds what is wrong.
    """
    tensors = []
    n_rows = -1
    try:
        for plan, wire in zip(plans, wires):  # noqa: B905  (the decoder made them equally long)
            shape = wire.shape
            elements = wire.data
            if nested:
                for _ in range(plan.nested):
                    if [] in elements:
                        return None
                    elements = list(chain.from_iterable(elements))
            if shape == plan.one_row and len(elements) == plan.one_count:
                packed = plan.pack_one(elements)
            else:
                count = 1
                if len(shape) != plan.rank:
                    return None
                for given, want in zip(shape, plan.shape):  # noqa: B905  (a keyword costs 10 %)
                    # -1 is a free axis in a signature only; as a given size it is negative.
                    if given < 0 or (given != want and want != -1):
                        return None
                    count *= given
                if count != len(elements) or (not count and shape[0] > MAX_EMPTY_ROWS):
                    return None
                packed = plan.pack(elements)
            if has_rows and n_rows != shape[0]:
                if n_rows >= 0:
                    return None
                n_rows = shape[0]
            tensors.append(Tensor(plan.name, plan.datatype, shape, packed, "", len(packed)))
    except VALUE_FAULTS:
        return None
    return tensors, n_rows if has_rows else 1


def read_inputs(
    signature: Signature,
    plans: Mapping[str, InputPlan],
    wires: Sequence[WireInput],
    binary: memoryview,
) -> tuple[list[Tensor], int]:
    """Read inputs of any form, in any order. Raise BadRequest, which names the tensor.

    `plans` are by name, in the order of the signature. `binary` is the part of the body behind the
    JSON; inputs take from it in the order they are listed.
    """
    found: dict[str, Tensor] = {}
    at = 0
    for wire in wires:
        plan = plans.get(wire.name)
        if plan is None:
            known = ", ".join(plans) or "none"
            raise _bad(wire.name, f"the model has no input of that name, only {known}")
        if wire.name in found:
            raise _bad(wire.name, "is given twice")
        count = _checked_count(plan, wire)
        size = _binary_size(wire)
        if size is None:
            data: Buffer = _from_json(plan, wire, count)
        else:
            if size > len(binary) - at:
                left = len(binary) - at
                raise _bad(wire.name, f"binary_data_size is {size}, only {left} bytes are left")
            data = binary[at : at + size]
            _check_binary(plan, data, count)
            at += size
        found[wire.name] = Tensor(plan.name, plan.datatype, wire.shape, data, "", len(data))
    if at != len(binary):
        raise BadRequest(f"request body: {len(binary) - at} bytes left over after the last input")
    return _in_order(signature, tuple(plans.values()), found)


def read_tensors(
    signature: Signature,
    plans: Mapping[str, InputPlan],
    given: Sequence[tuple[WireInput, Buffer]],
) -> tuple[list[Tensor], int]:
    """Read inputs whose elements are in memory layout already. Raise BadRequest."""
    found: dict[str, Tensor] = {}
    for wire, data in given:
        plan = plans.get(wire.name)
        if plan is None:
            known = ", ".join(plans) or "none"
            raise _bad(wire.name, f"the model has no input of that name, only {known}")
        if wire.name in found:
            raise _bad(wire.name, "is given twice")
        count = _checked_count(plan, wire)
        _check_binary(plan, memoryview(data), count)
        found[wire.name] = Tensor(plan.name, plan.datatype, wire.shape, data, "", len(data))
    return _in_order(signature, tuple(plans.values()), found)


def raw_input(signature: Signature, plans: Sequence[InputPlan], body: bytes) -> Tensor:
    """Read a body that is the bytes of the only input ("Raw Binary Request").

    The rows axis is 1; the one other free axis comes from the size. BYTES: the body is the element.
    """
    if len(plans) != 1:
        raise BadRequest(
            f"a raw binary body needs a model with 1 input, this one has {len(plans)}: "
            "send JSON with binary_data_size instead"
        )
    (plan,) = plans
    shape = list(plan.shape)
    if signature.has_rows:
        shape[0] = 1
    free = [axis for axis, size in enumerate(shape) if size == -1]
    if len(free) > 1:
        raise _bad(plan.name, f"shape {list(plan.shape)} has {len(free)} free axes, at most 1 fits")
    if plan.datatype == "BYTES":
        shape = [1 if size == -1 else size for size in shape]
        if element_count(shape) != 1:
            raise _bad(plan.name, f"a raw binary body is 1 BYTES element, shape {shape} has more")
        data = encode_bytes_tensor([body])
        return Tensor(plan.name, plan.datatype, shape, data, "", len(data))
    if free:
        rest = plan.size * element_count([s for s in shape if s != -1])
        shape[free[0]] = len(body) // rest if rest else 0
    _check_binary(plan, memoryview(body), element_count(shape))
    return Tensor(plan.name, plan.datatype, shape, body, "", len(body))


def clipped(name: str, limit: int = 80) -> str:
    """Return a caller's text, quoted and short, as error texts show it."""
    return repr(name if len(name) <= limit else name[:limit] + "…")


def _bad(name: str, what: str) -> BadRequest:
    return BadRequest(f"input {clipped(name)}: {what}", field=name[:200])


def _checked_count(plan: InputPlan, wire: WireInput) -> int:
    """Check datatype and shape against the signature; return the number of elements."""
    if wire.datatype != plan.datatype:
        raise _bad(plan.name, f"expected datatype {plan.datatype}, got {clipped(wire.datatype)}")
    want, given = plan.shape, wire.shape
    if given == plan.one_row:
        return plan.one_count
    if len(given) != len(want):
        raise _bad(plan.name, f"expected {len(want)} dimensions {list(want)}, got {len(given)}")
    for axis, size in enumerate(given):
        if not 0 <= size < 1 << 63:
            raise _bad(plan.name, f"shape[{axis}]: expected 0..{(1 << 63) - 1}, got another size")
    if any(expected not in (-1, size) for size, expected in zip(given, want, strict=True)):
        raise _bad(plan.name, f"expected shape {list(want)}, got {given}")
    count = element_count(given)
    if not count and given[0] > MAX_EMPTY_ROWS:
        raise _bad(plan.name, f"shape {given}: at most {MAX_EMPTY_ROWS} rows without elements")
    return count


def _binary_size(wire: WireInput) -> int | None:
    """Return binary_data_size, None when the elements are JSON. Raise if both or neither."""
    parameters = wire.parameters or {}
    for key in parameters:
        if key.startswith("shared_memory_"):
            raise _bad(wire.name, "shared memory is not offered: send binary data instead")
    size = parameters.get("binary_data_size")
    has_data = wire.data is not msgspec.UNSET and bytes(memoryview(wire.data)[:5]) != b"null"
    if size is None:
        if not has_data:
            raise _bad(wire.name, "has neither data nor binary_data_size")
        return None
    if has_data:
        raise _bad(wire.name, "has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise _bad(wire.name, "binary_data_size: expected an unsigned integer")
    return size


_BRACKETS_PER_ELEMENT = 64


def _check_brackets(plan: InputPlan, wire: WireInput, text: bytes, count: int) -> None:
    """Refuse data that cannot have `count` elements before a Python object is made of each."""
    signs = structure(text) if plan.datatype == "BYTES" else text
    arrays, commas = signs.count(b"["), signs.count(b",")
    if arrays > _BRACKETS_PER_ELEMENT * (count + 1):
        raise _bad(plan.name, f"shape {wire.shape} has {count} elements, data {arrays} arrays")
    # Each comma divides two elements, or arrays that may be empty.
    if commas + 1 - arrays > count:
        raise _bad(plan.name, f"shape {wire.shape} has {count} elements, data has more")


def _from_json(plan: InputPlan, wire: WireInput, count: int) -> bytes:
    """Return the elements of JSON data, nested in any way, in memory layout."""
    kind = element_kind(plan.datatype)
    if kind is None:
        raise _bad(plan.name, f"JSON cannot carry {plan.datatype}: send binary data instead")
    assert wire.data is not msgspec.UNSET
    text = bytes(wire.data)
    _check_brackets(plan, wire, text, count)
    try:
        value = msgspec.json.decode(text)
        if type(value) is not list:
            raise _bad(plan.name, f"data: expected an array, got {_shown(value)}")
        elements: list[Any] = []
        _flatten(value, elements)
    except BODY_FAULTS as exc:
        raise bad_json(f"input {clipped(plan.name)}: data", exc, text) from None
    if len(elements) != count:
        raise _bad(plan.name, f"shape {wire.shape} has {count} elements, data has {len(elements)}")
    allowed = {float, int} if kind is float else {kind}
    if not allowed.issuperset(map(type, elements)):
        for index, element in enumerate(elements):
            if type(element) not in allowed:
                expected = _JSON_NAMES[kind]
                got = _shown(element)
                raise _bad(plan.name, f"data element {index}: expected {expected}, got {got}")
    try:
        return plan.pack(elements)
    except VALUE_FAULTS:
        raise _bad(plan.name, _misfit(plan, elements)) from None


def _shown(value: object) -> str:
    return _JSON_NAMES.get(type(value), "something else")


def _flatten(value: list[Any], into: list[Any]) -> None:
    kinds = set(map(type, value))
    while kinds == {list}:
        value = list(chain.from_iterable(value))
        kinds = set(map(type, value))
    if list not in kinds:
        into.extend(value)
        return
    for element in value:
        if type(element) is list:
            _flatten(element, into)
        else:
            into.append(element)


def _misfit(plan: InputPlan, elements: list[Any]) -> str:
    """Say which element its datatype cannot hold."""
    for index, element in enumerate(elements):
        try:
            plan.pack([element])
        except VALUE_FAULTS:
            return f"data element {index} does not fit {plan.datatype}"
    return f"data does not fit {plan.datatype}"


def _check_binary(plan: InputPlan, data: memoryview, count: int) -> None:
    """Check that binary data is `count` elements. Raise BadRequest with expected and given."""
    if plan.datatype == "BYTES":
        _check_lengths(plan.name, data, count)
        return
    if len(data) != count * plan.size:
        raise _bad(
            plan.name,
            f"{count} elements of {plan.datatype} are {count * plan.size} bytes, got {len(data)}",
        )
    if plan.datatype == "BOOL" and bytes(data).translate(None, b"\0\1"):
        raise _bad(plan.name, "a BOOL byte is neither 0 nor 1")


_read_length = struct.Struct("<I").unpack_from


def _check_lengths(name: str, data: memoryview, count: int) -> None:
    """Walk the 4-byte lengths of a BYTES tensor: `count` of them, and nothing after the last."""
    end = len(data)
    if count * 4 > end:
        raise _bad(name, f"{count} BYTES elements need at least {count * 4} bytes, got {end}")
    at = 0
    for index in range(count):
        if at + 4 > end:
            raise _bad(name, f"element {index}: its 4-byte length is cut off")
        (size,) = _read_length(data, at)
        at += 4
        # The null marker is Muelle's own; as a length it is refused like any that is too long.
        if size == NULL_LENGTH or at + size > end:
            raise _bad(name, f"element {index}: length {size} announced, {end - at} bytes present")
        at += size
    if at != end:
        raise _bad(name, f"{end - at} bytes left over after {count} elements")


def _in_order(
    signature: Signature, plans: Sequence[InputPlan], found: dict[str, Tensor]
) -> tuple[list[Tensor], int]:
    """Return the tensors in the signature's order and their rows. Raise if one is missing."""
    for plan in plans:
        if plan.name not in found and not plan.spec.optional:
            raise _bad(plan.name, f"is missing; expected {plan.spec.describe()}")
    tensors = [found[plan.name] for plan in plans if plan.name in found]
    if plans and not tensors:
        raise BadRequest("inputs: the request has none", field="inputs")
    if not signature.has_rows:
        return tensors, 1
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape[0] != first.shape[0]:
            raise _bad(
                tensor.name,
                f"{tensor.shape[0]} rows, but input {clipped(first.name)} has {first.shape[0]}",
            )
    return tensors, first.shape[0]
