"""Time as a thing that is passed in, so that tests can turn it. Not for wall-clock dates."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds."""

    def now(self) -> float:
        """Return seconds since some fixed moment; never goes back."""


class MonotonicClock:
    """The machine's own monotonic clock."""

    now = staticmethod(time.monotonic)
