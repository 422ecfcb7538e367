"""One version's answers to generate and generate_stream: how many there are, and how they leave.

Endpoints like any other: routes, shares, limits and metrics hold. Not for the JSON of a request or
an answer: `protocols.v2_generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from muelle.core.errors import BadRequest, Cancelled
from muelle.core.request import InferRequest, InferResponse
from muelle.endpoints import Cancel, PredictEndpoint, Reply, Tee
from muelle.protocols import v2
from muelle.protocols.http import JSON, Answer, BodySink, HttpRequest, StreamedAnswer
from muelle.protocols.v2_generate import EVENTS, GenerateCodec, event

AHEAD_BYTES = 16 * 1024 * 1024
"""What may lie here of one stream because its client does not read. A model cannot be told to wait,
so a client that is further behind is cut off."""

EVENT_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""Proxies must not keep events back until there are many."""


class GenerateHttp:
    """The generate codec, as endpoints call it."""

    protocol = "generate"

    def __init__(self, codec: GenerateCodec) -> None:
        self.text_of = codec.encode
        self._decode = codec.decode

    def decode(self, request: HttpRequest) -> InferRequest:
        """Read a request. Raise BadRequest."""
        return self._decode(request.body, request.headers)

    def encode(self, wire: Any, response: InferResponse) -> Answer:
        """Write the only answer."""
        return Answer(200, JSON, self.text_of(wire, response))

    def encode_error(self, error: Exception, request_id: str) -> Answer:
        """Write an error in v2's form."""
        return v2.encode_error(error, request_id)


class GenerateStreamHttp(GenerateHttp):
    """The same codec under another name: its answers leave as events."""

    protocol = "generate_stream"


class GenerateEndpoint(PredictEndpoint):
    """Answers generate, or generate_stream, of one version."""

    def __init__(self, codec: GenerateHttp, *rest: Any) -> None:
        super().__init__(codec, None, *rest)
        self.codec = codec

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Nothing lies ready: no answer goes out the hottest way."""

    def begin(self, request: HttpRequest, done: Reply, tee: Tee | None = None) -> Cancel | None:
        """Decode, queue, and answer with all that the model says. Never raises."""
        arrived = self._now()
        try:
            wire = self.read(request)
            settings = self._pool.settings
            wire.streams = settings is not None and settings.decoupled
            kind = Events if isinstance(self.codec, GenerateStreamHttp) else OneAnswer
            replies = kind(self, request, wire, done, arrived, tee)
            replies.cancel = self._pool.submit(wire, replies.take, arrived)
        except Exception as exc:
            done(self._error(exc, request, arrived))
            return None
        return replies.leave

    # --- what replies ask ---

    def failed(self, error: Exception, request: HttpRequest, arrived: float) -> Answer:
        """Count an error, and return it as an answer."""
        return self._error(error, request, arrived)

    def answered(self, arrived: float) -> None:
        """Count a request whose last answer is out."""
        self._ok.add()
        self._metrics.total.observe(self._now() - arrived)

    def left(self) -> None:
        """Count a client that left first."""
        self._metrics.counter(self.codec.protocol, "cancelled").add()


class _Replies:
    """Follows one request to its end, however often it is answered. Used on the loop's thread."""

    def __init__(
        self,
        endpoint: GenerateEndpoint,
        request: HttpRequest,
        wire: Any,
        done: Reply,
        arrived: float,
        tee: Tee | None,
    ) -> None:
        self.cancel: Cancel = _nothing
        """Ends the request in the pool."""
        self._endpoint = endpoint
        self._request = request
        self._wire = wire
        self._done = done
        self._arrived = arrived
        self._tee = tee
        self._over = False

    def take(self, result: InferResponse | Exception) -> None:
        """An answer or an error of the model. Never raises."""
        if self._over:
            return
        if isinstance(result, Exception):
            self._fail(result)
            return
        # The last one may come without tensors, only to say that it is the last.
        if result.outputs or not (result.final and self._wire.streams):
            try:
                self._add(self._endpoint.codec.text_of(self._wire, result), result.final)
            except Exception as exc:
                self.cancel()
                self._fail(exc)
                return
        if result.final and not self._over:
            self._finish()
            if self._tee is not None and not self._wire.streams:
                self._tee(self._wire, result)

    def leave(self) -> None:
        """The client left: the model need not go on."""
        if not self._over:
            self._over = True
            self.cancel()
            self._endpoint.left()

    def _fail(self, error: Exception) -> None:
        self._over = True
        self._refuse(self._endpoint.failed(error, self._request, self._arrived))

    def _add(self, text: bytes, final: bool) -> None:
        raise TypeError("a kind of replies must say where an answer goes")

    def _finish(self) -> None:
        raise TypeError("a kind of replies must say what its end is")

    def _refuse(self, answer: Answer) -> None:
        raise TypeError("a kind of replies must say how an error is told")


class OneAnswer(_Replies):
    """generate: the model must answer exactly once."""

    _text: bytes | None = None

    def _add(self, text: bytes, final: bool) -> None:
        if self._text is not None:
            raise BadRequest(_not_one("more than one answer"))
        self._text = text

    def _finish(self) -> None:
        if self._text is None:
            self._fail(BadRequest(_not_one("no answer")))
            return
        self._over = True
        answer = Answer(200, JSON, self._text)
        answer.head_lines = self._endpoint.head_lines
        self._endpoint.answered(self._arrived)
        self._done(answer)

    def _refuse(self, answer: Answer) -> None:
        self._done(answer)


class Events(_Replies):
    """generate_stream: an event for each answer, as it comes."""

    _begun = False
    _sink: BodySink | None = None
    _only = b""
    """The event of an answer that is the first and the last: it leaves whole."""
    _ahead = 0
    """Bytes that were written since the client began to lag."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self._kept = bytearray()
        """Events that came before whoever carries the answer was ready for its body."""

    def _add(self, text: bytes, final: bool) -> None:
        piece = event(text)
        if not self._begun:
            if final:
                self._only = piece
                return
            self._begin()
        if self._over:
            return  # Beginning the answer found the client gone.
        self._write(piece)
        if self._ahead + len(self._kept) > AHEAD_BYTES:
            if self._sink is not None:
                self._sink.abort()
                self._sink = None
            raise Cancelled("the client reads more slowly than the model answers")

    def _finish(self) -> None:
        self._over = True
        self._endpoint.answered(self._arrived)
        if not self._begun:
            whole = Answer(200, EVENTS, self._only, EVENT_HEADERS)
            whole.head_lines = self._endpoint.head_lines
            self._done(whole)
        elif self._sink is not None:
            self._sink.end()

    def _refuse(self, answer: Answer) -> None:
        piece = event(answer.body)
        if not self._begun:
            # The status is still to be told; the form is already that of a stream.
            answer.content_type, answer.body = EVENTS, piece
            self._done(answer)
            return
        self._write(piece)
        if self._sink is not None:
            self._sink.end()

    def _begin(self) -> None:
        self._begun = True
        answer = StreamedAnswer(200, EVENTS, EVENT_HEADERS, None, self._attach)
        answer.head_lines = self._endpoint.head_lines
        self._done(answer)

    def _attach(self, sink: BodySink) -> None:
        self._sink = sink
        sink.resumed = self._caught_up
        if self._kept:
            self._write(bytes(self._kept))
            self._kept.clear()
        if self._over:
            sink.end()

    def _write(self, piece: bytes) -> None:
        if self._sink is None:
            self._kept += piece
        elif not self._sink.write(piece):
            self._ahead += len(piece)

    def _caught_up(self) -> None:
        self._ahead = 0


def _not_one(what: str) -> str:
    return f"the model gave {what}, and generate needs exactly one; ask generate_stream"


def _nothing() -> None:
    """Nothing runs yet."""
