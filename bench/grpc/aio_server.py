"""The peer: grpcio's asyncio server around onnxruntime, on uvloop. Runs in Muelle's environment.

    python -P aio_server.py MODEL.onnx PORT

One process, one thread in the model, which runs inside the call: no queue, no batches, no worker,
no isolation. What it costs is grpcio, the codec and the model. Not for use.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import onnxruntime
import uvloop

from muelle.protos import message

Request: Any = message("inference.ModelInferRequest")
Response: Any = message("inference.ModelInferResponse")
NUMPY = {"FP32": np.float32, "INT64": np.int64}
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def open_session(path: str) -> onnxruntime.InferenceSession:
    """Open the model with one thread, as every peer does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def infer_with(session: onnxruntime.InferenceSession) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Return the method: one serialized request in, one serialized answer out."""
    names = [output.name for output in session.get_outputs()]

    async def infer(serialized: bytes, context: Any) -> bytes:
        request = Request.FromString(serialized)
        feed = {
            tensor.name: np.frombuffer(raw, NUMPY[tensor.datatype]).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = Response(model_name=request.model_name, model_version="1", id=request.id)
        for name, values in zip(names, session.run(None, feed), strict=True):
            response.outputs.add(name=name, datatype="FP32", shape=values.shape)
            response.raw_output_contents.append(values.tobytes())
        answer: bytes = response.SerializeToString()
        return answer

    return infer


async def serve(path: str, port: int) -> None:
    """Answer ModelInfer until the process is ended."""
    server = grpc.aio.server(options=UNLIMITED)
    method = grpc.unary_unary_rpc_method_handler(infer_with(open_session(path)))
    service = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": method}
    )
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run = asyncio.run if "--plain-loop" in sys.argv else uvloop.run
    run(serve(sys.argv[1], int(sys.argv[2])))
