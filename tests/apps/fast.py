"""A FastAPI application for the tests: everything that people do with one, beside served models."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse

import muelle

iris = muelle.model("iris")


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Ask the model at the start, and say goodbye at the end."""
    kind = (await iris.predict_async([[5.1, 3.5, 1.4, 0.2]])).model
    yield {"started_with": kind}
    print("lifespan: over", flush=True)


app = FastAPI(lifespan=lifespan)


@app.get("/")
def home(request: Request) -> dict[str, Any]:
    """Who answers, and what the start found out."""
    return {"pid": os.getpid(), "started_with": request.state.started_with}


@app.post("/sync")
def sync(rows: list[list[float]]) -> dict[str, Any]:
    """A plain endpoint: it runs in a thread."""
    found = iris.predict(rows)
    return {"outputs": {k: v.tolist() for k, v in found.outputs.items()}, "version": found.version}


@app.post("/async")
async def in_coroutine(rows: list[list[float]]) -> dict[str, Any]:
    """A coroutine that lets others go on."""
    found = await iris.predict_async(rows)
    return {"outputs": {k: v.tolist() for k, v in found.outputs.items()}}


@app.post("/blocking")
async def blocking(rows: list[list[float]]) -> dict[str, Any]:
    """A coroutine that does not: what beginners write."""
    return {"outputs": {k: v.tolist() for k, v in iris.predict(rows).outputs.items()}}


@app.post("/wrong")
async def wrong(body: dict[str, Any]) -> dict[str, str]:
    """Tell the error that a model's client sees."""
    try:
        await muelle.model(body["model"]).predict_async(body["rows"])
    except Exception as exc:
        return {"error": type(exc).__name__, "text": str(exc)}
    return {"error": ""}


@app.get("/signature")
def signature() -> dict[str, Any]:
    """What the model takes."""
    return {"inputs": [spec.name for spec in iris.signature.inputs]}


@app.get("/boom")
def boom() -> None:
    """An error of the application's own."""
    raise ValueError("the secret is 42")


@app.get("/exit")
def leave() -> None:
    """The whole process ends."""
    os._exit(3)


@app.get("/fork-and-exit")
def fork_and_exit() -> None:
    """A child lives on while this process ends: it must not keep the channel open."""
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(4)


@app.get("/hoard")
def hoard() -> int:
    """More memory than there is."""
    return len(bytearray(2_000_000_000))


@app.get("/block")
async def block(seconds: float) -> None:
    """Hold up the event loop."""
    time.sleep(seconds)


@app.get("/slow")
async def slow(seconds: float, response: Response) -> str:
    """Take a while without holding anything up."""
    response.headers["x-pid"] = str(os.getpid())
    await asyncio.sleep(seconds)
    return "done"


@app.post("/echo")
async def echo(request: Request) -> Response:
    """The body as it came, with what was asked in headers."""
    body = await request.body()
    return Response(
        body,
        media_type=request.headers.get("content-type"),
        headers={"x-size": str(len(body)), "x-seen-id": request.headers["x-request-id"]},
    )


@app.get("/about")
async def about(request: Request) -> dict[str, Any]:
    """The request as the application sees it."""
    return {
        "path": request.url.path,
        "raw": request.scope["raw_path"].decode(),
        "query": str(request.query_params),
        "root": request.scope["root_path"],
        "client": request.client.host if request.client else None,
        "headers": sorted(request.headers),
        "cookies": request.cookies,
    }


@app.get("/cookies")
async def cookies(response: Response) -> dict[str, str]:
    """Two cookies at once."""
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return {}


@app.get("/old")
async def old() -> RedirectResponse:
    """Moved."""
    return RedirectResponse("/new")


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, Any]:
    """A file of a form."""
    content = await file.read()
    return {"name": file.filename, "size": len(content), "sum": sum(content) % 65_521}


@app.get("/stream")
async def stream(pieces: int, size: int = 10) -> StreamingResponse:
    """An answer of unknown length."""

    async def parts() -> AsyncIterator[bytes]:
        for number in range(pieces):
            yield b"%d" % (number % 10) * size

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/events")
async def events() -> StreamingResponse:
    """An answer without end."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.01)
        finally:
            print("events: the listener left", flush=True)

    return StreamingResponse(parts(), media_type="text/event-stream")


@app.get("/breaks")
async def breaks() -> StreamingResponse:
    """A stream that fails in its middle."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("in the middle")

    return StreamingResponse(parts())


@app.get("/later")
async def later(tasks: BackgroundTasks) -> str:
    """Work after the answer, which also asks the model."""

    async def work() -> None:
        await iris.predict_async([[5.1, 3.5, 1.4, 0.2]])
        print("later: done", flush=True)

    tasks.add_task(work)
    return "accepted"


@app.delete("/nothing", status_code=204)
async def nothing() -> None:
    """No body at all."""


@app.api_route("/head", methods=["GET", "HEAD"])
async def head() -> PlainTextResponse:
    """A body that HEAD only speaks of."""
    return PlainTextResponse("12345")


@app.get("/evil")
async def evil() -> Response:
    """Headers that would split the answer."""
    response = Response("x")
    response.raw_headers.append((b"x-evil", b"1\r\nset-cookie: stolen"))
    return response


@app.post("/settings")
async def settings(names: list[str]) -> dict[str, str | None]:
    """What the environment holds."""
    return {name: os.environ.get(name) for name in names}
