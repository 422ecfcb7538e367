"""A model's own example as request bodies, so that docs and curl lines work as they stand. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muelle.core.signature import Signature, TensorSpec, made_up_example
from muelle.core.status import VersionStatus
from muelle.core.tensor import element_count
from muelle.protocols.native import example_body

__all__ = ["example_body", "example_of", "v2_example_body"]


def example_of(version: VersionStatus) -> dict[str, Any]:
    """Return one row per input: the version's own, or made-up values of the right form.

    The version must have a signature.
    """
    assert version.signature is not None
    if version.example is not None:
        return version.example
    return made_up_example(version.signature)


def v2_example_body(signature: Signature, example: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the body of a v2 infer request with one row; None when JSON cannot carry it.

    `example`: tensor name -> nested list. The protocol has no JSON form for FP16 and BF16.
    """
    specs = [spec for spec in signature.inputs if spec.name in example]
    if any(spec.datatype in ("FP16", "BF16") for spec in signature.inputs):
        return None
    wanted = {
        "inputs": [
            {
                "name": spec.name,
                "shape": _shape(example[spec.name]),
                "datatype": spec.datatype,
                "data": [_leaf(value, spec) for value in _flat(example[spec.name])],
            }
            for spec in specs
        ]
    }
    if any(None in tensor["data"] for tensor in wanted["inputs"]):
        return None
    if any(element_count(t["shape"]) != len(t["data"]) for t in wanted["inputs"]):
        return None
    return wanted


def _leaf(value: Any, spec: TensorSpec) -> Any:
    return bool(value) if spec.datatype == "BOOL" else value


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _flat(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    return [leaf for part in value for leaf in _flat(part)]
