"""Mixed requests over raw sockets: good, bad, large, and callers who leave. Checks each answer.

Not for speed figures: this client is Python and slower than the server. It stands in for the world.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import numpy as np

from bench.models import Array, BenchModel
from bench.peers import LENGTH, read_v2

Check = Callable[[int, Mapping[str, str], bytes], str]
"""Status, headers (lower case), body -> what is wrong with the answer, "" when nothing is."""

ANSWER_TIMEOUT_S = 60.0
MAX_FAULTS = 20
N_LARGE_ROWS = 1_000
FORBIDDEN = (b"Traceback", b"/src/", b"site-packages", b".py", b" at 0x")
"""What no answer to a bad request may tell."""


class Leaving(Enum):
    """When the caller closes the connection."""

    NEVER = 0
    AT_ONCE = 1
    """The whole request is sent; nobody reads the answer."""
    HALFWAY = 2
    """Half of the request is sent."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request as bytes, and how to know a right answer."""

    kind: str
    wire: bytes
    check: Check
    leaving: Leaving = Leaving.NEVER


@dataclass(slots=True)
class Tally:
    """What happened. `faults` holds the first few wrong answers in words."""

    asked: Counter[str] = field(default_factory=Counter)
    n_wrong: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def n_asked(self) -> int:
        return self.asked.total()

    def note(self, kind: str, fault: str) -> None:
        """Count a wrong answer."""
        self.n_wrong += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(f"{kind}: {fault}")


# --- questions ---


def mixed_questions(model: BenchModel, *, body_limit_bytes: int = 64 * 1024 * 1024) -> list[Any]:
    """Return (weight, questions) pairs for the tabular model; each kind has several questions."""
    rows = model.inputs["x"]
    n_rows = len(rows)
    native, v2 = f"/models/{model.name}/predict", f"/v2/models/{model.name}/infer"
    large = np.resize(rows, (N_LARGE_ROWS, rows.shape[1]))
    answers = np.resize(model.expected, (N_LARGE_ROWS, model.expected.shape[1]))

    def good(path: str, make: Callable[[Array], bytes], check: Callable[..., Check]) -> list[Any]:
        one = [
            Question(f"good {path}", post(path, make(rows[i : i + 1])), check(i, i + 1))
            for i in range(n_rows)
        ]
        pairs = [
            Question(f"good {path}", post(path, make(rows[i : i + 2])), check(i, i + 2))
            for i in range(n_rows - 1)
        ]
        return one + pairs

    def native_right(start: int, stop: int) -> Check:
        return right(probabilities_of_native, model.expected[start:stop], model.tolerance)

    def v2_right(start: int, stop: int) -> Check:
        return right(read_v2, model.expected[start:stop], model.tolerance)

    def binary_right(i: int) -> Check:
        return v2_right(i, i + 1)

    short = rows[:1, :-1]
    bad = [
        Question("bad JSON", post(native, b'{"instances": [[1, 2'), refused(400)),
        Question("bad JSON", post(v2, b"\xff\xfe\x00"), refused(400)),
        Question("bad JSON", post(v2, b""), refused(400)),
        Question("bad JSON", post(native, b"[" * 100_000), refused(400)),
        Question("bad JSON", post(v2, b'{"inputs": 5}'), refused(400)),
        Question("bad JSON", post(native, b'{"instances": [["a", null]]}'), refused(400, 422)),
    ]
    shapes = [
        Question("wrong shape", post(native, native_body(short)), refused(400, 422)),
        Question("wrong shape", post(v2, v2_body(short)), refused(400)),
        Question("wrong shape", post(v2, v2_body(rows[:1], shape=[4, 30])), refused(400)),
        Question("wrong shape", post(v2, v2_body(rows[:1], shape=[2**62, 30])), refused(400)),
        Question("wrong shape", post(v2, v2_body(rows[:1], name="nobody")), refused(400)),
    ]
    lost = [
        Question("unknown", post("/models/nobody/predict", b"[]"), refused(404)),
        Question("unknown", post("/v2/models/nobody/infer", b"{}"), refused(400, 404)),
        Question("unknown", get("/nowhere"), refused(404)),
        Question("unknown", post(f"/models/{model.name}/versions/9/predict", b"[]"), refused(404)),
    ]
    left = [
        Question("left", wire, nobody_looks, leaving)
        for wire in (
            post(native, native_body(rows[:1])),
            post(v2, v2_body(rows[:1])),
            post(native, native_body(large)),
        )
        for leaving in (Leaving.AT_ONCE, Leaving.HALFWAY)
    ]
    wide = [
        Question(
            "large",
            post(native, native_body(large)),
            right(probabilities_of_native, answers, model.tolerance),
        ),
        Question("large", post(v2, v2_body(large)), right(read_v2, answers, model.tolerance)),
        Question("large", binary_post(v2, large), right(read_v2, answers, model.tolerance)),
        Question("large", too_long(native, body_limit_bytes + 1), refused(413)),
    ]
    asides = [
        Question("aside", get(path), is_ok)
        for path in ("/live", "/ready", "/metrics", "/models", f"/v2/models/{model.name}")
    ]
    return [
        (38.0, good(native, native_body, native_right)),
        (38.0, good(v2, v2_body, v2_right)),
        (
            6.0,
            [
                Question("good binary", binary_post(v2, rows[i : i + 1]), binary_right(i))
                for i in range(n_rows)
            ],
        ),
        (5.0, bad),
        (5.0, shapes),
        (2.0, lost),
        (3.5, left),
        (0.5, wide),
        (2.0, asides),
    ]


def in_turn(weighted: list[Any], seed: int) -> Iterator[Question]:
    """Yield questions for ever, by weight, the same for the same seed."""
    rng = random.Random(seed)
    kinds = [questions for _, questions in weighted]
    weights = [weight for weight, _ in weighted]
    while True:
        for questions in rng.choices(kinds, weights, k=1_000):
            yield rng.choice(questions)


def every_one(weighted: list[Any]) -> list[Question]:
    """Return each question once."""
    return [question for _, questions in weighted for question in questions]


# --- wire ---


def get(path: str) -> bytes:
    """Return a GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """Return a POST of JSON. Underscores in names of headers become dashes."""
    fields = {"content_type": "application/json", **headers, "content_length": str(len(body))}
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in fields.items())
    return f"POST {path} HTTP/1.1\r\nhost: bench\r\n{lines}\r\n".encode() + body


def too_long(path: str, size: int) -> bytes:
    """Return the head of a POST that announces more than the server takes; no body follows."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {size}\r\n\r\n".encode()


def native_body(rows: Array) -> bytes:
    """Return rows as `instances`."""
    return json.dumps({"instances": rows.tolist()}).encode()


def v2_body(rows: Array, *, name: str = "x", shape: list[int] | None = None) -> bytes:
    """Return rows as v2 JSON, flat."""
    shape = shape or list(rows.shape)
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_post(path: str, rows: Array) -> bytes:
    """Return a POST with the binary extension both ways."""
    raw = rows.tobytes()
    size = {"binary_data_size": len(raw)}
    tensor = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "parameters": size}
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    return post(
        path,
        text + raw,
        content_type="application/octet-stream",
        **{LENGTH: str(len(text))},
    )


# --- checks ---


def right(read: Callable[[Any, bytes], Array], expected: Array, tolerance: float) -> Check:
    """Return a check that the answer's numbers are these."""

    def check(status: int, headers: Mapping[str, str], body: bytes) -> str:
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        try:
            answer = read(headers, body)
        except (ValueError, KeyError, TypeError) as exc:
            return f"unreadable answer ({exc!r}): {body[:200]!r}"
        if answer.shape != expected.shape:
            return f"shape {answer.shape}, expected {expected.shape}"
        worst = float(np.abs(answer - expected).max())
        return "" if worst <= tolerance else f"off by {worst}"

    return check


def refused(*statuses: int) -> Check:
    """Return a check that the request was refused, in JSON that tells nothing of the inside."""

    def check(status: int, headers: Mapping[str, str], body: bytes) -> str:
        if status not in statuses:
            return f"status {status}, expected {statuses}: {body[:200]!r}"
        try:
            json.loads(body)
        except ValueError:
            return f"an error that is no JSON: {body[:200]!r}"
        told = [word for word in FORBIDDEN if word in body]
        return f"tells {told}: {body[:200]!r}" if told else ""

    return check


def is_ok(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Check the status only."""
    return "" if status == 200 and body else f"status {status}: {body[:200]!r}"


def nobody_looks(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Check nothing: the caller left."""
    return ""


def probabilities_of_native(headers: Mapping[str, str], body: bytes) -> Array:
    """Return the probabilities of a native answer: [rows, classes].

    Raise ValueError when a row's label is not its likeliest class.
    """
    rows: list[list[float]] = []
    for prediction in json.loads(body)["predictions"]:
        by_class: dict[str, float] = prediction["probabilities"]
        likeliest = max(by_class, key=lambda label: by_class[label])
        if str(prediction["label"]) != likeliest:
            raise ValueError(f"label {prediction['label']!r}, likeliest class {likeliest!r}")
        rows.append(list(by_class.values()))
    return np.array(rows, dtype=np.float32)


# --- callers ---

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)


class Connection(asyncio.Protocol):
    """One kept connection, one question at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(ConnectionError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(received[: end + 2])
        length = _LENGTH.search(head)
        if length is None:
            self._fail(ValueError(f"an answer without content-length: {head!r}"))
            return
        stop = end + 4 + int(length[1])
        if len(received) >= stop:
            body = bytes(received[end + 4 : stop])
            del received[:stop]
            if b"\r\nconnection: close" in head.lower():
                self.close()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result((head, body))

    async def ask(self, wire: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers in lower case, body. Raise OSError, ValueError."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            head, body = await self._answer
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, body

    def send(self, wire: bytes) -> None:
        """Send bytes and wait for nothing."""
        assert self._transport is not None
        self._transport.write(wire)

    def close(self) -> None:
        """Close; what was written before is sent."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


async def ask_all(
    questions: Iterator[Question],
    *,
    port: int,
    n_callers: int,
    tally: Tally,
    noted: Callable[[], None] = lambda: None,
) -> None:
    """Ask until the questions end, by so many callers at once; close every connection.

    `noted` is called after each.
    """
    await asyncio.gather(*(_caller(questions, port, tally, noted) for _ in range(n_callers)))


async def _caller(
    questions: Iterator[Question], port: int, tally: Tally, noted: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    connection = Connection()
    for question in questions:
        tally.asked[question.kind] += 1
        try:
            if not connection.is_open:
                _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
            if question.leaving is Leaving.NEVER:
                fault = question.check(*await connection.ask(question.wire))
                if fault:
                    tally.note(question.kind, fault)
            else:
                whole = question.leaving is Leaving.AT_ONCE
                connection.send(
                    question.wire if whole else question.wire[: len(question.wire) // 2]
                )
                connection.close()
        except (OSError, ValueError, TimeoutError) as exc:
            tally.note(question.kind, repr(exc))
            connection.close()
        noted()
    connection.close()
