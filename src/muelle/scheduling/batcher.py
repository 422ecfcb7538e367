"""Decide what a free slot runs next. Never waits, reads no clock, does no I/O.

Natural batching: a free worker takes what waits now, up to `max_batch_size` rows, with no timer;
an idle server adds no delay and a busy one forms large batches by itself. `max_delay_s` (default
0) makes a batch wait for mates, for accelerators. First come, first served within a group; jobs
share a batch when their keys (free dimensions) are equal.

Not for running batches: `workers.pool` asks `next` and tells `ran`, `failed` or `lost`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator

from muelle.core.errors import ModelFailed, MuelleError, QueueFull
from muelle.scheduling.bisect import Bisection
from muelle.scheduling.jobs import AGAIN, RUNNING, SETTLED, WAITING, Job

MAX_BATCH_BYTES = 256 * 1024 * 1024
"""Inputs of one batch are kept below this, whatever max_batch_size allows (one job always fits)."""

MAX_DEATHS = 2
"""A job whose batch died so often is answered with an error."""


class Batch:
    """Jobs that run together. `search` is set while a failing batch is taken apart."""

    __slots__ = ("jobs", "n_rows", "nbytes", "search")

    def __init__(self, jobs: list[Job], search: Bisection | None = None) -> None:
        self.jobs = jobs
        self.search = search
        n_rows = nbytes = 0
        for job in jobs:
            job.state = RUNNING
            n_rows += job.n_rows
            nbytes += job.nbytes
        self.n_rows = n_rows
        self.nbytes = nbytes


class _Group:
    """Waiting jobs of one key, in order of arrival."""

    __slots__ = ("jobs", "rows")

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.rows = 0


class Batcher:
    """The queue of one model version. Used on the event loop's thread only.

    Every method that takes `now` wants monotonic seconds. Jobs that are cancelled or settled stay
    in the queue until they come to its head; `depth` counts them out at once.
    """

    def __init__(
        self,
        model: str,
        *,
        max_batch_size: int,
        max_delay_s: float = 0.0,
        max_queue: int = 1_000,
        max_queue_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_delay_s = max_delay_s
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self._groups: dict[Hashable, _Group] = {}
        self._forced: deque[tuple[list[Job], Bisection | None]] = deque()
        self._searches: set[Bisection] = set()
        """Searches under way: what they hold back is in no queue and in no batch."""
        self.depth = 0
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the queue is at its limit of requests."""
        return self.depth >= self.max_queue

    # --- in ---

    def submit(self, job: Job) -> None:
        """Queue a job. Raise QueueFull at the limit of requests or of bytes."""
        if self.depth >= self.max_queue or (
            self._bytes + job.nbytes > self.max_queue_bytes and self.depth
        ):
            raise QueueFull(self.model, self.max_queue)
        group = self._groups.get(job.key)
        if group is None:
            group = self._groups[job.key] = _Group()
        group.jobs.append(job)
        group.rows += job.n_rows
        self.depth += 1
        self._bytes += job.nbytes

    def cancel(self, job: Job) -> None:
        """Drop a job whose caller left, waiting or running."""
        if job.state == WAITING or job.state == AGAIN:
            self._leave(job)
        job.drop()

    def expire(self, now: float) -> list[Job]:
        """Take the waiting jobs whose deadline has passed, for the caller to settle."""
        late = [job for job in self._waiting() if job.deadline <= now]
        for job in late:
            self._leave(job)
            job.state = RUNNING  # out of the queue; settle() may still be called once
        return late + [job for job in self._held() if job.deadline <= now]

    # --- out ---

    def next(self, now: float, *, only_full: bool = False) -> Batch | None:
        """Return the batch to run now, or None: nothing waits, or it may wait (see `due`).

        With `only_full` a worker that still computes is being given its next batch ahead of time:
        that is worth it only when waiting longer could not make the batch larger.
        """
        while self._forced and not only_full:
            jobs, search = self._forced.popleft()
            alive = [job for job in jobs if job.state == AGAIN]
            for job in alive:
                self.depth -= 1
                self._bytes -= job.nbytes
            if alive:
                return Batch(alive, search)
            if search is not None:
                self._continue(search, search.succeeded())
        group = self._oldest()
        if group is None:
            return None
        if group.rows < self.max_batch_size and (
            only_full or now < group.jobs[0].arrived + self.max_delay_s
        ):
            return None
        return self._take(group)

    def due(self) -> float:
        """Return the moment at which `next` will have a batch without further arrivals."""
        if self._forced:
            return -math.inf
        group = self._oldest()
        if group is None:
            return math.inf
        if group.rows >= self.max_batch_size:
            return -math.inf
        return group.jobs[0].arrived + self.max_delay_s

    # --- how a batch went ---

    def ran(self, batch: Batch) -> None:
        """A batch has answers. Goes on with the search that it was part of."""
        if batch.search is not None:
            self._continue(batch.search, batch.search.succeeded())

    def failed(self, batch: Batch) -> Job | None:
        """The model raised. Return the job to settle with the model's error, or None.

        A job that ran alone is the guilty one; else the batch is taken apart and runs again.
        """
        search = batch.search
        if search is None:
            if len(batch.jobs) == 1:
                return batch.jobs[0]
            self._continue(Bisection(batch.jobs), True)
            return None
        guilty = search.failed()
        self._continue(search, guilty is None)
        return guilty

    def lost(self, batch: Batch) -> list[tuple[Job, MuelleError]]:
        """The worker died with this batch. Return the jobs to settle with an error.

        The others run once more, each alone: one of them may be what killed the worker.
        """
        doomed: list[tuple[Job, MuelleError]] = []
        for job in batch.jobs:
            if job.state == SETTLED:
                continue
            job.attempts += 1
            if job.attempts >= MAX_DEATHS:
                doomed.append(
                    (
                        job,
                        ModelFailed(
                            f"{self.model}: the model's worker ended twice on this request"
                        ),
                    )
                )
            else:
                self._force([job], None)
        if batch.search is not None:
            # What the search held back was not in this batch; it must not be forgotten.
            self._searches.discard(batch.search)
            held = batch.search.held()
            if held:
                self._force(held, None)
        return doomed

    def put_back(self, batch: Batch) -> None:
        """A batch could not be given to a worker: it runs as it is on the next one."""
        self._force(batch.jobs, batch.search)

    def drain(self) -> list[Job]:
        """Take every waiting job out, for the caller to settle (the version goes away)."""
        jobs = [*self._waiting(), *self._held()]
        for job in jobs:
            job.state = RUNNING
        self._groups.clear()
        self._forced.clear()
        self._searches.clear()
        self.depth = self._bytes = 0
        return jobs

    # --- below ---

    def _waiting(self) -> Iterator[Job]:
        for jobs, _ in list(self._forced):
            yield from (job for job in jobs if job.state == AGAIN)
        for group in list(self._groups.values()):
            yield from [job for job in group.jobs if job.state == WAITING]

    def _held(self) -> Iterator[Job]:
        for search in self._searches:
            yield from (job for job in search.held() if job.state == RUNNING)

    def _leave(self, job: Job) -> None:
        """Count a job out that stays in a deque until it comes to the head."""
        self.depth -= 1
        self._bytes -= job.nbytes
        if job.state == WAITING:
            self._groups[job.key].rows -= job.n_rows

    def _force(self, jobs: list[Job], search: Bisection | None) -> None:
        alive = [job for job in jobs if job.state != SETTLED]
        for job in alive:
            job.state = AGAIN
            self.depth += 1
            self._bytes += job.nbytes
        self._forced.append((alive, search))

    def _continue(self, search: Bisection, goes_on: bool) -> None:
        if goes_on:
            self._searches.add(search)
            self._force(search.group(), search)
            return
        self._searches.discard(search)
        rest = search.presumed_good()
        if rest:
            self._force(rest, None)

    def _oldest(self) -> _Group | None:
        """Return the group whose head came first, after dropping the dead from every head."""
        best: _Group | None = None
        for key in list(self._groups):
            group = self._groups[key]
            jobs = group.jobs
            while jobs and jobs[0].state != WAITING:
                jobs.popleft()
            if not jobs:
                del self._groups[key]
            elif best is None or jobs[0].arrived < best.jobs[0].arrived:
                best = group
        return best

    def _take(self, group: _Group) -> Batch:
        jobs = group.jobs
        taken: list[Job] = []
        rows = nbytes = 0
        limit = self.max_batch_size
        while jobs:
            job = jobs[0]
            if job.state != WAITING:
                jobs.popleft()
                continue
            if taken and (rows + job.n_rows > limit or nbytes + job.nbytes > MAX_BATCH_BYTES):
                break
            jobs.popleft()
            taken.append(job)
            rows += job.n_rows
            nbytes += job.nbytes
            if rows >= limit:
                break
        group.rows -= rows
        self.depth -= len(taken)
        self._bytes -= nbytes
        return Batch(taken)
