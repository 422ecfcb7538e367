"""Streams of a model that answers several times, from its answers to a real client's socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import Answer
from muelle.transport.asgi import AsgiHost
from muelle.transport.server import HttpServer, bind
from tests.unit.test_generate import Case

BOUND_S = 20.0


@asynccontextmanager
async def serving(case: Case) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the case's endpoint on a port; yield a client of it."""
    loop = asyncio.get_running_loop()
    server = HttpServer(
        LimitsConfig(),
        asgi=AsgiHost(lambda: pytest.fail("asked"), loop),
        direct={},
        refusal=lambda path, status, message, id: Answer(status, b"", message.encode()),
        internal_error=lambda path, id: Answer(500, b"text/plain", b"internal"),
        loop=loop,
    )
    server.set_hot({b"/ask": case.endpoint})
    sock = bind("127.0.0.1", 0)
    await server.start(sock)
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        async with asyncio.timeout(BOUND_S), httpx.AsyncClient(base_url=address) as client:
            yield client
    finally:
        await server.drain(0.0)


async def until(ready: Any) -> None:
    """Turn the loop until it is so; the test's own bound ends this."""
    while not ready():
        await asyncio.sleep(0)


@pytest.mark.parametrize("n_events", [2, 500])
async def test_events_reach_the_client_one_by_one(n_events: int) -> None:
    """Each is read before the model says the next one; then the connection serves another."""
    case = Case(stream=True)
    async with serving(case) as client:
        for _ in range(2):
            case.pool.request = None
            asking = client.stream("POST", "/ask", content=b'{"text_input":"x"}')
            entering = asyncio.ensure_future(asking.__aenter__())
            await until(lambda: case.pool.request is not None)
            case.pool.answer("0", final=False)
            response = await entering
            lines = response.aiter_lines()
            for n in range(n_events):
                event = json.loads((await anext(lines)).removeprefix("data: "))
                assert event["text_output"] == str(n)
                assert await anext(lines) == ""
                if n + 1 < n_events:
                    case.pool.answer(str(n + 1), final=False)
            case.pool.answer(None, final=True)
            assert [line async for line in lines] == []
            await asking.__aexit__(None, None, None)
        assert (case.count("ok"), case.pool.cancelled) == (2, 0)


@pytest.mark.parametrize("n_events", [0, 1])
async def test_a_client_that_leaves_stops_the_model(n_events: int) -> None:
    """Before the first event, and between two."""
    case = Case(stream=True)
    async with serving(case) as client:
        asking = client.stream("POST", "/ask", content=b'{"text_input":"x"}')
        entering = asyncio.ensure_future(asking.__aenter__())
        await until(lambda: case.pool.request is not None)
        if n_events:
            case.pool.answer("0", final=False)
            await entering
            await asking.__aexit__(None, None, None)
        else:
            entering.cancel()
        await client.aclose()
        await until(lambda: case.pool.cancelled == 1)
        case.pool.answer("late", final=True)
        assert (case.count("cancelled"), case.count("ok")) == (1, 0)


async def test_a_client_that_does_not_read_is_cut_off_in_bounded_memory() -> None:
    """A model that goes on for ever ends with the bytes that may lie ahead, not with the memory."""
    case = Case(stream=True)
    async with serving(case) as client:
        reader, writer = await asyncio.open_connection(
            client.base_url.host, client.base_url.port, limit=1
        )
        body = b'{"text_input":"x"}'
        writer.write(
            b"POST /ask HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await until(lambda: case.pool.request is not None)
        written = 0
        while not case.pool.cancelled:
            case.pool.answer("x" * 500_000, final=False)
            written += 500_000
            await asyncio.sleep(0)
            assert written < 64_000_000
        await until(lambda: case.count("cancelled") == 1)
        writer.transport.abort()
        assert not reader.at_eof() or written
