"""Load a server: wrk for speed, threads for right answers. Not for starting servers."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import N_ROWS, BenchModel
from bench.peers import WORK, Peer, WireRequest
from bench.processes import CLIENT_CORE, Elsewhere, ServerProcess, pinned_to

SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of wrk against one server. Latencies in ms, as a closed-loop client sees them."""

    peer: str
    model: str
    connections: int
    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us_per_request: float
    """User and system time of the whole server tree."""
    others_share: float
    """CPU of strangers on this machine meanwhile, as a share of one core."""

    @property
    def rps(self) -> float:
        return self.requests / self.seconds


def free_port() -> int:
    """Return a port of the loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def run_wrk(
    peer: Peer,
    model: BenchModel,
    server: ServerProcess,
    port: int,
    *,
    connections: int,
    warm_s: float,
    seconds: int,
) -> Point:
    """Warm the path, wait until the server is idle, then measure."""
    request = peer.request(model, 0)
    if warm_s:
        _wrk(request, port, connections, max(1, round(warm_s)))
        server.settle()
    elsewhere = Elsewhere(server.cpu_s)
    cpu_before = server.cpu_s()
    told = _wrk(request, port, connections, seconds)
    cpu_s = server.cpu_s() - cpu_before
    others_share = elsewhere.share()
    server.settle()
    return Point(
        peer=peer.name,
        model=model.name,
        connections=connections,
        others_share=others_share,
        cpu_us_per_request=cpu_s * 1e6 / max(1, told["requests"]),
        **told,
    )


def _wrk(request: WireRequest, port: int, connections: int, seconds: int) -> dict[str, Any]:
    folder = WORK / "run"
    folder.mkdir(parents=True, exist_ok=True)
    body, headers = folder / "body", folder / "headers"
    body.write_bytes(request.body)
    headers.write_text("".join(f"{name}: {value}\n" for name, value in request.headers.items()))
    command = [
        "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
        "--timeout", "60s", "--script", str(SCRIPT), f"http://127.0.0.1:{port}{request.path}",
    ]  # fmt: skip
    result = subprocess.run(
        command,
        env=dict(os.environ, WRK_BODY=str(body), WRK_HEADERS=str(headers)),
        capture_output=True,
        text=True,
        preexec_fn=pinned_to(CLIENT_CORE),
        timeout=seconds + 120,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        raise RuntimeError(f"wrk failed: {result.stderr}{result.stdout}")
    told: dict[str, Any] = json.loads(lines[-1])
    return told


# --- right answers ---


def ask(peer: Peer, model: BenchModel, row: int, connection: http.client.HTTPConnection) -> str:
    """Send one row; return "" for the right answer, otherwise what is wrong with it."""
    request = peer.request(model, row)
    connection.request("POST", request.path, request.body, request.headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        return f"status {response.status}: {body[:200]!r}"
    answer = peer.read({k.lower(): v for k, v in response.getheaders()}, body)
    expected = model.expected[row : row + 1]
    if answer.shape != expected.shape:
        return f"shape {answer.shape}, expected {expected.shape}"
    worst = float(np.abs(answer - expected).max())
    return "" if worst <= model.tolerance else f"row {row}: off by {worst}"


def is_up(peer: Peer, model: BenchModel, port: int) -> bool:
    """Whether the server answers the first row rightly by now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        return ask(peer, model, 0, connection) == ""
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_answers(peer: Peer, model: BenchModel, port: int, *, each: int) -> int:
    """Ask every row alone, then random rows from 16 threads at once. Return how many were asked.

    Raise RuntimeError with the first wrong answer: a mixed-up batch must not be called fast.
    """
    wrong: list[str] = []

    def ask_many(rows: list[int]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            wrong.extend(filter(None, (ask(peer, model, row, connection) for row in rows)))
        except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
            wrong.append(repr(exc))
        finally:
            connection.close()

    ask_many(list(range(N_ROWS)))
    rng = random.Random(7)
    plans = [[rng.randrange(N_ROWS) for _ in range(each)] for _ in range(16)]
    threads = [threading.Thread(target=ask_many, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise RuntimeError(f"{peer.name}, {model.name}: {len(wrong)} wrong answers: {wrong[0]}")
    return N_ROWS + 16 * each
