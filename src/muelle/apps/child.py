"""The process of a hosted application: load it, run its requests, until the server stops it.

Started with exec as `python -P -m muelle.apps.child PARENT`; the channel's descriptor is named by
an environment variable. Not for HTTP: the server has read and checked every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from muelle.apps.asgi import App, Lifespan, LifespanFailed, Running
from muelle.apps.frames import (
    Ended,
    Frame,
    Hello,
    Leave,
    LoadFailed,
    More,
    Ping,
    Pong,
    Ready,
    Request,
    Stop,
    Taken,
)
from muelle.apps.hosted import Hosted, inherited
from muelle.apps.loading import Kind, as_asgi, load_app
from muelle.apps.logs import set_up_logs, tell_request_ids
from muelle.apps.target import AppTarget
from muelle.core.errors import ArtifactError

log = logging.getLogger("muelle.app")


class Child:
    """The running application. Everything but WSGI code is on the event loop's thread."""

    def __init__(
        self, hosted: Hosted, app: App, kind: Kind, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._hosted = hosted
        self._channel = hosted.channel
        self._app = app
        self._kind = kind
        self._loop = loop
        self._running: dict[int, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._lifespan = Lifespan(app)

    async def run(self) -> None:
        """Start the application, answer requests, and shut it down when the server says so."""
        # First of all: an app may ask a model while it starts.
        self._hosted.attach(self._loop, self._take, self._stopped.set)
        stopped = self._loop.create_task(self._stopped.wait())
        starting = self._loop.create_task(self._lifespan.start())
        await asyncio.wait({stopped, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        try:
            starting.result()
        except LifespanFailed as exc:
            self._channel.send(LoadFailed(f"the app did not start: {exc}"))
            await self._last_words()
            return
        self._channel.send(Ready(self._kind))
        await stopped
        if self._tasks and not self._channel.ended:
            await asyncio.wait(self._tasks)
        await self._lifespan.stop()
        await self._last_words()

    async def _last_words(self) -> None:
        await asyncio.sleep(0)
        while not self._channel.ended and self._channel.unsent_bytes:
            self._channel.turn(1.0)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Request):
            self._begin(frame)
        elif isinstance(frame, Ping):
            self._channel.send(Pong())
        elif isinstance(frame, Stop):
            self._stopped.set()
        elif isinstance(frame, More | Leave | Taken):
            running = self._running.get(frame.id)
            if running is not None:
                running.take(frame)

    def _begin(self, request: Request) -> None:
        running = Running(
            request,
            self._app,
            self._channel,
            self._lifespan.state,
            cancellable=self._kind == "asgi",
        )
        self._running[request.id] = running
        task = self._loop.create_task(running.run())
        running.task = task
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._running.pop(request.id, None)
            self._channel.send(Ended(request.id))

        task.add_done_callback(ended)


def _confine(memory_limit_bytes: int) -> None:
    """Tie this process to the server's life, and let it go before the server when memory is short.

    It stays dumpable, unlike a model's worker: debuggers and profilers belong to developing an app.
    """
    import ctypes
    import resource

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700")


def _load(hosted: Hosted, hello: Hello) -> tuple[App, Kind] | None:
    """Import the application; tell the server when that does not work."""
    try:
        app, kind = load_app(AppTarget.parse(hello.target), Path(hello.folder))
        asgi = as_asgi(app, kind, hello.threads)
    except ArtifactError as exc:
        if exc.__cause__ is not None:
            log.error("the app cannot be loaded", exc_info=exc.__cause__, extra={"tell": True})
        hosted.channel.send(LoadFailed(exc.message))
        hosted.channel.turn(0.0)
        return None
    tell_request_ids(app, json=hello.log_json)
    return asgi, kind


def main() -> None:
    """Entry point of the process."""
    parent = int(sys.argv[1])
    # Ctrl-C in a terminal reaches the whole group; draining is the server's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hosted = inherited()
    hello = hosted.hello() if hosted is not None else None
    if hosted is None or hello is None:
        return
    _confine(hello.memory_limit_bytes)
    if os.getppid() != parent:
        os._exit(0)  # The server died before the death signal was armed.
    set_up_logs(hello.log_level, json=hello.log_json)
    # What an app reads of its own command line is not ours.
    sys.argv = [hello.target]
    loaded = _load(hosted, hello)
    if loaded is not None:
        import uvloop

        app, kind = loaded
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Child(hosted, app, kind, runner.get_loop()).run())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Threads of an app that never end would keep the process; there is nothing left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
