"""The server's end of the channel to one process of an application. Not for choosing one (`pool`).

Believes nothing of what comes: a frame that is none, an answer to nothing, or more than an answer
may hold ends the process or the request, never the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from muelle.apps import messages as m
from muelle.apps.process import AppProcess
from muelle.core.errors import Internal, MuelleError, TooLarge
from muelle.protocols.http import Answer, HttpRequest

Reply = Callable[[Answer | MuelleError], None]
"""Gets the answer, or why there is none. Called once."""

NOT_OURS = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"),
        *(b"content-length", b"date", b"x-request-id", b"x-content-type-options"),
    }
)
"""Headers of an application that the connection writes itself, or that end at the next hop."""


class Owner(Protocol):
    """Who is told what happens to a link: the pool."""

    def link_ready(self, link: AppLink, kind: str) -> None:
        """The application is loaded."""

    def link_failed(self, link: AppLink, reason: str) -> None:
        """It cannot be loaded."""

    def link_ended(self, link: AppLink, reason: str) -> None:
        """The process is gone, or is to be."""

    def link_asked(self, link: AppLink, ask: m.Ask) -> None:
        """The application asks a model."""


class _Pending:
    """A request that runs in the application."""

    __slots__ = ("body", "done", "head", "size")

    def __init__(self, done: Reply) -> None:
        self.done = done
        self.head: m.Start | None = None
        self.body: list[bytes] = []
        self.size = 0


class AppLink(asyncio.Protocol):
    """One process of the application. Used on the event loop's thread only."""

    def __init__(
        self,
        index: int,
        process: AppProcess,
        owner: Owner,
        body_limit: int,
        scheme: str = "http",
    ) -> None:
        self.index = index
        self.process = process
        self.ready = False
        self.served = False
        """Whether it has answered anything."""
        self.awaits_pong = False
        self.late = 0
        """Requests that ran out of time since the last answer."""
        self._owner = owner
        self._body_limit = body_limit
        self._scheme = scheme
        self._frames = m.Frames(m.FromWorker)
        self._transport: asyncio.Transport | None = None
        self._pending: dict[int, _Pending] = {}
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests that run in it."""
        return len(self._pending)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or closed its end."""
        self._end("")

    def data_received(self, data: bytes) -> None:
        """Take what the process says."""
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except m.BadFrame as exc:
            self._end(f"it does not keep to the channel's form: {exc}")

    # --- requests ---

    def begin(self, number: int, request: HttpRequest, raw_path: bytes, done: Reply) -> None:
        """Send a request; `done` is called once."""
        self._pending[number] = _Pending(done)
        headers = tuple(request.headers.items())
        if b"x-request-id" not in request.headers:
            headers = (*headers, (b"x-request-id", request.request_id.encode()))
        self._send(
            m.Request(
                number,
                request.method.decode("ascii"),
                request.path,
                raw_path,
                request.query,
                headers,
                request.body,
                self._scheme,
            )
        )

    def cancel(self, number: int) -> bool:
        """Nobody waits any more. Return whether it was still running."""
        if self._pending.pop(number, None) is None:
            return False
        self._send(m.Cancelled(number))
        return True

    def answer_ask(self, number: int, answer: Answer) -> None:
        """Send what a model answered."""
        headers = (*answer.all_headers(), (b"content-type", answer.content_type))
        self._send(m.Answered(number, answer.status, tuple(headers), answer.body))

    def ping(self) -> None:
        """Ask whether its loop is alive."""
        self.awaits_pong = True
        self._send(m.Ping())

    def stop(self) -> None:
        """Let it finish what runs and end."""
        self._send(m.Stop())

    def close(self) -> None:
        """Close the channel; nothing is told any more."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def drop(self, error: MuelleError) -> None:
        """Settle all that runs with an error."""
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.done(error)

    # --- below ---

    def _send(self, message: m.Frame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(m.pack(message))

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self.close()
        self._owner.link_ended(self, reason)

    def _take(self, message: m.Frame) -> None:
        if isinstance(message, m.Ask):
            self._owner.link_asked(self, message)
        elif isinstance(message, m.Ready):
            self.ready = True
            self._owner.link_ready(self, message.kind)
        elif isinstance(message, m.LoadFailed):
            self._owner.link_failed(self, message.reason)
        elif isinstance(message, m.Pong):
            self.awaits_pong = False
        elif isinstance(message, m.Start | m.Body | m.Failed):
            self._answer(message)

    def _answer(self, message: m.Start | m.Body | m.Failed) -> None:
        pending = self._pending.get(message.id)
        if pending is None:
            return  # It was cancelled; what it had sent before is still on its way.
        if isinstance(message, m.Failed):
            self._settle(message.id, Internal("the application failed; its log says why"))
        elif isinstance(message, m.Start):
            pending.head = message
        elif pending.head is None or not 200 <= pending.head.status <= 599:
            self._settle(message.id, Internal("the application gave no valid status"))
        else:
            pending.body.append(message.chunk)
            pending.size += len(message.chunk)
            if pending.size > self._body_limit:
                self._send(m.Cancelled(message.id))
                text = f"the application's answer is larger than {self._body_limit} bytes"
                self._settle(message.id, TooLargeAnswer(text))
            elif not message.more:
                self._settle(message.id, _whole(pending.head, b"".join(pending.body)))

    def _settle(self, number: int, result: Answer | MuelleError) -> None:
        pending = self._pending.pop(number)
        self.served = True
        self.late = 0
        pending.done(result)


class TooLargeAnswer(TooLarge):
    """An application's answer is over the limit: its fault, not the caller's."""

    code = Internal.code


def _whole(head: m.Start, body: bytes) -> Answer:
    content_type = b""
    headers = []
    for raw, value in head.headers:
        name = raw.lower()
        if name == b"content-type":
            content_type = _clean(value)
        elif name not in NOT_OURS and _is_name(name):
            headers.append((name, _clean(value)))
    return Answer(head.status, content_type, body, tuple(headers))


def _is_name(name: bytes) -> bool:
    return bool(name) and all(33 <= c < 127 and c not in b'()<>@,;:\\"/[]?={} ' for c in name)


def _clean(value: bytes) -> bytes:
    """A line break in a header would let an application's caller write headers of its own."""
    return value.replace(b"\r", b" ").replace(b"\n", b" ").replace(b"\0", b" ")
