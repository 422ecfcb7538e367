"""Who is measured with gRPC: how each server is started, and the ways it can be asked.

Not for measuring. A way is a wire form: gRPC, v2 JSON or v2 binary over HTTP/1.1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.grpc.triton_files import packages_of, surroundings, write_backends, write_repository
from bench.load import free_port
from bench.models import BenchModel
from bench.peers import (
    HERE,
    WORK,
    Peer,
    environment,
    muelle_command,
    read_v2,
    say,
    v2_binary_request,
    v2_json_request,
)

GRPC, JSON, BINARY = "gRPC", "HTTP JSON", "HTTP binary"
MUELLE, AIO, TRITON, PYTRITON = "muelle", "grpcio", "tritonserver", "pytriton"
ALL = (MUELLE, AIO, TRITON, PYTRITON)
RUN = WORK / "run"


@dataclass(frozen=True, slots=True)
class Started:
    """How one server of one model is run, and where it listens."""

    command: list[str]
    grpc_port: int
    http_port: int | None
    """None: it speaks gRPC only."""
    env: dict[str, str] = field(default_factory=dict)


class NotInstalled(Exception):
    """A peer's environment is missing and could not be made."""


def ways_of(server: str, model: BenchModel) -> tuple[str, ...]:
    """Return the ways to ask a server. Large tensors are never sent as JSON."""
    if server == AIO:
        return (GRPC,)
    large = max(values[0].nbytes for values in model.inputs.values()) > 100_000
    return (GRPC, BINARY) if large else (GRPC, JSON, BINARY)


def http_peer(server: str, way: str) -> Peer:
    """Return a server's HTTP way as the kind of peer that wrk's load knows."""
    request = v2_json_request if way == JSON else v2_binary_request
    return Peer(f"{server}, {way}", way, muelle_command, request, read_v2)


def start_of(server: str, model: BenchModel) -> Started:
    """Say how to start a server with one model. Raise NotInstalled."""
    start: dict[str, Callable[[BenchModel], Started]] = {
        MUELLE: muelle,
        AIO: grpcio,
        TRITON: tritonserver,
        PYTRITON: pytriton,
    }
    return start[server](model)


def muelle(model: BenchModel) -> Started:
    """`muelle serve` at its defaults: gRPC and HTTP on one port, an isolated worker."""
    port = free_port()
    return Started(muelle_command(model, port), port, port)


def grpcio(model: BenchModel) -> Started:
    """grpcio's asyncio server, the model inside its process."""
    port = free_port()
    script = str(HERE / "grpc" / "aio_server.py")
    return Started([sys.executable, "-P", script, str(model.path), str(port)], port, None)


def tritonserver(model: BenchModel) -> Started:
    """The server that PyTriton's wheel carries, alone, with its Python backend."""
    python = triton_environment()
    packages = packages_of(python)
    program = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    repository = write_repository(RUN / "triton-repository" / model.name, model)
    backends = write_backends(RUN / "triton-backends", packages)
    http, grpc, metrics = free_port(), free_port(), free_port()
    command = [
        str(program), f"--model-repository={repository}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
    ]  # fmt: skip
    # The stub starts `python3` by name to find its packages.
    path = f"{python.parent}:{os.environ.get('PATH', '')}"
    return Started(command, grpc, http, {**surroundings(packages), "PATH": path})


def pytriton(model: BenchModel) -> Started:
    """PyTriton: its own process of Python behind the same tritonserver."""
    python = triton_environment()
    spec = RUN / f"pytriton-{model.name}.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(json.dumps(_spec_of(model)))
    http, grpc, metrics = free_port(), free_port(), free_port()
    script = str(HERE / "grpc" / "pytriton_app.py")
    command = [str(python), "-P", script, str(spec), str(http), str(grpc), str(metrics)]
    home = RUN / "pytriton-home"
    home.mkdir(exist_ok=True)
    env = {**surroundings(packages_of(python)), "PYTRITON_HOME": str(home)}
    return Started(command, grpc, http, env)


def triton_environment() -> Path:
    """Return the Python beside PyTriton, made on first use. Raise NotInstalled."""
    try:
        return environment("triton")
    except subprocess.CalledProcessError as exc:
        say(f"PyTriton could not be installed: {exc}")
        raise NotInstalled("not installed") from exc


def _spec_of(model: BenchModel) -> dict[str, object]:
    arrays = {**model.inputs, model.output: model.expected}
    tensors = [
        {"name": name, "dtype": values.dtype.name, "dims": values.shape[1:]}
        for name, values in arrays.items()
    ]
    return {
        "name": model.name,
        "path": str(model.path),
        "max_batch_size": model.max_batch_size,
        "inputs": tensors[:-1],
        "outputs": tensors[-1:],
    }
