"""Muelle's endpoints in a Flask application that is served elsewhere (gunicorn, waitress, …).

    app.register_blueprint(blueprint("fraud.onnx"), url_prefix="/ml")

An event loop in a thread of its own serves the models; each process of a prefork server starts one
at its first request. Not for applications that Muelle serves itself: those use `muelle.model`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from flask import Blueprint, Response, request

from muelle.api.app import build_app
from muelle.api.streams import Pipe
from muelle.client.local import ServedModel
from muelle.core.errors import Internal
from muelle.core.ids import is_request_id, new_request_id
from muelle.integrations.embedded import Embedded, settings_of
from muelle.protocols import native
from muelle.protocols.http import Answer, HttpRequest, StreamedAnswer
from muelle.transport.asgi import AsgiHost

METHODS = ("GET", "POST", "HEAD", "OPTIONS")
STOP_S = 10.0


class MuelleBlueprint(Blueprint):
    """The blueprint, and the way to the models for the application's own views."""

    def __init__(self, name: str, embedded: Embedded) -> None:
        super().__init__(name, __name__)
        self.embedded = embedded
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: AsgiHost | None = None
        self.add_url_rule("/", "root", self._view, methods=METHODS, defaults={"path": ""})
        self.add_url_rule("/<path:path>", "any", self._view, methods=METHODS)

    def model(self, name: str, version: str | int | None = None) -> ServedModel:
        """Return one of the models: `blueprint.model("fraud").predict(rows)`."""
        self.start()
        return self.embedded.model(name, version)

    def start(self) -> None:
        """Load the models in this process, if nobody has. Raise ArtifactError when one fails."""
        with self._lock:
            # A forked process has none of its parent's threads.
            if self._loop is not None and self._pid == os.getpid():
                return
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="muelle", daemon=True)
            thread.start()
            try:
                asyncio.run_coroutine_threadsafe(self.embedded.start(), loop).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                raise
            self._host = AsgiHost(lambda: build_app(self.embedded.doors()), loop)
            self._loop, self._thread, self._pid = loop, thread, os.getpid()
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the workers of this process."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None or self._pid != os.getpid():
                return
            asyncio.run_coroutine_threadsafe(self.embedded.stop(), loop).result(STOP_S)
            loop.call_soon_threadsafe(loop.stop)
            assert self._thread is not None
            self._thread.join(STOP_S)

    def _view(self, path: str) -> Response:
        self.start()
        assert self._loop is not None
        given = request.headers.get("x-request-id", "")
        asked = HttpRequest(
            request.method.encode(),
            f"/{path}",
            request.query_string,
            {k.lower().encode("latin-1"): v.encode("latin-1") for k, v in request.headers.items()},
            request.get_data(),
            given if is_request_id(given) else new_request_id(),
        )
        answer, pipe, leave = asyncio.run_coroutine_threadsafe(
            self._answer(asked), self._loop
        ).result()
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in answer.all_headers()]
        headers.append(("x-request-id", asked.request_id))
        headers.append(("x-content-type-options", "nosniff"))
        kind = answer.content_type.decode("latin-1") or None
        body = _pieces(pipe, leave, self._loop) if pipe is not None else answer.body
        return Response(body, answer.status, headers, content_type=kind)

    async def _answer(self, asked: HttpRequest) -> tuple[Answer, Pipe | None, Callable[[], None]]:
        """Return an answer, its body where that is a stream, and what ends the stream early."""
        assert self._host is not None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def failed(exc: Exception) -> Answer:
            return native.encode_error(Internal("internal error"), asked.request_id)

        leave = self._host.begin(asked, asked.path.encode(), future.set_result, failed)
        answer = await future
        pipe = None
        if isinstance(answer, StreamedAnswer):
            pipe = Pipe()
            answer.begin(pipe)
        return answer, pipe, leave


def _pieces(
    pipe: Pipe, leave: Callable[[], None], loop: asyncio.AbstractEventLoop
) -> Iterator[bytes]:
    """Bring the pieces of a stream from the loop to the thread of the request."""
    pieces = aiter(pipe)
    try:
        while piece := asyncio.run_coroutine_threadsafe(_next(pieces), loop).result():
            yield piece
    finally:
        loop.call_soon_threadsafe(leave)


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await anext(pieces, b"")


def blueprint(*models: str, name: str = "muelle", **settings: Any) -> MuelleBlueprint:
    """Return a blueprint with the endpoints of these models, or of a store's.

    `settings` as for the FastAPI router: `trust=True`, `workers=2`, `store="/srv/store"`, … Docs
    are at `<prefix>/docs`, the OpenAPI document at `<prefix>/openapi.json`. Raise ConfigError.
    """
    return MuelleBlueprint(name, Embedded(settings_of(models, settings)))
