"""A FastAPI application around a model, with everything that can go wrong. For tests."""

import asyncio
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel

import muelle

flowers = muelle.model("flowers")


@asynccontextmanager
async def lifespan(app):
    marks = os.environ.get("SHOP_MARKS", "")
    if marks:
        Path(marks).write_text("started\n")
    yield
    if marks:
        Path(marks).write_text(Path(marks).read_text() + "stopped\n")


app = FastAPI(title="Shop", lifespan=lifespan)


class Rows(BaseModel):
    rows: list[list[float]]


@app.get("/")
def root():
    return {"shop": "open", "pid": os.getpid(), "secret": os.environ.get("MUELLE_ADMIN_TOKEN_FILE")}


@app.post("/score")
def score(rows: Rows):
    answer = flowers.predict(rows.rows)
    return {"labels": answer["label"].tolist(), "version": answer.version}


@app.post("/score-async")
async def score_async(rows: Rows):
    answer = await muelle.model("flowers").predict_async(rows.rows)
    return {"labels": answer["label"].tolist()}


@app.post("/score-wrongly")
async def score_wrongly(rows: Rows):
    try:
        flowers.predict(rows.rows)
    except Exception as exc:
        return {"error": str(exc)}


@app.post("/refused")
def refused(rows: Rows):
    try:
        return muelle.model("no-such-model").predict(rows.rows).version
    except Exception as exc:
        return {"kind": type(exc).__name__, "error": str(exc)}


@app.get("/raise")
def fail():
    raise RuntimeError("the till is empty")


@app.get("/die")
def die():
    os._exit(7)


@app.get("/slow")
async def slow(seconds: float):
    await asyncio.sleep(seconds)
    return {"slept": seconds}


@app.get("/block")
async def block(seconds: float):
    time.sleep(seconds)
    return {"blocked": seconds}


@app.post("/upload")
async def upload(file: UploadFile):
    content = await file.read()
    return {"name": file.filename, "size": len(content)}


@app.post("/echo")
async def echo(request: Request):
    body = await request.body()
    return Response(body, media_type="application/octet-stream", headers={"x-len": str(len(body))})


@app.get("/cookies")
def cookies():
    response = PlainTextResponse("two")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.get("/go")
def go():
    return RedirectResponse("/cookies", 302)


@app.get("/stream")
def stream():
    return StreamingResponse((f"line {i}\n" for i in range(1000)), media_type="text/plain")


@app.get("/headers")
def headers(request: Request):
    answer = PlainTextResponse("x")
    answer.headers["connection"] = "close"
    answer.headers["x-mine"] = "yes"
    answer.headers["x-seen"] = request.headers.get("x-request-id", "")
    return answer


@app.get("/teapot")
def teapot():
    return PlainTextResponse("short and stout", 418)


@app.get("/chatty")
def chatty(n: int):
    return PlainTextResponse("x" * n)
