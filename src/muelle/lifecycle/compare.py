"""Compare a model's answers with stored ones, within tolerance. Pure. Not for error rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from muelle.core.records import StoredTensor
from muelle.core.request import decode_array


def compare_answers(
    expected: Sequence[StoredTensor],
    got: Sequence[StoredTensor],
    *,
    rtol: float,
    atol: float,
    values: bool = True,
) -> str:
    """Return "" when the answers agree, else one line that says where they do not.

    Floating-point elements agree when |got - expected| <= atol + rtol * |expected|, both are NaN,
    or both are the same infinity; all others when they are equal. The order of tensors does not
    count.
    `values` False compares names, datatypes and shapes only. Raise ValueError when contents differ
    and one of them does not fit its datatype and shape.
    """
    found = {tensor.name: tensor for tensor in got}
    if len(found) < len(got):
        names = [tensor.name for tensor in got]
        return f"output {max(names, key=names.count)!r} was given twice"
    for want in expected:
        have = found.pop(want.name, None)
        if have is None:
            return f"output {want.name!r} is missing"
        if have.datatype != want.datatype:
            return f"{want.name}: {have.datatype} instead of {want.datatype}"
        if tuple(have.shape) != tuple(want.shape):
            return f"{want.name}: shape {list(have.shape)} instead of {list(want.shape)}"
        if values and have.content != want.content:
            trouble = _differs(want, have, rtol, atol)
            if trouble:
                return trouble
    if found:
        return f"output {min(found)!r} was not there before"
    return ""


def max_difference(expected: StoredTensor, got: StoredTensor) -> float | None:
    """Return the largest absolute difference of two numeric tensors of one shape; else None.

    NaN beside NaN counts as none, NaN beside a number as infinity. Computed in doubles: integers
    beyond 2**53 may look equal that are not.
    """
    if tuple(expected.shape) != tuple(got.shape) or "BYTES" in (expected.datatype, got.datatype):
        return None
    a, b = (_array(t).astype(np.float64) for t in (expected, got))
    if not a.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a - b)
    difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, difference)
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def _differs(want: StoredTensor, have: StoredTensor, rtol: float, atol: float) -> str:
    a, b = _array(want), _array(have)
    if a.dtype.kind == "f":
        # Half floats overflow in the difference; doubles hold every one of them.
        a, b = a.astype(np.float64), b.astype(np.float64)
        # Numbers at both ends of a double are further apart than it can say: infinitely is right.
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(b - a) <= atol + rtol * np.abs(a)
        # Beside an infinity every number would be near: there only the same one is.
        near = np.where(
            np.isfinite(a) & np.isfinite(b), near, (a == b) | (np.isnan(a) & np.isnan(b))
        )
    else:
        near = np.asarray(a == b)
    if bool(near.all()):
        return ""
    place = tuple(int(i) for i in np.argwhere(~near.reshape(a.shape))[0]) if a.shape else ()
    where = f"{want.name}{list(place)}" if place else want.name
    more = int((~near).sum()) - 1
    others = f", and {more} more" if more else ""
    return f"{where}: {_shown(b[place])} instead of {_shown(a[place])}{others}"


def _array(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    return decode_array(tensor.datatype, tuple(tensor.shape), tensor.content)


def _shown(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    text = f"{value:.9g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
