"""Datatypes and their byte layout. Not for moving bytes: codecs and workers do that.

Names are those of the Open Inference Protocol v2 (section "Tensor Data Types"); all layouts are
little-endian, row-major, without padding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Datatype:
    """One element type. `size` is bytes per element, 0 for BYTES (4-byte length, then content)."""

    name: str
    size: int
    numpy: str
    """NumPy dtype of the memory; `object` for BYTES, `<u2` for BF16 (NumPy has no bfloat16)."""
    code: str
    """`struct` code of one element, empty where Python has none (BYTES, BF16)."""

    @property
    def is_float(self) -> bool:
        return self.name in {"FP16", "FP32", "FP64", "BF16"}

    @property
    def is_integer(self) -> bool:
        return self.name.startswith(("INT", "UINT"))


DATATYPES: MappingProxyType[str, Datatype] = MappingProxyType(
    {
        name: Datatype(name, size, numpy, code)
        for name, size, numpy, code in (
            ("BOOL", 1, "?", "?"),
            ("UINT8", 1, "|u1", "B"),
            ("UINT16", 2, "<u2", "H"),
            ("UINT32", 4, "<u4", "I"),
            ("UINT64", 8, "<u8", "Q"),
            ("INT8", 1, "|i1", "b"),
            ("INT16", 2, "<i2", "h"),
            ("INT32", 4, "<i4", "i"),
            ("INT64", 8, "<i8", "q"),
            ("FP16", 2, "<f2", "e"),
            ("BF16", 2, "<u2", ""),
            ("FP32", 4, "<f4", "f"),
            ("FP64", 8, "<f8", "d"),
            ("BYTES", 0, "object", ""),
        )
    }
)

NULL_LENGTH = 0xFFFFFFFF
"""Length that marks a missing string in Muelle's own BYTES memory; refused from v2 clients."""


def element_count(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape, in Python's unbounded integers (no overflow)."""
    return math.prod(shape)


@lru_cache(maxsize=4096)
def packer(code: str, n: int) -> struct.Struct:
    """Return the cached `struct.Struct` for n little-endian elements of one code."""
    return struct.Struct(f"<{n}{code}")
