"""Models as management would tell of them, and doors whose predictions tell what arrived."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from muelle.api.doors import ApiDoors
from muelle.core.errors import ModelNotFound
from muelle.core.signature import Signature, TensorSpec
from muelle.core.status import ModelStatus, VersionStatus, WorkerStatus
from muelle.protocols.http import JSON, Answer, HttpRequest

IRIS = Signature(
    inputs=(
        TensorSpec(
            name="input",
            datatype="FP32",
            shape=(-1, 4),
            columns=("sepal length", "sepal width", "petal length", "petal width"),
        ),
    ),
    outputs=(
        TensorSpec(name="label", datatype="BYTES", shape=(-1,), role="label"),
        TensorSpec(
            name="probabilities",
            datatype="FP32",
            shape=(-1, 3),
            role="probabilities",
            classes=("setosa", "versicolor", "virginica"),
        ),
    ),
)
CHURN = Signature(
    inputs=(
        TensorSpec(name="age", datatype="INT64", shape=(-1,)),
        TensorSpec(name="city", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="note", datatype="BYTES", shape=(-1,), optional=True),
    ),
    outputs=(TensorSpec(name="score", datatype="FP64", shape=(-1,)),),
)
IMAGE = Signature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 64, 64)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
)
HALF = Signature(
    inputs=(TensorSpec(name="x", datatype="FP16", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP16", shape=(-1, 2)),),
)
SCALAR = Signature(
    inputs=(TensorSpec(name="x", datatype="FP64", shape=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP64", shape=()),),
)


def version(signature: Signature | None, number: str = "1", **changed: Any) -> VersionStatus:
    """Return a ready version with one worker."""
    facts: dict[str, Any] = {
        "version": number,
        "state": "READY",
        "reason": "",
        "digest": "sha256:" + "ab" * 32,
        "format": "ONNX",
        "runtime": "onnx",
        "signature": signature,
        "example": None if signature is None else example(signature),
        "info": {"producer": "tests"},
        "workers": (
            WorkerStatus(index=0, state="ready", pid=4711, restarts=2, rss_bytes=50_000_000),
        ),
        "queue_depth": 3,
        "isolation": "process",
        "max_batch_size": 32,
    }
    return VersionStatus(**(facts | changed))


def example(signature: Signature) -> dict[str, Any]:
    """Return one row per input: 0.5, 1 or a city with signs that HTML and shells know."""
    values = {"BYTES": "O'Higgins <b>", "INT64": 2**53 + 1}
    made = {}
    for spec in signature.inputs:
        shape = tuple(1 if d < 0 else d for d in spec.shape)
        array = np.empty(shape, dtype=object)
        array[...] = values.get(spec.datatype, 0.5)
        made[spec.name] = array.tolist()
    return made


def model(name: str, *versions: VersionStatus, default: str | None = None) -> ModelStatus:
    """Return a model whose first version is the default one."""
    return ModelStatus(name=name, default=default or versions[0].version, versions=tuple(versions))


MODELS = (
    model("churn", version(CHURN, "2", format="scikit-learn skops"), version(CHURN, "1")),
    model("half", version(HALF)),
    model("image.net", version(IMAGE)),
    model("iris", version(IRIS)),
    model("scalar", version(SCALAR)),
    model("sick", version(None, state="FAILED", reason="loading failed: bad magic number")),
)


def doors(**changed: Any) -> ApiDoors:
    """Return doors over MODELS; calls in `changed` replace theirs."""
    by_name = {one.name: one for one in MODELS}

    def get(name: str) -> ModelStatus:
        if name not in by_name:
            raise ModelNotFound(f"no model {name[:80]!r}; near: iris")
        return by_name[name]

    async def answer(request: HttpRequest) -> Answer:
        """Tell what arrived: the codecs behind the real door have their own tests."""
        told = {
            "method": request.method.decode(),
            "path": request.path,
            "query": request.query.decode(),
            "type": request.headers.get(b"content-type", b"").decode(),
            "twice": request.headers.get(b"x-twice", b"").decode(),
            "n_bytes": len(request.body),
            "request_id": request.request_id,
            "big": 2**53 + 1,
        }
        return Answer(200, JSON, msgspec.json.encode(told), ((b"Muelle-Model", b"puppet"),))

    calls: dict[str, Any] = {
        "models": lambda: MODELS,
        "model": get,
        "live": lambda: True,
        "ready": lambda: (True, ""),
        "metrics": lambda: b"# TYPE up gauge\nup 1\n",
        "answer": answer,
        "server_name": "muelle",
        "server_version": "0.0.test",
    }
    return ApiDoors(**(calls | changed))
