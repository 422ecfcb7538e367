"""Run an ASGI application on requests that come as frames. In the application's own process.

Source: ASGI specification 3.0, "HTTP & WebSocket" (2.3) and "Lifespan" (2.0). WebSockets are not
hosted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from muelle.apps.channel import Channel
from muelle.apps.frames import (
    CHUNK_BYTES,
    WINDOW_BYTES,
    Body,
    Failed,
    HeaderList,
    Leave,
    More,
    Request,
    Start,
    Taken,
    pieces,
)
from muelle.apps.hosted import REQUEST_ID
from muelle.apps.loading import told

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_PLACE = re.compile(r'^  File "([^"]+)", line (\d+)', re.MULTILINE)
VERSION = {"version": "3.0", "spec_version": "2.3"}

log = logging.getLogger("muelle.app")


class Running:
    """One request that the application works on."""

    def __init__(
        self,
        request: Request,
        app: App,
        channel: Channel,
        state: dict[str, Any],
        *,
        cancellable: bool,
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._id = request.id
        self._app = app
        self._channel = channel
        self._cancellable = cancellable
        self._scope = scope_of(request, state)
        self._request_id = request.request_id
        self._parts: deque[tuple[bytes, bool]] = deque([(request.body, request.more)])
        self._all_given = False
        self._left = False
        self._changed = asyncio.Event()
        self._start: Message | None = None
        self._begun = False
        self._done = False
        self._expected = -1
        self._sent_bytes = 0
        self._window = WINDOW_BYTES
        self._scope["extensions"]["muelle.abandoned"] = self._is_abandoned

    def take(self, frame: More | Leave | Taken) -> None:
        """Note what the server says about this request."""
        if isinstance(frame, More):
            self._parts.append((frame.chunk, frame.more))
        elif isinstance(frame, Taken):
            self._window += frame.nbytes
        else:
            self._left = True
            # A thread cannot be cancelled: the task stays until it ends, so that the server can
            # tell how many threads are still at work.
            if frame.late and self._cancellable and self.task is not None:
                self.task.cancel()
        self._changed.set()

    async def run(self) -> None:
        """Run the application to its end. Never raises."""
        REQUEST_ID.set(self._request_id)
        try:
            await self._app(self._scope, self._receive, self._send)
        except asyncio.CancelledError:
            if not self._left:
                self._channel.send(Failed(self._id))
            return
        except (Exception, SystemExit) as exc:
            if not self._left:
                path = self._scope["path"]
                log.error(
                    "the app failed on %s: %s",
                    path,
                    told(exc),
                    exc_info=exc,
                    extra={"request_id": self._request_id, "tell": True},
                )
        if not self._done and not self._left:
            if self._start is None:
                log.error("the app gave no answer", extra={"request_id": self._request_id})
            self._channel.send(Failed(self._id))

    # --- what the application calls ---

    async def _receive(self) -> Message:
        while True:
            # The body first, to its end: a cut one could pass for whole.
            if self._parts:
                body, more = self._parts.popleft()
                self._all_given = not more
                return {"type": "http.request", "body": body, "more_body": more}
            if self._all_given and (self._left or self._done):
                return {"type": "http.disconnect"}
            await self._change()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._left or self._done:
            return  # Like a write to a client that has gone: nobody gets it.
        if kind == "http.response.start" and self._start is None:
            self._start = message
            self._expected = _content_length(message)
        elif kind == "http.response.body" and self._start is not None:
            await self._give(message.get("body", b""), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    async def _give(self, body: bytes, more: bool) -> None:
        total = self._sent_bytes + len(body)
        # Everything that was announced is there: the answer is whole, whoever says so.
        more = more and total != self._expected
        cut = list(pieces(bytes(body)))
        for i, piece in enumerate(cut):
            await self._wait_for_room(len(piece))
            if self._left:
                return
            self._give_piece(piece, more or i + 1 < len(cut))
        await self._channel.room()

    def _give_piece(self, piece: bytes, more: bool) -> None:
        assert self._start is not None
        self._sent_bytes += len(piece)
        self._window -= len(piece)
        if self._begun:
            if piece or not more:
                self._channel.send(Body(self._id, piece, more))
        else:
            self._begun = True
            status, headers = int(self._start["status"]), _headers(self._start)
            self._channel.send(Start(self._id, status, headers, piece, more))
        if not more:
            self._done = True
            self._changed.set()

    async def _wait_for_room(self, nbytes: int) -> None:
        """Wait until the server has passed on enough of what it got."""
        while not self._left and self._window < min(nbytes, CHUNK_BYTES):
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _is_abandoned(self) -> bool:
        return self._left


class LifespanFailed(Exception):
    """The application said that it cannot start."""


class Lifespan:
    """An application's start and end. One that does not know of lifespans has neither."""

    def __init__(self, app: App) -> None:
        self.state: dict[str, Any] = {}
        """What the application put there at its start: every request gets a copy."""
        self._app = app
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._asked = False

    async def start(self) -> None:
        """Let the application start. Raise LifespanFailed with its reason."""
        scope: Message = {"type": "lifespan", "asgi": VERSION, "state": self.state}
        self._task = asyncio.get_running_loop().create_task(self._call(scope))
        await self._to_app.put({"type": "lifespan.startup"})
        answer = await self._answer()
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise LifespanFailed(_line(answer.get("message", "")) or "it does not say why")
        if answer is None and self._failure is not None and self._asked:
            # It had begun to start: this is no application that just does not know of it.
            raise LifespanFailed(told(self._failure))

    async def stop(self) -> None:
        """Let the application end."""
        if self._task is None or self._task.done():
            return
        await self._to_app.put({"type": "lifespan.shutdown"})
        answer = await self._answer()
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            log.error("the app did not shut down well: %s", _line(answer.get("message", "")))

    async def _call(self, scope: Message) -> None:
        try:
            await self._app(scope, self._receive, self._from_app.put)
        except BaseException as exc:
            self._failure = exc

    async def _receive(self) -> Message:
        self._asked = True
        return await self._to_app.get()

    async def _answer(self) -> Message | None:
        """Wait for the application's word; None when it ended without one."""
        assert self._task is not None
        word = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait({word, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if word.done():
            return word.result()
        if not self._from_app.empty():
            return self._from_app.get_nowait()
        word.cancel()
        return None


def scope_of(request: Request, state: dict[str, Any]) -> Message:
    """Return the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": VERSION,
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "root_path": request.root_path,
        "headers": request.headers,
        "client": request.client,
        "server": request.server,
        "state": dict(state),
        "extensions": {},
    }


def _headers(start: Message) -> HeaderList:
    return [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]


def _content_length(start: Message) -> int:
    """Return the announced length of a body, -1 when there is none."""
    for name, value in start.get("headers", ()):
        if bytes(name).lower() == b"content-length" and bytes(value).isdigit():
            return int(value)
    return -1


def _line(text: Any) -> str:
    """Return the gist of a message; Starlette sends a whole traceback."""
    lines = [line for line in str(text).splitlines() if line.strip()]
    if not lines:
        return ""
    places = _PLACE.findall(str(text))
    place = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    return " ".join(lines[-1].split())[:500] + place
