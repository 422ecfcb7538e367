"""Which versions of which models a path holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, ConfigError
from muelle.repository.layout import Listing, list_artifacts, split_spec


def make(root: Path, *files: str) -> Path:
    """Create files (their folders come along) and return the root."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def shown(listing: Listing, root: Path) -> list[tuple[str, int, str]]:
    """A listing as plain values, paths relative to the root."""
    return [(a.model, a.version, str(a.path.relative_to(root))) for a in listing.artifacts]


def test_a_file_is_version_one_of_its_stem(tmp_path: Path) -> None:
    """The model's name is made from the file's; NAME= gives another."""
    make(tmp_path, "My Model (2).onnx")
    path = tmp_path / "My Model (2).onnx"

    assert shown(list_artifacts([str(path)]), tmp_path) == [("my-model-2", 1, path.name)]
    assert shown(list_artifacts([f"fraud={path}"]), tmp_path) == [("fraud", 1, path.name)]


def test_a_repository_is_listed_by_model_and_number(tmp_path: Path) -> None:
    """Versions sort as numbers; hidden, half-copied and other things are left alone."""
    make(
        tmp_path,
        "fraud/2/model.onnx",
        "fraud/10/model.onnx",
        "fraud/10/.hidden",
        "fraud/10/model.onnx.part",
        "fraud/notes.md",
        "fraud/01/model.onnx",
        "fraud/latest/model.onnx",
        "churn/1/weights.bin",
        "churn/1/model.onnx",
        ".git/1/config",
        "saved/3/model/graph.pb",
        "README.md",
    )

    listing = list_artifacts([str(tmp_path)])

    assert shown(listing, tmp_path) == [
        ("churn", 1, "churn/1/model.onnx"),
        ("fraud", 2, "fraud/2/model.onnx"),
        ("fraud", 10, "fraud/10/model.onnx"),
        ("saved", 3, "saved/3/model"),
    ]
    assert listing.problems == ()


def test_one_models_folder_is_its_versions(tmp_path: Path) -> None:
    """The folder of one model may be given by itself, with another name if wanted."""
    make(tmp_path, "fraud/1/m.onnx", "fraud/2/m.onnx")

    assert shown(list_artifacts([str(tmp_path / "fraud")]), tmp_path) == [
        ("fraud", 1, "fraud/1/m.onnx"),
        ("fraud", 2, "fraud/2/m.onnx"),
    ]
    assert [a.model for a in list_artifacts([f"a={tmp_path / 'fraud'}"]).artifacts] == ["a", "a"]


def test_a_folder_artifact_is_asked_for(tmp_path: Path) -> None:
    """What the caller calls an artifact is one, by itself and as a version."""
    make(tmp_path, "saved/graph.pb", "repo/m/1/graph.pb", "repo/m/1/vars.bin")

    def is_saved(path: Path) -> bool:
        return (path / "graph.pb").exists()

    alone = list_artifacts([str(tmp_path / "saved")], is_artifact_folder=is_saved)
    listed = list_artifacts([str(tmp_path / "repo")], is_artifact_folder=is_saved)

    assert shown(alone, tmp_path) == [("saved", 1, "saved")]
    assert shown(listed, tmp_path) == [("m", 1, "repo/m/1")]


def test_a_bad_version_does_not_hide_the_others(tmp_path: Path) -> None:
    """What cannot be used is told, and the rest is listed."""
    make(tmp_path, "good/1/m.onnx", "both/1/a.onnx", "both/1/b.onnx", "none/m.onnx")
    (tmp_path / "good/2").mkdir()

    listing = list_artifacts([str(tmp_path)])

    assert shown(listing, tmp_path) == [("good", 1, "good/1/m.onnx")]
    empty, both, none = sorted(listing.problems, key=lambda p: ("good" not in p, p))
    assert "it is empty" in empty
    assert "which of a.onnx, b.onnx is the artifact" in both
    assert "no version in it" in none


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{root}/fruad.onnx", r"no such file or folder; near it is: fraud\.onnx"),
        ("{root}/fraud.joblib", r"near it is: fraud\.onnx"),
        ("{root}/zzz", r"no such file or folder\Z"),
        ("{root}", r"it holds files \(fraud\.onnx\), a repository's layout is <model>/<version>"),
        ("{root}/empty", "no model in it: it is empty"),
        ("all={root}/repo", "names its models itself"),
    ],
)
def test_an_error_says_what_where_and_what_to_do(spec: str, message: str, tmp_path: Path) -> None:
    """A path that holds nothing gets near names, or the layout that was looked for."""
    make(tmp_path, "fraud.onnx", "repo/m/1/m.onnx")
    (tmp_path / "empty").mkdir()
    if spec == "{root}":
        (tmp_path / "repo/m/1/m.onnx").unlink()
        for folder in ("repo/m/1", "repo/m", "repo"):
            (tmp_path / folder).rmdir()

    with pytest.raises(ArtifactError, match=message):
        list_artifacts([spec.replace("{root}", str(tmp_path))])


def test_two_specs_may_not_give_one_version_twice(tmp_path: Path) -> None:
    """The error names both paths, and the way out."""
    make(tmp_path, "a/m.onnx", "b/m.onnx")
    specs = [str(tmp_path / "a/m.onnx"), str(tmp_path / "b/m.onnx")]

    with pytest.raises(ConfigError, match="both version 1 of 'm'; name one of them otherwise"):
        list_artifacts(specs)
    assert len(list_artifacts([specs[0], f"other={specs[1]}"]).artifacts) == 2


def test_a_name_is_split_off_only_where_it_is_one(tmp_path: Path) -> None:
    """An equals sign inside an existing path is part of the path."""
    make(tmp_path, "a=b.onnx")

    assert split_spec("fraud=b.onnx") == ("fraud", Path("b.onnx"))
    assert split_spec(str(tmp_path / "a=b.onnx")) == (None, tmp_path / "a=b.onnx")
    assert split_spec("dir/a=b.onnx") == (None, Path("dir/a=b.onnx"))
    with pytest.raises(ConfigError, match=r"for example fraud-model=b\.onnx"):
        split_spec("Fraud Model=b.onnx")
