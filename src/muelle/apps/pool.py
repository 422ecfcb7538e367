"""The processes of one application: start, feed, watch, restart, drain.

The restart policy decides when a dead one comes back. Every request is settled exactly once,
whatever happens to a process. Not for which paths are the application's (`switch`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from muelle.apps import messages as m
from muelle.apps.link import AppLink
from muelle.apps.metrics import AppMetrics
from muelle.apps.process import AppProcess
from muelle.core.errors import (
    BadGateway,
    DeadlineExceeded,
    MuelleError,
    QueueFull,
    Unavailable,
)
from muelle.lifecycle.policy import RestartPolicy
from muelle.protocols import native
from muelle.protocols.http import Answer, HttpRequest

log = logging.getLogger("muelle.app")

PONG_S = 5.0
"""How long a process whose request ran out of time may take to show that its loop is alive."""

AskServer = Callable[[HttpRequest], Awaitable[Answer]]
"""Answers what an application asks of a model. Never raises."""


@dataclass(frozen=True, slots=True)
class AppSpec:
    """Which application to host, and how. Times in seconds."""

    target: str
    workers: int = 1
    threads: int = 8
    """Threads of a WSGI application, per process."""
    timeout_s: float = 60.0
    max_concurrency: int = 100
    """Requests that may run at a time, per process."""
    load_timeout_s: float = 60.0
    memory_limit_bytes: int = 0
    body_limit_bytes: int = 1024**3
    scheme: str = "http"
    """What clients speak to the server: `http` or `https`."""


class AppPool:
    """Used on the event loop's thread only."""

    def __init__(
        self,
        spec: AppSpec,
        *,
        ask: AskServer,
        loop: asyncio.AbstractEventLoop,
        env: Mapping[str, str],
        died: Callable[[str, float], None] = lambda reason, after_s: None,
    ) -> None:
        """`env` comes on top of the server's environment; `died` is told of a process's end."""
        self.spec = spec
        self.kind = ""
        """`ASGI` or `WSGI`, once it is loaded."""
        self.reason = "loading"
        """Why it does not answer, "" when it does."""
        self.metrics = AppMetrics()
        self._ask = ask
        self._loop = loop
        self._env = env
        self._died = died
        self._policy = RestartPolicy()
        self._links: list[AppLink | None] = [None] * spec.workers
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._numbers = itertools.count(1)
        self._first: asyncio.Future[str] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- life ---

    async def start(self) -> None:
        """Start the processes; return when one answers. Raise MuelleError when none can."""
        for index in range(self.spec.workers):
            self._spawn(index)
        try:
            async with asyncio.timeout(self.spec.load_timeout_s):
                reason = await self._first
        except TimeoutError:
            reason = f"it is not loaded after {self.spec.load_timeout_s:g} s"
        if reason:
            await self.stop(0.0)
            raise Unavailable(f"{self.spec.target}: {reason}")

    async def stop(self, timeout_s: float) -> None:
        """Let what runs end, within the time; then end the processes."""
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        links = [link for link in self._links if link is not None]
        for link in links:
            link.stop()
        deadline = time.monotonic() + max(timeout_s, 1.0)
        for link in links:
            while link.process.wait(0) is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            link.drop(Unavailable("the server is shutting down"))
            link.close()
            link.process.kill()
            await self._loop.run_in_executor(None, link.process.wait, 5.0)
        for task in self._tasks:
            task.cancel()

    @property
    def serving(self) -> bool:
        """Whether a process can take a request."""
        return any(link is not None and link.ready for link in self._links)

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return sum(link.in_flight for link in self._links if link is not None)

    def pids(self) -> list[int]:
        """Return the ids of the living processes."""
        return [link.process.pid for link in self._links if link is not None]

    # --- requests ---

    def begin(
        self,
        request: HttpRequest,
        raw_path: bytes,
        done: Callable[[Answer], None],
        failed: Callable[[Exception], Answer],
    ) -> Callable[[], None]:
        """Run a request in the process that has the least to do. Return what cancels it."""
        began = time.monotonic()

        def finish(result: Answer | MuelleError) -> None:
            answer = (
                native.encode_error(result, request.request_id)
                if isinstance(result, MuelleError)
                else result
            )
            self.metrics.answered(answer.status, time.monotonic() - began)
            done(answer)

        link = self._least_busy()
        if isinstance(link, MuelleError):
            finish(link)
            return lambda: None
        number = next(self._numbers)
        timer = self._loop.call_later(self.spec.timeout_s, self._late, link, number, finish)

        def settled(result: Answer | MuelleError) -> None:
            timer.cancel()
            finish(result)

        link.begin(number, request, raw_path, settled)

        def cancel() -> None:
            timer.cancel()
            link.cancel(number)

        return cancel

    def _least_busy(self) -> AppLink | MuelleError:
        ready = [link for link in self._links if link is not None and link.ready]
        if not ready:
            return Unavailable(f"{self.spec.target}: {self.reason}", retry_after_s=1.0)
        link = min(ready, key=lambda one: one.in_flight)
        if link.in_flight >= self.spec.max_concurrency:
            return QueueFull(self.spec.target, self.spec.max_concurrency * self.spec.workers)
        return link

    def _late(
        self, link: AppLink, number: int, finish: Callable[[Answer | MuelleError], None]
    ) -> None:
        if not link.cancel(number):
            return
        finish(DeadlineExceeded(f"the application took longer than {self.spec.timeout_s:g} s"))
        link.late += 1
        if self.kind == "WSGI" and link.late >= self.spec.threads and link in self._links:
            # A thread cannot be taken back: as many as there are hang, and nothing came out since.
            self.link_ended(link, "all its threads hang")
            return
        # One slow request is its own affair; a loop that does not turn is everybody's.
        if not link.awaits_pong:
            link.ping()
            self._loop.call_later(PONG_S, self._judge, link)

    def _judge(self, link: AppLink) -> None:
        if link.awaits_pong and link in self._links:
            self.link_ended(link, "its event loop does not turn any more")

    # --- what links tell ---

    def link_ready(self, link: AppLink, kind: str) -> None:
        """A process has the application loaded."""
        self.kind, self.reason = kind[:20], ""
        if not self._first.done():
            self._first.set_result("")

    def link_failed(self, link: AppLink, reason: str) -> None:
        """The application cannot be loaded: at the start that is the end of it."""
        if not self._first.done():
            self._first.set_result(reason)
            return
        self.link_ended(link, reason)

    def link_ended(self, link: AppLink, reason: str) -> None:
        """A process is gone: settle what ran in it, and start another when it is time."""
        if self._closing or self._links[link.index] is not link:
            return
        link.close()
        link.process.kill()
        link.process.wait(1.0)
        why = reason or link.process.reason()
        self._links[link.index] = None
        link.drop(BadGateway(f"the application's process ended ({why}) while it had this request"))
        if not self._first.done() and not self.serving:
            self._first.set_result(f"its process ended while it loaded: {why}")
            return
        decision = self._policy.died(self._loop.time(), served=link.served)
        self.metrics.restarts.add()
        if not self.serving:
            self.reason = f"its process ended ({why}); it is started again"
        log.warning(
            "%s: process %d ended: %s; again in %.1f s",
            self.spec.target, link.process.pid, why, decision.after_s,
        )  # fmt: skip
        self._died(why, decision.after_s)
        self._timers[link.index] = self._loop.call_later(decision.after_s, self._spawn, link.index)

    def link_asked(self, link: AppLink, ask: m.Ask) -> None:
        """The application asks a model: the same door as for any client, without the wire."""
        task = self._loop.create_task(self._answer(link, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, link: AppLink, ask: m.Ask) -> None:
        headers = {name.lower(): value for name, value in ask.headers}
        request = HttpRequest(
            ask.method.encode("ascii", "replace"), ask.path, b"", headers, ask.body, ""
        )
        link.answer_ask(ask.id, await self._ask(request))

    def _spawn(self, index: int) -> None:
        if self._closing:
            return
        process = AppProcess.spawn(
            self.spec.target,
            threads=self.spec.threads,
            memory_limit_bytes=self.spec.memory_limit_bytes,
            env=self._env,
        )
        link = AppLink(index, process, self, self.spec.body_limit_bytes, self.spec.scheme)
        self._links[index] = link
        connecting = self._loop.create_task(self._connect(link))
        self._tasks.add(connecting)
        connecting.add_done_callback(self._tasks.discard)

    async def _connect(self, link: AppLink) -> None:
        await self._loop.create_unix_connection(lambda: link, sock=link.process.sock)
