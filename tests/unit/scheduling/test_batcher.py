"""The batcher against a plain model of it, in virtual time. Not for real workers."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from muelle.core.errors import ModelFailed, QueueFull
from muelle.core.request import InferRequest, InferResponse, Tensor
from muelle.scheduling.batcher import MAX_BATCH_BYTES, Batch, Batcher
from muelle.scheduling.jobs import AGAIN, RUNNING, SETTLED, CallbackJob, Job

Settled = list[InferResponse | Exception]
ANSWER = InferResponse("m", "1", ())


def job(
    settled: Settled | None = None,
    *,
    rows: int = 1,
    key: object = None,
    arrived: float = 0.0,
    deadline: float = math.inf,
) -> CallbackJob:
    """Make a job of so many one-byte rows."""
    request = InferRequest([Tensor.raw("x", "UINT8", (rows,), bytes(rows))], rows)
    done = (settled if settled is not None else []).append
    return CallbackJob(request, done, arrived=arrived, deadline=deadline, key=key)


def filled(jobs: list[CallbackJob], *, max_batch_size: int = 8, **limits: int) -> Batcher:
    """Return a batcher in which the jobs wait."""
    batcher = Batcher("m", max_batch_size=max_batch_size, **limits)
    for each in jobs:
        batcher.submit(each)
    return batcher


def taken(batcher: Batcher, now: float = 100.0) -> list[Job]:
    """Return the jobs of the next batch."""
    batch = batcher.next(now)
    assert batch is not None
    return batch.jobs


class BatcherMachine(RuleBasedStateMachine):
    """Arrivals, departures and every way a batch can end, in any order."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher("m", max_batch_size=4, max_queue=12, max_queue_bytes=40)
        self.now = 0.0
        self.ticks = itertools.count(1)
        self.running: list[Batch] = []
        self.known: dict[Job, Settled] = {}
        self.guilty: set[Job] = set()
        self.dropped: set[Job] = set()
        self.waiting: set[Job] = set()
        self.first_runs: dict[object, list[Job]] = {}
        self.seen: set[Job] = set()

    @rule(
        target=jobs,
        rows=st.sampled_from((1, 1, 2, 6)),
        key=st.sampled_from("ab"),
        bad=st.booleans(),
    )
    def submit(self, rows: int, key: str, bad: bool) -> Job:
        """A request comes; over the limits it is refused and changes nothing."""
        settled: Settled = []
        new = job(settled, rows=rows, key=key, arrived=self.now, deadline=self.now + 50)
        waiting = len(self.waiting)
        queued_bytes = sum(j.nbytes for j in self.waiting)
        full = waiting >= 12 or (queued_bytes + rows > 40 and waiting > 0)
        try:
            self.batcher.submit(new)
        except QueueFull:
            assert full
            new.drop()
        else:
            assert not full
            self.known[new] = settled
            self.waiting.add(new)
            if bad:
                self.guilty.add(new)
        self.now += 0.5  # No two jobs of one moment: their order would be nobody's promise.
        return new

    @rule(bad=st.lists(st.booleans(), min_size=4, max_size=4))
    def burst(self, bad: list[bool]) -> None:
        """Requests that fill one batch come together."""
        for is_bad in bad:
            self.submit(1, "a", is_bad)

    @rule(some=jobs)
    def cancel(self, some: Job) -> None:
        """A caller leaves, at any time, perhaps twice."""
        if some in self.known and some.state != SETTLED:
            self.dropped.add(some)
        self.batcher.cancel(some)
        self.waiting.discard(some)

    @rule(seconds=st.sampled_from((0.25, 1.0, 30.0)))
    def pass_time(self, seconds: float) -> None:
        """Deadlines pass; the late jobs are told."""
        self.now += seconds
        late = self.batcher.expire(self.now)
        assert len(set(late)) == len(late)
        for each in late:
            assert each.deadline <= self.now
            each.settle(TimeoutError())
            self.waiting.discard(each)
        assert not any(each.deadline <= self.now for each in self.waiting)

    @precondition(lambda self: len(self.running) < 3)
    @rule(only_full=st.booleans())
    def take(self, only_full: bool) -> None:
        """A worker is free. Rows fit, keys are equal, order within a key is that of arrival."""
        batch = self.batcher.next(self.now, only_full=only_full)
        if batch is None:
            assert only_full or not self.waiting
            return
        assert batch.jobs
        assert batch.n_rows == sum(j.n_rows for j in batch.jobs)
        assert batch.n_rows <= 4 or len(batch.jobs) == 1
        assert len({j.key for j in batch.jobs}) == 1
        assert all(j.state == RUNNING for j in batch.jobs)
        assert not any(j in other.jobs for other in self.running for j in batch.jobs)
        self.waiting -= set(batch.jobs)
        for each in batch.jobs:
            if each not in self.seen:
                self.seen.add(each)
                self.first_runs.setdefault(each.key, []).append(each)
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2))
    def end(self, index: int) -> None:
        """A batch ends: it fails for a bad row in it, or it has answers."""
        batch = self.running.pop(index % len(self.running))
        if any(each in self.guilty for each in batch.jobs):
            guilty = self.batcher.failed(batch)
            if guilty is not None:
                assert guilty in self.guilty
                guilty.settle(ModelFailed("bad row"))
        else:
            self.batcher.ran(batch)
            for each in batch.jobs:
                each.settle(ANSWER)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2))
    def lose(self, index: int) -> None:
        """The worker dies with a batch, perhaps in the middle of a search."""
        batch = self.running.pop(index % len(self.running))
        for each, error in self.batcher.lost(batch):
            assert each.attempts == 2
            each.settle(error)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2))
    def put_back(self, index: int) -> None:
        """A batch could not be given to its worker."""
        self.batcher.put_back(self.running.pop(index % len(self.running)))

    @precondition(lambda self: self.now > 60)
    @rule()
    def drain(self) -> None:
        """The version goes away: who is in no worker is told."""
        for each in self.batcher.drain():
            each.settle(RuntimeError("away"))
        self.waiting.clear()
        running = {each for batch in self.running for each in batch.jobs}
        for each in self.known:
            assert each.state == SETTLED or each in running

    def _learn_waiting(self) -> None:
        self.waiting |= {each for each in self.known if each.state == AGAIN}

    @invariant()
    def depth_is_exact(self) -> None:
        """Depth and bytes are what waits, at every moment."""
        self._learn_waiting()
        assert self.batcher.depth == len(self.waiting)
        assert self.batcher._bytes == sum(each.nbytes for each in self.waiting)

    @invariant()
    def nobody_is_told_twice(self) -> None:
        """A caller hears once at most, and one that left hears nothing."""
        for each, settled in self.known.items():
            assert len(settled) <= 1
            if each in self.dropped:
                assert not settled

    @invariant()
    def first_come_first_served(self) -> None:
        """Within a key, jobs run for the first time in the order of their arrival."""
        for order in self.first_runs.values():
            moments = [each.arrived for each in order]
            assert moments == sorted(moments)

    def teardown(self) -> None:
        """At the end everything runs to its answer: nobody is forgotten, mates of bad rows win."""
        for _ in range(10_000):
            while self.running:
                self.end(0)
            batch = self.batcher.next(self.now)
            if batch is None:
                break
            self.waiting -= set(batch.jobs)
            self.running.append(batch)
        assert self.batcher.depth == 0
        assert not self.batcher._searches
        for each, settled in self.known.items():
            assert each.state == SETTLED
            assert len(settled) == (0 if each in self.dropped else 1)


BatcherMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestBatcherMachine = BatcherMachine.TestCase


def test_what_waits_shares_a_batch() -> None:
    """A free worker takes all that waits now, with no timer."""
    jobs = [job() for _ in range(3)]
    assert taken(filled(jobs)) == jobs


def test_an_empty_queue_has_no_batch() -> None:
    """Nothing waits, nothing runs, and no moment is due."""
    batcher = filled([])
    assert batcher.next(0.0) is None
    assert batcher.due() == math.inf


def test_keys_do_not_mix() -> None:
    """Jobs of unequal free dimensions never share a batch; the oldest key runs first."""
    jobs = [job(key=key, arrived=at) for at, key in enumerate("abab")]
    batcher = filled(jobs)
    assert taken(batcher) == [jobs[0], jobs[2]]
    assert taken(batcher) == [jobs[1], jobs[3]]


def test_a_job_that_does_not_fit_waits_for_the_next_batch() -> None:
    """Rows stay within the limit, and nobody behind overtakes."""
    jobs = [job(rows=5), job(rows=4), job(rows=1)]
    batcher = filled(jobs)
    assert taken(batcher) == jobs[:1]
    assert taken(batcher) == jobs[1:]


def test_one_job_larger_than_a_batch_runs_alone() -> None:
    """A job is never refused for its rows."""
    jobs = [job(rows=20), job()]
    assert taken(filled(jobs)) == jobs[:1]


def test_the_bytes_of_a_batch_are_bounded() -> None:
    """A batch takes no more memory than MAX_BATCH_BYTES, one job excepted."""
    jobs = [job() for _ in range(3)]
    for each in jobs:
        each.nbytes = MAX_BATCH_BYTES // 2
    batcher = filled(jobs, max_queue_bytes=MAX_BATCH_BYTES * 2)
    assert taken(batcher) == jobs[:2]


def test_a_delay_waits_for_mates_and_not_longer() -> None:
    """With max_delay_s a batch runs when it is full or when its oldest job is due."""
    batcher = Batcher("m", max_batch_size=2, max_delay_s=1.0)
    batcher.submit(job(arrived=10.0))
    assert batcher.next(10.5) is None
    assert batcher.due() == 11.0
    assert len(taken(batcher, 11.0)) == 1
    batcher.submit(job(arrived=12.0))
    batcher.submit(job(arrived=12.1))
    assert batcher.due() == -math.inf
    assert len(taken(batcher, 12.1)) == 2


def test_only_full_batches_are_given_ahead_of_time() -> None:
    """A busy worker gets its next batch early only when waiting could not make it larger."""
    batcher = filled([job()], max_batch_size=2)
    assert batcher.next(0.0, only_full=True) is None
    batcher.submit(job())
    assert batcher.next(0.0, only_full=True) is not None


def test_a_search_gives_no_batch_ahead_of_time() -> None:
    """What may kill a worker runs on one that has nothing else to lose."""
    batcher = filled([job()], max_batch_size=1)
    batch = batcher.next(0.0)
    assert batch is not None
    assert batcher.lost(batch) == []
    assert batcher.next(0.0, only_full=True) is None
    assert batcher.next(0.0) is not None


def test_the_queue_has_limits_of_requests_and_of_bytes() -> None:
    """Over a limit a request is refused at once, with the model's name and when to retry."""
    batcher = filled([job()], max_queue=1)
    assert batcher.is_full
    with pytest.raises(QueueFull, match=r"^m: 1 requests already wait") as caught:
        batcher.submit(job())
    assert caught.value.retry_after_s == 1.0
    by_bytes = filled([job(rows=8)], max_queue_bytes=10)
    with pytest.raises(QueueFull):
        by_bytes.submit(job(rows=3))
    by_bytes.submit(job(rows=2))


def test_a_request_larger_than_the_byte_limit_passes_an_empty_queue() -> None:
    """Else it could never be answered."""
    assert len(taken(filled([job(rows=50)], max_queue_bytes=10))) == 1


def test_whoever_dies_twice_is_told_and_its_mates_are_not() -> None:
    """After one death each runs alone; only the one that kills again gets the error."""
    poison, *mates = jobs = [job() for _ in range(4)]
    batcher = filled(jobs)
    batch = batcher.next(0.0)
    assert batch is not None
    assert batcher.lost(batch) == []
    told: list[Job] = []
    runs = 0
    while (batch := batcher.next(0.0)) is not None:
        runs += 1
        assert len(batch.jobs) == 1
        if batch.jobs[0] is poison:
            [(each, error)] = batcher.lost(batch)
            told.append(each)
            assert "ended twice" in str(error)
            assert isinstance(error, ModelFailed)
        else:
            batcher.ran(batch)
    assert told == [poison]
    assert runs == 1 + len(mates)


@pytest.mark.parametrize("steps_before", range(4))
def test_a_worker_that_dies_in_a_search_loses_nobody(steps_before: int) -> None:
    """A search is under way when the worker dies: what it held back still runs."""
    jobs = [job() for _ in range(8)]
    bad = jobs[5]
    batcher = filled(jobs)
    batch = batcher.next(0.0)
    assert batch is not None
    batcher.failed(batch)
    answered: Counter[Job] = Counter()
    steps = 0
    while (batch := batcher.next(0.0)) is not None:
        if steps == steps_before:
            assert batcher.lost(batch) == []
        elif bad in batch.jobs:
            guilty = batcher.failed(batch)
            if guilty is not None:
                answered[guilty] += 1
        else:
            batcher.ran(batch)
            answered.update(batch.jobs)
        steps += 1
    assert answered == Counter(jobs)


def test_what_a_search_holds_back_keeps_its_deadline() -> None:
    """A mate of a failing batch is late like anybody else."""
    jobs = [job(deadline=5.0) for _ in range(4)]
    batcher = filled(jobs)
    batch = batcher.next(0.0)
    assert batch is not None
    batcher.failed(batch)
    on_trial = batcher.next(0.0)
    assert on_trial is not None
    assert set(batcher.expire(5.0)) == set(jobs) - set(on_trial.jobs)


def test_draining_takes_what_a_search_holds_back() -> None:
    """A version that goes away leaves no mate of a failing batch without an answer."""
    jobs = [job() for _ in range(4)]
    batcher = filled(jobs)
    batch = batcher.next(0.0)
    assert batch is not None
    batcher.failed(batch)
    on_trial = batcher.next(0.0)
    assert on_trial is not None
    assert set(batcher.drain()) == set(jobs) - set(on_trial.jobs)
    assert batcher.depth == 0
