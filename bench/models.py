"""Make the three models of the bench, their rows and the right answers. Not for serving them.

`tabular` is trained; `cnn` and `encoder` have the shape (operators, sizes) of ResNet-18 and MiniLM
with random weights, because speed does not depend on what a weight is. Same seed, same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SEED = 20260101
N_ROWS = 8
OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One model on disk with rows to send and the answer to each row alone."""

    name: str
    path: Path
    inputs: Mapping[str, Array]
    """Input name -> [N_ROWS, ...]."""
    output: str
    expected: Array
    """[N_ROWS, outputs], from onnxruntime with batches of one."""
    tolerance: float
    """What a row inside a batch may differ by. Two rows differ by 20 times more, at least."""
    max_batch_size: int


TOLERANCES = {"tabular": 1e-5, "cnn": 1e-4, "encoder": 1e-4}
MAX_BATCH_SIZES = {"tabular": 64, "cnn": 8, "encoder": 4}
NAMES = tuple(MAX_BATCH_SIZES)


def bench_model(name: str, folder: Path) -> BenchModel:
    """Return a model, made on first use and kept in `folder`."""
    path = folder / f"{name}.onnx"
    kept = folder / f"{name}.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make: Callable[[np.random.Generator], tuple[Any, dict[str, Array]]] = {
            "tabular": make_tabular,
            "cnn": make_cnn,
            "encoder": make_encoder,
        }[name]
        graph, rows = make(np.random.default_rng(SEED))
        path.write_bytes(graph.SerializeToString())
        expected = answers_alone(path, rows)
        check_rows_differ(name, expected)
        arrays: dict[str, Any] = {**rows, "expected": expected}
        np.savez(kept, **arrays)
    with np.load(kept) as file:
        rows = {key: file[key] for key in file.files if key != "expected"}
        expected = file["expected"]
    output = {"tabular": "probabilities", "cnn": "scores", "encoder": "embedding"}[name]
    return BenchModel(
        name, path, rows, output, expected, TOLERANCES[name], MAX_BATCH_SIZES[name]
    )  # fmt: skip


def answers_alone(path: Path, rows: Mapping[str, Array]) -> Array:
    """Return the model's answer to each row, one row per call; check that a batch says the same."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    alone = [
        session.run(None, {k: v[i : i + 1] for k, v in rows.items()})[0] for i in range(N_ROWS)
    ]
    expected: Array = np.concatenate(alone)
    together = session.run(None, dict(rows))[0]
    worst = float(np.abs(expected - together).max())
    if worst > TOLERANCES[path.stem]:
        raise RuntimeError(f"{path.name}: a batch differs from its rows by {worst}")
    return expected


def check_rows_differ(name: str, expected: Array) -> None:
    """Raise RuntimeError when two rows' answers are too close to notice a mix-up."""
    for i in range(N_ROWS):
        for j in range(i):
            gap = float(np.abs(expected[i] - expected[j]).max())
            if gap < 20 * TOLERANCES[name]:
                raise RuntimeError(f"{name}: rows {i} and {j} differ by {gap} only")


def make_tabular(rng: np.random.Generator) -> tuple[Any, dict[str, Array]]:
    """100 boosted trees of depth 3 on the breast-cancer data: x [rows, 30] -> probabilities."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier

    x, y = load_breast_cancer(return_X_y=True)
    trees = GradientBoostingClassifier(n_estimators=100, max_depth=3, random_state=0).fit(x, y)
    whole = convert_sklearn(
        trees,
        initial_types=[("x", FloatTensorType([None, x.shape[1]]))],
        options={id(trees): {"zipmap": False}},
        target_opset=OPSET,
    )
    graph = select_model_inputs_outputs(whole, "probabilities")
    p = trees.predict_proba(x)[:, 0]
    kept: list[int] = []
    for at in rng.permutation(len(x)).tolist():
        if all(abs(p[at] - p[k]) > 1e-3 for k in kept):
            kept.append(at)
    return graph, {"x": x[kept[:N_ROWS]].astype(np.float32)}


# --- graphs written by hand ---


class Graph:
    """Collects nodes and weights of one ONNX graph."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, shape: Sequence[int], scale: float) -> str:
        """Add a random float32 weight; return its name."""
        values = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return self.constant(values)

    def constant(self, values: Array) -> str:
        """Add a weight with these values; return its name."""
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 number; return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def integers(self, *values: int) -> str:
        """Add an int64 vector (a shape, an axis list)."""
        return self.constant(np.array(values, dtype=np.int64))

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        from onnx import helper

        output = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def linear(self, x: str, n_in: int, n_out: int) -> str:
        """x @ W + b."""
        product = self.node("MatMul", x, self.weight((n_in, n_out), n_in**-0.5))
        return self.node("Add", product, self.weight((n_out,), 0.02))

    def norm(self, x: str, size: int) -> str:
        """Layer normalization over the last axis."""
        ones = self.constant(np.ones(size, dtype=np.float32))
        return self.node("LayerNormalization", x, ones, self.weight((size,), 0.02), axis=-1)

    def conv(self, x: str, n_in: int, n_out: int, size: int, stride: int, gain: float) -> str:
        """Convolution with bias (a batch norm is folded into it, as exporters do)."""
        weight = self.weight((n_out, n_in, size, size), gain * (n_in * size * size) ** -0.5)
        pad = size // 2
        return self.node(
            "Conv", x, weight, self.weight((n_out,), 0.02),
            kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4,
        )  # fmt: skip

    def model(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Return the checked model."""
        from onnx import checker, helper

        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), self._weights)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="muelle-bench",
        )
        checker.check_model(model)
        return model


def make_cnn(rng: np.random.Generator) -> tuple[Any, dict[str, Array]]:
    """18 weighted layers in residual blocks: image [rows, 3, 224, 224] -> scores [rows, 1000]."""
    from onnx import TensorProto, helper

    g = Graph(rng)
    x = g.node("Relu", g.conv("image", 3, 64, 7, 2, 1.4))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    n_in = 64
    for n_out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and n_out != 64 else 1
            short = x if stride == 1 and n_in == n_out else g.conv(x, n_in, n_out, 1, stride, 1.0)
            inner = g.node("Relu", g.conv(x, n_in, n_out, 3, stride, 1.4))
            x = g.node("Relu", g.node("Add", g.conv(inner, n_out, n_out, 3, 1, 0.7), short))
            n_in = n_out
    x = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    g.node("Gemm", x, g.weight((512, 1000), 512**-0.5), g.weight((1000,), 0.02), output="scores")
    model = g.model(
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1000])],
    )
    # Coarse blotches: white noise would average out to the same scores for every image.
    coarse = rng.standard_normal((N_ROWS, 3, 14, 14), dtype=np.float32)
    return model, {"image": np.repeat(np.repeat(coarse, 16, axis=2), 16, axis=3)}


HIDDEN, HEADS, LAYERS, FEED_FORWARD, VOCABULARY, TOKENS = 384, 12, 6, 1536, 30_522, 128


def make_encoder(rng: np.random.Generator) -> tuple[Any, dict[str, Array]]:
    """Six transformer layers: ids and mask [rows, tokens] -> mean-pooled embedding [rows, 384]."""
    from onnx import TensorProto, helper

    g = Graph(rng)
    words = g.node("Gather", g.weight((VOCABULARY, HIDDEN), 0.5), "input_ids")
    n_tokens = g.node("Shape", "input_ids", start=1, end=2)
    positions = g.weight((512, HIDDEN), 0.1)
    places = g.node("Slice", positions, g.integers(0), n_tokens, g.integers(0))
    x = g.norm(g.node("Add", words, places), HIDDEN)
    mask = g.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    absent = g.node("Sub", g.scalar(1), mask)
    bias = g.node("Mul", absent, g.scalar(-1e9))
    bias = g.node("Unsqueeze", bias, g.integers(1, 2))
    for _ in range(LAYERS):
        x = g.norm(g.node("Add", x, attention(g, x, bias)), HIDDEN)
        wide = gelu(g, g.linear(x, HIDDEN, FEED_FORWARD))
        x = g.norm(g.node("Add", x, g.linear(wide, FEED_FORWARD, HIDDEN)), HIDDEN)
    weights = g.node("Unsqueeze", mask, g.integers(2))
    total = g.node("ReduceSum", g.node("Mul", x, weights), g.integers(1), keepdims=0)
    count = g.node("ReduceSum", weights, g.integers(1), keepdims=0)
    g.node("Div", total, count, output="embedding")
    shape = ["rows", "tokens"]
    model = g.model(
        "encoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", HIDDEN])],
    )
    ids = rng.integers(1_000, VOCABULARY, size=(N_ROWS, TOKENS), dtype=np.int64)
    return model, {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def attention(g: Graph, x: str, bias: str) -> str:
    """Multi-head self-attention with an additive bias on the scores."""
    split = g.integers(0, 0, HEADS, HIDDEN // HEADS)
    q, k, v = (g.node("Reshape", g.linear(x, HIDDEN, HIDDEN), split) for _ in range(3))
    q = g.node("Transpose", q, perm=[0, 2, 1, 3])
    k = g.node("Transpose", k, perm=[0, 2, 3, 1])
    v = g.node("Transpose", v, perm=[0, 2, 1, 3])
    scale = g.scalar((HIDDEN // HEADS) ** -0.5)
    scores = g.node("Add", g.node("Mul", g.node("MatMul", q, k), scale), bias)
    mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), v)
    joined = g.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return g.linear(g.node("Reshape", joined, g.integers(0, 0, HIDDEN)), HIDDEN, HIDDEN)


def gelu(g: Graph, x: str) -> str:
    """x · Φ(x), spelled out as exporters for opset 17 do."""
    inner = g.node("Erf", g.node("Div", x, g.scalar(2**0.5)))
    half = g.node("Mul", x, g.node("Add", inner, g.scalar(1)))
    return g.node("Mul", half, g.scalar(0.5))
