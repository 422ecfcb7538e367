"""The process that runs an application: `python -I -m muelle.apps.child FD PARENT TARGET THREADS`.

One event loop, one channel to the server. Requests come as frames and are run as ASGI; what the
application asks of a model goes back over the same channel. Not for models: those have workers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from muelle.apps import messages as m
from muelle.apps.loading import as_asgi, load_app
from muelle.apps.target import AppTarget
from muelle.client.local import CHANNEL, Asked
from muelle.core.errors import MuelleError

log = logging.getLogger("muelle.app")

Message = MutableMapping[str, Any]

_FRAMING = frozenset({b"transfer-encoding", b"content-length"})


class AppServer(asyncio.Protocol):
    """The worker's end of the channel, and the requests that run. Used on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended = loop.create_future()
        self.state: Message = {}
        """What the application's lifespan keeps for its requests."""
        self._frames = m.Frames(m.ToWorker)
        self._transport: asyncio.Transport | None = None
        self._app: Callable[..., Any] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._asked: dict[int, asyncio.Future[Asked]] = {}
        self._numbers = itertools.count(1)
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._stopping = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone: there is nobody to work for."""
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        """The server is slow to read."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """It reads again."""
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        """Take what the server says."""
        for message in self._frames.feed(data):
            if isinstance(message, m.Request):
                self._begin(message)
            elif isinstance(message, m.Answered):
                future = self._asked.pop(message.id, None)
                if future is not None and not future.done():
                    future.set_result(Asked(message.status, message.headers, message.body))
            elif isinstance(message, m.Cancelled):
                task = self._tasks.get(message.id)
                if task is not None:
                    task.cancel()
            elif isinstance(message, m.Ping):
                self.send(m.Pong())
            elif isinstance(message, m.Stop):
                self._stopping = True
                self._end_when_idle()

    def send(self, message: m.Frame) -> None:
        """Write one message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(m.pack(message))

    # --- what the application asks ---

    async def ask(self, method: str, path: str, headers: m.Headers, body: bytes) -> Asked:
        """Ask the server and wait. Called on the loop's thread."""
        number = next(self._numbers)
        future = self.loop.create_future()
        self._asked[number] = future
        try:
            await self._may_write.wait()
            self.send(m.Ask(number, method, path, headers, body))
            found: Asked = await future
            return found
        finally:
            self._asked.pop(number, None)

    # --- requests ---

    def use(self, app: Callable[..., Any]) -> None:
        """Take requests for this application from now on."""
        self._app = app

    def _begin(self, request: m.Request) -> None:
        task = self.loop.create_task(self._run(request))
        self._tasks[request.id] = task

        def ended(_task: asyncio.Task[None]) -> None:
            self._tasks.pop(request.id, None)
            if self._stopping:
                self._end_when_idle()

        task.add_done_callback(ended)

    def _end_when_idle(self) -> None:
        if not self._tasks and not self.ended.done():
            self.ended.set_result(None)

    async def _run(self, request: m.Request) -> None:
        answer = _Answer(self, request.id)
        try:
            assert self._app is not None
            await self._app(_scope(request, self.state), _receiver(request, self.loop), answer.send)
        except asyncio.CancelledError:
            return
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
        if not answer.complete:
            self.send(m.Failed(request.id))

    async def write_body(self, number: int, body: bytes, more: bool) -> None:
        """Send a piece of an answer, in frames of bounded size."""
        for start in range(0, max(len(body), 1), m.CHUNK_BYTES):
            await self._may_write.wait()
            end = start + m.CHUNK_BYTES
            last = end >= len(body)
            self.send(m.Body(number, body[start:end], more or not last))


class _Answer:
    """One answer on its way out."""

    def __init__(self, server: AppServer, number: int) -> None:
        self._server, self._number = server, number
        self._started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start" and not self._started:
            self._started = True
            pairs = tuple((bytes(k), bytes(v)) for k, v in message.get("headers", ()))
            self._server.send(m.Start(self._number, int(message["status"]), pairs))
        elif message["type"] == "http.response.body" and self._started and not self.complete:
            more = bool(message.get("more_body", False))
            self.complete = not more
            await self._server.write_body(self._number, bytes(message.get("body", b"")), more)


def _scope(request: m.Request, state: Message) -> Message:
    # The body comes whole: how it was cut on the way is over, and WSGI asks for its length.
    headers = [pair for pair in request.headers if pair[0] not in _FRAMING]
    if request.body:
        headers.append((b"content-length", b"%d" % len(request.body)))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        # As the specification has it: each request gets a copy of what the lifespan has kept.
        "state": dict(state),
    }


def _receiver(request: m.Request, loop: asyncio.AbstractEventLoop) -> Callable[[], Any]:
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            # The application waits for the client to leave; leaving cancels its task.
            await loop.create_future()
        given = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    return receive


class Lifespan:
    """Starts and ends an application that has a lifespan; others are left alone."""

    def __init__(
        self, app: Callable[..., Any], loop: asyncio.AbstractEventLoop, state: Message
    ) -> None:
        self._app, self._loop, self._state = app, loop, state
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._told: asyncio.Future[str] = loop.create_future()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run its start-up. Raise MuelleError when it says that it failed."""
        self._task = self._loop.create_task(self._run())
        reason = await self._say("lifespan.startup")
        if reason:
            raise MuelleError(f"its start-up failed: {reason}")

    async def stop(self) -> None:
        """Run its shutdown."""
        if self._task is not None and not self._task.done():
            self._told = self._loop.create_future()
            await self._say("lifespan.shutdown")
            self._task.cancel()

    async def _say(self, what: str) -> str:
        self._inbox.put_nowait({"type": what})
        return await self._told

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        scope = {"type": "lifespan", "asgi": asgi, "state": self._state}
        try:
            await self._app(scope, self._inbox.get, self._hear)
        except Exception as exc:
            # An application without a lifespan raises on a scope that it does not know.
            known = getattr(self._app, "router", None) is not None
            self._tell(" ".join(f"{type(exc).__name__}: {exc}".split()) if known else "")
        finally:
            self._tell("")

    async def _hear(self, message: Message) -> None:
        failed = str(message["type"]).endswith(".failed")
        reason = str(message.get("message", "")) or "no reason was given"
        # Starlette gives the whole traceback: its last line is the reason.
        self._tell(reason.strip().splitlines()[-1] if failed else "")

    def _tell(self, reason: str) -> None:
        if not self._told.done():
            self._told.set_result(reason)


async def serve(sock: socket.socket, target: AppTarget, threads: int) -> None:
    """Load the application and answer the server's requests until it stops or goes away."""
    loop = asyncio.get_running_loop()
    server = AppServer(loop)
    # Before the connection: what it calls later runs in the context that is current now.
    CHANNEL.set(server)
    await loop.create_unix_connection(lambda: server, sock=sock)
    try:
        kind, app = as_asgi(load_app(target), threads)
        lifespan = Lifespan(app if kind == "ASGI" else _no_lifespan, loop, server.state)
        await lifespan.start()
    except MuelleError as exc:
        server.send(m.LoadFailed(exc.message))
        await asyncio.wait({server.ended}, timeout=5)
        return
    server.use(app)
    server.send(m.Ready(kind))
    await server.ended
    await lifespan.stop()


async def _no_lifespan(scope: Message, receive: Any, send: Any) -> None:
    """WSGI has none."""


def _confine(memory_limit_bytes: int) -> None:
    import ctypes
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: never outlive the server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))


def main() -> None:
    """Entry point of the process."""
    fd, parent, limit, threads = (int(word) for word in sys.argv[1:5])
    target = AppTarget.parse(sys.argv[5])
    # Ctrl-C in a terminal reaches the whole group; draining is the server's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _confine(limit)
    if os.getppid() != parent:
        os._exit(0)  # The server died before the death signal was armed.
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s app      %(message)s"
    )
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(socket.socket(fileno=fd), target, threads))
    sys.stdout.flush()
    # A thread of the application that never ends must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
