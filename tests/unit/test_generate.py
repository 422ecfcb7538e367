"""The generate endpoints over a pool that answers as the test says. Not for the codec's rules."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muelle import generate
from muelle.core.errors import MuelleError, QueueFull, Unavailable
from muelle.core.request import (
    BatchOutput,
    Done,
    InferRequest,
    InferResponse,
    OutputTensor,
    encode_array,
)
from muelle.core.settings import ModelSettings
from muelle.core.signature import Signature, TensorSpec
from muelle.generate import GenerateEndpoint, GenerateHttp, GenerateStreamHttp
from muelle.protocols.http import Answer, BodySink, HttpRequest, StreamedAnswer
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_generate import EVENTS, GenerateCodec
from muelle.telemetry.metrics import VersionMetrics

SIGNATURE = Signature(
    inputs=(TensorSpec(name="text_input", datatype="BYTES", shape=(1,)),),
    outputs=(TensorSpec(name="text_output", datatype="BYTES", shape=(1,)),),
    batched=False,
)


class Pool:
    """A version whose model says what the test says."""

    takes_plain_rows = False
    is_full = False

    def __init__(self, *, decoupled: bool) -> None:
        self.spec = SimpleNamespace(timeout_s=1.0, model="m", version="1")
        self.signature = SIGNATURE
        self.settings = ModelSettings(decoupled=decoupled)
        self.refusal: MuelleError | None = None
        self.request: InferRequest | None = None
        self.cancelled = 0
        self.say: Done = print

    def check_open(self) -> None:
        """Take requests, or not."""
        if self.refusal is not None:
            raise self.refusal

    def submit(self, request: InferRequest, done: Done, arrived: float) -> Callable[[], None]:
        """Let the test answer."""
        self.request, self.say = request, done
        return self._cancel

    def full_error(self) -> QueueFull:
        """What a full queue says."""
        return QueueFull("m", 1)

    def answer(self, text: str | None, *, final: bool) -> None:
        """Answer once; None has no tensors."""
        array = np.array([(text or "").encode()], dtype=object)
        batch = BatchOutput("text_output", "BYTES", (1,), encode_array("BYTES", array))
        outputs = [] if text is None else [OutputTensor(batch, -1, -1)]
        response = InferResponse("m", "1", outputs)
        response.final = final
        self.say(response)

    def _cancel(self) -> None:
        self.cancelled += 1


class Sink:
    """The client's side of a stream."""

    def __init__(self, *, reads: bool = True) -> None:
        self.resumed: Callable[[], None] = print
        self.reads = reads
        self.got = b""
        self.end_is = ""

    def write(self, chunk: bytes) -> bool:
        """Keep it."""
        assert not self.end_is
        self.got += chunk
        return self.reads

    def end(self) -> None:
        """The end."""
        assert not self.end_is
        self.end_is = "end"

    def abort(self) -> None:
        """The connection is cut."""
        self.end_is = "abort"

    @property
    def events(self) -> list[Any]:
        """The events so far."""
        assert self.got.endswith(b"\n\n") or not self.got
        return [json.loads(part.removeprefix(b"data: ")) for part in self.got.split(b"\n\n")[:-1]]


class Case:
    """One endpoint, its pool, and what was answered."""

    def __init__(self, *, stream: bool, decoupled: bool = True) -> None:
        codec = GenerateCodec(
            V2Codec("m", "1", SIGNATURE, "error", 20, 32), json_nan="error", json_depth=20
        )
        self.pool = Pool(decoupled=decoupled)
        self.metrics = VersionMetrics("m", "1")
        self.answers: list[Answer] = []
        self.sink = Sink()
        clock = itertools.count()
        self.endpoint = GenerateEndpoint(
            (GenerateStreamHttp if stream else GenerateHttp)(codec),
            self.pool, self.metrics, lambda: float(next(clock)), "sha256:d",
        )  # fmt: skip
        self.protocol = self.endpoint.codec.protocol

    def ask(self, body: bytes = b'{"text_input":"hola","id":"a"}', *, attach: bool = True) -> Any:
        """Begin a request; return what cancels it."""

        def done(answer: Answer) -> None:
            self.answers.append(answer)
            if attach and isinstance(answer, StreamedAnswer):
                answer.begin(self.sink)

        return self.endpoint.begin(HttpRequest(b"POST", "", b"", {}, body, "id-1"), done)

    def count(self, outcome: str) -> int:
        """How often it ended so."""
        return self.metrics.counter(self.protocol, outcome).value

    @property
    def answer(self) -> Answer:
        """The only answer."""
        (answer,) = self.answers
        assert b"muelle-digest: sha256:d" in answer.head_lines
        return answer


def texts(sink: Sink) -> list[str]:
    """The texts of the events."""
    return [event["text_output"] for event in sink.events]


# --- generate ---


@pytest.mark.parametrize("ends", ["together", "apart"])
def test_generate_gives_the_only_answer(ends: str) -> None:
    """When the model has said that it was the last, and a last word without tensors is none."""
    case = Case(stream=False)
    case.ask()
    assert case.pool.request is not None
    assert case.pool.request.streams
    case.pool.answer("adiós", final=ends == "together")
    if ends == "apart":
        assert case.answers == []
        case.pool.answer(None, final=True)
    answer = case.answer
    assert (answer.status, answer.content_type) == (200, b"application/json")
    assert json.loads(answer.body) == {
        "id": "a", "model_name": "m", "model_version": "1", "text_output": "adiós",
    }  # fmt: skip
    assert (case.count("ok"), case.pool.cancelled) == (1, 0)


def test_generate_refuses_a_second_answer() -> None:
    """At once; the model need not go on, and whatever it still says is not heard."""
    case = Case(stream=False)
    case.ask()
    case.pool.answer("one", final=False)
    case.pool.answer("two", final=False)
    assert case.answer.status == 400
    assert "generate_stream" in json.loads(case.answer.body)["error"]
    case.pool.answer("three", final=True)
    assert (len(case.answers), case.pool.cancelled, case.count("bad_request")) == (1, 1, 1)


def test_generate_needs_an_answer() -> None:
    """None is an error, too."""
    case = Case(stream=False)
    case.ask()
    case.pool.answer(None, final=True)
    assert (case.answer.status, case.pool.cancelled) == (400, 0)


# --- generate_stream ---


def test_every_answer_is_an_event_at_once() -> None:
    """The head goes out with the first of them; the end adds nothing."""
    case = Case(stream=True)
    case.ask()
    assert case.answers == []
    case.pool.answer("one", final=False)
    assert isinstance(case.answer, StreamedAnswer)
    assert (case.answer.status, case.answer.content_type) == (200, EVENTS)
    assert texts(case.sink) == ["one"]
    case.pool.answer("two", final=False)
    assert texts(case.sink) == ["one", "two"]
    case.pool.answer(None, final=True)
    assert (texts(case.sink), case.sink.end_is) == (["one", "two"], "end")
    assert (case.count("ok"), case.pool.cancelled) == (1, 0)


@pytest.mark.parametrize(("text", "events"), [(None, 0), ("only", 1)])
def test_a_stream_that_is_complete_leaves_whole(text: str | None, events: int) -> None:
    """No answer at all, or one that is the last."""
    case = Case(stream=True)
    case.ask()
    case.pool.answer(text, final=True)
    assert not isinstance(case.answer, StreamedAnswer)
    assert (case.answer.status, case.answer.content_type) == (200, EVENTS)
    assert case.answer.body.count(b"data: ") == events


def test_an_ordinary_model_streams_once() -> None:
    """One answer, one event; it was not asked for a stream."""
    case = Case(stream=True, decoupled=False)
    case.ask()
    assert case.pool.request is not None
    assert not case.pool.request.streams
    case.pool.answer("only", final=True)
    assert json.loads(case.answer.body[6:])["text_output"] == "only"


def test_an_error_before_the_first_answer_has_its_status() -> None:
    """In the form of a stream, for the model was asked."""
    case = Case(stream=True)
    case.ask()
    case.pool.say(Unavailable("m: restarts", retry_after_s=2.0))
    assert (case.answer.status, case.answer.content_type) == (503, EVENTS)
    assert case.answer.body == b'data: {"error":"m: restarts"}\n\n'
    assert (b"Retry-After", b"2") in case.answer.headers
    assert case.count("unavailable") == 1


def test_an_error_after_the_first_answer_is_an_event() -> None:
    """The status is out; the stream ends there."""
    case = Case(stream=True)
    case.ask()
    case.pool.answer("one", final=False)
    case.pool.say(ZeroDivisionError("a secret"))
    assert case.sink.events[1] == {"error": "internal error, request id id-1"}
    assert case.sink.end_is == "end"
    case.pool.answer("late", final=True)
    assert (len(case.sink.events), case.count("failed"), case.count("ok")) == (2, 1, 0)


def test_an_answer_that_json_cannot_carry_ends_the_stream() -> None:
    """And the model's work."""
    case = Case(stream=True)
    case.ask()
    case.pool.answer("one", final=False)
    batch = BatchOutput("text_output", "BYTES", (1,), b"\1\0\0\0\xff")
    response = InferResponse("m", "1", [OutputTensor(batch, -1, -1)])
    response.final = False
    case.pool.say(response)
    assert "not UTF-8" in case.sink.events[1]["error"]
    assert (case.sink.end_is, case.pool.cancelled) == ("end", 1)


# --- both ---


@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_model_is_asked_are_plain(stream: bool) -> None:
    """JSON with its status: a bad body, a version that takes none now."""
    case = Case(stream=stream)
    assert case.ask(b"{}") is None
    assert (case.answer.status, case.answer.content_type) == (400, b"application/json")
    case = Case(stream=stream)
    case.pool.refusal = QueueFull("m", 1)
    assert case.ask() is None
    assert case.answer.content_type == b"application/json"
    assert case.count("overloaded") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answers", [0, 1])
def test_who_leaves_stops_the_model_once(stream: bool, answers: int) -> None:
    """Before or after the first answer; what comes later goes nowhere."""
    case = Case(stream=stream)
    leave = case.ask()
    for _ in range(answers):
        case.pool.answer("one", final=False)
    before = case.sink.got
    leave()
    leave()
    case.pool.answer("late", final=True)
    assert (case.pool.cancelled, case.count("cancelled"), case.count("ok")) == (1, 1, 0)
    assert case.sink.got == before


def test_who_leaves_after_the_end_cancels_nothing() -> None:
    """The request is answered and counted."""
    case = Case(stream=True)
    leave = case.ask()
    case.pool.answer("one", final=False)
    case.pool.answer(None, final=True)
    leave()
    assert (case.pool.cancelled, case.count("ok"), case.count("cancelled")) == (0, 1, 0)


def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; one that catches up in between goes on."""
    monkeypatch.setattr(generate, "AHEAD_BYTES", 1_000)
    case = Case(stream=True)
    case.ask()
    case.sink.reads = False
    for _ in range(8):
        case.pool.answer("x" * 40, final=False)
    case.sink.resumed()
    for _ in range(8):
        case.pool.answer("x" * 40, final=False)
    assert case.sink.end_is == ""
    for _ in range(8):
        case.pool.answer("x" * 40, final=False)
    assert (case.sink.end_is, case.pool.cancelled, case.count("cancelled")) == ("abort", 1, 1)


def test_events_wait_for_who_carries_them() -> None:
    """An ASGI server begins with the body later; nothing is lost, and the end is told."""
    case = Case(stream=True)
    case.ask(attach=False)
    case.pool.answer("one", final=False)
    case.pool.answer("two", final=False)
    case.pool.answer(None, final=True)
    answer = case.answer
    assert isinstance(answer, StreamedAnswer)
    sink: BodySink = case.sink
    answer.begin(sink)
    assert (texts(case.sink), case.sink.end_is) == (["one", "two"], "end")


@pytest.mark.parametrize(("decoupled", "n_seen"), [(False, 1), (True, 0)])
def test_a_shadow_sees_ordinary_answers_only(decoupled: bool, n_seen: int) -> None:
    """One answer can be compared; a stream of them cannot."""
    case, seen = Case(stream=False, decoupled=decoupled), []
    request = HttpRequest(b"POST", "", b"", {}, b'{"text_input":"a"}', "")
    case.endpoint.begin(request, case.answers.append, lambda wire, answer: seen.append(wire))
    case.pool.answer("one", final=True)
    assert (len(case.answers), len(seen)) == (1, n_seen)
