"""What the ONNX runtime promises beyond the contract of all runtimes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.core.errors import ArtifactError
from muelle.runtimes.formats import is_onnx
from muelle.runtimes.interface import LoadOptions
from muelle.runtimes.onnx import RUNTIME
from muelle.runtimes.onnx_file import check_external_data
from tests import models


def external_model(folder: Path, location: str, offset: int = 0) -> Path:
    """Write a model whose one weight lies at `location`, wherever that is."""
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 1])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the model's folder."""
    path = tmp_path / "secret.bin"
    np.arange(4, dtype=np.float32).tofile(path)
    return path


def test_external_data_beside_the_model_is_read(secret: Path, tmp_path: Path) -> None:
    """The control: a plain file inside the folder, also in a folder below, is loaded."""
    path = external_model(tmp_path / "v", "deep/weights.bin")
    (tmp_path / "v/deep").mkdir()
    shutil.copy(secret, tmp_path / "v/deep/weights.bin")

    model = RUNTIME.load(path, LoadOptions())

    assert model.run({"x": np.eye(4, dtype=np.float32)})["y"].reshape(-1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "a/../../secret.bin",
        "./../secret.bin",
        "{secret}",
        "*/_ORT_MEM_ADDR_/*",
        "..\\secret.bin",
        "",
        "secret.bin\0",
    ],
)
def test_a_location_outside_the_folder_is_refused(
    location: str, secret: Path, tmp_path: Path
) -> None:
    """No path leads out, and none is an address in memory."""
    path = external_model(tmp_path / "v", location.replace("{secret}", str(secret)))

    with pytest.raises(ArtifactError, match="outside the model's folder"):
        check_external_data(path)


@pytest.mark.parametrize("link", ["file", "folder", "hard"])
def test_a_link_out_of_the_folder_is_refused(link: str, secret: Path, tmp_path: Path) -> None:
    """Neither a symbolic link, nor one on the way, nor a hard link is followed."""
    path = external_model(tmp_path / "v", "here/weights.bin")
    here = tmp_path / "v/here"
    if link == "folder":
        secret.rename(tmp_path / "weights.bin")
        here.symlink_to(tmp_path)
    else:
        here.mkdir()
        os.link(secret, here / "weights.bin")
        if link == "file":
            (here / "weights.bin").unlink()
            (here / "weights.bin").symlink_to(secret)

    with pytest.raises(ArtifactError, match="symbolic link|plain file of its own"):
        check_external_data(path)


def test_missing_and_short_external_data_are_refused(secret: Path, tmp_path: Path) -> None:
    """What is not there is said before the native library reads."""
    with pytest.raises(ArtifactError, match="is missing"):
        check_external_data(external_model(tmp_path / "a", "weights.bin"))
    path = external_model(tmp_path / "b", "weights.bin", offset=8)
    shutil.copy(secret, tmp_path / "b/weights.bin")
    with pytest.raises(ArtifactError, match="shorter"):
        check_external_data(path)
    with pytest.raises(ArtifactError, match="unreadable offset"):
        check_external_data(external_model(tmp_path / "b", "weights.bin", offset=-1))


def test_external_data_of_a_constant_in_a_branch_is_found(tmp_path: Path) -> None:
    """The search goes through attributes and subgraphs, not only the graph's own weights."""
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    constant = helper.make_node("Constant", [], ["c"], value=weight)
    branch = helper.make_graph(
        [constant], "branch", [], [helper.make_tensor_value_info("c", 1, [1])]
    )
    node = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), str(path))

    with pytest.raises(ArtifactError, match="outside"):
        check_external_data(path)


@pytest.mark.parametrize("change", ["tail", "unknown field", "no graph", "first byte"])
def test_only_a_whole_model_proto_is_onnx(change: str, tmp_path: Path) -> None:
    """The structure is walked to the last byte; anything else is another format."""
    whole = models.quiet(models.onnx_classifier).path.read_bytes()
    changed = {
        "tail": whole + b"\x01",
        "unknown field": whole + b"\xf8\x07\x01",
        "no graph": b"\x08\x09\x12\x02me",
        "first byte": b"\x09" + whole[1:],
    }[change]
    path = tmp_path / "model.onnx"

    path.write_bytes(whole)
    assert is_onnx(whole, path)
    path.write_bytes(changed)
    assert not is_onnx(changed, path)


def test_classes_come_from_the_graph() -> None:
    """A classifier without ZipMap still tells its classes; one with ZipMap tells them by keys."""
    plain = RUNTIME.load(models.quiet(models.onnx_classifier).path, LoadOptions())
    zipmap = RUNTIME.load(models.quiet(models.onnx_zipmap).path, LoadOptions())

    assert [(o.role, o.classes) for o in plain.signature.outputs] == [
        ("label", ()),
        ("probabilities", (0, 1, 2)),
    ]
    assert zipmap.signature.outputs[1].classes == ("setosa", "versicolor", "virginica")
    assert zipmap.signature.outputs[1].shape == (-1, 3)


def test_free_axes_stay_free() -> None:
    """A symbolic dimension is -1, on axis 0 and elsewhere; any length runs."""
    model = RUNTIME.load(models.quiet(models.onnx_free_axis).path, LoadOptions())

    assert model.signature.inputs[0].shape == (-1, -1)
    assert model.run({"ids": np.ones((2, 77), np.int64)})["total"].tolist() == [77, 77]


def test_a_model_that_takes_one_row_says_so() -> None:
    """A first axis that is free in name only becomes 1, so that requests are not batched."""
    path = models.onnx_graph(
        "onnx-one-row/model.onnx",
        [("Reshape", ["x", "shape"], ["y"], {})],
        {"x": ("FLOAT", ["batch", 4])},
        {"y": ("FLOAT", ["batch", 2, 2])},
        {"shape": np.array([1, 2, 2], dtype=np.int64)},
    )

    model = RUNTIME.load(path, LoadOptions())

    assert model.signature.inputs[0].shape == (1, 4)
    assert not model.signature.has_rows
    assert model.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 2, 2)


def test_an_output_that_is_not_by_row_ends_batching() -> None:
    """Where an output's first axis does not follow the input's, rows of callers must not mix."""
    path = models.onnx_graph(
        "onnx-nonzero/model.onnx",
        [("NonZero", ["x"], ["where"], {})],
        {"x": ("FLOAT", ["batch", 4])},
        {"where": ("INT64", ["found", "many"])},
    )

    model = RUNTIME.load(path, LoadOptions())

    assert not model.signature.has_rows
    assert model.run({"x": np.ones((1, 4), np.float32)})["where"].shape == (2, 4)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("BOOL", np.bool_),
        ("UINT8", np.uint8),
        ("UINT16", np.uint16),
        ("UINT32", np.uint32),
        ("UINT64", np.uint64),
        ("INT8", np.int8),
        ("INT16", np.int16),
        ("INT32", np.int32),
        ("INT64", np.int64),
        ("FLOAT", np.float32),
        ("DOUBLE", np.float64),
    ],
)
def test_every_datatype_passes_through(kind: str, dtype: Any) -> None:
    """A tensor of each type comes back as it went in."""
    path = models.onnx_graph(
        f"onnx-{kind}/model.onnx",
        [("Identity", ["x"], ["y"], {})],
        {"x": (kind, ["n", 2])},
        {"y": (kind, ["n", 2])},
    )
    model = RUNTIME.load(path, LoadOptions())
    rows = np.array([[0, 1], [1, 1]], dtype=dtype)

    answer = model.run({"x": rows})["y"]

    assert answer.dtype == dtype
    assert answer.tolist() == rows.tolist()
