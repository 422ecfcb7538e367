"""The peer's model: onnxruntime in tritonserver's Python backend. Copied into its repository.

One call for all requests that the dynamic batcher gathered, as its users write it. Not for Muelle.
"""

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Owned by the backend's process: `initialize`, then `execute` for each batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model that the configuration names, with one thread, as every peer does."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = config["parameters"]["onnx"]["string_value"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.output = config["output"][0]["name"]

    def execute(self, requests: list) -> list:
        """Run all requests as one batch, and deal its rows out."""
        columns = [
            [pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            for name in self.inputs
        ]
        feed = {
            name: column[0] if len(column) == 1 else np.concatenate(column)
            for name, column in zip(self.inputs, columns, strict=True)
        }
        rows = self.session.run(None, feed)[0]
        responses, at = [], 0
        for values in columns[0]:
            part = rows[at : at + len(values)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, part)]))
            at += len(values)
        return responses
