"""Muelle in a FastAPI app under real uvicorn, and in a Flask app under a real server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests import models
from tests.serving import eventually, in_parallel

FASTAPI = """
from fastapi import FastAPI
from pydantic import BaseModel
from muelle.integrations.fastapi import router

app = FastAPI(title="Host")
ml = router("flowers={path}")
app.include_router(ml, prefix="/ml")


class Error(BaseModel):
    text: str


@app.post("/own", responses={{400: {{"model": Error}}}})
async def own(rows: list[list[float]]):
    return (await ml.model("flowers").predict_async(rows))["label"].tolist()


@app.post("/own-sync")
def own_sync(rows: list[list[float]]):
    return ml.model("flowers").predict(rows)["label"].tolist()
"""

FLASK = """
from flask import Flask, request
from muelle.integrations.flask import blueprint

app = Flask(__name__)
ml = blueprint("flowers={path}")
app.register_blueprint(ml, url_prefix="/ml")


@app.post("/own")
def own():
    return ml.model("flowers").predict(request.json)["label"].tolist()
"""
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]]


class Host:
    """A process that serves an application with its own server, and a client of it."""

    def __init__(self, folder: Path, source: str, *command: str) -> None:
        path = models.quiet(models.onnx_classifier).path
        (folder / "host.py").write_text(source.format(path=path))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(word.format(port=self.port) for word in command)],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, method: str, path: str, value: Any = None) -> tuple[int, Any]:
        """Ask with JSON; answers that are none come as bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = None if value is None else json.dumps(value)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, content

    def wait(self) -> None:
        """Wait until the models answer."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.ask("GET", "/ml/ready")[0] == 200
            except OSError:
                return False

        eventually(is_ready, 60)

    def workers(self) -> list[int]:
        """Return the processes below it."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
        return found

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(40)


@pytest.fixture(scope="module")
def fastapi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A FastAPI application under uvicorn."""
    host = Host(tmp_path_factory.mktemp("f"), FASTAPI, "uvicorn", "host:app", "--port", "{port}")
    host.wait()
    yield host
    if host.process.poll() is None:
        host.stop()


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A Flask application under its own threaded server."""
    command = ("flask", "--app", "host", "run", "--port", "{port}")
    host = Host(tmp_path_factory.mktemp("w"), FLASK, *command)
    host.wait()
    yield host
    if host.process.poll() is None:
        host.stop()


@pytest.fixture(params=["fastapi", "flask"])
def host(request: pytest.FixtureRequest) -> Host:
    """Either of them."""
    found: Host = request.getfixturevalue(request.param)
    return found


def expected() -> list[int]:
    """Return what the model's own library says."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(models.quiet(models.onnx_classifier).path))
    import numpy as np

    labels: list[int] = session.run(["label"], {"X": np.array(ROWS, np.float32)})[0].tolist()
    return labels


def test_answers_are_the_models_own(host: Host) -> None:
    """In both protocols and from the host's own endpoint, at the same time."""
    wanted = expected()
    native = {"instances": ROWS}
    v2 = {"inputs": [{"name": "X", "shape": [3, 4], "datatype": "FP32",
                      "data": [v for row in ROWS for v in row]}]}  # fmt: skip

    def by_native() -> list[int]:
        status, answer = host.ask("POST", "/ml/models/flowers/predict", native)
        assert status == 200, answer
        return [one["label"] for one in answer["predictions"]]

    def by_v2() -> list[int]:
        status, answer = host.ask("POST", "/ml/v2/models/flowers/infer", v2)
        assert status == 200, answer
        found: list[int] = next(o["data"] for o in answer["outputs"] if o["name"] == "label")
        return found

    def by_own() -> list[int]:
        status, answer = host.ask("POST", "/own", ROWS)
        assert status == 200, answer
        found: list[int] = answer
        return found

    assert in_parallel([by_native, by_v2, by_own] * 8) == [wanted] * 24


def test_generate_below_the_prefix(host: Host) -> None:
    """Once, and as events."""
    body = {"X": [value for row in ROWS for value in row]}
    status, answer = host.ask("POST", "/ml/v2/models/flowers/generate", body)
    assert (status, answer["label"]) == (200, expected())
    status, events = host.ask("POST", "/ml/v2/models/flowers/generate_stream", body)
    assert status == 200
    assert json.loads(events.removeprefix(b"data: ")) == answer


def test_errors_have_the_protocols_form(host: Host) -> None:
    """Below the prefix, too, v2 says `error` and the native API a problem with its details."""
    status, answer = host.ask("POST", "/ml/v2/models/nope/infer", {})
    assert status in (400, 404)
    assert "nope" in answer["error"]
    status, answer = host.ask("POST", "/ml/models/flowers/predict", {"instances": [[1]]})
    assert status == 400
    assert "detail" in answer
    assert host.ask("GET", "/ml/models/nope")[0] == 404
    assert host.ask("GET", "/ml/v2/models/flowers")[1]["name"] == "flowers"


def test_typed_docs_in_fastapi(fastapi: Host) -> None:
    """The host's own document is valid, has our paths below the prefix with the model's types."""
    document = fastapi.ask("GET", "/openapi.json")[1]
    validate(document)
    assert document["info"]["title"] == "Host"
    assert "/own" in document["paths"]
    operation = document["paths"]["/ml/models/flowers/predict"]["post"]
    text = json.dumps(document)
    assert "/ml/v2/models/flowers/infer" in document["paths"]
    assert "probabilities" in text
    assert operation["requestBody"]
    references = {word.split('"')[0] for word in text.split('"#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["Error"]["properties"].keys() == {"text"}


def test_docs_in_flask(flask: Host) -> None:
    """A Flask application has no docs of its own: ours are below the prefix."""
    validate(flask.ask("GET", "/ml/openapi.json")[1])
    status, page = flask.ask("GET", "/ml/docs")
    assert status == 200
    assert b"flowers" in page


def test_sync_endpoints_of_fastapi(fastapi: Host) -> None:
    """A plain function of the host may ask and wait."""
    assert fastapi.ask("POST", "/own-sync", ROWS) == (200, expected())


def test_nothing_is_left_behind(host: Host) -> None:
    """The host's end is the end of the workers."""
    workers = host.workers()
    assert workers
    host.stop()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("source", [FASTAPI, FLASK])
def test_a_model_that_cannot_be_loaded(source: str, tmp_path: Path) -> None:
    """The host does not start, or says so in words: FastAPI at the start, Flask when asked."""
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    code = source.format(path=tmp_path / "broken.onnx")
    code += (
        "\nfrom starlette.testclient import TestClient\nwith TestClient(app):\n    pass\n"
        if source is FASTAPI
        else "\nml.start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ},
    )  # fmt: skip
    assert done.returncode != 0
    assert "ArtifactError" in done.stderr
    assert "broken.onnx" in done.stderr or "flowers" in done.stderr
