"""The workers of one model version: start, feed, watch, restart, drain.

The shell around the pure deciders: `Batcher` says what runs, `RestartPolicy` when a dead worker
comes back. Every request is settled exactly once, whatever happens to a worker.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from muelle.core.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    ModelFailed,
    QueueFull,
    Unavailable,
)
from muelle.core.events import Listener, VersionFailed, VersionLoading, VersionReady, WorkerDied
from muelle.core.request import BatchOutput, Done, InferRequest, InferResponse, OutputTensor
from muelle.core.settings import ModelSettings
from muelle.core.signature import Signature
from muelle.core.status import VersionState, WorkerState, WorkerStatus
from muelle.lifecycle.policy import RestartPolicy
from muelle.scheduling.batcher import Batch, Batcher
from muelle.scheduling.jobs import RUNNING, CallbackJob, Job, Place
from muelle.scheduling.split import SplitRequest, row_slices
from muelle.workers import messages as m
from muelle.workers.link import WorkerLink
from muelle.workers.process import Process, WorkerProcess, WorkerThread

SLOTS = 2
"""Slots per worker: the next batch can lie ready while one computes."""
TICK_S = 0.025
"""How often deadlines and hung workers are looked for, while there is work."""
HUNG_GRACE_S = 0.5
SPLIT_WINDOW = 2

log = logging.getLogger("muelle.worker")


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Which version to serve, and how. Times in seconds."""

    model: str
    version: str
    artifact: str
    runtime: str
    format: str
    workers: int = 1
    threads: int = 1
    isolation: str = "process"
    max_batch_size: int = 32
    max_delay_s: float = 0.0
    max_queue: int = 1_000
    max_queue_bytes: int = 512 * 1024 * 1024
    timeout_s: float = 30.0
    run_limit_s: float = 10.0
    load_timeout_s: float = 600.0
    memory_limit_bytes: int = 0
    output_limit_bytes: int = 1024**3
    examples: bytes = b""
    """MessagePack of `messages.Examples`: every worker runs them before it counts as loaded."""
    python: str = ""
    """Interpreter of the version's own environment, "" for the server's."""
    settings: ModelSettings | None = None
    """The model's own configuration."""
    one_try: bool = False
    """Whether a crash during the first load is final: something else serves meanwhile."""


class Observer(Protocol):
    """Receives what is worth counting; telemetry is one."""

    def batch(self, n_rows: int, compute_s: float, jobs: Sequence[Job], ended: float) -> None:
        """A batch ran for compute_s and ended at `ended` (monotonic seconds)."""


Check = Callable[[m.Loaded], str]
"""Looks at what a worker says after loading; returns why it must not serve, "" when it may."""


class Uncounted:
    """An observer that counts nothing."""

    def batch(self, n_rows: int, compute_s: float, jobs: Sequence[Job], ended: float) -> None:
        """Do nothing."""


class _Seat:
    """A place for one worker: the link of the process that sits there, and its past."""

    __slots__ = ("began_at", "index", "link", "restarts", "state", "timer")

    def __init__(self, index: int) -> None:
        self.index = index
        self.link: WorkerLink | None = None
        self.restarts = 0
        self.state: WorkerState = "starting"
        self.timer: asyncio.TimerHandle | None = None
        self.began_at = 0.0


class WorkerPool:
    """Owned by the inference service; used on the event loop's thread only."""

    def __init__(
        self,
        spec: PoolSpec,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        observer: Observer | None = None,
        check: Check | None = None,
    ) -> None:
        self.spec = spec
        self._check = check
        self.state: VersionState = "LOADING"
        self.reason = "loading"
        self.signature: Signature | None = None
        self.info: dict[str, Any] = {}
        self.settings = spec.settings
        """The model's own configuration, completed by the model once it is loaded."""
        self.example: dict[str, Any] | None = None
        self._loop = loop
        self._now = time.monotonic
        self._listener = listener
        self._observer = observer or Uncounted()
        self._policy = RestartPolicy()
        self._seats = [_Seat(i) for i in range(spec.workers)]
        self._batcher = self._new_batcher(spec.max_batch_size)
        self.max_batch_size = spec.max_batch_size
        """Rows of one batch; the model's own once it is loaded."""
        self._split_above = spec.max_batch_size
        self._has_rows = True
        self._keyed = False
        self.takes_plain_rows = False
        """Whether a row is the same bytes in every request, so that hot jobs may be made of it."""
        self._pump_scheduled = False
        self._delay_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._settled = loop.create_future()
        self._closing = False

    # --- life ---

    async def start(self) -> None:
        """Start the workers and wait until one can answer, or the version has failed."""
        self._began = self._now()
        self._listener(
            VersionLoading(
                model=self.spec.model, version=self.spec.version, artifact=self.spec.artifact
            )
        )
        for seat in self._seats:
            self._spawn(seat)
        await asyncio.shield(self._settled)

    def refuse(self, reason: str) -> None:
        """Do not load at all: the version is FAILED with this reason."""
        self._fail(reason)

    async def stop(self, timeout_s: float) -> None:
        """Answer what waits, within the time, then end the workers."""
        deadline = self._now() + timeout_s
        while self.busy and self._now() < deadline:
            await asyncio.sleep(0.01)
        self._closing = True
        if not self._settled.done():
            self._settled.set_result(None)
        error = Unavailable(f"{self.spec.model}: the server is shutting down")
        for job in self._batcher.drain():
            job.settle(error)
        for timer in (self._tick_timer, self._delay_timer, *(s.timer for s in self._seats)):
            if timer is not None:
                timer.cancel()
        links = [seat.link for seat in self._seats if seat.link is not None]
        for link in links:
            for batch in link.batches():
                for job in batch.jobs:
                    job.settle(error)
            link.stop()
        for link in links:
            link.close()
        for link in links:
            for _ in range(50):
                if link.process.wait(0) is not None:
                    break
                await asyncio.sleep(0.01)
            else:
                link.process.kill()
                await self._loop.run_in_executor(None, link.process.wait, 5.0)
        for seat in self._seats:
            seat.link = None
            seat.state = "stopped"

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self._batcher.depth > 0 or any(
            seat.link is not None and seat.link.in_flight for seat in self._seats
        )

    @property
    def queue_depth(self) -> int:
        """Requests that wait."""
        return self._batcher.depth

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        links = [seat.link for seat in self._seats if seat.link is not None]
        running = sum(len(batch.jobs) for link in links for batch in link.batches())
        return self._batcher.depth + running

    @property
    def serving(self) -> bool:
        """Whether at least one worker can take a batch now."""
        return any(seat.link is not None and seat.link.ready for seat in self._seats)

    def worker_statuses(self) -> tuple[WorkerStatus, ...]:
        """Return what each worker does (reads their memory from /proc)."""
        found = []
        for seat in self._seats:
            link = seat.link
            state = seat.state
            if state == "ready" and link is not None and link.in_flight:
                state = "busy"
            found.append(
                WorkerStatus(
                    index=seat.index,
                    state=state,
                    pid=link.process.pid if link else None,
                    restarts=seat.restarts,
                    rss_bytes=link.process.rss_bytes() if link else 0,
                )
            )
        return tuple(found)

    # --- requests ---

    def check_open(self) -> None:
        """Raise Unavailable or QueueFull when nothing can be queued: before a body is read."""
        if self.state != "READY":
            raise Unavailable(
                f"{self.spec.model}: {self.reason}",
                retry_after_s=5.0 if self.state == "QUARANTINED" else 1.0,
            )
        if self._batcher.is_full:
            raise self.full_error()

    @property
    def is_full(self) -> bool:
        """Whether the queue is at its limit of requests."""
        return self._batcher.is_full

    def full_error(self) -> QueueFull:
        """Return what a request over the queue's limit is told."""
        return QueueFull(self.spec.model, self.spec.max_queue)

    def submit(self, request: InferRequest, done: Done, arrived: float) -> Callable[[], None]:
        """Queue a request; `done` is called once. Return a function that cancels it.

        Raise Unavailable or QueueFull at once.
        """
        self.check_open()
        if request.n_rows == 0 and self._has_rows:
            raise BadRequest(f"{self.spec.model}: the request has no rows; send at least one")
        timeout_s = self.spec.timeout_s
        if request.timeout_s is not None and request.timeout_s < timeout_s:
            timeout_s = request.timeout_s
        deadline = arrived + timeout_s
        if request.n_rows > self._split_above and self._has_rows:
            if self.settings is not None and self.settings.max_batch_size is not None:
                raise BadRequest(
                    f"{self.spec.model}: {request.n_rows} rows, the model's max_batch_size is "
                    f"{self.max_batch_size}"
                )

            def submit_part(part: InferRequest, part_done: Done) -> Callable[[], None]:
                return self._queue(part, part_done, self._now(), deadline)

            parts = row_slices(request, self._split_above)
            return SplitRequest(parts, submit_part, done, SPLIT_WINDOW).cancel
        return self._queue(request, done, arrived, deadline)

    def _queue(
        self, request: InferRequest, done: Done, arrived: float, deadline: float
    ) -> Callable[[], None]:
        try:
            job = CallbackJob(request, done, arrived=arrived, deadline=deadline)
        except (struct.error, OverflowError, TypeError, ValueError) as exc:
            raise _bad_value(request, exc) from None
        if self._keyed:
            job.places = self._places(request)
            job.key = tuple(job.places)
        self.enqueue(job)
        return lambda: self.cancel(job)

    def enqueue(self, job: Job) -> None:
        """Queue a job that was made elsewhere (the hot way). Raise QueueFull."""
        self._batcher.submit(job)
        if not self._pump_scheduled:
            # Once per turn of the loop: what arrives in the same turn shares a batch.
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def cancel(self, job: Job) -> None:
        """The caller left: drop its job before it runs."""
        self._batcher.cancel(job)

    def _places(self, request: InferRequest) -> list[Place]:
        """Say where the inputs belong. Requests share a batch when these are equal."""
        assert self.signature is not None
        positions = {spec.name: i for i, spec in enumerate(self.signature.inputs)}
        first = 1 if self._has_rows else 0
        return [(positions[t.name], tuple(t.shape[first:])) for t in request.inputs]

    # --- feeding the workers ---

    def _pump(self) -> None:
        self._pump_scheduled = False
        batcher = self._batcher
        now = self._now()
        for seat in self._seats:
            link = seat.link
            if link is None or not link.ready or link.in_flight:
                continue
            batch = batcher.next(now)
            if batch is None:
                break
            self._give(link, batch, now)
        else:
            for seat in self._seats:
                link = seat.link
                if link is not None and link.ready and link.in_flight and link.has_free_slot:
                    batch = batcher.next(now, only_full=True)
                    if batch is None:
                        break
                    self._give(link, batch, now)
        if batcher.depth or self._tick_timer is None:
            self._arm(now)

    def _arm(self, now: float) -> None:
        if self._tick_timer is None and self.busy:
            self._tick_timer = self._loop.call_later(TICK_S, self._tick)
        if self._batcher.max_delay_s and self._delay_timer is None:
            due = self._batcher.due()
            if now < due < now + 3_600:
                self._delay_timer = self._loop.call_later(due - now, self._delay_over)

    def _delay_over(self) -> None:
        self._delay_timer = None
        self._pump()

    def _give(self, link: WorkerLink, batch: Batch, now: float) -> None:
        try:
            link.run(batch, now)
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:
                # Where the tensors lie does not fit one datagram: it never will.
                error = ModelFailed(f"{self.spec.model}: more input tensors than a batch can name")
                for job in batch.jobs:
                    job.settle(error)
                return
            # The channel broke; the worker's end is noticed by itself. Nothing was lost.
            self._batcher.put_back(batch)

    def _schedule(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    # --- what links tell ---

    def loaded(self, link: WorkerLink, message: m.Loaded) -> None:
        """A worker has the model in memory."""
        seat = self._seats[link.index]
        signature = message.signature
        wrong = self._check(message) if self._check is not None else ""
        if wrong and self.signature is None:
            self._fail(wrong)
            return
        if wrong:
            self.died(link, wrong)
            return
        if self.signature is None:
            self._adopt(message)
        elif signature != self.signature:
            # The file changed behind a running version: its promise to callers would break.
            self.died(link, "the artifact's signature is not what it was at the first load")
            return
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        link.set_sizes(signature, message.output_row_bytes, self.max_batch_size)
        link.ready = True
        seat.state = "ready"
        was_ready = self.state == "READY"
        self.state, self.reason = "READY", ""
        if not was_ready:
            self._listener(
                VersionReady(
                    model=self.spec.model,
                    version=self.spec.version,
                    seconds=self._now() - self._began,
                )
            )
        if not self._settled.done():
            self._settled.set_result(None)
        self._schedule()

    def _adopt(self, message: m.Loaded) -> None:
        self.signature = signature = message.signature
        self.info = message.info
        self.example = message.example
        if message.settings:
            self.settings = msgspec.msgpack.decode(message.settings, type=ModelSettings)
        self._has_rows = signature.has_rows
        self._keyed = not signature.has_rows or any(
            s.optional or any(d < 0 for d in s.row_shape) for s in signature.inputs
        )
        self.takes_plain_rows = not self._keyed
        self.max_batch_size = self.spec.max_batch_size
        if self.settings is not None and self.settings.max_batch_size is not None:
            self.max_batch_size = max(1, self.settings.max_batch_size)
        if not signature.has_rows:
            # Without a rows axis nothing can share a batch; a request is one whole.
            self.max_batch_size = 1
        self._split_above = self.max_batch_size
        if self.max_batch_size != self.spec.max_batch_size:
            self._batcher = self._new_batcher(self.max_batch_size)

    def load_failed(self, link: WorkerLink, message: m.LoadFailed) -> None:
        """A worker says why the model cannot be loaded."""
        if message.detail:
            self._log_detail(message.detail)
        if self.signature is not None:
            self.died(link, f"loading failed: {message.reason}")
            return
        self._fail(message.reason)

    def ran(self, link: WorkerLink, batch: Batch, outputs: list[BatchOutput], ns: int) -> None:
        """A batch has its answers: give the worker its next one, then settle."""
        self._batcher.ran(batch)
        if self._batcher.depth:
            self._pump()
        now = self._now()
        jobs = batch.jobs
        self._observer.batch(batch.n_rows, ns * 1e-9, jobs, now)
        model, version = self.spec.model, self.spec.version

        def general(job: Job, start: int) -> None:
            stop = start + job.n_rows
            if not self._has_rows:
                start = stop = -1
            tensors = [OutputTensor(output, start, stop) for output in outputs]
            job.settle(InferResponse(model, version, tensors))

        sink = jobs[0].sink
        try:
            if sink is not None:
                sink.settle_rows(jobs, outputs, general, now)
                return
            start = 0
            for job in jobs:
                if job.state == RUNNING:
                    general(job, start)
                start += job.n_rows
        except Exception as exc:
            # A worker can write outputs that no codec can read (lengths of BYTES, say).
            log.error("%s: the outputs of a batch cannot be read", model, exc_info=exc)
            error = Internal(f"{model}: the model's outputs cannot be read")
            for job in jobs:
                if job.state == RUNNING:
                    job.settle(error)

    def failed(self, link: WorkerLink, batch: Batch, reason: str, detail: str) -> None:
        """The model raised: only the guilty request gets the error."""
        guilty = self._batcher.failed(batch)
        if guilty is not None:
            if detail:
                self._log_detail(detail)
            guilty.settle(ModelFailed(f"{self.spec.model}: the model failed: {reason}"))
        self._schedule()

    def died(self, link: WorkerLink, reason: str) -> None:
        """A worker ended: its requests run once more elsewhere, a new one is started."""
        seat = self._seats[link.index]
        if seat.link is not link:
            return
        lost = link.batches()
        self._end(seat)
        if self._closing:
            return
        if self.spec.one_try and self.signature is None:
            self._fail_at_end_of(link.process, reason)
            return
        for batch in lost:
            for job, error in self._batcher.lost(batch):
                job.settle(error)
        restart = self._policy.died(self._now(), served=link.served > 0)
        seat.state = "quarantined" if restart.quarantined else "restarting"
        if restart.quarantined and not self.serving:
            # While another worker serves, only this seat stays empty.
            self._quarantine(restart.after_s)
        self._reap(link.process, reason, seat, restart.after_s, restart.quarantined)
        seat.timer = self._loop.call_later(restart.after_s, self._spawn, seat)
        self._schedule()

    # --- life of a worker ---

    def _spawn(self, seat: _Seat) -> None:
        if self._closing:
            return
        spec = self.spec
        if seat.state in ("restarting", "quarantined"):
            seat.restarts += 1
        seat.state = "starting"
        spawn = WorkerThread.spawn if spec.isolation == "none" else WorkerProcess.spawn
        try:
            process: Process = spawn(spec.threads, spec.python)
        except OSError as exc:
            # No descriptors, no memory, no processes left: such times pass.
            self._spawn_failed(seat, exc)
            return
        link = WorkerLink(
            seat.index,
            process,
            self,
            slots=SLOTS,
            output_limit_bytes=spec.output_limit_bytes,
            loop=self._loop,
        )
        seat.link = link
        seat.timer = self._loop.call_later(spec.load_timeout_s, self._load_timeout, link)
        try:
            link.load(
                m.Load(
                    runtime=spec.runtime,
                    path=spec.artifact,
                    format=spec.format,
                    name=spec.model,
                    threads=spec.threads,
                    max_batch_size=spec.max_batch_size,
                    slots=SLOTS,
                    memory_limit_bytes=spec.memory_limit_bytes,
                    examples_bytes=len(spec.examples),
                    version=spec.version,
                    settings=msgspec.msgpack.encode(spec.settings) if spec.settings else b"",
                ),
                spec.examples,
            )
        except OSError as exc:
            self.died(link, f"channel broken: {exc.strerror}")

    def _spawn_failed(self, seat: _Seat, exc: OSError) -> None:
        reason = f"a worker cannot be started: {exc.strerror}"
        restart = self._policy.died(self._now(), served=False)
        seat.state = "quarantined" if restart.quarantined else "restarting"
        if restart.quarantined:
            self._quarantine(restart.after_s)
        self._listener(
            WorkerDied(
                model=self.spec.model,
                version=self.spec.version,
                worker=seat.index,
                reason=reason,
                restart_in_s=None if restart.quarantined else restart.after_s,
            )
        )
        seat.timer = self._loop.call_later(restart.after_s, self._spawn, seat)

    def _load_timeout(self, link: WorkerLink) -> None:
        reason = f"not loaded within {self.spec.load_timeout_s:g} s"
        if self.signature is None:
            # Trying again would only wait as long again, and `start` with it.
            self._fail(f"{reason}; allow more with worker.load_timeout_s")
        else:
            self.died(link, reason)

    def _end(self, seat: _Seat) -> None:
        link = seat.link
        if link is None:
            return
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        seat.link = None
        seat.state = "stopped"
        link.close()
        link.process.kill()

    def _reap(
        self, process: Process, reason: str, seat: _Seat, after_s: float, quarantined: bool
    ) -> None:
        """Collect the exit status without blocking the loop, then tell how the worker ended."""
        if process.wait(0) is None and not isinstance(process, WorkerThread):
            self._loop.call_later(0.01, self._reap, process, reason, seat, after_s, quarantined)
            return
        text = f"{reason}; {process.reason()}" if reason else process.reason()
        self._listener(
            WorkerDied(
                model=self.spec.model,
                version=self.spec.version,
                worker=seat.index,
                reason=text,
                restart_in_s=None if quarantined else after_s,
            )
        )

    def _quarantine(self, after_s: float) -> None:
        self.state = "QUARANTINED"
        self.reason = f"its workers keep dying; next try within {after_s:g} s"
        error = Unavailable(f"{self.spec.model}: {self.reason}", retry_after_s=5.0)
        for job in self._batcher.drain():
            job.settle(error)
        if not self._settled.done():
            self._settled.set_result(None)

    def fail(self, reason: str) -> None:
        """Take the version out of service for good: FAILED with this reason, workers ended."""
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self.state == "FAILED":
            return
        self.state, self.reason = "FAILED", reason
        self._listener(
            VersionFailed(model=self.spec.model, version=self.spec.version, reason=reason)
        )
        for seat in self._seats:
            link = seat.link
            self._end(seat)
            if link is not None:
                self._collect(link.process)
        if not self._settled.done():
            self._settled.set_result(None)

    def _fail_at_end_of(self, process: Process, reason: str) -> None:
        """Fail once the exit status is known: it says more than a closed channel."""
        if process.wait(0) is None and not isinstance(process, WorkerThread):
            self._loop.call_later(0.01, self._fail_at_end_of, process, reason)
            return
        ended = f"{reason}; {process.reason()}" if reason else process.reason()
        self._fail(f"its worker ended while it loaded the model: {ended}")

    def _collect(self, process: Process) -> None:
        """Take the exit status of an ended process: without this a zombie stays."""
        if process.wait(0) is None and not isinstance(process, WorkerThread):
            self._loop.call_later(0.01, self._collect, process)

    # --- time ---

    def _tick(self) -> None:
        """Settle what is late, kill what hangs. Runs only while there is work."""
        self._tick_timer = None
        now = self._now()
        late = self._batcher.expire(now)
        for seat in self._seats:
            link = seat.link
            if link is None or not link.in_flight:
                continue
            for batch in link.batches():
                late += [j for j in batch.jobs if j.deadline <= now and j.state == RUNNING]
            began = link.oldest_began()
            if began is not None and now - began > self.spec.run_limit_s + HUNG_GRACE_S:
                link.process.kill()
                self.died(link, f"a batch ran longer than {self.spec.run_limit_s:g} s")
        for job in late:
            job.settle(
                DeadlineExceeded(
                    f"{self.spec.model}: no answer within {job.deadline - job.arrived:.3g} s; "
                    "send fewer requests at once, or allow more time"
                )
            )
        if self.busy:
            self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    # --- below ---

    def _new_batcher(self, max_batch_size: int) -> Batcher:
        spec = self.spec
        return Batcher(
            spec.model,
            max_batch_size=max_batch_size,
            max_delay_s=spec.max_delay_s if max_batch_size > 1 else 0.0,
            max_queue=spec.max_queue,
            max_queue_bytes=spec.max_queue_bytes,
        )

    def _log_detail(self, detail: str) -> None:
        log.warning("%s: %s", self.spec.model, detail)


def _bad_value(request: InferRequest, exc: Exception) -> BadRequest:
    """Find the tensor whose value does not fit its datatype."""
    for tensor in request.inputs:
        try:
            tensor.memory()
        except (struct.error, OverflowError, TypeError, ValueError):
            return BadRequest(
                f"{tensor.name}: a value does not fit {tensor.datatype}: {exc}", field=tensor.name
            )
    return BadRequest(f"a value does not fit its datatype: {exc}")
