"""What a gRPC prediction looks like on the wire. Not for sending it.

Tensors travel as raw bytes (`raw_input_contents`), which is what every Triton client sends.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from bench.models import Array, BenchModel
from bench.peers import DATATYPES
from muelle.protos import message

PATH = "/inference.GRPCInferenceService/ModelInfer"


def infer_message(model: BenchModel, row: int) -> bytes:
    """Return one row as a serialized `ModelInferRequest`."""
    request = message("inference.ModelInferRequest")(model_name=model.name)
    for name, values in model.inputs.items():
        request.inputs.add(
            name=name, datatype=DATATYPES[values.dtype.name], shape=[1, *values.shape[1:]]
        )
        request.raw_input_contents.append(values[row].tobytes())
    serialized: bytes = request.SerializeToString()
    return serialized


def framed(serialized: bytes) -> bytes:
    """Put gRPC's prefix before a message: not compressed, length. Source: "gRPC over HTTP2"."""
    return struct.pack(">BI", 0, len(serialized)) + serialized


def read_answer(serialized: bytes) -> Array:
    """Return the only output of a `ModelInferResponse`. Raise ValueError on a strange one."""
    answer: Any = message("inference.ModelInferResponse").FromString(serialized)
    if len(answer.outputs) != 1:
        raise ValueError(f"{len(answer.outputs)} outputs, 1 expected")
    (output,) = answer.outputs
    if answer.raw_output_contents:
        values = np.frombuffer(answer.raw_output_contents[0], dtype="<f4")
    else:
        values = np.array(output.contents.fp32_contents, dtype=np.float32)
    return values.reshape(tuple(output.shape))
