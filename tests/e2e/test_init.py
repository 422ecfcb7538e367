"""`muelle init`: each template is trained, tested by its own tests, served, and answers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muelle.core.errors import ConfigError
from muelle.templates import TEMPLATES, project_files
from tests.serving import Served

WINE = [13.2, 1.78, 2.14, 11.2, 100.0, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050.0]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
    return subprocess.run(
        command, cwd=folder, env={**env, "MUELLE_LANG": "en"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def muelle(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run one of our commands."""
    return run(folder, sys.executable, "-m", "muelle", *args)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_project_works_from_the_start(template: str, tmp_path: Path) -> None:
    """Written, trained, tested, served with no argument at all: it answers."""
    if template == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    done = muelle(tmp_path, "init", "cellar", "--template", template)
    assert done.returncode == 0, done.stderr
    assert "train.py" in done.stdout
    folder = tmp_path / "cellar"
    trained = run(folder, sys.executable, "train.py")
    assert trained.returncode == 0, trained.stderr
    tested = run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    with Served(cwd=folder) as served:
        status, answer = ask(served, template)
        assert status == 200, answer
        if template in ("fastapi", "flask"):
            assert answer == {"kinds": [0], "version": "1"}
        else:
            assert len(answer["predictions"]) == 1


def ask(served: Served, template: str) -> tuple[int, Any]:
    """Send one row as the template's README would."""
    path, body = {
        "fastapi": ("/score", {"rows": [WINE]}),
        "flask": ("/score", {"rows": [WINE]}),
        "sklearn": ("/models/cellar/predict", {"instances": [WINE]}),
        "python": ("/models/cellar/predict", {"instances": [{"area": 80, "distance": 30}]}),
        "torch": ("/models/cellar/predict", {"instances": [[0.5, 0.5]]}),
    }[template]
    status, _, answer = served.ask(
        "POST", path, json.dumps(body), {"content-type": "application/json"}
    )
    return status, json.loads(answer)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_file_is_sound(template: str) -> None:
    """Python compiles, no place is left unfilled, no file but those of a project."""
    files = project_files(template, "my-name")
    assert {"train.py", "muelle.toml", "README.md", "requirements.txt", ".gitignore",
            ".dockerignore"} <= set(files)  # fmt: skip
    for name, text in files.items():
        assert "{{" not in text, name
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """Files that are there are named and left alone; --force writes over exactly those."""
    (tmp_path / "train.py").write_text("mine")
    (tmp_path / "other.py").write_text("mine too")
    refused = muelle(tmp_path, "init", ".", "--name", "x")
    assert refused.returncode == 1
    assert "train.py" in refused.stderr
    assert not (tmp_path / "app.py").exists()
    assert muelle(tmp_path, "init", ".", "--name", "x", "--force").returncode == 0
    assert (tmp_path / "train.py").read_text() != "mine"
    assert (tmp_path / "other.py").read_text() == "mine too"


@pytest.mark.parametrize("name", ["../x", "a b", 'a"b', "A", "x" * 64, "{{name}}", "a\nb"])
def test_names_that_are_none(name: str) -> None:
    """V-29: what goes into files is a model's name and nothing else."""
    with pytest.raises(ConfigError, match="cannot be a model's name"):
        project_files("fastapi", name)
