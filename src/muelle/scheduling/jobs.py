"""A request's life in the scheduler. Not for transport: each caller has a job class."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from muelle.core.request import BatchOutput, Buffer, Done, InferRequest, InferResponse


class JobState(enum.IntEnum):
    """Where a job is."""

    WAITING = 1
    AGAIN = 2
    """Waits to run once more, in a batch that is already formed."""
    RUNNING = 3
    SETTLED = 4


WAITING, AGAIN, RUNNING, SETTLED = (
    JobState.WAITING,
    JobState.AGAIN,
    JobState.RUNNING,
    JobState.SETTLED,
)

Place = tuple[int, tuple[int, ...]]
"""Where a column belongs: position in the signature's inputs, and the shape of one row (of the
whole tensor, when the model has no rows axis)."""


class Sink(Protocol):
    """Takes the answers of many jobs of one batch at once: the hot way out."""

    def settle_rows(
        self,
        jobs: Sequence[Job],
        outputs: Sequence[BatchOutput],
        general: Callable[[Job, int], None],
        now: float,
    ) -> None:
        """Settle every job of a batch; `general(job, first row)` settles one the usual way."""


class Job:
    """One request on its way. Settled exactly once, by whoever comes first.

    Used on the event loop's thread only. `columns` are the inputs in memory layout; `key` groups
    jobs that may share a batch; `deadline` and `arrived` are monotonic seconds.
    """

    __slots__ = (
        "arrived",
        "attempts",
        "columns",
        "deadline",
        "key",
        "n_rows",
        "nbytes",
        "places",
        "sink",
        "state",
    )

    arrived: float
    attempts: int
    """How many workers died with this job in their batch."""
    columns: Sequence[Buffer]
    deadline: float
    key: Hashable
    n_rows: int
    nbytes: int
    places: Sequence[Place] | None
    """Where the columns belong; None: all inputs in order, rows as the signature has them."""
    sink: Sink | None
    state: int

    def settle(self, result: InferResponse | Exception) -> None:
        """Hand the result to the caller, unless the job is settled already."""
        if self.state != SETTLED:
            self.state = SETTLED
            self.deliver(result)

    def deliver(self, result: InferResponse | Exception) -> None:
        """Give the caller what it waits for. Called by `settle` only."""
        raise TypeError("a job must say where its answer goes")

    def drop(self) -> None:
        """The caller left: nobody is told. Batch mates do not notice."""
        self.state = SETTLED


class CallbackJob(Job):
    """A job whose answer goes to a callback: the general case."""

    __slots__ = ("_done",)

    def __init__(
        self,
        request: InferRequest,
        done: Done,
        *,
        arrived: float,
        deadline: float,
        key: Hashable = None,
        places: Sequence[Place] | None = None,
    ) -> None:
        """Raise struct.error, OverflowError or TypeError when a value does not fit its datatype."""
        self._done = done
        self.arrived = arrived
        self.attempts = 0
        self.columns = [tensor.memory() for tensor in request.inputs]
        self.deadline = deadline
        self.key = key
        self.n_rows = request.n_rows
        self.nbytes = sum(map(len, self.columns))
        self.places = places
        self.sink = None
        self.state = WAITING

    def deliver(self, result: InferResponse | Exception) -> None:
        """Call back."""
        self._done(result)
