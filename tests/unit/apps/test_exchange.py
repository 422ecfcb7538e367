"""One request, from the server's side: answered once, whatever comes in which order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.apps.exchange import Exchange, frames_of
from muelle.apps.frames import CHUNK_BYTES, Body, Frame, Leave, More, Request, Start, Taken
from muelle.protocols.http import Answer, HttpRequest, StreamedAnswer
from muelle.telemetry.apps import AppMetrics


class Sink:
    """A client's connection: it may lag."""

    def __init__(self) -> None:
        self.resumed: Any = None
        self.written: list[bytes] = []
        self.lags = False
        self.over = ""

    def write(self, chunk: bytes) -> bool:
        """Take a piece."""
        self.written.append(chunk)
        return not self.lags

    def end(self) -> None:
        """Whole."""
        assert not self.over
        self.over = "ended"

    def abort(self) -> None:
        """Broken."""
        assert not self.over
        self.over = "aborted"


class Scene:
    """An exchange with everything around it. The loop never runs: its clock stands still."""

    def __init__(self, method: bytes = b"GET") -> None:
        self.loop = asyncio.new_event_loop()
        self.sent: list[Frame] = []
        self.answers: list[Answer] = []
        self.late = 0
        self.metrics = AppMetrics()
        self.sink = Sink()
        self.exchange = Exchange(
            1,
            HttpRequest(method, "/", b"", {}, b"", "id-1"),
            self._done,
            link=self,
            metrics=self.metrics,
            loop=self.loop,
            timeout_s=5.0,
            is_late=self._is_late,
        )

    def send(self, frame: Frame) -> None:
        """What goes to the process."""
        self.sent.append(frame)

    def _done(self, answer: Answer) -> None:
        self.answers.append(answer)
        if isinstance(answer, StreamedAnswer):
            answer.begin(self.sink)

    def _is_late(self) -> None:
        self.late += 1

    @property
    def answer(self) -> Answer:
        """The one answer."""
        (found,) = self.answers
        return found


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A fresh one."""
    made = Scene()
    yield made
    made.loop.close()


def start(chunk: bytes = b"", *, more: bool = False, status: int = 200, **headers: str) -> Start:
    """The beginning of an answer."""
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return Start(1, status, pairs, chunk, more)


def test_a_whole_answer_is_one_value(scene: Scene) -> None:
    """Status, type, headers that are the application's; not those that the connection writes."""
    scene.exchange.start(
        start(b"hi", content_type="text/x", x_a="1", connection="close", date="now", server="s")
    )
    answer = scene.answer
    assert not isinstance(answer, StreamedAnswer)
    assert (answer.status, answer.content_type, answer.body) == (200, b"text/x", b"hi")
    assert answer.headers == ((b"x-a", b"1"), (b"server", b"s"))
    assert (scene.metrics.count(200), scene.metrics.in_flight) == (1, 0)


def test_a_streamed_answer_is_paid_for_piece_by_piece(scene: Scene) -> None:
    """The application may go on by as much as the client has taken; a lagging one stops it."""
    scene.exchange.start(start(b"one", more=True))
    assert scene.sent == [Taken(1, 3)]
    scene.sink.lags = True
    scene.exchange.body(Body(1, b"four", True))
    assert scene.sent == [Taken(1, 3)]
    scene.sink.resumed()
    assert scene.sent == [Taken(1, 3), Taken(1, 4)]
    scene.exchange.body(Body(1, b"", False))
    assert (scene.sink.written, scene.sink.over) == ([b"one", b"four", b""], "ended")
    assert scene.metrics.count(200) == 1


def test_an_announced_length_is_kept(scene: Scene) -> None:
    """A stream whose length is known needs no chunks."""
    scene.exchange.start(start(b"one", more=True, content_length="10"))
    answer = scene.answer
    assert isinstance(answer, StreamedAnswer)
    assert answer.length == 10


def test_the_answer_to_head_tells_the_length_that_get_would_have() -> None:
    """There is no body to count."""
    scene = Scene(b"HEAD")
    scene.exchange.start(start(b"", content_length="5"))
    answer = scene.answer
    assert isinstance(answer, StreamedAnswer)
    assert (answer.length, scene.sink.over) == (5, "ended")
    scene.loop.close()


@pytest.mark.parametrize(
    "bad",
    [
        start(status=99),
        start(status=101),
        start(status=1000),
        start(**{"x\r\ny": "1"}),
        start(x="1\r\nset-cookie: a"),
        start(x="1\0"),
        start(**{"X": "1"}),
        start(**{"": "1"}),
    ],
)
def test_what_http_cannot_carry_is_refused(scene: Scene, bad: Start) -> None:
    """500, and nothing of the answer."""
    scene.exchange.start(bad)
    assert scene.answer.status == 500
    assert scene.answer.headers == ()
    assert scene.sent == [Leave(1, False)]


def test_a_failure_before_the_answer_is_500_and_after_it_a_broken_connection() -> None:
    """And a process that dies is 502."""
    for fail, code in ((Exchange.failed, 500), (Exchange.died, 502)):
        early, late = Scene(), Scene()
        fail(early.exchange)
        problem = json.loads(early.answer.body)
        assert (early.answer.status, problem["status"]) == (code, code)
        assert problem["request_id"] == "id-1"
        late.exchange.start(start(b"one", more=True))
        fail(late.exchange)
        assert late.sink.over == "aborted"
        assert (early.metrics.in_flight, late.metrics.in_flight) == (0, 0)
        early.loop.close()
        late.loop.close()


def test_a_late_answer_is_504_and_somebody_looks_after_the_process(scene: Scene) -> None:
    """The application is told; what it says afterwards is dropped."""
    scene.exchange._late(5.0)
    scene.exchange.start(start(b"too late"))
    scene.exchange.body(Body(1, b"x", False))
    scene.exchange.failed()
    assert (scene.answer.status, scene.late) == (504, 1)
    assert scene.sent == [Leave(1, True)]


def test_a_client_that_left_is_told_to_the_application(scene: Scene) -> None:
    """Once; nothing is answered, and it is counted as what it is."""
    scene.exchange.leave()
    scene.exchange.leave()
    scene.exchange.start(start(b"x"))
    assert scene.answers == []
    assert scene.sent == [Leave(1, False)]
    assert (scene.metrics.count(499), scene.metrics.in_flight) == (1, 0)


EVENTS = {
    "start": lambda s: s.exchange.start(start(b"a", more=True)),
    "whole": lambda s: s.exchange.start(start(b"a")),
    "body": lambda s: s.exchange.body(Body(1, b"b", True)),
    "last": lambda s: s.exchange.body(Body(1, b"c", False)),
    "failed": lambda s: s.exchange.failed(),
    "died": lambda s: s.exchange.died(),
    "leave": lambda s: s.exchange.leave(),
}


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=8))
def test_whatever_comes_it_is_settled_once(names: list[str]) -> None:
    """Any order of frames, even one that no sane application sends: one answer, one count."""
    scene = Scene()
    for name in names:
        # A process that sends a body before its head breaks the form; nothing may break here.
        EVENTS[name](scene)
    scene.exchange.died()
    assert len(scene.answers) == (0 if names and names[0] == "leave" else 1)
    assert scene.metrics.in_flight == 0
    assert scene.metrics.duration.buckets()[1][-1] == 1
    scene.loop.close()


def test_a_request_becomes_frames() -> None:
    """Its body in pieces; hop-by-hop headers stay with the connection."""
    body = bytes(CHUNK_BYTES * 2 + 1)
    headers = {
        b"host": b"[::1]:80", b"transfer-encoding": b"chunked", b"connection": b"x-mine, close",
        b"x-mine": b"1", b"proxy": b"p", b"cookie": b"a=1", b"x-request-id": b"spoofed",
    }  # fmt: skip
    request = HttpRequest(b"POST", "/ñ", b"a=1", headers, body, "id-1")
    first, *rest = frames_of(7, request, b"/%C3%B1", root="/shop", scheme="https")
    assert isinstance(first, Request)
    assert first.headers == [
        (b"host", b"[::1]:80"),
        (b"cookie", b"a=1"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", b"id-1"),
    ]
    assert (first.path, first.raw_path, first.root_path) == ("/ñ", b"/%C3%B1", "/shop")
    assert first.server == ("::1", 80)
    pieces = [frame for frame in rest if isinstance(frame, More)]
    assert [first.more, *(piece.more for piece in pieces)] == [True, True, False]
    assert first.body + b"".join(piece.chunk for piece in pieces) == body
