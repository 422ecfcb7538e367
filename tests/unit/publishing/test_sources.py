"""What a pushed path holds: files, folders, and the layouts of other servers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, BadRequest
from muelle.publishing.requirements import unmet
from muelle.publishing.sources import find
from tests import models


@pytest.fixture
def onnx() -> Path:
    """A model file."""
    return models.onnx_classifier().path


def test_a_file_is_one_version(onnx: Path) -> None:
    """The name is the file's, unless it is given."""
    (found,) = find(onnx)
    assert (found.model, found.source, found.artifact, found.number) == (
        "model",
        onnx,
        "model.onnx",
        0,
    )
    assert (found.runtime.name, found.format.name) == ("onnx", "ONNX")
    assert find(onnx, name="fraud")[0].model == "fraud"


def test_a_folder_with_one_model_takes_its_other_files_along(onnx: Path, tmp_path: Path) -> None:
    """What lies beside the model belongs to the version; which file is the model must be clear."""
    folder = tmp_path / "My Fraud"
    folder.mkdir()
    shutil.copy(onnx, folder / "net.onnx")
    (folder / "notes.md").write_text("trained on Monday")
    (folder / "requirements.txt").write_text("numpy\n")
    (found,) = find(folder)
    assert (found.model, found.source, found.artifact) == ("my-fraud", folder, "net.onnx")
    assert found.requirements == folder / "requirements.txt"

    shutil.copy(onnx, folder / "other.onnx")
    with pytest.raises(ArtifactError, match="which of net.onnx, other.onnx is the model"):
        find(folder)
    assert find(folder, artifact="other.onnx")[0].artifact == "other.onnx"
    shutil.copy(onnx, folder / "model.onnx")
    assert find(folder)[0].artifact == "model.onnx"


def test_a_repository_gives_its_versions_in_order(onnx: Path, tmp_path: Path) -> None:
    """`<model>/<version>/<artifact>` keeps its numbers; a lone file is the version by itself."""
    for place in ("a/10", "a/2", "b/1"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(onnx, tmp_path / place / "model.onnx")
    (tmp_path / "b/1/labels.txt").write_text("yes\nno\n")
    found = find(tmp_path)
    assert [(one.model, one.number, one.artifact) for one in found] == [
        ("a", 2, "model.onnx"),
        ("a", 10, "model.onnx"),
        ("b", 1, "model.onnx"),
    ]
    assert [one.source.name for one in found] == ["model.onnx", "model.onnx", "1"]
    assert [one.model for one in find(tmp_path / "a", name="c")] == ["c", "c"]
    with pytest.raises(BadRequest, match="several models"):
        find(tmp_path, name="c")


def test_what_cannot_be_pushed_is_told(onnx: Path, tmp_path: Path) -> None:
    """Mistyped paths, names that cannot be, folders without a model, and paths that leave them."""
    with pytest.raises(ArtifactError, match=r"near it is: model\.onnx"):
        find(onnx.parent / "modle.onnx")
    with pytest.raises(BadRequest, match="perhaps 'my-model'"):
        find(onnx, name="My Model")
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(ArtifactError, match="no file of a known format"):
        find(tmp_path)
    with pytest.raises(ArtifactError, match="no such file"):
        find(onnx.parent, artifact="../../etc/passwd")


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("numpy", 0),
        ("numpy>=1.20", 0),
        ("NumPy>=1.20 --hash=sha256:00", 0),
        ("numpy<1", 1),
        ("no-such-distribution==1", 1),
        ("no-such-distribution==1; python_version < '3'", 0),
    ],
)
def test_requirements_that_are_met_need_no_environment(line: str, missing: int) -> None:
    """Only what is not here, in the version that is asked, makes an environment necessary."""
    assert len(unmet([line])) == missing


def test_what_is_ignored_is_not_missing() -> None:
    """MLflow names itself in every folder, also where it is not needed."""
    assert unmet(["mlflow==1.0"], ["mlflow"]) == []


def test_the_same_library_under_another_name_is_not_missing() -> None:
    """MLflow writes `xgboost`; here the same library is installed as `xgboost-cpu`, or the other
    way round. Its version counts."""
    assert unmet(["xgboost>=1"]) == []
    assert len(unmet(["xgboost==0.1"])) == 1


def test_old_mlflow_folders_say_what_they_need_in_conda_yaml(tmp_path: Path) -> None:
    """requirements.txt comes first; conda.yaml counts only in an MLflow folder."""
    (tmp_path / "model.py").write_text("import muelle\nclass M(muelle.Model): ...\n")
    (tmp_path / "conda.yaml").write_text("dependencies: [{pip: [numpy]}]\n")
    assert find(tmp_path, artifact="model.py")[0].requirements is None
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    assert find(tmp_path)[0].requirements == tmp_path / "conda.yaml"
    (tmp_path / "requirements.txt").write_text("numpy\n")
    assert find(tmp_path)[0].requirements == tmp_path / "requirements.txt"
