"""The search for the request that makes a batch fail. Not for queues."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.scheduling.batcher import Batcher
from muelle.scheduling.jobs import Job
from tests.unit.scheduling.test_batcher import filled, job


def search(batcher: Batcher, bad: set[Job]) -> tuple[list[Job], list[Job], int]:
    """Run until nothing waits. Return (answered, told guilty, runs after the first)."""
    answered: list[Job] = []
    guilty: list[Job] = []
    runs = -1
    while (batch := batcher.next(0.0)) is not None:
        runs += 1
        if bad & set(batch.jobs):
            found = batcher.failed(batch)
            if found is not None:
                guilty.append(found)
        else:
            batcher.ran(batch)
            answered += batch.jobs
    return answered, guilty, runs


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 32, 64, 100])
def test_one_bad_request_is_found_in_logarithmic_runs(size: int) -> None:
    """Wherever it stands: the others are answered once, in at most log2(B) + 2 more runs."""
    for position in range(size):
        jobs: list[Job] = [job() for _ in range(size)]
        batcher = filled(jobs, max_batch_size=size)  # type: ignore[arg-type]
        answered, guilty, runs = search(batcher, {jobs[position]})
        assert guilty == [jobs[position]]
        assert sorted(map(id, answered)) == sorted(id(j) for j in jobs if j not in guilty)
        assert runs <= math.ceil(math.log2(size)) + 2


@given(st.lists(st.booleans(), min_size=1, max_size=24))
def test_several_bad_requests_are_all_found(bad: list[bool]) -> None:
    """Any set of bad requests: exactly these get the error, each once, the others an answer."""
    jobs: list[Job] = [job() for _ in bad]
    wrong = {each for each, is_bad in zip(jobs, bad, strict=True) if is_bad}
    batcher = filled(jobs, max_batch_size=len(jobs))  # type: ignore[arg-type]
    answered, guilty, _ = search(batcher, wrong)
    assert len(guilty) == len(wrong) and set(guilty) == wrong
    assert len(answered) == len(jobs) - len(wrong) and set(answered) == set(jobs) - wrong


def test_a_failure_that_does_not_come_again_costs_nobody_an_answer() -> None:
    """The model raised once for no reason of the rows: all are answered."""
    jobs: list[Job] = [job() for _ in range(7)]
    batcher = filled(jobs)  # type: ignore[arg-type]
    batch = batcher.next(0.0)
    assert batch is not None
    assert batcher.failed(batch) is None
    answered, guilty, _ = search(batcher, set())
    assert guilty == [] and set(answered) == set(jobs)


def test_jobs_that_leave_during_the_search_do_not_end_it() -> None:
    """Callers of a whole trial group leave: the rest is still searched and answered."""
    jobs: list[Job] = [job() for _ in range(8)]
    batcher = filled(jobs)  # type: ignore[arg-type]
    batch = batcher.next(0.0)
    assert batch is not None
    batcher.failed(batch)
    for each in jobs[:4]:
        batcher.cancel(each)
    answered, guilty, _ = search(batcher, {jobs[6]})
    assert guilty == [jobs[6]]
    assert set(answered) == {jobs[4], jobs[5], jobs[7]}
