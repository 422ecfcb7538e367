"""The comfortable way: run an ASGI app for one whole request. Not for streaming.

The connection has gathered and checked the request; the app gets it in one piece, and its answer
is collected into one piece, so that both ways leave through the same door.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from muelle.protocols.http import Answer, HttpRequest

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

        async def run() -> None:
            try:
                answer = await self._call(request, raw_path)
            except Exception as exc:
                log.exception("request %s failed", request.request_id)
                answer = failed(exc)
            done(answer)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lambda: _cancel(task)

    async def _call(self, request: HttpRequest, raw_path: bytes) -> Answer:
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
        sent: list[Message] = []
        body: list[bytes] = []
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                # The app waits for the client to leave; leaving cancels this task.
                await self._loop.create_future()
            given = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message)
            elif message["type"] == "http.response.body":
                body.append(message.get("body", b""))

        await app(scope, receive, send)
        if not sent:
            raise RuntimeError("the app gave no answer")
        return _answer(sent[0], b"".join(body))


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _answer(start: Message, body: bytes) -> Answer:
    content_type = b"text/plain"
    headers = []
    for raw_name, value in start.get("headers", ()):
        name = bytes(raw_name).lower()
        if name == b"content-type":
            content_type = bytes(value)
        elif name not in OWN_HEADERS:
            headers.append((name, bytes(value)))
    return Answer(start["status"], content_type, body, tuple(headers))
