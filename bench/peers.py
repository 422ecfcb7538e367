"""Who is measured: how each server is started, and what a request to it looks like.

Not for measuring. Each peer speaks the form its users would choose: Muelle v2 (JSON, binary for
images), FastAPI plain JSON (raw bytes for images).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import Array, BenchModel

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
JSON = "application/json"
BINARY = "application/octet-stream"
LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One POST, ready to send."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be measured. `read` gives the numbers of an answer: `read(headers, body)`.

    Header names come in lower case. `read` raises ValueError or KeyError on a strange answer.
    """

    name: str
    form: str
    command: Callable[[BenchModel, int], list[str]]
    request: Callable[[BenchModel, int], WireRequest]
    read: Callable[[dict[str, str], bytes], Array]


def peers_of(model: BenchModel) -> tuple[Peer, Peer]:
    """Return Muelle and the FastAPI peer, as they serve this model."""
    if model.name == "cnn":
        return (
            Peer("muelle", "v2 binary", muelle_command, v2_binary_request, read_v2),
            Peer("fastapi", "raw bytes", fastapi_command, raw_request, read_raw),
        )
    return (
        Peer("muelle", "v2 JSON", muelle_command, v2_json_request, read_v2),
        Peer("fastapi", "plain JSON", fastapi_command, plain_request, read_plain),
    )


# --- Muelle ---


def muelle_command(model: BenchModel, port: int) -> list[str]:
    """`muelle serve`, from the environment that runs the bench; all else at its default."""
    muelle = Path(sys.executable).with_name("muelle")
    size = str(model.max_batch_size)
    return [str(muelle), "serve", str(model.path), "--port", str(port), "--max-batch-size", size]


DATATYPES = {"float32": "FP32", "int64": "INT64"}


def v2_json_request(model: BenchModel, row: int) -> WireRequest:
    """One row as v2 JSON, flat."""
    inputs = [
        {
            "name": name,
            "shape": [1, *values.shape[1:]],
            "datatype": DATATYPES[values.dtype.name],
            "data": values[row].ravel().tolist(),
        }
        for name, values in model.inputs.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    return WireRequest(f"/v2/models/{model.name}/infer", {"Content-Type": JSON}, body)


def v2_binary_request(model: BenchModel, row: int) -> WireRequest:
    """One row with the binary tensor extension, asking for a binary answer."""
    inputs, parts = [], []
    for name, values in model.inputs.items():
        raw = values[row].tobytes()
        inputs.append(
            {
                "name": name,
                "shape": [1, *values.shape[1:]],
                "datatype": DATATYPES[values.dtype.name],
                "parameters": {"binary_data_size": len(raw)},
            }
        )
        parts.append(raw)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": BINARY, "Inference-Header-Content-Length": str(len(head))}
    path = f"/v2/models/{model.name}/infer"
    return WireRequest(path, headers, head + b"".join(parts))


def read_v2(headers: dict[str, str], body: bytes) -> Array:
    """Return the only output of a v2 answer, JSON or binary."""
    size = int(headers.get(LENGTH, len(body)))
    (output,) = json.loads(body[:size])["outputs"]
    if "data" in output:
        values = np.array(output["data"], dtype=np.float32)
    else:
        if len(body) - size != output["parameters"]["binary_data_size"]:
            raise ValueError(f"{len(body) - size} binary bytes, {output} announced")
        values = np.frombuffer(body[size:], dtype="<f4")
    shape: Sequence[int] = output["shape"]
    return values.reshape(shape)


# --- FastAPI ---


def fastapi_command(model: BenchModel, port: int) -> list[str]:
    """uvicorn with uvloop and httptools, one process, no access log."""
    python = str(environment("fastapi"))
    return [python, str(HERE / "fastapi_app.py"), str(model.path), str(port)]


def plain_request(model: BenchModel, row: int) -> WireRequest:
    """One row as the app's own JSON: a list of numbers per input."""
    body = json.dumps({name: [values[row].tolist()] for name, values in model.inputs.items()})
    return WireRequest("/predict", {"Content-Type": JSON}, body.encode())


def raw_request(model: BenchModel, row: int) -> WireRequest:
    """One image as the bytes of its floats."""
    (values,) = model.inputs.values()
    return WireRequest("/predict-raw", {"Content-Type": BINARY}, values[row].tobytes())


def read_plain(headers: dict[str, str], body: bytes) -> Array:
    """Return the app's JSON answer."""
    return np.array(json.loads(body)["predictions"], dtype=np.float32)


def read_raw(headers: dict[str, str], body: bytes) -> Array:
    """Return the app's raw answer."""
    return np.frombuffer(body, dtype="<f4").reshape(1, -1)


# --- environments ---


def environment(name: str) -> Path:
    """Return the Python of a peer's own environment, made on first use with pinned packages."""
    folder = WORK / "venvs" / name
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    wanted = HERE / f"requirements-{name}.txt"
    if not done.exists() or done.read_bytes() != wanted.read_bytes():
        say(f"making the environment of {name}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install: list[Any] = [python, "-m", "pip", "install", "--quiet", "--requirement", wanted]
        subprocess.run(install, check=True)
        done.write_bytes(wanted.read_bytes())
    return python


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)
