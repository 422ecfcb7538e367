"""`muelle` with a leak planted in it, for this process only: what the soak must catch.

    python leaky.py BYTES DESCRIPTORS_EVERY serve MODEL.onnx ...

Keeps BYTES per request, and opens a descriptor at each DESCRIPTORS_EVERY-th one (0: never). Not for
use.
"""

from __future__ import annotations

import os
import sys

from muelle.cli.main import main
from muelle.transport.server import HttpServer


def plant(n_bytes: int, descriptors_every: int) -> None:
    """Make every server of this process leak."""
    kept: list[bytes] = []
    original = HttpServer.next_number

    def next_number(self: HttpServer) -> int:
        number = original(self)
        # Multiplied, not bytes(n): zeroed memory that nobody touched would not be resident.
        kept.append(b"x" * n_bytes + number.to_bytes(8, "little"))
        if descriptors_every and number % descriptors_every == 0:
            os.dup(2)
        return number

    HttpServer.next_number = next_number  # type: ignore[method-assign]


if __name__ == "__main__":
    plant(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
