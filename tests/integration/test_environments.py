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
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, MuelleError
from muelle.packaging.environments import (
    Environment,
    build_environment,
    environment_digest,
    installed,
    read_requirements,
)
from muelle.publishing.push import Options, push
from muelle.repository.environments import READY, environment_folder, find_environment
from muelle.repository.store import Store
from tests import models
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


def test_requirements_beside_a_model_need_trust(tmp_path: Path, wheels: Path) -> None:
    """A safe format with a requirements.txt of a stranger: nothing of it is installed without
    --trust, neither at the push nor at the pull of what somebody else pushed; with
    --no-environment the model is taken without."""
    from muelle.publishing import transfer

    saved = models.quiet(models.onnx_classifier)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(saved.path, folder / "model.onnx")
    (folder / "requirements.txt").write_text("tidings==1.0\n")
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(ArtifactError, match=r"tidings==1\.0 is not here.*--trust"):
            push(store, folder, Options(name="m", wheels=wheels), who="test")
        assert not list((tmp_path / "store" / "environments").glob("*/bin"))
        options = Options(name="m", own_environment=False)
        (result,) = push(store, folder, options, who="test")
        assert not result.record.environment
    source = tmp_path / "told.py"
    source.write_text(MODEL)
    lines = tmp_path / "lines.txt"
    lines.write_text("tidings==1.0\n")
    with Store.open(tmp_path / "other", create=True) as other:
        options = Options(name="told", trust=True, requirements=lines, wheels=wheels)
        push(other, source, options, who="test")
    with Store.open(tmp_path / "store") as store, pytest.raises(ArtifactError, match="--trust"):
        transfer.pull(store, tmp_path / "other", "told:1", who="test")


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


def test_a_pin_that_does_not_hold_here_leaves_the_worker_its_libraries(
    tmp_path: Path, wheels: Path
) -> None:
    """A line for another Python names numpy, but does not install it."""
    lines = ('numpy<1.0 ; python_version < "3"', "tidings==1.0")
    made = build_environment(tmp_path, lines, wheels=wheels)
    assert {"msgspec", "numpy", "orjson", "tidings"} <= set(installed(tmp_path, made.digest))


def test_hashes_are_checked(tmp_path: Path, wheels: Path) -> None:
    """A wheel with the stated hash is taken, another is not."""
    wheel = wheels / "tidings-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    made = build_environment(tmp_path, (f"tidings==1.0 --hash=sha256:{digest}",), wheels=wheels)
    assert installed(tmp_path, made.digest)["tidings"] == "1.0"
    wrong = f"tidings==1.0 --hash=sha256:{'0' * 64}"
    with pytest.raises(ArtifactError, match="(?i)hash"):
        build_environment(tmp_path, (wrong,), wheels=wheels)
    assert find_environment(tmp_path, environment_digest((wrong,))) is None


def test_what_pip_puts_elsewhere_is_no_environment(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone's pip configuration has a target folder: that is told, instead of a worker that
    cannot start."""
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    with pytest.raises(ArtifactError, match="pip config list"):
        build_environment(tmp_path / "root", ("tidings==1.0",), wheels=wheels)
    assert find_environment(tmp_path / "root", environment_digest(("tidings==1.0",))) is None


def test_two_builders_at_once_make_one(tmp_path: Path, wheels: Path) -> None:
    """The second waits for the first, and takes what it made."""
    told: list[list[str]] = [[], []]

    def build(i: int) -> Environment:
        return build_environment(
            tmp_path, ("tidings==1.0",), wheels=wheels, progress=told[i].append
        )

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(build, range(2))
    assert one == other
    assert sorted(map(bool, told)) == [False, True]


def freeze() -> set[tuple[str, str]]:
    """Return what this environment, the server's, holds."""
    return {(d.name, d.version) for d in metadata.distributions()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pickle_that_only_its_own_version_reads(tmp_path: Path) -> None:
    """A boosting model of a real scikit-learn 1.3, whose loss module has gone since: refused here
    with the advice that, followed, serves it beside another NumPy; nothing changes here."""
    older, before = "1.3.2", freeze()
    root = tmp_path / "store" / "environments"
    lines = tmp_path / "lines.txt"
    lines.write_text(f"scikit-learn=={older}\nnumpy<2\n")
    with Store.open(tmp_path / "store", create=True) as store:
        made = build_environment(root, read_requirements(lines))
        model = tmp_path / "model.joblib"
        program = (
            "import joblib, numpy as np, sys\n"
            "from sklearn.ensemble import GradientBoostingRegressor\n"
            "x = np.random.default_rng(0).normal(size=(50, 2))\n"
            "m = GradientBoostingRegressor(n_estimators=5, random_state=0).fit(x, x.sum(axis=1))\n"
            "joblib.dump(m, sys.argv[1])\n"
            "print(m.predict([[1.0, 2.0]])[0])\n"
        )
        command = [str(made.python), "-I", "-c", program, str(model)]
        expected = float(subprocess.run(command, check=True, capture_output=True).stdout)
        with pytest.raises(MuelleError, match=rf"saved by scikit-learn {older}.*--requirements"):
            push(store, model, Options(name="m", trust=True), who="test")
        options = Options(name="m", trust=True, requirements=lines, label="stable")
        (there,) = push(store, model, options, who="test")
        assert there.record.libraries["scikit-learn"] == older
        assert there.record.libraries["numpy"].startswith("1.")
    with Served("--store", str(tmp_path / "store")) as served:
        status, _, body = served.ask("POST", "/models/m/predict", '{"instances":[[1.0, 2.0]]}')
        assert (status, json.loads(body)["predictions"]) == (200, [pytest.approx(expected)])
    assert freeze() == before


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
            "print(m.predict_proba([[1.0, 1.0, 1.0, 1.0]])[0, 1])\n"
        )
        command = [str(made.python), "-I", "-c", program, str(model)]
        expected = float(subprocess.run(command, check=True, capture_output=True).stdout)
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
        status, headers, answer = served.ask("POST", "/models/m/predict", body)
        assert (status, headers["muelle-version"]) == (200, str(there.record.version))
        (told,) = json.loads(answer)["predictions"]
        assert told["probabilities"]["1"] == pytest.approx(expected)
