"""The bench's models by name, and two that only give back what they get. Not for serving them.

`echo-600kB` and `echo-16MB` ask what a large tensor costs on its way in and out: the model itself
copies it once. Their rows are made anew each time, from the same seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.models import IR_VERSION, N_ROWS, OPSET, SEED, BenchModel, bench_model

ECHO_SIZES = {"echo-600kB": 150_000, "echo-16MB": 4_000_000}
"""FP32 values per row."""


def model_called(name: str, folder: Path) -> BenchModel:
    """Return a model, made on first use and kept in `folder`."""
    if name not in ECHO_SIZES:
        return bench_model(name, folder)
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_echo(path, ECHO_SIZES[name])
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal((N_ROWS, ECHO_SIZES[name]), dtype=np.float32)
    return BenchModel(name, path, {"x": rows}, "y", rows, 0.0, 4)


def write_echo(path: Path, size: int) -> None:
    """x: float32 [rows, size] -> y, the same."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [value("x", TensorProto.FLOAT, ["rows", size])],
        [value("y", TensorProto.FLOAT, ["rows", size])],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString())
