"""The official Triton HTTP client, sync and aio, against `muelle serve`: unchanged code works.

Not for formats of models (`test_formats`) nor for bytes that no client sends (`test_http_edges`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.serving import Served

ECHO = '''
import muelle
from muelle import TensorSpec

NAMES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES", "BF16",
)


class Echo(muelle.Model):
    """Gives back a tensor of every datatype."""

    inputs = [TensorSpec(name="in_" + n, datatype=n, shape=(-1, 2)) for n in NAMES]
    outputs = [TensorSpec(name="out_" + n, datatype=n, shape=(-1, 2)) for n in NAMES]

    def predict(self, inputs):
        return {name.replace("in_", "out_"): array for name, array in inputs.items()}
'''

SCORES = '''
import muelle
from muelle import TensorSpec


class Scores(muelle.Model):
    """Gives back scores of four classes."""

    inputs = [TensorSpec(name="x", datatype="FP32", shape=(-1, 4))]
    outputs = [
        TensorSpec(
            name="scores", datatype="FP32", shape=(-1, 4), classes=("ash", "oak", "elm", "yew")
        )
    ]

    def predict(self, inputs):
        return {"scores": inputs["x"]}
'''


def extremes(dtype: Any) -> Any:
    """Least, greatest and two other values of a number type, as [2, 2]."""
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    return np.array([[info.min, info.max], [0, 1]], dtype=dtype)


TENSORS: dict[str, Any] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": extremes(np.uint8),
    "UINT16": extremes(np.uint16),
    "UINT32": extremes(np.uint32),
    "UINT64": extremes(np.uint64),
    "INT8": extremes(np.int8),
    "INT16": extremes(np.int16),
    "INT32": extremes(np.int32),
    "INT64": extremes(np.int64),
    "FP16": extremes(np.float16),
    "FP32": extremes(np.float32),
    "FP64": extremes(np.float64),
    "BYTES": np.array([[b"plain", "Cádiz ⚓".encode()], [b"", b'"\\\x01']], dtype=object),
    "BF16": np.array([[1.5, -2.0], [0.0, 3e38]], dtype=ml_dtypes.bfloat16),
}
HALVES = ("FP16", "BF16")
"""Datatypes that JSON cannot carry."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a model that echoes every datatype, and one with classes."""
    folder = tmp_path_factory.mktemp("triton")
    for name, source in (("echo", ECHO), ("scores", SCORES)):
        (folder / f"{name}.py").write_text(source)
    paths: list[Path] = sorted(folder.iterdir())
    with Served(*map(str, paths), "--trust") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    """The sync client."""
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}", concurrency=4) as made:
        yield made


def inputs_of(binary: set[str] | None = None, module: Any = triton) -> list[Any]:
    """All tensors as inputs: those named as binary data, the others as JSON. None: all binary."""
    made = []
    for name, array in TENSORS.items():
        tensor = module.InferInput(f"in_{name}", list(array.shape), name)
        tensor.set_data_from_numpy(array, binary_data=binary is None or name in binary)
        made.append(tensor)
    return made


def outputs_of(binary: set[str], module: Any = triton) -> list[Any]:
    """All outputs, those named as binary data."""
    return [
        module.InferRequestedOutput(f"out_{name}", binary_data=name in binary) for name in TENSORS
    ]


def assert_echoed(result: Any, names: Any = tuple(TENSORS)) -> None:
    """Every named tensor came back as it was sent, bit for bit."""
    for name in names:
        found, sent = result.as_numpy(f"out_{name}"), TENSORS[name]
        assert found is not None, name
        assert found.shape == sent.shape, name
        if name == "BYTES":
            texts = [t if isinstance(t, bytes) else t.encode() for t in found.reshape(-1).tolist()]
            assert texts == sent.reshape(-1).tolist()
        else:
            assert found.astype(sent.dtype).tobytes() == sent.tobytes(), name


def scores_input(rows: list[list[float]]) -> Any:
    """Scores as the client's input."""
    array = np.array(rows, dtype=np.float32)
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


# --- health and metadata ---


def test_health_is_asked_as_of_triton(client: triton.InferenceServerClient) -> None:
    """Live, ready, model ready, by version too; a model that is not there is not ready."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("echo", "2")
    assert not client.is_model_ready("nobody")


def test_metadata_tells_the_signature(client: triton.InferenceServerClient) -> None:
    """Server metadata lists extensions; model metadata has names, datatypes and shapes."""
    server = client.get_server_metadata()
    assert server["name"] == "muelle"
    assert "binary_tensor_data" in server["extensions"]
    for model in (client.get_model_metadata("echo"), client.get_model_metadata("echo", "1")):
        assert model["versions"] == ["1"]
        assert model["inputs"] == [
            {"name": f"in_{name}", "datatype": name, "shape": [-1, 2]} for name in TENSORS
        ]
        assert [o["name"] for o in model["outputs"]] == [f"out_{name}" for name in TENSORS]


# --- infer ---


def test_every_datatype_is_echoed_in_binary(client: triton.InferenceServerClient) -> None:
    """All 14 datatypes at their extremes, binary both ways."""
    assert_echoed(client.infer("echo", inputs_of()))


def test_json_and_binary_tensors_mix_in_a_request(client: triton.InferenceServerClient) -> None:
    """Some tensors in the JSON and some behind it: each is read from its own place."""
    for binary in ({*HALVES}, {*HALVES, "BYTES", "INT64"}, {*HALVES, "BOOL", "UINT8", "FP64"}):
        assert_echoed(client.infer("echo", inputs_of(binary)))


def test_each_output_comes_as_asked_for(client: triton.InferenceServerClient) -> None:
    """Outputs as binary or as JSON one by one, whatever the inputs were."""
    for binary in ({*HALVES}, {*HALVES, "BYTES", "FP32"}, set(TENSORS)):
        result = client.infer("echo", inputs_of(), outputs=outputs_of(binary))
        assert_echoed(result)
        for output in result.get_response()["outputs"]:
            assert ("data" in output) == (output["name"][4:] not in binary)


def test_only_the_asked_outputs_come(client: triton.InferenceServerClient) -> None:
    """Two outputs, in the order asked for; one that JSON carries alone makes a JSON answer."""
    outputs = [triton.InferRequestedOutput(f"out_{n}") for n in ("FP64", "BYTES")]
    result = client.infer("echo", inputs_of(), outputs=outputs)
    assert [o["name"] for o in result.get_response()["outputs"]] == ["out_FP64", "out_BYTES"]
    assert_echoed(result, ("FP64", "BYTES"))
    assert result.as_numpy("out_INT8") is None


def test_the_request_id_comes_back(client: triton.InferenceServerClient) -> None:
    """`request_id` is in the answer, with the model's name and version."""
    answer = client.infer("echo", inputs_of(), request_id="call-17").get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == (
        "call-17",
        "echo",
        "1",
    )


def test_parameters_of_the_client_are_taken(client: triton.InferenceServerClient) -> None:
    """Own parameters, priority and a timeout do not disturb an answer that comes in time."""
    result = client.infer(
        "echo",
        inputs_of(),
        parameters={"tenant": "north", "attempt": 2, "dry": True, "weight": 0.5},
        timeout=20_000_000,
        priority=1,
    )
    assert_echoed(result)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(client: triton.InferenceServerClient, algorithm: str) -> None:
    """A gzip or deflate body with binary tensors gives the same answer; so does asking for one."""
    result = client.infer(
        "echo",
        inputs_of(),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert_echoed(result)


def test_classes_are_counted_and_named(client: triton.InferenceServerClient) -> None:
    """`class_count`: the best of each row as value:index:label."""
    outputs = [triton.InferRequestedOutput("scores", class_count=2)]
    rows = [[0.125, 0.5, 0.25, 0.0], [4.0, 1.0, 2.0, 3.0]]
    found = client.infer("scores", [scores_input(rows)], outputs=outputs).as_numpy("scores")
    assert found is not None
    assert [[text.decode().split(":")[1:] for text in row] for row in found.tolist()] == [
        [["1", "oak"], ["2", "elm"]],
        [["0", "ash"], ["3", "yew"]],
    ]


def test_answers_of_parallel_calls_are_not_mixed_up(client: triton.InferenceServerClient) -> None:
    """The sync client's `async_infer`, 64 at once: each gets its own rows."""
    rows = [[[float(n), n + 0.5, -float(n), 0.0]] for n in range(64)]
    calls = [client.async_infer("scores", [scores_input(row)]) for row in rows]
    for row, call in zip(rows, calls, strict=True):
        found = call.get_result().as_numpy("scores")
        assert found is not None
        assert found.tolist() == row


async def test_the_aio_client_works_alike(served: Served) -> None:
    """tritonclient.http.aio: health, metadata, compressed and plain infers, 32 at once."""
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("echo")
        assert (await client.get_model_metadata("scores"))["outputs"][0]["datatype"] == "FP32"
        algorithms = [None, "gzip", "deflate", None] * 8
        results = await asyncio.gather(
            *(
                client.infer(
                    "echo",
                    inputs_of(set(HALVES) if n % 2 else None, triton_aio),
                    request_id=str(n),
                    request_compression_algorithm=algorithm,
                )
                for n, algorithm in enumerate(algorithms)
            )
        )
        for n, result in enumerate(results):
            assert result.get_response()["id"] == str(n)
            assert_echoed(result)
        with pytest.raises(InferenceServerException, match="nobody"):
            await client.infer("nobody", inputs_of(None, triton_aio))


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "shape", "datatype", "parts"),
    [
        ("y", [1, 4], "FP32", ("'y'", "x")),
        ("x", [1, 3], "FP32", ("'x'", "[-1, 4]", "[1, 3]")),
        ("x", [4], "FP32", ("'x'", "[-1, 4]")),
        ("x", [1, 4], "FP64", ("'x'", "FP32", "FP64")),
    ],
    ids=["name", "width", "rank", "datatype"],
)
def test_a_wrong_tensor_is_named(
    client: triton.InferenceServerClient,
    name: str,
    shape: list[int],
    datatype: str,
    parts: tuple[str, ...],
) -> None:
    """A wrong name, shape or datatype: 400 that says which tensor, what was wanted, what came."""
    array = np.zeros(shape, dtype=np.float64 if datatype == "FP64" else np.float32)
    tensor = triton.InferInput(name, shape, datatype)
    tensor.set_data_from_numpy(array)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("scores", [tensor])
    assert caught.value.status() == "400"
    for part in parts:
        assert part in caught.value.message(), part


def test_a_missing_tensor_is_named(client: triton.InferenceServerClient) -> None:
    """A required input that is left out is named with its datatype and shape."""
    with pytest.raises(InferenceServerException, match=r"'in_BF16'.*BF16 \[-1, 2\]") as caught:
        client.infer("echo", inputs_of()[:-1])
    assert caught.value.status() == "400"


def test_an_unknown_output_is_named(client: triton.InferenceServerClient) -> None:
    """An output that the model does not have: 400 with those that it has."""
    outputs = [triton.InferRequestedOutput("score")]
    with pytest.raises(InferenceServerException, match=r"'score'.*scores") as caught:
        client.infer("scores", [scores_input([[1, 2, 3, 4]])], outputs=outputs)
    assert caught.value.status() == "400"


def test_half_precision_as_json_is_refused_with_the_way_out(
    client: triton.InferenceServerClient,
) -> None:
    """FP16 and BF16 outputs asked for as JSON: 400 that says to ask for binary data."""
    with pytest.raises(InferenceServerException, match=r"out_FP16.*binary_data"):
        client.infer("echo", inputs_of(), outputs=outputs_of(set()))


def test_unknown_models_and_versions(client: triton.InferenceServerClient) -> None:
    """An unknown model is 400, as Triton has it; an unknown version of a known one 404."""
    x = [scores_input([[1, 2, 3, 4]])]
    for call in (
        lambda: client.infer("score", x),
        lambda: client.get_model_metadata("score"),
    ):
        with pytest.raises(InferenceServerException, match="score") as caught:
            call()
        assert caught.value.status() == "400"
    for call in (
        lambda: client.infer("scores", x, model_version="7"),
        lambda: client.get_model_metadata("scores", "7"),
    ):
        with pytest.raises(InferenceServerException, match="7") as caught:
            call()
        assert caught.value.status() == "404"


def test_after_refusals_the_connection_still_answers(client: triton.InferenceServerClient) -> None:
    """The same client, with its kept connection, gets right answers between wrong requests."""
    for n in range(5):
        with pytest.raises(InferenceServerException):
            client.infer("scores", [])
        found = client.infer("scores", [scores_input([[n, 0, 0, 0]])]).as_numpy("scores")
        assert found is not None
        assert found.tolist() == [[n, 0, 0, 0]]
