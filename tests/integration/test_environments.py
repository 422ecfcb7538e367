"""Environments of versions, with real pip and real virtual environments.

Wheels of what a worker needs are fetched once per test run; every build after that is offline.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError
from muelle.packaging.environments import (
    build_environment,
    environment_digest,
    installed,
    read_requirements,
)
from muelle.publishing.push import Options, push
from muelle.repository.environments import READY, environment_folder, find_environment
from muelle.repository.store import Store
from tests.serving import Served

MODEL = """
import tidings
from muelle import Model, TensorSpec


class Told(Model):
    inputs = [TensorSpec(name="x", datatype="FP64", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP64", shape=(-1,))]
    example = {"x": 1.0}

    def predict(self, inputs):
        return {"y": inputs["x"] + tidings.VALUE}
"""


def make_wheel(folder: Path, version: str, value: int) -> Path:
    """Write a wheel of the made-up distribution `tidings`, whose one module holds a value."""
    info = f"tidings-{version}.dist-info"
    files = {
        "tidings.py": f"VALUE = {value}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tidings\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record.append(f"{name},sha256={digest.decode()},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    path = folder / f"tidings-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that an environment of `tidings` needs."""
    folder = tmp_path_factory.mktemp("wheels")
    needs = [f"{name}=={metadata.version(name)}" for name in ("msgspec", "numpy", "orjson")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *needs], check=True, timeout=110)
    make_wheel(folder, "1.0", 10)
    make_wheel(folder, "2.0", 20)
    return folder


def offline(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a network namespace of its own, where nothing can be reached."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    command = ["unshare", "-rn", sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


def test_a_build_from_wheels_needs_no_network(tmp_path: Path, wheels: Path) -> None:
    """Inside an empty network namespace the environment is built, and holds what was asked for."""
    program = (
        "import sys; from pathlib import Path\n"
        "from muelle.packaging.environments import build_environment, installed\n"
        "root = Path(sys.argv[1])\n"
        "made = build_environment(root, ('tidings==1.0',), wheels=Path(sys.argv[2]))\n"
        "print(installed(root, made.digest)['tidings'])\n"
    )
    done = offline(program, str(tmp_path), str(wheels))
    assert done.stdout.strip() == "1.0", done.stderr


def test_an_environment_is_shared_finished_and_made_anew_after_a_cut(
    tmp_path: Path, wheels: Path
) -> None:
    """The same lines give the same environment without pip; one that lacks its last file, as after
    a cut, counts as none and is built again."""
    told: list[str] = []
    made = build_environment(tmp_path, ("tidings==2.0",), wheels=wheels, progress=told.append)
    assert told
    assert installed(tmp_path, made.digest)["tidings"] == "2.0"
    told.clear()
    assert build_environment(tmp_path, ("tidings==2.0",), wheels=wheels).python == made.python
    assert not told
    (environment_folder(tmp_path, made.digest) / READY).unlink()
    assert find_environment(tmp_path, made.digest) is None
    leftover = environment_folder(tmp_path, made.digest) / "half"
    leftover.touch()
    build_environment(tmp_path, ("tidings==2.0",), wheels=wheels, progress=told.append)
    assert told
    assert not leftover.exists()


def test_what_cannot_be_had_is_named(tmp_path: Path, wheels: Path) -> None:
    """A version that no wheel has: the error says which, where, and how to get wheels."""
    with pytest.raises(ArtifactError, match=r"tidings==3\.0.*pip download"):
        build_environment(tmp_path, ("tidings==3.0",), wheels=wheels)
    digest = environment_digest(("tidings==3.0",))
    assert find_environment(tmp_path, digest) is None


def test_versions_with_other_libraries_serve_side_by_side(tmp_path: Path, wheels: Path) -> None:
    """Two versions of one model file against two versions of a library, in one server, whose own
    environment has neither."""
    source = tmp_path / "told.py"
    source.write_text(MODEL)
    folder = tmp_path / "store"
    with Store.open(folder, create=True) as store:
        for version in ("1.0", "2.0"):
            lines = tmp_path / f"requirements-{version}.txt"
            lines.write_text(f"tidings=={version}\n")
            options = Options(
                name="told", trust=True, requirements=lines, wheels=wheels, label=f"v{version[0]}"
            )
            (result,) = push(store, source, options, who="test")
            assert result.record.libraries["tidings"] == version
        store.set_label("told", "stable", 1, who="test")
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("tidings")
    with Served("--store", str(folder)) as served:
        for version, expected in (("1", 11.0), ("2", 21.0)):
            path = f"/models/told/versions/{version}/predict"
            status, _, body = served.ask("POST", path, '{"instances":[1.0]}')
            assert (status, json.loads(body)["predictions"]) == (200, [expected])


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--index-url=somewhere",
        "-e .",
        "tidings @ file:///tmp/x.whl",
        "./local.whl",
        "name ==",
    ],
)
def test_only_names_and_versions_are_taken(tmp_path: Path, line: str) -> None:
    """Options, addresses and paths are refused, with file and line."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"# ours\nnumpy>=1.26\n{line}\n")
    with pytest.raises(ArtifactError, match=r"requirements\.txt:3"):
        read_requirements(file)


def test_requirements_have_one_way_of_writing(tmp_path: Path) -> None:
    """Case, spaces, comments, order of extras and line breaks make no other environment."""
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text(
        "Scikit_Learn == 1.5.2  # pinned\n\njoblib[b, a]>=1.2 \\\n  ; python_version>'3'\n"
    )
    other.write_text('joblib[a,b] >= 1.2 ; python_version > "3"\nscikit-learn==1.5.2\n')
    lines = read_requirements(one)
    assert lines[0] == "scikit-learn==1.5.2"
    assert environment_digest(lines) == environment_digest(read_requirements(other))
    assert environment_digest(lines) != environment_digest(lines, python="CPython 3.12.1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pickle_of_another_scikit_learn_is_recognised_and_runs_in_its_own(tmp_path: Path) -> None:
    """An estimator saved by a real older scikit-learn: in the server's environment the worker says
    so; pushed with that version it runs there, says nothing, and gives the answers it gave."""
    import sklearn

    root = tmp_path / "store" / "environments"
    older = "1.5.2"
    assert sklearn.__version__ != older
    with Store.open(tmp_path / "store", create=True) as store:
        made = build_environment(root, (f"scikit-learn=={older}",))
        model = tmp_path / "model.joblib"
        program = (
            "import joblib, numpy as np, sys\n"
            "from sklearn.linear_model import LogisticRegression\n"
            "x = np.random.default_rng(0).normal(size=(200, 4))\n"
            "m = LogisticRegression().fit(x, (x.sum(axis=1) > 0).astype(int))\n"
            "joblib.dump(m, sys.argv[1])\n"
        )
        subprocess.run([str(made.python), "-I", "-c", program, str(model)], check=True)
        (here,) = push(store, model, Options(name="m", trust=True), who="test")
        assert any(f"made with scikit-learn {older}" in remark for remark in here.remarks)
        lines = tmp_path / "lines.txt"
        lines.write_text(f"scikit-learn=={older}\n")
        options = Options(name="m", trust=True, requirements=lines, label="stable")
        (there,) = push(store, model, options, who="test")
        assert there.record.libraries["scikit-learn"] == older
        assert not any("made with" in remark for remark in there.remarks)
    with Served("--store", str(tmp_path / "store")) as served:
        body = '{"instances":[[1.0, 1.0, 1.0, 1.0]]}'
        status, headers, _ = served.ask("POST", "/models/m/predict", body)
        assert (status, headers["muelle-version"]) == (200, str(there.record.version))
