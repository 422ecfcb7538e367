"""The data plane's door: requests in any protocol, answered by the version that the route names.

Transports and the API call this and nothing behind it. Not for loading or unloading: that is
`management`, which swaps the table that is read here.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from muelle.core.errors import (
    BadRequest,
    MethodNotAllowed,
    RouteNotFound,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from muelle.endpoints import Cancel, HttpConnection, Reply
from muelle.protocols import native, v2
from muelle.protocols.http import Answer, HttpRequest, StreamedAnswer
from muelle.routing.table import RouteTable

_PREDICT = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict\Z")
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer\Z")
_GENERATE = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(generate(?:_stream)?)\Z")

_HOT_PATHS = MappingProxyType(
    {
        "native": "/{}/predict",
        "v2": "/v2/{}/infer",
        "v2_binary": "/v2/{}/infer\0binary",
        "generate": "/v2/{}/generate",
        "generate_stream": "/v2/{}/generate_stream",
    }
)
"""Where each protocol of HTTP is found, below a model or one of its versions."""


class Endpoint(Protocol):
    """Answers predictions in one protocol: of one version, or shared among several."""

    head_lines: bytes
    hot_head: bytes

    def refresh(self, make_head: Callable[[Answer, bytes], bytes], id_prefix: str) -> None:
        """Make what lies ready anew."""

    def take(self, connection: HttpConnection, body: bytes) -> Cancel | bool | None:
        """Answer a plain body the hottest way; False when it is not plain."""

    def begin(self, request: HttpRequest, done: Reply) -> Cancel | None:
        """Answer any request. Never raises."""


class Served:
    """What answers, as the data plane sees it: endpoints by protocol, none while it loads."""

    def __init__(self, endpoints: Mapping[str, Endpoint], reason: Callable[[], str]) -> None:
        self.endpoints = endpoints
        self.reason = reason
        """Says why there are no endpoints."""


Table = RouteTable[Served]


class InferenceService:
    """Owns the present routing table. Used on the event loop's thread only."""

    def __init__(self, *, body_limit_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._loop = loop
        self.table: Table = RouteTable()
        self.asked: Callable[[str, str | None], None] = _nobody
        """Told that a version was asked for that is known but not loaded."""

    def hot_paths(self) -> dict[bytes, Endpoint]:
        """Return every exact path that a lane may answer without asking anyone."""
        paths: dict[bytes, Endpoint] = {}
        for name, route in self.table.models.items():
            places = [(f"models/{name}/versions/{v}", s) for v, s in route.versions.items()]
            if route.front is not None:
                places.append((f"models/{name}", route.front))
            for prefix, served in places:
                for protocol, endpoint in served.endpoints.items():
                    if (path := _HOT_PATHS.get(protocol)) is not None:
                        paths[path.format(prefix).encode()] = endpoint
        return paths

    async def answer(self, request: HttpRequest) -> Answer:
        """Answer a prediction request that came the comfortable way. Never raises.

        Takes `Content-Encoding: gzip | deflate | identity`; the decompressed body has the same
        limit as a plain one. Who gets a `StreamedAnswer` calls its `leave` when its client left.
        """
        encode_error = error_encoder(request.path)
        try:
            endpoint = self._endpoint(request)
            body = self._decompressed(request)
        except Exception as exc:
            return encode_error(exc, request.request_id)
        whole = HttpRequest(
            request.method, request.path, request.query, request.headers, body, request.request_id
        )
        future: asyncio.Future[Answer] = self._loop.create_future()

        def done(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        cancel = endpoint.begin(whole, done)
        try:
            answer = await future
        except asyncio.CancelledError:
            if cancel is not None:
                cancel()
            raise
        if isinstance(answer, StreamedAnswer) and cancel is not None:
            answer.leave = cancel
        return answer

    def begin(
        self, model: str, version: str | None, request: HttpRequest, done: Reply
    ) -> Cancel | None:
        """Answer a v2 body that did not come over HTTP (`local`). Never raises.

        The model and version are named beside the request, whose path and query are not read.
        """
        try:
            endpoint = self.endpoint("local", model, version)
        except Exception as exc:
            done(native.encode_error(exc, request.request_id))
            return None
        return endpoint.begin(request, done)

    def endpoint(self, protocol: str, name: str, version: str | None) -> Endpoint:
        """Return what answers for a model (and version) in a protocol.

        Raise ModelNotFound, VersionNotFound, or Unavailable while it is not loaded.
        """
        served = self.table.version(name, version)
        endpoint = served.endpoints.get(protocol)
        if endpoint is None:
            self.asked(name, version)
            raise Unavailable(f"{name}: {served.reason()}", retry_after_s=1.0)
        return endpoint

    def _endpoint(self, request: HttpRequest) -> Endpoint:
        for protocol, pattern in (("native", _PREDICT), ("v2", _INFER), ("", _GENERATE)):
            match = pattern.match(request.path)
            if match is None:
                continue
            if request.method != b"POST":
                raise MethodNotAllowed(f"{request.method.decode('latin-1')}: this path takes POST")
            return self.endpoint(protocol or match[3], match[1], match[2])
        raise RouteNotFound("no such path; see GET /models for what is served")

    def _decompressed(self, request: HttpRequest) -> bytes:
        encoding = request.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding in (b"identity", b"") or _GENERATE.match(request.path):
            return request.body  # generate takes no other, and says so itself.
        if encoding not in (b"gzip", b"deflate"):
            raise UnsupportedMedia(
                f"content encoding {encoding[:40].decode('latin-1')!r}; "
                "known: gzip, deflate, identity"
            )
        inflater = zlib.decompressobj(31 if encoding == b"gzip" else 15)
        limit = self._body_limit_bytes
        try:
            body = inflater.decompress(request.body, limit + 1)
        except zlib.error as exc:
            raise BadRequest(f"the body is not {encoding.decode()}: {exc}") from None
        if len(body) > limit:
            raise TooLarge(f"the decompressed body is over {limit} bytes")
        if not inflater.eof or inflater.unused_data:
            raise BadRequest(f"the {encoding.decode()} body is cut off or has bytes behind its end")
        return body


def _nobody(model: str, version: str | None) -> None:
    """Nothing is loaded on demand."""


def error_encoder(path: str) -> Callable[[Exception, str], Answer]:
    """Return the error form of the protocol that a path belongs to."""
    return v2.encode_error if path == "/v2" or path.startswith("/v2/") else native.encode_error
