"""Streamed answers through the API: under our own server, and inside a Flask application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import flask
import httpx
import pytest

from muelle.api.app import build_app
from muelle.api.streams import LAG_BYTES, BrokenStream, Pipe
from muelle.config.sections import LimitsConfig
from muelle.integrations.embedded import Embedded, settings_of
from muelle.integrations.flask import MuelleBlueprint
from muelle.protocols.http import Answer, BodySink, HttpRequest, StreamedAnswer
from muelle.transport.asgi import AsgiHost
from muelle.transport.server import HttpServer, bind
from tests.unit.api.served import doors

BOUND_S = 20.0
PATH = "/v2/models/iris/generate_stream"


class Source:
    """Answers every prediction with a stream that the test holds."""

    def __init__(self) -> None:
        self.n_left = 0
        self.asked = ""
        self.sink: BodySink

    async def answer(self, request: HttpRequest) -> Answer:
        """What the doors call."""
        self.asked = request.path
        answer = StreamedAnswer(200, b"text/event-stream", ((b"x-own", b"1"),), None, self._begin)
        answer.leave = self._leave
        return answer

    def _begin(self, sink: BodySink) -> None:
        # The app's head waits for the first piece of its body, as ASGI allows.
        self.sink = sink
        sink.write(b"one")

    def _leave(self) -> None:
        self.n_left += 1


@asynccontextmanager
async def serving(source: Source) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the API on a port; yield a client of it."""
    loop = asyncio.get_running_loop()
    server = HttpServer(
        LimitsConfig(),
        asgi=AsgiHost(lambda: build_app(replace(doors(), answer=source.answer)), loop),
        direct={},
        refusal=lambda path, status, message, id: Answer(status, b"", message.encode()),
        internal_error=lambda path, id: Answer(500, b"text/plain", b"internal"),
        loop=loop,
    )
    sock = bind("127.0.0.1", 0)
    await server.start(sock)
    try:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with asyncio.timeout(BOUND_S), httpx.AsyncClient(base_url=address) as client:
            yield client
    finally:
        await server.drain(0.0)


async def until(ready: Callable[[], bool]) -> None:
    """Turn the loop until it is so; the test's own bound ends this."""
    while not ready():
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", [PATH, "/v2/models/iri%73/versions/1/generate"])
async def test_pieces_come_as_they_are_made(path: str) -> None:
    """Each is read before the next is written; headers are those of the answer."""
    source = Source()
    async with serving(source) as client, client.stream("POST", path, content=b"{}") as response:
        assert source.asked == path.replace("%73", "s")
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-own"] == "1"
        assert len(response.headers.get_list("x-request-id")) == 1
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"one"
        for piece in (b"two", b"three"):
            source.sink.write(piece)
            assert await anext(pieces) == piece
        source.sink.end()
        assert [piece async for piece in pieces] == []


async def test_who_leaves_is_told_of() -> None:
    """Whoever answers can stop."""
    source = Source()
    async with serving(source) as client:
        async with client.stream("POST", PATH, content=b"{}") as response:
            assert response.status_code == 200
            assert source.n_left == 0
        await client.aclose()
        await until(lambda: source.n_left == 1)


async def test_a_stream_that_breaks_off_is_seen_to() -> None:
    """No end where there is none."""
    source = Source()
    async with serving(source) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", PATH, content=b"{}") as response:
                source.sink.abort()
                await response.aread()


async def test_a_pipe_says_when_to_wait_and_when_to_go_on() -> None:
    """A bounded piece of memory between who writes and who reads."""
    pipe, resumed = Pipe(), []
    pipe.resumed = lambda: resumed.append(True)
    piece = b"x" * (LAG_BYTES // 4)
    assert [pipe.write(piece) for _ in range(6)] == [True] * 4 + [False] * 2
    pieces = aiter(pipe)
    for n in range(6):
        assert await anext(pieces) == piece
        assert bool(resumed) is (n > 1)
    assert len(resumed) == 1
    pipe.abort()
    assert pipe.write(piece)
    with pytest.raises(BrokenStream):
        await anext(pieces)


class Streaming(Embedded):
    """Models that stream what the test says; none is loaded."""

    def __init__(self) -> None:
        super().__init__(settings_of(("none.onnx",), {}))
        self.left = threading.Event()
        self.sink: BodySink

    async def start(self) -> None:
        """Nothing is loaded."""
        self.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Nothing to end."""

    async def answer(self, request: HttpRequest) -> Answer:
        """A stream."""

        def begin(sink: BodySink) -> None:
            self.sink = sink
            sink.write(b"one")

        answer = StreamedAnswer(200, b"text/event-stream", (), None, begin)
        answer.leave = self.left.set
        return answer


@pytest.mark.parametrize("ends", ["whole", "early"])
def test_flask_passes_pieces_on(ends: str) -> None:
    """From the loop's thread to the request's, one by one; a client that leaves is told of."""
    models = Streaming()
    blueprint = MuelleBlueprint("ml", models)
    app = flask.Flask("host")
    app.register_blueprint(blueprint, url_prefix="/ml")
    try:
        response = app.test_client().post(f"/ml{PATH}", data=b"{}", buffered=False)
        pieces = response.iter_encoded()
        assert next(pieces) == b"one"
        for piece in (b"two", b"three"):
            models.loop.call_soon_threadsafe(models.sink.write, piece)
            assert next(pieces) == piece
        assert not models.left.is_set()
        if ends == "whole":
            models.loop.call_soon_threadsafe(models.sink.end)
            assert list(pieces) == []
        response.close()
        assert models.left.wait(BOUND_S)
    finally:
        blueprint.stop()
