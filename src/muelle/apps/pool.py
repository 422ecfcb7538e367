"""The processes of a hosted application: start, choose, watch, start again, shut down.

`RestartPolicy` decides when a dead one comes back. Not for a request's own way (`exchange`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from muelle.apps.doors import Doors
from muelle.apps.frames import Hello
from muelle.apps.link import AppLink
from muelle.core.errors import ArtifactError
from muelle.core.events import AppDied, AppReady, Listener
from muelle.lifecycle.policy import RestartPolicy
from muelle.telemetry.apps import AppMetrics
from muelle.workers.process import WorkerProcess

log = logging.getLogger("muelle.app")

LAST_WORDS_S = 1.0
"""How long a process that closed its channel may take to end by itself."""


class _Seat:
    """A place for one process, and its past."""

    __slots__ = ("began", "index", "link", "restarts", "timer")

    def __init__(self, index: int) -> None:
        self.index = index
        self.link: AppLink | None = None
        self.restarts = 0
        self.began = 0.0
        """When its present process was started."""
        self.timer: asyncio.TimerHandle | None = None
        """Of the next start, or of the end of the time to load."""


class AppPool:
    """Owned by the server; used on the event loop's thread only."""

    def __init__(
        self,
        hello: Hello,
        *,
        shown: str,
        workers: int,
        max_concurrency: int,
        load_timeout_s: float,
        spawn: Callable[[], WorkerProcess],
        doors: Doors,
        metrics: AppMetrics,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`shown` is the application's short name; `max_concurrency` is for each process."""
        self._hello = hello
        self._shown = shown
        self._max_concurrency = max_concurrency
        self._load_timeout_s = load_timeout_s
        self._spawn = spawn
        self._doors = doors
        self._metrics = metrics
        self._listener = listener
        self._loop = loop
        self._policy = RestartPolicy()
        self._seats = [_Seat(i) for i in range(workers)]
        self._first: asyncio.Future[None] = loop.create_future()
        self._reason = "it is being loaded"
        self._closing = False
        self._reaping: set[asyncio.Task[None]] = set()

    # --- life ---

    async def start(self) -> None:
        """Start the processes and wait until one answers. Raise ArtifactError: it cannot load."""
        for seat in self._seats:
            self._start(seat)
        await asyncio.shield(self._first)

    async def stop(self, timeout_s: float) -> None:
        """Let every process finish what it does and shut down; kill what takes longer."""
        self._closing = True
        if not self._first.done():
            self._first.set_result(None)
        for seat in self._seats:
            if seat.timer is not None:
                seat.timer.cancel()
        links = [seat.link for seat in self._seats if seat.link is not None]
        for link in links:
            if link.ready:
                link.stop()
            else:
                link.process.kill()  # It imports something, and hears nothing meanwhile.
        ends = [self._loop.run_in_executor(None, _wait, link, timeout_s) for link in links]
        if ends:
            await asyncio.wait(ends)
        for link in links:
            link.close()
        for seat in self._seats:
            seat.link = None
        if self._reaping:
            await asyncio.wait(self._reaping)
        self._metrics.workers = 0

    # --- what there is ---

    def ready(self) -> tuple[bool, str]:
        """Whether a process takes requests; else why not."""
        if any(seat.link is not None and seat.link.ready for seat in self._seats):
            return True, ""
        return False, f"the app {self._shown}: {self._reason}"

    def pids(self) -> list[int]:
        """Return the processes that live."""
        found = [seat.link.process.pid for seat in self._seats if seat.link is not None]
        return [pid for pid in found if pid is not None]

    def choose(self) -> AppLink | None:
        """Return the process with the least to do; None: none is there, or all are full."""
        links = [seat.link for seat in self._seats if seat.link is not None and seat.link.ready]
        least = min(links, key=lambda link: link.in_flight, default=None)
        return least if least is not None and least.in_flight < self._max_concurrency else None

    # --- link.Owner ---

    def is_ready(self, link: AppLink) -> None:
        """The application has started in a process."""
        seat = self._seat_of(link)
        if seat is None:
            return
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        self._count()
        if not self._first.done() or seat.restarts:
            # One line for the start, however many there are, and one for each that came back.
            seconds = self._loop.time() - seat.began
            workers = len(self._seats)
            self._listener(
                AppReady(app=self._shown, kind=link.kind, workers=workers, seconds=seconds)
            )
        if not self._first.done():
            self._first.set_result(None)

    def load_failed(self, link: AppLink, text: str) -> None:
        """The application cannot be loaded: final at the first start, another death later."""
        if not self._first.done():
            self._first.set_exception(ArtifactError(text))
        self.has_ended(link, text)

    def has_ended(self, link: AppLink, reason: str) -> None:
        """A process is gone, or must go."""
        seat = self._seat_of(link)
        if seat is None:
            return
        served = link.answered > 0
        seat.link = None
        link.close()
        self._count()
        task = self._loop.create_task(self._reap(seat, link, reason, served))
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    # --- below ---

    def _start(self, seat: _Seat) -> None:
        seat.timer = None
        if self._closing:
            return
        seat.began = self._loop.time()
        try:
            process = self._spawn()
        except OSError as exc:
            self._again(seat, f"it cannot be started: {exc.strerror}", served=False)
            return
        link = AppLink(process, self._hello, owner=self, doors=self._doors, loop=self._loop)
        seat.link = link
        text = f"it did not load within {self._load_timeout_s:g} s"
        seat.timer = self._loop.call_later(self._load_timeout_s, self.load_failed, link, text)

    async def _reap(self, seat: _Seat, link: AppLink, reason: str, served: bool) -> None:
        """Make sure that the process is gone, and learn how it went."""
        process = link.process
        last_words_s = 0.0 if reason else LAST_WORDS_S
        code = await self._loop.run_in_executor(None, process.wait, last_words_s)
        if code is None:
            process.kill()
            await self._loop.run_in_executor(None, process.wait, LAST_WORDS_S)
            reason = reason or "it closed its channel"
        if not self._closing:
            self._again(seat, reason or process.reason(), served=served)

    def _again(self, seat: _Seat, reason: str, *, served: bool) -> None:
        self._metrics.restarts += 1
        seat.restarts += 1
        self._reason = reason
        if not self._first.done():
            self._first.set_exception(ArtifactError(f"the app {self._shown} ended: {reason}"))
        if self._first.exception() is not None:
            return  # It never ran: who started the server is told, and decides.
        restart = self._policy.died(self._loop.time(), served=served)
        self._listener(AppDied(worker=seat.index, reason=reason, restart_in_s=restart.after_s))
        seat.timer = self._loop.call_later(restart.after_s, self._start, seat)

    def _seat_of(self, link: AppLink) -> _Seat | None:
        return next((seat for seat in self._seats if seat.link is link), None)

    def _count(self) -> None:
        links = [seat.link for seat in self._seats]
        self._metrics.workers = sum(link is not None and link.ready for link in links)


def _wait(link: AppLink, timeout_s: float) -> None:
    """Wait for a process to end; kill it when it does not. Blocking: not on the loop's thread."""
    if link.process.wait(timeout_s) is None:
        link.process.kill()
        link.process.wait(LAST_WORDS_S)
