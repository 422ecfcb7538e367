"""The server's end of one application process: what it works on, and whether it still answers.

Not for when a process is started again (`pool`), and not for what predictions do (`doors`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from muelle.apps.channel import Channel
from muelle.apps.doors import Doors
from muelle.apps.exchange import Cancel, Exchange
from muelle.apps.frames import (
    HEAD_BYTES,
    Body,
    Describe,
    Ended,
    Failed,
    Forget,
    Frame,
    FrameReader,
    FromApp,
    Hello,
    LoadFailed,
    Ping,
    Pong,
    Predict,
    Predicted,
    Ready,
    Start,
    Stop,
)
from muelle.core.errors import Internal
from muelle.protocols import native
from muelle.protocols.http import Answer
from muelle.workers.process import WorkerProcess

log = logging.getLogger("muelle.app")

PING_S = 5.0
"""How long a process may take to say that it is there, when one of its requests is late."""
ASYNC_STUCK = 40
"""Late requests that may still be at work in an ASGI application: as many as it has threads."""


class Owner(Protocol):
    """The pool, as a link sees it."""

    def is_ready(self, link: AppLink) -> None:
        """The application has started."""

    def load_failed(self, link: AppLink, text: str) -> None:
        """It cannot be loaded."""

    def has_ended(self, link: AppLink, reason: str) -> None:
        """The channel is closed: the process has ended, or it talks nonsense."""


class AppLink:
    """Owned by the pool; used on the event loop's thread only."""

    def __init__(
        self,
        process: WorkerProcess,
        hello: Hello,
        *,
        owner: Owner,
        doors: Doors,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.process = process
        self.kind = ""
        self.ready = False
        self.answered = 0
        """Requests that it has answered."""
        self.exchanges: dict[int, Exchange] = {}
        """By id: those whose work has not ended, though some are answered."""
        self._late: set[int] = set()
        self._stuck_limit = hello.threads
        self._predictions: dict[int, Cancel] = {}
        self._owner = owner
        self._doors = doors
        self._loop = loop
        self._ping: asyncio.TimerHandle | None = None
        limit = hello.predict_limit_bytes + HEAD_BYTES
        self._channel = Channel(process.sock, FrameReader(FromApp, limit), self._take, self._ended)
        self._channel.send(hello)
        self._channel.attach(loop)

    def send(self, frame: Frame) -> None:
        """Send a frame; a process that is gone gets nothing."""
        self._channel.send(frame)

    @property
    def in_flight(self) -> int:
        """Requests that the application has not ended its work on."""
        return len(self.exchanges)

    def check(self, late_id: int) -> None:
        """A request is late: see whether the process is there, and not full of such ones."""
        self._late.add(late_id)
        if len(self._late) >= self._stuck_limit:
            self._give_up(f"{len(self._late)} requests did not end in time")
        elif self._ping is None and not self._channel.ended:
            self._channel.send(Ping())
            self._ping = self._loop.call_later(PING_S, self._give_up, "it does not answer any more")

    def stop(self) -> None:
        """Ask the application to shut down."""
        self.ready = False
        self._channel.send(Stop())

    def close(self) -> None:
        """Let go of the channel and of everything that waits for the process."""
        self.ready = False
        if self._ping is not None:
            self._ping.cancel()
        self._channel.close()
        for cancel in self._predictions.values():
            cancel()
        self._predictions.clear()
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            exchange.died()

    # --- what the process says ---

    def _take(self, frame: Frame) -> None:
        match frame:
            case Start(id=id):
                self.answered += 1
                if id in self.exchanges:
                    self.exchanges[id].start(frame)
            case Body(id=id) if id in self.exchanges:
                self.exchanges[id].body(frame)
            case Failed(id=id) if id in self.exchanges:
                self.exchanges[id].failed()
            case Ended(id=id):
                self._late.discard(id)
                exchange = self.exchanges.pop(id, None)
                if exchange is not None:
                    exchange.failed()  # Nothing happens to one that is answered.
            case Predict() | Describe():
                self._predict(frame)
            case Forget(id=id):
                cancel = self._predictions.pop(id, None)
                if cancel is not None:
                    cancel()
            case Pong():
                if self._ping is not None:
                    self._ping.cancel()
                    self._ping = None
            case Ready(kind=kind):
                self.kind, self.ready = kind, True
                if kind == "asgi":
                    self._stuck_limit = ASYNC_STUCK
                self._owner.is_ready(self)
            case LoadFailed(text=text):
                self._owner.load_failed(self, text)

    def _predict(self, frame: Predict | Describe) -> None:
        number = frame.id

        def reply(answer: Answer) -> None:
            self._predictions.pop(number, None)
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in answer.all_headers()
            }
            self._channel.send(Predicted(number, answer.status, headers, answer.body))

        try:
            cancel = self._doors.ask(frame, reply)
        except Exception as exc:
            log.exception("a prediction for the app failed")
            reply(native.encode_error(Internal(str(exc)), ""))
            return
        if cancel is not None:
            self._predictions[number] = cancel

    def _ended(self, reason: str) -> None:
        self._owner.has_ended(self, reason)

    def _give_up(self, reason: str) -> None:
        self._ping = None
        self._channel.close()
        self._owner.has_ended(self, reason)
