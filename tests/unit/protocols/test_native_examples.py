"""Docs and curl lines show a body made from a model's example: it must be one the model takes.

Real models of every runtime; the codec alone, no server.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from muelle.core.request import decode_array
from muelle.core.signature import made_up_example
from muelle.core.tensor import DATATYPES
from muelle.protocols.http import HttpRequest
from muelle.protocols.native import NativeCodec, example_body
from muelle.protocols.native_plain import NativePlain
from muelle.runtimes.interface import LoadOptions
from muelle.runtimes.registry import Registry
from tests import models


def listed(value: Any) -> Any:
    """Arrays as nested lists, bytes as text: the form in which a worker tells its example."""
    if isinstance(value, np.ndarray):
        return [listed(item) for item in value.tolist()]
    if isinstance(value, list):
        return [listed(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("make", models.ALL, ids=lambda make: make.__name__)
def test_a_models_example_is_a_body_that_decodes(make: Any) -> None:
    """The artifact's own example, a made-up one and a real row: each is one row of the model."""
    saved = models.quiet(make)
    runtime, _ = Registry().find_format(saved.path)
    loaded = runtime.load(saved.path, LoadOptions(threads=1, name="under-test"))
    signature, own = loaded.signature, loaded.example
    loaded.close()
    codec = NativeCodec("m", "1", signature, "error", 64, 32)
    NativePlain("m", "1", signature)

    real = {name: array[:1] for name, array in saved.inputs.items()}
    for example in (own, made_up_example(signature), real):
        if example is None:
            continue
        example = {name: listed(value) for name, value in example.items()}
        # As JSON has it: a NaN is null.
        body = orjson.dumps(example_body(signature, example))
        request = codec.decode(HttpRequest(b"POST", "", b"", {}, body))
        assert request.n_rows == 1
        assert [t.name for t in request.inputs] == [spec.name for spec in signature.inputs]
        for tensor in request.inputs:
            found = decode_array(tensor.datatype, tuple(tensor.shape), bytes(tensor.data))
            want = np.array(example[tensor.name], dtype=object)
            assert found.shape == want.shape
            if tensor.datatype == "BYTES":
                texts = [None if v is None else v.decode() for v in found.reshape(-1).tolist()]
                assert texts == want.reshape(-1).tolist()
            elif DATATYPES[tensor.datatype].is_float:
                numbers = want.astype(float)
                np.testing.assert_allclose(found.astype(float), numbers, rtol=1e-2)
            else:
                assert found.tolist() == want.tolist()
