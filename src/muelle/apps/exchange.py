"""One request to a hosted application, from the server's side: given once, answered once.

Not for choosing the process (`pool`) and not for what the application does with it (`asgi`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Protocol

import msgspec

from muelle.apps.frames import (
    WINDOW_BYTES,
    Body,
    HeaderList,
    Leave,
    More,
    Request,
    Start,
    Taken,
    pieces,
)
from muelle.core.errors import BadGateway, DeadlineExceeded, Internal, MuelleError, Unavailable
from muelle.protocols import native
from muelle.protocols.http import Answer, BodySink, HttpRequest, StreamedAnswer
from muelle.telemetry.apps import AppMetrics

log = logging.getLogger("muelle.app")

Reply = Callable[[Answer], None]
Cancel = Callable[[], None]

BODILESS = (204, 304)
CLIENT_LEFT = 499
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding "
    b"upgrade".split()
)
"""RFC 9110 7.6.1: meant for one connection, and that one is the server's."""
NOT_FOR_THE_APP = HOP_BY_HOP | {b"expect", b"proxy", b"content-length", b"x-request-id"}
"""`proxy` would become HTTP_PROXY in an environ; the others are written anew."""
WRITTEN_BY_US = HOP_BY_HOP | {
    b"content-length",
    b"content-type",
    b"date",
    b"x-content-type-options",
    b"x-request-id",
}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_VALUE = re.compile(rb"[^\x00\r\n]*\Z")


class Link(Protocol):
    """The process that works on it."""

    def send(self, frame: Leave | More | Request | Taken) -> None:
        """Send a frame."""


class Exchange:
    """Used on the event loop's thread only. `done` gets one answer, unless the client left."""

    def __init__(
        self,
        id: int,
        request: HttpRequest,
        done: Reply,
        *,
        link: Link,
        metrics: AppMetrics,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        is_late: Callable[[], None],
    ) -> None:
        """`is_late` is called when the time is over: somebody should look after the process."""
        self.id = id
        self._request_id = request.request_id
        self._is_head = request.method == b"HEAD"
        self._done = done
        self._link = link
        self._metrics = metrics
        self._loop = loop
        self._is_late = is_late
        self._began = loop.time()
        self._code = 0
        self._sink: BodySink | None = None
        self._owed = 0
        self._over = False
        self._timer = loop.call_later(timeout_s, self._late, timeout_s)
        metrics.in_flight += 1

    # --- what the application says ---

    def start(self, frame: Start) -> None:
        """The answer begins, and may be whole already."""
        if self._over or self._code:
            return
        try:
            answer = self._answer(frame)
        except ValueError as exc:
            log.error("the app's answer is none: %s", exc, extra={"request_id": self._request_id})
            self._leave(late=False)
            self._answer_error(Internal("internal error"), 500)
            return
        self._timer.cancel()
        self._code = answer.status
        self._done(answer)
        if frame.more:
            self._pass_on(frame.chunk)
        else:
            if self._sink is not None:
                self._sink.end()
            self._finish()

    def body(self, frame: Body) -> None:
        """A further piece."""
        if self._over:
            return
        if not self._code:
            self.failed()  # A body without a head: no process of ours sends that.
            return
        self._pass_on(frame.chunk)
        if not frame.more and not self._over:
            if self._sink is not None:
                self._sink.end()
            self._finish()

    def failed(self) -> None:
        """The application raised. Its own log says why; the client learns nothing of it."""
        self._break(Internal("the app failed; its log has this request id"), 500)

    def died(self) -> None:
        """The process ended."""
        self._break(BadGateway("the app ended while it worked on this; try again"), 502)

    # --- what the client and the clock say ---

    def leave(self) -> None:
        """The client left."""
        if self._over:
            return
        self._leave(late=False)
        self._code = CLIENT_LEFT
        self._finish()

    def _late(self, timeout_s: float) -> None:
        self._leave(late=True)
        error = DeadlineExceeded(f"the app did not answer within {timeout_s:g} s")
        self._answer_error(error, 504)
        self._is_late()

    # --- below ---

    def _answer(self, frame: Start) -> Answer:
        if not 200 <= frame.status <= 599:
            raise ValueError(f"status {frame.status}")
        content_type, headers, length = b"", [], None
        for name, value in frame.headers:
            if not _NAME.match(name) or not _VALUE.match(value):
                raise ValueError(f"a header that HTTP cannot carry: {name!r}")
            if name == b"content-type":
                content_type = value
            elif name == b"content-length" and value.isdigit():
                length = int(value)
            elif name not in WRITTEN_BY_US:
                headers.append((name, value))
        if frame.status in BODILESS or not (frame.more or self._is_head):
            return Answer(frame.status, content_type, frame.chunk, tuple(headers))
        if not frame.more and length is None:
            length = len(frame.chunk)
        return StreamedAnswer(frame.status, content_type, tuple(headers), length, self._attach)

    def _attach(self, sink: BodySink) -> None:
        self._sink = sink
        sink.resumed = self._caught_up

    def _pass_on(self, chunk: bytes) -> None:
        self._owed += len(chunk)
        if self._owed > 2 * WINDOW_BYTES:
            self._leave(late=False)  # It does not keep to its window: what it sends piles up here.
            self.failed()
        elif self._sink is None or self._sink.write(chunk):
            self._caught_up()

    def _caught_up(self) -> None:
        """Let the application go on: what it sent is out."""
        if self._owed and not self._over:
            self._link.send(Taken(self.id, self._owed))
            self._owed = 0

    def _break(self, error: MuelleError, code: int) -> None:
        if self._over:
            return
        if self._code:
            if self._sink is not None:
                self._sink.abort()
            self._finish()
        else:
            self._answer_error(error, code)

    def _answer_error(self, error: MuelleError, code: int) -> None:
        answer = error_answer(error, self._request_id, code)
        self._code = code
        self._finish()
        self._done(answer)

    def _leave(self, *, late: bool) -> None:
        self._link.send(Leave(self.id, late))

    def _finish(self) -> None:
        self._over = True
        self._timer.cancel()
        self._metrics.in_flight -= 1
        self._metrics.answered(self._code, self._loop.time() - self._began)


def error_answer(error: MuelleError, request_id: str, code: int = 0) -> Answer:
    """Return an error of the host's own, as problem details; `code` if it is another status."""
    answer = native.encode_error(error, request_id)
    if code:
        problem = msgspec.json.decode(answer.body)
        problem |= {"status": code, "title": HTTPStatus(code).phrase}
        answer.body = msgspec.json.encode(problem)
        answer.status = code
    return answer


def busy_answer(why: str, request_id: str) -> Answer:
    """Return the answer while no process can take a request."""
    return error_answer(Unavailable(why, retry_after_s=1.0), request_id)


def frames_of(
    id: int, request: HttpRequest, raw_path: bytes, *, root: str, scheme: str
) -> Iterator[Request | More]:
    """Yield a request as frames: its head with the first piece of the body, then the others."""
    body = request.body
    cut = list(pieces(body))
    yield Request(
        id=id,
        request_id=request.request_id,
        method=request.method.decode("latin-1"),
        path=request.path,
        raw_path=raw_path,
        query=request.query,
        headers=_headers_for_app(request),
        client=request.client,
        server=_server_of(request, scheme),
        root_path=root,
        scheme=scheme,
        body=cut[0],
        more=len(cut) > 1,
    )
    for i, piece in enumerate(cut[1:], start=2):
        yield More(id, piece, i < len(cut))


def _headers_for_app(request: HttpRequest) -> HeaderList:
    named = request.headers.get(b"connection", b"").lower().replace(b" ", b"").split(b",")
    headers = [
        (name, value)
        for name, value in request.headers.items()
        if name not in NOT_FOR_THE_APP and name not in named
    ]
    # The body is whole and in the clear by now, however it came.
    if request.body or b"content-length" in request.headers:
        headers.append((b"content-length", b"%d" % len(request.body)))
    headers.append((b"x-request-id", request.request_id.encode()))
    return headers


def _server_of(request: HttpRequest, scheme: str) -> tuple[str, int] | None:
    """Return host and port as the client named them."""
    host = request.headers.get(b"host", b"").decode("latin-1")
    name, _, port = host.rpartition(":")
    if name and port.isdigit() and len(port) < 6:
        return name.strip("[]"), int(port)
    return (host.strip("[]"), 443 if scheme == "https" else 80) if host else None
