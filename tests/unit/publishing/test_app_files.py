"""What of an application's folder travels, and which libraries it asks for."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, ConfigError
from muelle.packaging.context import place
from muelle.packaging.engines import _Stream
from muelle.publishing.app_files import app_files


def project(folder: Path, **files: str) -> Path:
    """Write files; `__` in a name stands for a dot, `___` for a slash."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(folder: Path) -> set[str]:
    """Return what would travel."""
    return set(app_files(f"{folder}/app.py:app").files)


def test_secrets_and_caches_stay(tmp_path: Path) -> None:
    """P-20: hidden files, keys, virtual environments, byte code and stores never travel."""
    project(
        tmp_path, app__py="", lib___part__py="", data__csv="1", key__pem="k", sub___tls__key="k",
        venv___x__py="", __git___config="", lib_______pycache_____x__pyc="", id_rsa="k",
        models___store__db="", models___blobs___x="",
    )  # fmt: skip
    (tmp_path / ".env").write_text("PASSWORD=1")
    (tmp_path / "lib/__pycache__").mkdir()
    (tmp_path / "lib/__pycache__/part.cpython-311.pyc").write_text("")
    assert names(tmp_path) == {"app.py", "lib/part.py", "data.csv"}


def test_the_ignore_file_counts_and_brings_no_key_back(tmp_path: Path) -> None:
    """`.dockerignore` leaves out more; an exception in it does not let a key through."""
    project(tmp_path, app__py="", big__csv="", note__txt="", server__key="k")
    (tmp_path / ".dockerignore").write_text("# big things\n*.csv\n!server.key\n!.env\n")
    (tmp_path / ".env").write_text("x")
    assert names(tmp_path) == {"app.py", "note.txt"}


def test_an_app_that_is_left_out_is_an_error(tmp_path: Path) -> None:
    """An ignore file that leaves the application itself out is a mistake."""
    project(tmp_path, app__py="")
    (tmp_path / ".dockerignore").write_text("*.py\n")
    with pytest.raises(ArtifactError, match="leaves it out"):
        names(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A link to a file elsewhere would put that file into the image."""
    project(tmp_path / "p", app__py="")
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "p/data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="a link out of the folder"):
        names(tmp_path / "p")


def test_requirements_are_read_or_found(tmp_path: Path) -> None:
    """`requirements.txt` counts; without it the imports tell, and it is said so."""
    source = "import os\nimport numpy as np\nfrom flask import Flask\nimport part\nimport muelle\n"
    project(
        tmp_path, app__py=source, part__py="import msgspec\n", tests___test_x__py="import pytest"
    )
    found = app_files(f"{tmp_path}/app.py:app")
    assert set(found.requirements) == {"numpy", "Flask", "msgspec", "muelle[flask]"}
    assert "numpy" in found.notes[0]
    (tmp_path / "requirements.txt").write_text("fastapi>=0.1\nmuelle[onnx]\n")
    found = app_files(f"{tmp_path}/app.py:app")
    assert found.requirements == ("fastapi>=0.1",)
    assert found.notes == ()


def test_names_that_are_none(tmp_path: Path) -> None:
    """A module cannot be taken along by its name alone, nor a file that is not there."""
    with pytest.raises(ConfigError, match="name the application's file"):
        app_files("shop.main:app")
    with pytest.raises(ArtifactError, match="no such file"):
        app_files(f"{tmp_path}/none.py:app")


def test_a_file_under_two_names_goes_to_the_engine_twice(tmp_path: Path) -> None:
    """Contents that share a place on the disk are whole files in the context's stream."""
    (tmp_path / "source").write_bytes(b"weights")
    for name in ("a", "b/c"):
        place(tmp_path / "source", tmp_path / "context" / name)
    assert (tmp_path / "context/a").stat().st_nlink == 3
    stream = _Stream(tmp_path / "context")
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        found = {m.name: archive.extractfile(m).read() for m in archive if m.isreg()}
    stream.close()
    assert found == {"a": b"weights", "b/c": b"weights"}
