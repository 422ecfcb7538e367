"""The peer: FastAPI around onnxruntime, as people write it today. Runs in its own environment.

    python fastapi_app.py MODEL.onnx PORT

One process, one thread in the model, `async def` (faster on one core than a thread per request), a
pydantic body, no batching, no isolation. Not for use: it is what Muelle is compared with.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel


class TabularRows(BaseModel):
    """The body of a table model."""

    x: list[list[float]]


class TextRows(BaseModel):
    """The body of a text model."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]


class Predictions(BaseModel):
    """The answer: one list of numbers per row."""

    predictions: list[list[float]]


def open_session(path: str) -> onnxruntime.InferenceSession:
    """Open the model with one thread, as every peer does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_app(session: onnxruntime.InferenceSession) -> FastAPI:
    """Build the app for one model: its inputs decide the body."""
    app = FastAPI()
    names = [i.name for i in session.get_inputs()]

    if names == ["x"]:

        @app.post("/predict")
        async def predict_table(body: TabularRows) -> Predictions:
            outputs = session.run(None, {"x": np.array(body.x, dtype=np.float32)})
            return Predictions(predictions=outputs[0].tolist())

    elif len(names) == 2:

        @app.post("/predict")
        async def predict_text(body: TextRows) -> Predictions:
            feed = {
                "input_ids": np.array(body.input_ids, dtype=np.int64),
                "attention_mask": np.array(body.attention_mask, dtype=np.int64),
            }
            return Predictions(predictions=session.run(None, feed)[0].tolist())

    else:

        @app.post("/predict-raw")
        async def predict_image(request: Request) -> Response:
            image = np.frombuffer(await request.body(), dtype=np.float32)
            outputs = session.run(None, {names[0]: image.reshape(1, 3, 224, 224)})
            return Response(outputs[0].tobytes(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(open_session(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
