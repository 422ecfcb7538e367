"""The peer: PyTriton around onnxruntime. Runs in its own environment.

    python -P pytriton_app.py MODEL.json HTTP_PORT GRPC_PORT METRICS_PORT

One instance, one thread in the model, all else at PyTriton's defaults. Not for Muelle.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve one model until the process is ended."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    http, grpc, metrics = map(int, sys.argv[2:])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        spec["path"], options, providers=["CPUExecutionProvider"]
    )
    (output,) = spec["outputs"]

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {output["name"]: session.run(None, inputs)[0]}

    config = TritonConfig(
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        allow_gpu_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=spec["name"],
            infer_func=infer,
            inputs=[tensor_of(one) for one in spec["inputs"]],
            outputs=[tensor_of(output)],
            config=ModelConfig(max_batch_size=spec["max_batch_size"], batcher=DynamicBatcher()),
        )
        triton.serve()


def tensor_of(spec: dict) -> Tensor:
    """Return PyTriton's word for one tensor; dims are without the axis of rows."""
    return Tensor(name=spec["name"], dtype=np.dtype(spec["dtype"]).type, shape=tuple(spec["dims"]))


if __name__ == "__main__":
    main()
