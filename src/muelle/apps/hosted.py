"""What a hosted application's process knows of its server: the channel, and who waits on it.

Any thread may ask; only the thread that owns the event loop touches the socket. Not for what is
asked (`local`) nor for HTTP requests (`child`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeAlias

from muelle.apps.channel import Channel
from muelle.apps.frames import (
    CHANNEL_VARIABLE,
    HELLO_LIMIT_BYTES,
    Describe,
    Forget,
    Frame,
    FrameReader,
    Hello,
    Predict,
    Predicted,
    ToApp,
)
from muelle.client.calls import Reply, ServerUnreachable
from muelle.core.errors import DeadlineExceeded
from muelle.core.signature import Signature

MAX_FRAME_BYTES = 0xFFFF_FFFF
"""The server's frames are believed: an answer is as large as the model made it."""

REQUEST_ID: ContextVar[str] = ContextVar("muelle_request_id", default="")
"""The HTTP request that the code is part of."""

log = logging.getLogger("muelle.app")

Ask: TypeAlias = "tuple[int, concurrent.futures.Future[Reply]]"


class Hosted:
    """Owned by the process that the server started. `on_frame` gets what is not an answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.pid = os.getpid()
        self.signatures: dict[tuple[str, str | None], Signature] = {}
        """What models take and give, by name and asked version."""
        self.predict_limit_bytes = HELLO_LIMIT_BYTES
        self.on_frame: Callable[[Frame], None] = self._early
        self.on_end: Callable[[], None] = _nothing
        self._owner = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, concurrent.futures.Future[Reply]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._unsent: deque[Frame] = deque()
        self._first: deque[Frame] = deque()
        self._warned = False
        self.channel = Channel(sock, FrameReader(ToApp, MAX_FRAME_BYTES), self._take, self._ended)

    # --- life ---

    def hello(self) -> Hello | None:
        """Wait for the server's first frame; None when it went away instead."""
        while not self._first and not self.channel.ended:
            self.channel.turn(None)
        first = self._first.popleft() if self._first else None
        if not isinstance(first, Hello):
            return None
        self.predict_limit_bytes = first.predict_limit_bytes
        return first

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[], None],
    ) -> None:
        """Let the loop turn the channel, and give every frame but answers to `on_frame`."""
        self.on_frame, self.on_end = on_frame, on_end
        for frame in self._first:
            on_frame(frame)
        with self._lock:
            self._loop = loop
            early, self._unsent = self._unsent, deque()
        for frame in early:
            self.channel.send(frame)
        self.channel.attach(loop)
        if self.channel.ended:
            on_end()

    # --- asking; any thread ---

    def predict(self, model: str, version: str | None, headers: dict[str, str], body: bytes) -> Ask:
        """Send a v2 request. The future gets the answer, whatever its status."""
        ask = self._new()
        frame = Predict(
            id=ask[0],
            model=model,
            version=version,
            headers=headers,
            body=body,
            request_id=REQUEST_ID.get(),
        )
        self._send(frame)
        return ask

    def describe(self, model: str) -> Ask:
        """Ask what a model takes and gives. The future gets a `ModelStatus` as JSON."""
        ask = self._new()
        self._send(Describe(id=ask[0], model=model))
        return ask

    def wait(self, ask: Ask, timeout_s: float | None) -> Reply:
        """Wait in a plain function. On the loop's own thread the channel is turned by hand.

        Raise DeadlineExceeded, or ServerUnreachable when the server went away.
        """
        number, future = ask
        try:
            if threading.get_ident() == self._owner:
                self._turn_until(future, timeout_s)
                return future.result(0)
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise DeadlineExceeded("the model's answer did not come in time") from None
        finally:
            self._leave(number)

    async def awaited(self, ask: Ask) -> Reply:
        """Wait in a coroutine. A cancelled one tells the server, which drops the request."""
        number, future = ask
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._leave(number)

    # --- below ---

    def _new(self) -> Ask:
        future: concurrent.futures.Future[Reply] = concurrent.futures.Future()
        if self.channel.ended:
            future.set_exception(ServerUnreachable("the server has gone away"))
            return 0, future
        number = next(self._ids)
        self._waiting[number] = future
        return number, future

    def _send(self, frame: Frame) -> None:
        if threading.get_ident() == self._owner:
            self.channel.send(frame)
            return
        with self._lock:
            if self._loop is None:
                # A thread of an application that is still being imported.
                self._unsent.append(frame)
                return
        try:
            self._loop.call_soon_threadsafe(self.channel.send, frame)
        except RuntimeError:
            self._fail("the application is shutting down")

    def _turn_until(
        self, future: concurrent.futures.Future[Reply], timeout_s: float | None
    ) -> None:
        if self._loop is not None and self._loop.is_running() and not self._warned:
            self._warned = True
            log.warning(
                "predict() in a coroutine holds up every other request of this worker; "
                "write: await model.predict_async(...)"
            )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not future.done() and not self.channel.ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self.channel.turn(left)

    def _leave(self, number: int) -> None:
        """Whoever waited has its answer, or does not want it any more."""
        if self._waiting.pop(number, None) is not None:
            self._send(Forget(number))

    def _take(self, frame: Frame) -> None:
        if not isinstance(frame, Predicted):
            self.on_frame(frame)
            return
        future = self._waiting.pop(frame.id, None)
        # False: it was cancelled just now.
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(Reply(frame.status, frame.headers, frame.body))

    def _early(self, frame: Frame) -> None:
        self._first.append(frame)

    def _ended(self, reason: str) -> None:
        self._fail("the server has gone away")
        self.on_end()

    def _fail(self, text: str) -> None:
        for number in list(self._waiting):
            future = self._waiting.pop(number, None)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(ServerUnreachable(text))


def inherited() -> Hosted | None:
    """Return this process's channel to the server that hosts it; None when none does.

    A process that was forked off the hosted one (a pool of workers, say) has none: two readers of
    one socket would take each other's answers.
    """
    hosted = _adopt()
    return hosted if hosted is not None and hosted.pid == os.getpid() else None


@functools.cache
def _adopt() -> Hosted | None:
    # The descriptor is a fact of the process, like its arguments, so the object over it is made
    # once and kept by the cache: nothing is ever assigned to a module's global.
    number = os.environ.pop(CHANNEL_VARIABLE, "")
    if not number.isdigit():
        return None
    os.set_inheritable(int(number), False)
    sock = socket.socket(fileno=int(number))
    # A forked process must not keep the channel open: the server would not see this one's end.
    os.register_at_fork(after_in_child=functools.partial(_drop, sock))
    return Hosted(sock)


def _drop(sock: socket.socket) -> None:
    # Not `close`: that waits for the event loop to let go, which it never does in the other one.
    if sock.fileno() >= 0:
        os.close(sock.fileno())


def _nothing() -> None:
    """Nobody is there to be told."""
