"""The limit: onnxruntime in a loop, no server. Runs in its own environment, ruled over stdin.

    python bare_loop.py MODEL.onnx ROWS.npz

Each line `BATCH SECONDS` on stdin is answered with one line: rows per second. Not a peer.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Answer lines until stdin ends."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    with np.load(sys.argv[2]) as file:
        rows = {i.name: file[i.name] for i in session.get_inputs()}
    print("ready", flush=True)
    for line in sys.stdin:
        size, seconds = line.split()
        feed = {name: np.resize(v, (int(size), *v.shape[1:])) for name, v in rows.items()}
        print(rows_per_s(session, feed, int(size), float(seconds)), flush=True)


def rows_per_s(
    session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray], size: int, seconds: float
) -> float:
    """Run one batch again and again for so many seconds."""
    session.run(None, feed)
    n_batches = 0
    start = now = time.perf_counter()
    while now - start < seconds:
        session.run(None, feed)
        n_batches += 1
        now = time.perf_counter()
    return n_batches * size / (now - start)


if __name__ == "__main__":
    main()
