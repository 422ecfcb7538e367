"""Unpinned requests of one model: shared among versions, and copied to a shadow.

Implements transport's `Endpoint` over the versions' own endpoints. Not for who gets which share:
`routing.weights` decides that, and `control.fleet` when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from muelle.core.errors import MuelleError
from muelle.core.records import StoredTensor
from muelle.core.request import InferRequest, InferResponse
from muelle.endpoints import Cancel, HttpConnection, PredictEndpoint, Reply
from muelle.lifecycle.compare import compare_answers
from muelle.protocols.http import Answer, HttpRequest
from muelle.routing.weights import Split, Spread
from muelle.telemetry.metrics import VersionMetrics
from muelle.workers.pool import WorkerPool

SHADOW_LIMIT = 64
"""Copies under way at a time; more are skipped and counted, so that they cannot pile up."""
COMPARE_HERE_BYTES = 64 * 1024
"""Larger answers are compared off the event loop, which has callers to serve."""


class Shadow:
    """Gives copies of answered requests to another version and counts whether it agrees."""

    def __init__(
        self,
        version: str,
        pool: WorkerPool,
        metrics: VersionMetrics,
        *,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        rtol: float,
        atol: float,
    ) -> None:
        self.version = version
        self._pool = pool
        self._counts = metrics.shadow
        self._loop = loop
        self._now = now
        self._rtol = rtol
        self._atol = atol
        self._running = 0

    def tee(self, request: InferRequest, response: InferResponse) -> None:
        """Take a request whose caller has its answer. The answer is copied before this returns."""
        if self._running >= SHADOW_LIMIT or self._pool.is_full:
            self._counts["skipped"].add()
            return
        expected = _copied(response)

        def done(result: InferResponse | Exception) -> None:
            self._running -= 1
            if isinstance(result, InferResponse):
                self._compare(expected, _copied(result))
            else:
                self._counts["failed"].add()

        self._running += 1
        try:
            self._pool.submit(request, done, self._now())
        except (MuelleError, KeyError):
            # The version restarts, or it does not know one of the inputs.
            self._running -= 1
            self._counts["failed"].add()

    def _compare(self, expected: list[StoredTensor], got: list[StoredTensor]) -> None:
        if sum(len(t.content) for t in expected) <= COMPARE_HERE_BYTES:
            self._count(self._differs(expected, got))
            return
        future = self._loop.run_in_executor(None, self._differs, expected, got)
        future.add_done_callback(lambda f: self._count(f.cancelled() or f.result()))

    def _differs(self, expected: list[StoredTensor], got: list[StoredTensor]) -> bool:
        try:
            return bool(compare_answers(expected, got, rtol=self._rtol, atol=self._atol))
        except ValueError:
            return True

    def _count(self, differs: bool) -> None:
        self._counts["differed" if differs else "agreed"].add()


class SharedEndpoint:
    """One protocol's endpoint for a model's unpinned requests."""

    head_lines = b""
    hot_head = b""
    """Answers are written by the versions' endpoints, which have lines of their own."""

    def __init__(
        self,
        parts: Mapping[str, PredictEndpoint],
        split: Split,
        *,
        sticky: str = "",
        salt: str = "",
        shadow: Shadow | None = None,
    ) -> None:
        self._parts = parts
        self._split = split
        self._spread = Spread(split)
        self._kind, _, name = sticky.partition(":")
        # Header names come in lower case here; those of a query are as they were sent.
        self._sticky = (name.lower() if self._kind == "header" else name).encode("latin-1")
        self._salt = salt.encode()
        self._shadow = shadow
        self._again: PredictEndpoint | None = None

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Nothing lies ready here; the versions' endpoints are refreshed by their own paths."""

    def take(self, connection: HttpConnection, body: bytes) -> Cancel | bool | None:
        """Let a version answer a plain request the hottest way; False asks `begin`."""
        if self._sticky or self._shadow is not None:
            return False
        endpoint = self._parts[self._spread.next()]
        taken = endpoint.take(connection, body)
        if taken is False:
            # The same request comes again by `begin`: it must not be dealt twice, or every
            # second version would get nothing.
            self._again = endpoint
        return taken

    def begin(self, request: HttpRequest, done: Reply) -> Cancel | None:
        """Let a version answer any request. Never raises."""
        endpoint, self._again = self._again, None
        shadow = self._shadow
        if endpoint is not None:
            return endpoint.begin(request, done)
        version = self._choose(request)
        if shadow is None or version == shadow.version:
            return self._parts[version].begin(request, done)
        return self._parts[version].begin(request, done, shadow.tee)

    def _choose(self, request: HttpRequest) -> str:
        key = self._key(request) if self._sticky else None
        if key is None:
            return self._spread.next()
        return self._split.choose(key, self._salt)

    def _key(self, request: HttpRequest) -> bytes | None:
        """Return what the caller is told apart by, None when the request does not say."""
        if self._kind == "header":
            return request.headers.get(self._sticky)
        for pair in request.query.split(b"&"):
            name, sign, value = pair.partition(b"=")
            if sign and name == self._sticky:
                return value
        return None


def _copied(response: InferResponse) -> list[StoredTensor]:
    return [
        StoredTensor(name=o.name, datatype=o.datatype, shape=tuple(o.shape), content=o.raw())
        for o in response.outputs
    ]
