"""Count what a version does, at almost no cost to the hot path. Not the text of `/metrics`.

That is `exposition`. All label sets are closed: protocols and outcomes are fixed here, models and
versions are the loaded ones, so that no caller can make a new series.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from muelle.telemetry.exposition import render

__all__ = ["OUTCOMES", "PROTOCOLS", "Counter", "Histogram", "VersionMetrics", "render"]

PROTOCOLS = ("native", "v2", "v2_grpc", "local", "generate", "generate_stream")
OUTCOMES = (
    "ok",
    "bad_request",
    "not_found",
    "overloaded",
    "unavailable",
    "deadline",
    "cancelled",
    "failed",
)

SERVER_FAULTS = frozenset({"overloaded", "unavailable", "deadline", "failed"})
SHADOW_OUTCOMES = ("agreed", "differed", "failed", "skipped")

FINE_SECONDS = tuple(0.00005 * 1.05**n for n in range(290))
"""Bounds five percent apart, 50 microseconds to a minute: fine enough to hold a p99 to a limit."""

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ROWS = tuple(float(1 << n) for n in range(11))

FOLD_AT = 4096
"""Values that wait to be sorted into buckets: one NumPy call for thousands, and bounded memory."""


class Arrived(Protocol):
    """What a batch tells of each request in it."""

    arrived: float


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, n: int = 1) -> None:
        """Count n more."""
        self.value += n


class Histogram:
    """Counts of values by upper bound. Recording is a list append; NumPy sorts them in later."""

    __slots__ = ("_bounds", "_counts", "_edges", "_fresh", "_sum", "tap")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are upper bounds, ascending and inclusive; infinity is added."""
        self._bounds = tuple(bounds)
        self._edges = np.asarray(bounds, dtype=np.float64)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._fresh: list[float] = []
        self.tap: Histogram | None = None
        """Gets the same values, as long as somebody looks closely."""

    def observe(self, value: float) -> None:
        """Record one value."""
        fresh = self._fresh
        fresh.append(value)
        if len(fresh) >= FOLD_AT:
            self._fold()

    def observe_many(self, values: Sequence[float]) -> None:
        """Record the values of a batch."""
        fresh = self._fresh
        fresh.extend(values)
        if len(fresh) >= FOLD_AT:
            self._fold()

    def buckets(self) -> tuple[tuple[float, ...], list[int], float]:
        """Return the bounds, how many values are at or below each (and all last), and the sum."""
        self._fold()
        return self._bounds, np.cumsum(self._counts).tolist(), self._sum

    def quantile(self, share: float) -> float:
        """Return the upper bound under which this share of the values lies, 0 when there are none.

        Values over the last bound count as that bound.
        """
        self._fold()
        total = int(self._counts.sum())
        if not total:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._counts), share * total, side="left"))
        return self._bounds[min(place, len(self._bounds) - 1)]

    def set_tap(self, tap: Histogram | None) -> None:
        """Let another histogram get what is observed from now on, too."""
        self._fold()
        self.tap = tap

    def fold(self) -> None:
        """Sort in what waits, so that a tap has it."""
        self._fold()

    def _fold(self) -> None:
        if not self._fresh:
            return
        values = np.asarray(self._fresh, dtype=np.float64)
        self._fresh.clear()
        self._sort_in(values)
        if self.tap is not None:
            self.tap._sort_in(values)

    def _sort_in(self, values: np.ndarray[Any, Any]) -> None:
        # `left`: a value that equals a bound belongs under it, as Prometheus' `le` says.
        places = np.searchsorted(self._edges, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())


class VersionMetrics:
    """What one model version did. Used on the event loop's thread only.

    Implements the pool's `Observer`. Times are in seconds, batch sizes in rows.
    """

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self._requests: Mapping[tuple[str, str], Counter] = MappingProxyType(
            {(p, o): Counter() for p in PROTOCOLS for o in OUTCOMES}
        )
        self.total = Histogram(SECONDS)
        """From the whole request's arrival to its answer, whatever the outcome."""
        self.queue = Histogram(SECONDS)
        """From arrival to the start of the batch."""
        self.compute = Histogram(SECONDS)
        """One value per batch."""
        self.batch_size = Histogram(ROWS)
        self.shadow: Mapping[str, Counter] = MappingProxyType(
            {outcome: Counter() for outcome in SHADOW_OUTCOMES}
        )
        """What became of the copies of requests that this version got as a shadow."""

    def answered(self) -> int:
        """Return how many requests were answered, whatever the outcome."""
        return sum(counter.value for counter in self._requests.values())

    def failures(self) -> int:
        """Return how many requests failed through no fault of the caller."""
        return sum(c.value for (_, o), c in self._requests.items() if o in SERVER_FAULTS)

    def counter(self, protocol: str, outcome: str) -> Counter:
        """Return one counter, to be kept. Raise KeyError outside the closed sets."""
        return self._requests[protocol, outcome]

    def requests(self) -> Iterator[tuple[str, str, int]]:
        """Yield protocol, outcome and count of every counter, zeros too."""
        for (protocol, outcome), counter in self._requests.items():
            yield protocol, outcome, counter.value

    def batch(self, n_rows: int, compute_s: float, jobs: Sequence[Arrived], ended: float) -> None:
        """A batch of n_rows ran for compute_s and ended at `ended` on the clock of `arrived`."""
        self.compute.observe(compute_s)
        self.batch_size.observe(n_rows)
        began = ended - compute_s
        self.queue.observe_many([max(0.0, began - job.arrived) for job in jobs])
