"""Ask a server as real clients do: grpcio's stub, Triton's client. A process of its own.

    python -m bench.grpc.client check|grpcio|triton-grpc|triton-http PORT MODEL SECONDS

`check` compares answers by value; the others call one after the other for so long. One line of
JSON tells what came of it. grpcio stays out of the process that starts servers: it does not like
to be forked. Not for throughput: a Python client is slower than what it asks.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from bench.grpc.models import model_called
from bench.grpc.wire import PATH, infer_message, read_answer
from bench.models import N_ROWS, Array, BenchModel
from bench.peers import DATATYPES, WORK

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CALL_S = 60.0
Call = Callable[[bytes], bytes]


@contextmanager
def stub(port: int) -> Iterator[Call]:
    """Give the method as a function from serialized request to serialized answer."""
    # Channels of one process share a connection unless they are told not to.
    options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        method = channel.unary_unary(PATH)
        yield lambda message: method(message, timeout=CALL_S)


# --- right answers ---


def check(port: int, model: BenchModel, each: int) -> dict[str, Any]:
    """Ask every row alone, then random rows from 16 threads at once; compare by value.

    Status and trailers are grpcio's to judge: anything but OK raises there.
    """
    messages = [infer_message(model, row) for row in range(N_ROWS)]
    wrong: list[str] = []
    sizes: set[int] = set()

    def ask_many(rows: list[int]) -> None:
        try:
            with stub(port) as call:
                for row in rows:
                    serialized = call(messages[row])
                    sizes.add(len(serialized))
                    wrong.extend(fault_in(read_answer(serialized), model, row))
        except (grpc.RpcError, ValueError) as exc:
            wrong.append(told(exc))

    ask_many(list(range(N_ROWS)))
    if wrong:
        return {"asked": 0, "wrong": wrong[:3], "sizes": []}
    rng = random.Random(7)
    plans = [[rng.randrange(N_ROWS) for _ in range(each)] for _ in range(16 if each else 0)]
    threads = [threading.Thread(target=ask_many, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"asked": N_ROWS + 16 * each, "wrong": wrong[:3], "sizes": sorted(sizes)}


def told(error: Exception) -> str:
    """Return a short text of an error: grpcio's own is many lines."""
    if isinstance(error, grpc.Call):
        return f"{error.code()}: {error.details()}"
    return repr(error)


def fault_in(answer: Array, model: BenchModel, row: int) -> list[str]:
    """Return what is wrong with one row's answer, [] when nothing is."""
    expected = model.expected[row : row + 1]
    if answer.shape != expected.shape:
        return [f"shape {answer.shape}, expected {expected.shape}"]
    worst = float(np.abs(answer - expected).max())
    return [] if worst <= model.tolerance else [f"row {row}: off by {worst}"]


# --- one caller, one call after the other ---


def timed(once: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Call again and again; return what `bench.load.Point` wants to know."""
    once()
    durations: list[float] = []
    begun = now = time.perf_counter()
    while now - begun < seconds:
        before = now
        once()
        now = time.perf_counter()
        durations.append(now - before)
    ms = np.array(durations) * 1e3
    return {
        "requests": len(durations),
        "seconds": now - begun,
        "failed": 0,
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "max_ms": float(ms.max()),
    }


def with_grpcio(port: int, model: BenchModel, seconds: float) -> dict[str, Any]:
    """grpcio's synchronous stub with a message that lies ready."""
    message = infer_message(model, 0)
    with stub(port) as call:
        return timed(lambda: call(message), seconds)


def with_triton(port: int, model: BenchModel, seconds: float, library: Any) -> dict[str, Any]:
    """Triton's own client, from arrays to an array."""
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    inputs = []
    for name, values in model.inputs.items():
        one = library.InferInput(name, [1, *values.shape[1:]], DATATYPES[values.dtype.name])
        one.set_data_from_numpy(values[:1])
        inputs.append(one)
    found = timed(lambda: client.infer(model.name, inputs).as_numpy(model.output), seconds)
    client.close()
    return found


def main() -> int:
    """Do what the arguments say; print one line of JSON."""
    parser = argparse.ArgumentParser(prog="bench.grpc.client", description=__doc__)
    parser.add_argument("what", choices=("check", "grpcio", "triton-grpc", "triton-http"))
    parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("amount", type=float, help="seconds; check: requests per thread")
    options = parser.parse_args()
    model = model_called(options.model, WORK / "models")
    if options.what == "check":
        found = check(options.port, model, round(options.amount))
    elif options.what == "grpcio":
        found = with_grpcio(options.port, model, options.amount)
    elif options.what == "triton-grpc":
        import tritonclient.grpc

        found = with_triton(options.port, model, options.amount, tritonclient.grpc)
    else:
        import tritonclient.http

        found = with_triton(options.port, model, options.amount, tritonclient.http)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
