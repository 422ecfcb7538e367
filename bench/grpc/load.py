"""Load a server over gRPC: h2load for speed, real clients in processes of their own for the rest.

Not for starting servers. h2load sends one prepared message again and again; it knows nothing of
gRPC, so what it cannot see is checked twice: real clients compare answers and status before and
after, and during the load every answered stream must have carried an answer's bytes (an error
comes without any).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.grpc.wire import PATH, framed, infer_message
from bench.models import BenchModel
from bench.peers import HERE, WORK
from bench.processes import CLIENT_CORE, pinned_to

FRAME_PREFIX = 5
"""Bytes before each gRPC message."""


def run_h2load(
    model: BenchModel,
    port: int,
    *,
    connections: int,
    streams: int,
    seconds: int,
    answer_bytes: int,
) -> dict[str, Any]:
    """Load one method in a closed loop; return a point's figures. Raise RuntimeError.

    `answer_bytes` is the size of the right answer's message: all rows have the same.
    """
    folder = WORK / "run"
    folder.mkdir(parents=True, exist_ok=True)
    body, log = folder / "grpc-body", folder / "h2load-log"
    body.write_bytes(framed(infer_message(model, 0)))
    log.unlink(missing_ok=True)
    command = [
        "h2load", "--threads", "1", "--clients", str(connections),
        "--max-concurrent-streams", str(streams), "--duration", str(seconds),
        "--data", str(body), "--log-file", str(log),
        "--header", "te: trailers", "--header", "content-type: application/grpc",
        f"http://127.0.0.1:{port}{PATH}",
    ]  # fmt: skip
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=pinned_to(CLIENT_CORE),
        timeout=seconds + 120,
    )
    if result.returncode:
        raise RuntimeError(f"h2load failed: {result.stderr}{result.stdout}")
    counted = read_h2load(result.stdout, answer_bytes + FRAME_PREFIX)
    return {**counted, "seconds": float(seconds), **percentiles(log)}


def read_h2load(printed: str, size: int) -> dict[str, int]:
    """Return how many requests were answered, and how many of them not rightly.

    `size` is what one right answer carries in DATA frames. Raise RuntimeError on strange output.
    """
    requests = re.search(
        r"requests: \d+ total, (\d+) started, (\d+) done, (\d+) succeeded, "
        r"(\d+) failed, (\d+) errored, (\d+) timeout",
        printed,
    )
    traffic = re.search(r"traffic: .*\((\d+)\) data", printed)
    if not requests or not traffic:
        raise RuntimeError(f"h2load said: {printed}")
    started, done, _, failed, errored, timeout = (int(n) for n in requests.groups())
    carried = int(traffic[1])
    # An error of gRPC has status 200 and no data: what is missing are wrong answers. Streams that
    # were cut off at the end may have carried some too, but never more than one answer each.
    without = max(0, done - carried // size)
    too_much = max(0, carried // size - started)
    return {"requests": done, "failed": failed + errored + timeout + without + too_much}


def percentiles(log: Path) -> dict[str, float]:
    """Return p50, p99 and the longest of h2load's log: begin µs, status, duration µs."""
    durations = [int(line.split(b"\t")[2]) for line in log.read_bytes().splitlines()]
    if not durations:
        raise RuntimeError("h2load: no request was answered in time")
    ms = np.array(durations) / 1e3
    return {
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "max_ms": float(ms.max()),
    }


def run_client(what: str, model: BenchModel, port: int, amount: float) -> dict[str, Any]:
    """Run `bench.grpc.client` on the load's core; return what it found. Raise RuntimeError."""
    result = subprocess.run(
        [sys.executable, "-m", "bench.grpc.client", what, str(port), model.name, str(amount)],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        preexec_fn=pinned_to(CLIENT_CORE),
        timeout=amount * 10 + 300,
    )
    if result.returncode:
        raise RuntimeError(f"{what} client: {result.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def check_grpc(server: str, model: BenchModel, port: int, *, each: int) -> tuple[int, int]:
    """Compare answers by value. Return how many were asked, and bytes of an answer's message.

    Raise RuntimeError with the first wrong answer: a mixed-up batch must not be called fast.
    """
    found = run_client("check", model, port, each)
    if found["wrong"]:
        raise RuntimeError(f"{server}, gRPC, {model.name}: {found['wrong'][0]}")
    if len(found["sizes"]) != 1:
        raise RuntimeError(f"{server}, gRPC: answers have the sizes {found['sizes']}")
    return found["asked"], found["sizes"][0]
