"""ModelInfer and ModelStreamInfer: which version a message is for, and the answers on their way.

Not for reading messages (`protocols.v2_grpc`), and not for choosing versions (`inference`).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, cast

from muelle import protos
from muelle.core.errors import BadRequest, MuelleError
from muelle.inference import Endpoint, InferenceService, Table
from muelle.protocols.http import Answer, HttpRequest
from muelle.protocols.protobuf_wire import take_out
from muelle.protocols.v2_grpc import (
    RAW_INPUT,
    TAKE_OUT_FROM,
    StreamAnswer,
    error_answer,
    stream_error,
)
from muelle.transport.grpc import Call, Cancel, Method, Methods, Status

log = logging.getLogger("muelle.grpc")

SERVICE = b"/inference.GRPCInferenceService/"
MAX_OUTSTANDING = 64
"""Requests of one stream that are under way; more wait in the network."""
MAX_UNREAD_BYTES = 4 * 1024 * 1024
"""Answers of one stream that lie here; more requests are not taken until they are read."""
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""A stream whose answers pile up beyond this is ended."""


class InferCalls:
    """Finds the endpoint of each message. Used on the event loop's thread only."""

    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference
        self._table: Table | None = None
        self._known: dict[bytes, Endpoint] = {}
        self._parse = protos.message("inference.ModelInferRequest").FromString

    def methods(self) -> Methods:
        """Return what to register."""
        return {
            SERVICE + b"ModelInfer": Method("infer", unary=self.infer),
            SERVICE + b"ModelStreamInfer": Method(
                "infer", stream=lambda call: InferStream(call, self)
            ),
        }

    def infer(self, call: Call, message: bytes) -> Cancel | None:
        """Answer one ModelInferRequest."""
        if self._table is not self._inference.table:
            self._table = self._inference.table
            self._known.clear()
        start = _names_end(message)
        endpoint = self._known.get(message[:start])
        if endpoint is None:
            try:
                endpoint = self._find("v2_grpc", message)
            except MuelleError as exc:
                call.reply_answer(error_answer(exc, ""))
                return None
            if start and len(self._known) < 1024:
                self._known[message[:start]] = endpoint
        taken = endpoint.take(cast(Any, call), message)
        if taken is not False:
            return cast("Cancel | None", taken)
        return endpoint.begin(as_request(call, message), call.reply_answer)

    def _find(self, protocol: str, message: bytes) -> Endpoint:
        name, version, _ = self.names(message)
        return self._inference.endpoint(protocol, name, version or None)

    def names(self, message: bytes) -> tuple[str, str, str]:
        """Return model, version and id of a request. Raise BadRequest."""
        head = message
        if len(message) >= TAKE_OUT_FROM:
            head, _ = take_out(message, RAW_INPUT)
        try:
            found = self._parse(head)
        except Exception:
            raise BadRequest("the message is no ModelInferRequest") from None
        return found.model_name, found.model_version, found.id

    def stream_endpoint(self, name: str, version: str) -> Endpoint:
        """Return what answers on streams. Raise MuelleError."""
        return self._inference.endpoint("v2_stream", name, version or None)


def as_request(call: Call, message: bytes) -> HttpRequest:
    """Return a message as endpoints take it; the caller's deadline becomes a header."""
    headers = call.metadata
    if call.deadline is not None:
        left_ms = max(1e-3, (call.deadline - _now()) * 1e3)
        headers = {**headers, b"timeout-ms": b"%.3f" % left_ms}
    elif b"timeout-ms" in headers:
        headers = {k: v for k, v in headers.items() if k != b"timeout-ms"}
    return HttpRequest(b"POST", "", b"", headers, message, call.request_id)


def _now() -> float:
    import time

    return time.monotonic()


def _names_end(message: bytes) -> int:
    """Return where model_name and model_version end, when they stand first; else 0."""
    if len(message) < 2 or message[0] != 0x0A or message[1] > 0x7F:
        return 0
    end = 2 + message[1]
    if message[end : end + 1] == b"\x12" and len(message) > end + 1 and message[end + 1] <= 0x7F:
        end += 2 + message[end + 1]
    return end if end <= len(message) else 0


class _Turn:
    """One request of a stream: its answers wait until those before it are complete."""

    __slots__ = ("answers", "cancel", "done")

    def __init__(self) -> None:
        self.answers: list[StreamAnswer] = []
        self.cancel: Cancel | None = None
        self.done = False


class InferStream:
    """One ModelStreamInfer call. Implements `transport.grpc.Stream`.

    Requests of ordinary models are answered in their order; a decoupled model's answers go out as
    they come, for its callers tell them apart by id.
    """

    def __init__(self, call: Call, calls: InferCalls) -> None:
        self._call = call
        self._calls = calls
        self._turns: deque[_Turn] = deque()
        self._open: set[_Turn] = set()
        self._half_closed = False
        self._over = False
        self._errors_end = call.metadata.get(b"triton_grpc_error", b"").lower() == b"true"

    # --- transport.grpc.Stream ---

    def message(self, message: bytes) -> None:
        """The caller sent a request."""
        turn = _Turn()
        self._open.add(turn)
        self._turns.append(turn)
        id = ""
        try:
            name, version, id = self._calls.names(message)
            endpoint = self._calls.stream_endpoint(name, version)
        except MuelleError as exc:
            self._answer(turn, stream_error(error_answer(exc, ""), id))
            return

        def done(answer: Answer) -> None:
            assert isinstance(answer, StreamAnswer)
            if answer.code and id:
                # Its caller tells it apart by the id, which the codec did not come to see.
                plain = Answer(answer.code, b"", answer.text.encode())
                ordered, answer = answer.ordered, stream_error(plain, id)
                answer.ordered = ordered
            self._answer(turn, answer)

        request = as_request(self._call, message)
        turn.cancel = endpoint.begin(request, done)
        if len(self._open) >= MAX_OUTSTANDING or self._call.unsent_bytes > MAX_UNREAD_BYTES:
            self._call.hold(True)

    def half_closed(self) -> None:
        """The caller sends no more: the stream ends after the last answer."""
        self._half_closed = True
        self._end_if_done()

    def cancelled(self) -> None:
        """The caller is gone: what it asked for is dropped before it runs."""
        self._over = True
        for turn in list(self._open):
            if turn.cancel is not None:
                turn.cancel()
        self._open.clear()
        self._turns.clear()

    # --- answers ---

    def _answer(self, turn: _Turn, answer: StreamAnswer) -> None:
        if self._over or turn.done:
            return
        if answer.code and self._errors_end:
            self._end_with(Status(answer.code), answer.text)
            return
        turn.done = answer.final
        if answer.body:
            turn.answers.append(answer)
        if not answer.ordered:
            self._send(turn)
        if answer.final:
            self._open.discard(turn)
            turn.cancel = None
            while self._turns and self._turns[0].done:
                self._send(self._turns.popleft())
        if len(self._open) < MAX_OUTSTANDING // 2:
            self._call.hold(self._call.unsent_bytes > MAX_UNREAD_BYTES)
        self._end_if_done()

    def _send(self, turn: _Turn) -> None:
        answers, turn.answers = turn.answers, []
        for answer in answers:
            self._call.send(answer.body)
        if self._call.unsent_bytes > MAX_UNSENT_BYTES:
            text = f"over {MAX_UNSENT_BYTES} bytes of answers were not read"
            self._end_with(Status.RESOURCE_EXHAUSTED, text)

    def _end_with(self, status: Status, text: str) -> None:
        self._call.finish(status, text)
        self.cancelled()

    def _end_if_done(self) -> None:
        if self._half_closed and not self._open and not self._over:
            self._over = True
            self._call.finish(Status.OK)
