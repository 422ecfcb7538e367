"""Counting: nothing is lost, nothing grows, and no caller can make a new series."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import pytest

from muelle.telemetry.metrics import FOLD_AT, OUTCOMES, PROTOCOLS, Histogram, VersionMetrics


@dataclass
class Job:
    """What metrics read of a job."""

    arrived: float


def test_a_value_on_a_bound_is_under_it() -> None:
    """Buckets are inclusive at the top, and the last one holds everything."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == ((1.0, 2.0), [2, 4, 5], 12.0)


def test_folding_loses_nothing_and_counts_nothing_twice() -> None:
    """Far more values than wait at once, one by one and in bulk, are all there exactly once."""
    histogram = Histogram((0.5,))
    n = FOLD_AT + 7
    for _ in range(n):
        histogram.observe(0.25)
    histogram.observe_many([1.0] * n)
    assert histogram.buckets() == ((0.5,), [n, 2 * n], n * 1.25)
    assert histogram.buckets()[1] == [n, 2 * n], "asking again changes nothing"


def test_memory_is_bounded() -> None:
    """A million values leave no more behind than a few do."""
    histogram = Histogram((0.5,))
    histogram.observe_many([0.1] * FOLD_AT)
    tracemalloc.start()
    try:
        for _ in range(1_000_000 // 32):
            histogram.observe_many([0.1] * 32)
        histogram.buckets()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 100_000


def test_an_unknown_outcome_makes_no_series() -> None:
    """The label sets are closed."""
    metrics = VersionMetrics("iris", "1")
    with pytest.raises(KeyError):
        metrics.counter("native", "teapot")
    with pytest.raises(KeyError):
        metrics.counter("GET /etc/passwd", "ok")
    assert len(list(metrics.requests())) == len(PROTOCOLS) * len(OUTCOMES)


def test_a_kept_counter_is_the_one_that_is_shown() -> None:
    """Who keeps a counter counts for the version."""
    metrics = VersionMetrics("iris", "1")
    ok = metrics.counter("v2", "ok")
    ok.add()
    ok.add(3)
    assert {(p, o): n for p, o, n in metrics.requests() if n} == {("v2", "ok"): 4}


def test_a_batch_tells_each_request_s_wait() -> None:
    """Queue time ends where computing begins; a clock's grain never makes it negative."""
    metrics = VersionMetrics("iris", "1")
    metrics.batch(3, 0.5, [Job(8.0), Job(9.0), Job(9.6)], 10.0)
    assert metrics.queue.buckets()[2] == pytest.approx(1.5 + 0.5 + 0.0)
    assert metrics.queue.buckets()[1][-1] == 3
    assert metrics.compute.buckets()[2] == 0.5
    assert metrics.batch_size.buckets()[2] == 3
