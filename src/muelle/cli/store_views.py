"""How versions, signatures and stored tensors are shown. Not for reading them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muelle.core.records import RouteSpec, StoredTensor, VersionRecord
    from muelle.core.signature import Signature, TensorSpec

_MAX_VALUES = 8
_MAX_TEXT = 60


def values_of(tensor: StoredTensor) -> Any:
    """Return a tensor as nested lists; BYTES as text (bytes that are no UTF-8 with signs)."""
    from muelle.core.request import decode_array

    array = decode_array(tensor.datatype, tensor.shape, tensor.content)
    return _texts(array.tolist()) if tensor.datatype == "BYTES" else array.tolist()


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def tensor_json(tensor: StoredTensor) -> dict[str, Any]:
    """Return a stored tensor for JSON: its values, not its bytes."""
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "values": values_of(tensor),
    }


def record_json(record: VersionRecord) -> dict[str, Any]:
    """Return a record for JSON: every field, examples by value."""
    import msgspec

    plain = {name: getattr(record, name) for name in record.__struct_fields__}
    plain["examples"] = [
        {
            "inputs": [tensor_json(tensor) for tensor in example.inputs],
            "outputs": [tensor_json(tensor) for tensor in example.outputs],
            "made_up": example.made_up,
            "repeatable": example.repeatable,
        }
        for example in record.examples
    ]
    plain["size"] = record.size
    found: dict[str, Any] = msgspec.to_builtins(plain)
    return found


def shown_tensor(tensor: StoredTensor) -> str:
    """Return one line: `label INT64 [1]: [2]`."""
    spec = f"{tensor.name} {tensor.datatype} {list(tensor.shape)}"
    return f"{spec}: {shown_values(tensor)}"


def shown_values(tensor: StoredTensor) -> str:
    """Return the values of a small tensor, the first of a large one."""
    flat = list(_flat(values_of(tensor)))
    words = [f"{v:.6g}" if isinstance(v, float) else str(v)[:_MAX_TEXT] for v in flat[:_MAX_VALUES]]
    more = f", … ({len(flat)} values)" if len(flat) > _MAX_VALUES else ""
    return f"[{', '.join(words)}{more}]"


def shown_value(value: Any) -> str:
    """Return a parameter or version as one short text; None as `-`. `--json` tells all of it."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}={shown_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def shown_spec(spec: TensorSpec | None) -> str:
    """Return `FP32 [-1, 30]` and what else distinguishes the tensor."""
    if spec is None:
        return "-"
    text = spec.describe() + (" optional" if spec.optional else "")
    if spec.columns:
        text += f" ({_some(spec.columns)})"
    return text + (f" {{{_some(spec.classes)}}}" if spec.classes else "")


def shown_signature(signature: Signature | None) -> list[tuple[str, str, str]]:
    """Return rows (direction sign, tensor, type)."""
    if signature is None:
        return []
    return [("→", spec.name, shown_spec(spec)) for spec in signature.inputs] + [
        ("←", spec.name, shown_spec(spec)) for spec in signature.outputs
    ]


def shown_route(route: RouteSpec | None) -> str:
    """Return `stable=95,canary=5 sticky header:x-user shadow canary`; "" when there is none."""
    if route is None:
        return ""
    text = ",".join(f"{target}={weight:g}" for target, weight in route.weights.items())
    text += f" sticky {route.sticky}" if route.sticky else ""
    return text + (f" shadow {route.shadow}" if route.shadow else "")


def shown_labels(labels: Sequence[str]) -> str:
    """Return `@stable @canary`."""
    return " ".join(f"@{label}" for label in labels)


def pairs(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of names and values that line up."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name.ljust(width)}  {value}".rstrip() for name, value in rows]


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(map(str, names[:_MAX_VALUES]))
    return shown + (f", … {len(names)}" if len(names) > _MAX_VALUES else "")


def _flat(value: Any) -> Any:
    if not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from _flat(part)
