"""One version's answers in one protocol: decode, queue, encode. The hottest code of the server.

Not for choosing a version: `inference` and `traffic` do that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from muelle.core.errors import BadRequest, ErrorCode, MuelleError
from muelle.core.request import BatchOutput, Buffer, InferRequest, InferResponse
from muelle.core.signature import row_bytes
from muelle.protocols import native, v2
from muelle.protocols.http import JSON, Answer, HttpRequest
from muelle.protocols.v2_binary import V2BinaryPlain
from muelle.scheduling.jobs import RUNNING, SETTLED, WAITING, Job
from muelle.telemetry.metrics import VersionMetrics
from muelle.workers.pool import WorkerPool

log = logging.getLogger("muelle.inference")

Cancel = Callable[[], None]
Reply = Callable[[Answer], None]
Tee = Callable[[InferRequest, InferResponse], None]
"""Sees a request and its answer after the caller has been answered. The tensors are valid only
inside the call."""

OUTCOMES: Mapping[ErrorCode, str] = {
    ErrorCode.OVERLOADED: "overloaded",
    ErrorCode.UNAVAILABLE: "unavailable",
    ErrorCode.DEADLINE: "deadline",
    ErrorCode.CANCELLED: "cancelled",
    ErrorCode.MODEL_FAILED: "failed",
    ErrorCode.INTERNAL: "failed",
    ErrorCode.MODEL_NOT_FOUND: "not_found",
    ErrorCode.VERSION_NOT_FOUND: "not_found",
}


class Codec(Protocol):
    """One protocol's functions for one model version, over a whole HTTP request."""

    protocol: str

    def decode(self, request: HttpRequest) -> InferRequest:
        """Read the request. Raise MuelleError."""

    def encode(self, wire: Any, response: InferResponse) -> Answer:
        """Write the answer. Raise MuelleError."""

    def encode_error(self, error: Exception, request_id: str) -> Answer:
        """Write an error."""


class NativeHttp:
    """The native codec, as endpoints call it."""

    protocol = "native"

    def __init__(self, codec: native.NativeCodec) -> None:
        self.decode = codec.decode
        self.encode = codec.encode
        self.encode_error = native.encode_error


class V2Http:
    """The v2 codec, as endpoints call it: it wants the length of the JSON part."""

    protocol = "v2"

    def __init__(self, codec: v2.V2Codec) -> None:
        self._decode = codec.decode
        self.encode = codec.encode
        self.encode_error = v2.encode_error

    def decode(self, request: HttpRequest) -> InferRequest:
        """Read a v2 request with or without the binary extension."""
        length = request.headers.get(b"inference-header-content-length")
        if length is None:
            return self._decode(request.body, None)
        if not length.isdigit() or len(length) > 18:
            raise BadRequest("Inference-Header-Content-Length: not a number")
        return self._decode(request.body, int(length))


class LocalV2(V2Http):
    """v2 bodies from an application beside the models: errors say their code, as it wants it."""

    protocol = "local"

    def __init__(self, codec: v2.V2Codec) -> None:
        super().__init__(codec)
        self.encode_error = native.encode_error


class PlainCodec(Protocol):
    """The plain case of a protocol: one JSON row in, one JSON answer out."""

    read: Callable[[bytes], Sequence[Buffer] | None] | None

    def rows(self, outputs: Sequence[BatchOutput]) -> list[bytes] | None:
        """Return the body of each row's answer, None when the whole codec must do it."""


class HttpConnection(Protocol):
    """Where the answer to a hot job goes."""

    def reply_plain(self, endpoint: PredictEndpoint, body: bytes, now: float) -> None:
        """Write a plain answer."""

    def reply(self, answer: Answer) -> None:
        """Write any answer."""

    def reply_ready(self, whole: bytes, n_numbers: int) -> None:
        """Write an answer that lies ready but for its number."""

    def take_request_id(self) -> str:
        """Give the request under way an id, for an answer that is not plain."""


class HotJob(Job):
    """A plain request of one row: it knows its connection, and its answer is written in bulk."""

    __slots__ = ("body", "connection", "endpoint")

    def __init__(
        self,
        endpoint: PredictEndpoint,
        connection: HttpConnection,
        body: bytes,
        columns: Sequence[Buffer],
        arrived: float,
    ) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.body = body
        self.arrived = arrived
        self.attempts = 0
        self.columns = columns
        self.deadline = arrived + endpoint.timeout_s
        self.key = None
        self.n_rows = 1
        self.nbytes = endpoint.row_bytes or sum(map(len, columns))
        self.places = None
        self.sink = endpoint
        self.state = WAITING

    def deliver(self, result: InferResponse | Exception) -> None:
        """The usual way: an error, or an answer that needs the whole codec."""
        self.endpoint.deliver(self, result)

    def __call__(self) -> None:
        """The client left."""
        self.endpoint.leave(self)


class PredictEndpoint:
    """Answers predictions of one version in one protocol. The hottest path of the server."""

    def __init__(
        self,
        codec: Codec,
        plain: PlainCodec | None,
        pool: WorkerPool,
        metrics: VersionMetrics,
        now: Callable[[], float],
        digest: str,
    ) -> None:
        self._codec = codec
        self._pool = pool
        self._metrics = metrics
        self._ok = metrics.counter(codec.protocol, "ok")
        self._now = now
        self._plain = plain
        self._read = plain.read if plain is not None and pool.takes_plain_rows else None
        self.timeout_s = pool.spec.timeout_s
        self.row_bytes = row_bytes(pool.signature.inputs) if pool.signature else 0
        self.head_lines = b"muelle-model: %s\r\nmuelle-version: %s\r\nmuelle-digest: %s\r\n" % (
            pool.spec.model.encode(),
            pool.spec.version.encode(),
            digest.encode(),
        )
        """Which version answers: in every answer, errors too, of every protocol."""
        self._overloaded = metrics.counter(codec.protocol, "overloaded")
        self.hot_head = b""
        self._shed = b""
        self._shed_numbers = 1

    # --- the hot way ---

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Make the head of plain answers, and the whole of a shed one, anew: the date moved."""
        plain = Answer(200, JSON, b"")
        plain.head_lines = self.head_lines
        self.hot_head = make_head(plain, b"%d")
        # A body with the longest number stands for all: ids have one width.
        sample = f"{id_prefix}-{0:08x}"
        full = self._codec.encode_error(self._pool.full_error(), sample)
        full.head_lines = self.head_lines
        body = full.body.replace(b"%", b"%%").replace(
            sample.encode(), sample[:-8].encode() + b"%08x"
        )
        self._shed = make_head(full, b"%d" % len(full.body)) + body
        self._shed_numbers = 1 + full.body.count(sample.encode())

    def take(self, connection: HttpConnection, body: bytes) -> HotJob | bool | None:
        """Queue a plain one-row request. False: not plain, or not possible now; ask `begin`."""
        read = self._read
        if read is None:
            return False
        if self._pool.is_full:
            # First of all: a request that is shed must cost as little as can be.
            connection.reply_ready(self._shed, self._shed_numbers)
            self._overloaded.add()
            return None
        columns = read(body)
        if columns is None or self._pool.state != "READY":
            return False
        job = HotJob(self, connection, body, columns, self._now())
        try:
            self._pool.enqueue(job)
        except MuelleError:
            return False
        return job

    def settle_rows(
        self,
        jobs: Sequence[Job],
        outputs: Sequence[BatchOutput],
        general: Callable[[Job, int], None],
        now: float,
    ) -> None:
        """Write the answers of a batch: the plain ones from text that is made once for all."""
        assert self._plain is not None
        bodies = self._plain.rows(outputs)
        totals: list[float] = []
        start = 0
        for job in jobs:
            if job.state == RUNNING:
                if bodies is not None and job.sink is self:
                    job.state = SETTLED
                    totals.append(now - job.arrived)
                    job.connection.reply_plain(self, bodies[start], now)  # type: ignore[attr-defined]
                else:
                    general(job, start)
            start += job.n_rows
        if totals:
            self._ok.add(len(totals))
            self._metrics.total.observe_many(totals)

    def deliver(self, job: HotJob, result: InferResponse | Exception) -> None:
        """Settle a hot job the usual way: decode it again with the whole codec, which can tell."""
        connection = job.connection
        request = self._request_of(job)
        if isinstance(result, InferResponse):
            try:
                wire = self._codec.decode(request)
            except Exception as exc:
                result = exc
            else:
                self._finish(request, wire, result, connection.reply, job.arrived)
                return
        connection.reply(self._error(result, request, job.arrived))

    def _request_of(self, job: HotJob) -> HttpRequest:
        return HttpRequest(b"POST", "", b"", {}, job.body, job.connection.take_request_id())

    def leave(self, job: HotJob) -> None:
        """A client left before its answer."""
        self._pool.cancel(job)
        self._metrics.counter(self._codec.protocol, "cancelled").add()

    # --- the general way ---

    def begin(self, request: HttpRequest, done: Reply, tee: Tee | None = None) -> Cancel | None:
        """Decode, queue, and answer when the batch is done. Never raises."""
        arrived = self._now()
        try:
            wire = self.read(request)

            def finish(result: InferResponse | Exception) -> None:
                self._finish(request, wire, result, done, arrived)
                if tee is not None and isinstance(result, InferResponse):
                    tee(wire, result)

            cancel = self._pool.submit(wire, finish, arrived)
        except Exception as exc:
            done(self._error(exc, request, arrived))
            return None

        def cancelled() -> None:
            cancel()
            self._metrics.counter(self._codec.protocol, "cancelled").add()

        return cancelled

    def read(self, request: HttpRequest) -> InferRequest:
        """Decode a request, if the version takes any now. Raise MuelleError."""
        self._pool.check_open()
        wire = self._codec.decode(request)
        wanted_ms = request.headers.get(b"timeout-ms")
        if wanted_ms is not None:
            _apply_timeout(wire, wanted_ms)
        return wire

    def _finish(
        self,
        request: HttpRequest,
        wire: InferRequest,
        result: InferResponse | Exception,
        done: Reply,
        arrived: float,
    ) -> None:
        if isinstance(result, InferResponse):
            try:
                answer = self._codec.encode(wire, result)
            except Exception as exc:
                answer = self._error(exc, request, arrived)
            else:
                answer.head_lines = self.head_lines
                self._ok.add()
                self._metrics.total.observe(self._now() - arrived)
        else:
            answer = self._error(result, request, arrived)
        done(answer)

    def _error(self, error: Exception, request: HttpRequest, arrived: float) -> Answer:
        if isinstance(error, MuelleError):
            outcome = OUTCOMES.get(error.code, "bad_request")
        else:
            outcome = "failed"
            log.error("request %s failed", request.request_id, exc_info=error)
        self._metrics.counter(self._codec.protocol, outcome).add()
        self._metrics.total.observe(self._now() - arrived)
        answer = self._codec.encode_error(error, request.request_id)
        answer.head_lines = self.head_lines
        return answer


class BinaryJob(HotJob):
    """A plain request with binary data."""

    __slots__ = ("json_bytes",)

    json_bytes: int


class BinaryEndpoint(PredictEndpoint):
    """Answers v2 requests with binary data: the hot way of their own, the general way of v2."""

    def __init__(
        self,
        codec: Codec,
        binary: V2BinaryPlain,
        pool: WorkerPool,
        metrics: VersionMetrics,
        now: Callable[[], float],
        digest: str,
    ) -> None:
        super().__init__(codec, None, pool, metrics, now, digest)
        self._binary = binary if binary.usable and pool.takes_plain_rows else None
        self._plain = cast(PlainCodec, binary)  # Its rows are all that is asked of it.

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Make the heads anew: an answer has a JSON part of a length that never changes."""
        super().refresh(make_head, id_prefix)
        if self._binary is not None:
            around = self._binary.answer
            plain = Answer(200, around.content_type, b"", around.headers)
            plain.head_lines = self.head_lines
            self.hot_head = make_head(plain, b"%d")

    def take(self, connection: Any, body: bytes) -> HotJob | bool | None:
        """Queue a plain one-row request. False: not plain, or not possible now; ask `begin`."""
        binary = self._binary
        if binary is None:
            return False
        if self._pool.is_full:
            connection.reply_ready(self._shed, self._shed_numbers)
            self._overloaded.add()
            return None
        json_bytes = connection.json_bytes
        columns = binary.read(body, json_bytes)
        if columns is None or self._pool.state != "READY":
            return False
        job = BinaryJob(self, connection, body, columns, self._now())
        job.json_bytes = json_bytes
        try:
            self._pool.enqueue(job)
        except MuelleError:
            return False
        return job

    def _request_of(self, job: HotJob) -> HttpRequest:
        assert isinstance(job, BinaryJob)
        headers = {b"inference-header-content-length": b"%d" % job.json_bytes}
        return HttpRequest(b"POST", "", b"", headers, job.body, job.connection.take_request_id())


def _apply_timeout(wire: InferRequest, wanted_ms: bytes) -> None:
    try:
        milliseconds = float(wanted_ms)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < 1e12:
        raise BadRequest("timeout-ms: not a positive number of milliseconds", field="timeout-ms")
    seconds = milliseconds / 1e3
    if wire.timeout_s is None or seconds < wire.timeout_s:
        wire.timeout_s = seconds
