"""The comfortable way: run an ASGI app for one whole request. Not for bodies that stream in.

The connection has gathered and checked the request; the app gets it in one piece. Its answer
leaves through the same door as all others, whole or piece by piece.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from muelle.protocols.http import Answer, BodySink, HttpRequest, StreamedAnswer

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

OWN_HEADERS = (
    b"content-length",
    b"x-request-id",
    b"x-content-type-options",
    b"date",
    b"connection",
    b"transfer-encoding",
)
"""What the connection writes into every answer itself."""

log = logging.getLogger("muelle.http")


class AsgiHost:
    """Owns the app, which is built on first use and off the loop: its imports are heavy."""

    def __init__(
        self, build: Callable[[], App], loop: asyncio.AbstractEventLoop, root: str = ""
    ) -> None:
        self._build = build
        self._loop = loop
        self._root = root
        self._app: asyncio.Future[App] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def warm(self) -> asyncio.Future[App]:
        """Begin to build the app, if nobody has."""
        if self._app is None:
            self._app = asyncio.ensure_future(self._loop.run_in_executor(None, self._build))
        return self._app

    def begin(
        self,
        request: HttpRequest,
        raw_path: bytes,
        done: Callable[[Answer], None],
        failed: Callable[[Exception], Answer],
    ) -> Callable[[], None]:
        """Run the app on a request; `failed` makes the answer when it raises."""

        outgoing = _Outgoing(done, self._loop)

        async def run() -> None:
            try:
                await self._call(request, raw_path, outgoing.send)
                outgoing.returned()
            except Exception as exc:
                log.exception("request %s failed", request.request_id)
                outgoing.failed(failed(exc))

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lambda: _cancel(task)

    async def _call(
        self,
        request: HttpRequest,
        raw_path: bytes,
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        app = await asyncio.shield(self.warm())
        headers = list(request.headers.items())
        if b"x-request-id" not in request.headers:
            headers.append((b"x-request-id", request.request_id.encode()))
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method.decode("ascii"),
            "scheme": "http",
            "path": request.path,
            "raw_path": raw_path,
            "query_string": request.query,
            "root_path": self._root,
            "headers": headers,
            "client": None,
            "server": None,
        }
        if request.peer is not None:
            uid, pid = request.peer
            scope["extensions"] = {"muelle.peer": {"uid": uid, "pid": pid}}
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                # The app waits for the client to leave; leaving cancels this task.
                await self._loop.create_future()
            given = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        await app(scope, receive, send)


class _Outgoing:
    """What the app answers to one request. An answer that is one piece leaves as a whole one."""

    def __init__(self, done: Callable[[Answer], None], loop: asyncio.AbstractEventLoop) -> None:
        self._done = done
        self._loop = loop
        self._start: Message | None = None
        self._begun = False
        self._over = False
        self._sink: BodySink | None = None
        self._attached = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def send(self, message: Message) -> None:
        """ASGI's `send`: waits while the client does not read."""
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and not self._over:
            piece, more = bytes(message.get("body", b"")), message.get("more_body", False)
            if self._start is None:
                raise RuntimeError("the app sent a body before its head")
            if not (more or self._begun):
                self._over = True
                self._done(_answer(self._start, piece))
                return
            if not self._begun:
                self._begun = True
                self._done(_streamed(self._start, self._attach))
            # Whose client has left attaches nothing: then this task is about to be cancelled.
            await self._attached.wait()
            if self._sink is not None and piece and not self._sink.write(piece):
                self._room.clear()
            await self._room.wait()
            if not more:
                self._end()

    def returned(self) -> None:
        """The app has returned. Raise RuntimeError when it gave no answer."""
        if self._start is None or not (self._begun or self._over):
            raise RuntimeError("the app gave no answer")
        if not self._over:
            raise RuntimeError("the app did not end its answer")

    def failed(self, answer: Answer) -> None:
        """The app raised: say so, unless a part of its own answer is out."""
        if self._begun:
            if self._sink is not None and not self._over:
                self._over = True
                self._sink.abort()
        elif not self._over:
            self._over = True
            self._done(answer)

    def _attach(self, sink: BodySink) -> None:
        self._sink = sink
        sink.resumed = self._room.set
        self._attached.set()

    def _end(self) -> None:
        self._over = True
        if self._sink is not None:
            self._sink.end()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _answer(start: Message, body: bytes) -> Answer:
    content_type, headers, _ = _own_headers(start)
    return Answer(start["status"], content_type, body, headers)


def _streamed(start: Message, begin: Callable[[BodySink], None]) -> StreamedAnswer:
    content_type, headers, length = _own_headers(start)
    return StreamedAnswer(start["status"], content_type, headers, length, begin)


def _own_headers(start: Message) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], int | None]:
    """Return content type, headers that are not the connection's, and the announced length."""
    content_type, length = b"text/plain", None
    headers = []
    for raw_name, value in start.get("headers", ()):
        name = bytes(raw_name).lower()
        if name == b"content-type":
            content_type = bytes(value)
        elif name == b"content-length":
            length = int(value)
        elif name not in OWN_HEADERS:
            headers.append((name, bytes(value)))
    return content_type, tuple(headers), length
