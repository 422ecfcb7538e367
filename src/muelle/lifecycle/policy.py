"""When a dead worker is started again. Pure: moments in, decision out.

Goal R-14: back-off 0.1 to 30 s; more than five deaths in a minute put the version into quarantine,
with a new try each five minutes. A worker that served for a while starts over at the first step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 30.0
MAX_DOUBLINGS = 10
DEATHS_FOR_QUARANTINE = 5
WINDOW_S = 60.0
QUARANTINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the worker again after so many seconds."""

    after_s: float
    quarantined: bool = False
    """Whether the version is refused traffic until then."""


class RestartPolicy:
    """The memory of one version's worker deaths."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._in_a_row = 0

    def died(self, now: float, *, served: bool) -> Restart:
        """Decide after a death. `served` says whether that worker had answered a batch."""
        while self._deaths and self._deaths[0] <= now - WINDOW_S:
            self._deaths.popleft()
        self._deaths.append(now)
        self._in_a_row = 1 if served else self._in_a_row + 1
        if len(self._deaths) > DEATHS_FOR_QUARANTINE and not served:
            self._deaths.clear()
            return Restart(QUARANTINE_S, quarantined=True)
        # The power is bounded before it is a float: 2**1100 would be an OverflowError one night.
        doublings = min(self._in_a_row - 1, MAX_DOUBLINGS)
        return Restart(min(FIRST_BACKOFF_S * 2**doublings, MAX_BACKOFF_S))
