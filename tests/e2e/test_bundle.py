"""A bundle's whole way as a user goes it: packed here, a server there from nothing but Python.

The wheels are those that are installed here, packed again: no index is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.packaging.bundle import BundleHeader, Member, write_bundle
from muelle.packaging.bundle_read import extract, read_member, verify_bundle
from muelle.packaging.signing import new_key, write_keys
from tests import models
from tests.e2e.test_store_cli import Commands

Words = list[Any]
"""A command line: texts and paths."""

LIMIT_S = 400
"""Of one step; the machines that run this are shared."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A store with an ONNX model."""
    commands = Commands(tmp_path_factory.mktemp("origin") / "store")
    commands.ok("push", models.onnx_classifier().path, "--name", "fraud")
    return commands


@pytest.fixture(scope="module")
def bundle(origin: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of it, with wheels. Read it, do not change it."""
    path = tmp_path_factory.mktemp("bundle") / "fraud.muelle"
    shown = json.loads(origin.ok("bundle", "fraud", "--wheels", "installed", "-o", path, "--json"))
    assert shown["versions"][0]["labels"] == ["stable"]
    assert shown["parts"]["wheel"] > 1_000_000
    return path


@pytest.fixture(scope="module")
def small(origin: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without wheels."""
    path = tmp_path_factory.mktemp("small") / "fraud.muelle"
    origin.ok("bundle", "fraud", "--no-wheels", "-o", path)
    return path


@pytest.fixture
def there(tmp_path: Path) -> Commands:
    """Another store, on another machine so to say."""
    return Commands(tmp_path / "there")


# --- muelle import ---


def test_import_takes_the_versions_once(there: Commands, small: Path) -> None:
    """The first import publishes and moves stable; the second says unchanged."""
    first = there.ok("import", small)
    assert "fraud:1 imported" in first
    assert "fraud@stable -> 1" in first
    assert "unchanged" in there.ok("import", small)
    assert there.json("import", small)[0]["created"] is False
    assert there.ok("verify")
    assert ("import", True) in there.audit()


def test_a_label_moves_when_it_is_asked_for(there: Commands, small: Path) -> None:
    """`--label canary` names what came in, and stable is left where it was."""
    there.ok("push", models.onnx_halves().path, "--name", "fraud")
    shown = there.ok("import", small, "--label", "canary")
    assert "fraud@canary -> 2" in shown
    assert "stable" not in shown
    assert "fraud@stable -> 2" in there.ok("import", small, "--labels")


def test_check_takes_nothing_in(there: Commands, small: Path) -> None:
    """It says that the bundle is whole and what it holds; no store is made."""
    assert "fraud:1" in there.ok("import", "--check", small)
    assert there.json("import", "--check", small)["versions"] == ["fraud:1"]
    assert not there.store.exists()


def test_a_bundle_that_was_cut_off_is_refused(there: Commands, small: Path, tmp_path: Path) -> None:
    """One line with the member; nothing is made."""
    cut = tmp_path / "cut.muelle"
    (weights,) = verify_bundle(small).of_kind("model")
    cut.write_bytes(small.read_bytes()[: weights.offset + 100])
    line = there.refused("import", cut)
    assert f"cut.muelle is cut off in {weights.name}: 100 of" in line
    assert line.endswith("copy it again")
    assert not there.store.exists()


def test_a_key_is_wanted_of_a_bundle_without_signature(
    there: Commands, small: Path, tmp_path: Path
) -> None:
    """--key takes what is signed, and nothing else."""
    key = tmp_path / "maker.pub"
    key.write_text("none")
    assert "it is not signed" in there.refused("import", small, "--key", key)


def test_a_signed_bundle_is_taken_from_its_maker_only(
    origin: Commands, there: Commands, tmp_path: Path
) -> None:
    """With the maker's key; not with another's, and not when the signature is another's."""
    for name in ("maker", "other"):
        write_keys(tmp_path / name, new_key())
    path = tmp_path / "signed.muelle"
    origin.ok("bundle", "fraud", "--no-wheels", "--sign", tmp_path / "maker.key", "-o", path)
    assert "signed by key" in there.ok("import", "--check", path, "--key", tmp_path / "maker.pub")
    there.refused("import", path, "--key", tmp_path / "other.pub")
    assert not there.store.exists()
    keys = ["--key", tmp_path / "other.pub", "--key", tmp_path / "maker.pub"]
    assert "fraud:1 imported" in there.ok("import", path, *keys)


def test_the_list_of_parts_holds_every_package_and_model(bundle: Path) -> None:
    """CycloneDX: each wheel with its hash and licence, each version with its digest."""
    index = verify_bundle(bundle)
    found = json.loads(read_member(bundle, index, "sbom.cdx.json"))
    hashes = {one["content"] for part in found["components"] for one in part.get("hashes", ())}
    assert {entry.sha256 for entry in index.of_kind("wheel")} <= hashes
    assert index.versions[0].digest.removeprefix("sha256:") in hashes
    numpy = next(part for part in found["components"] if part["name"] == "numpy")
    assert "BSD" in json.dumps(numpy["licenses"])
    assert "numpy/__init__.py" in json.dumps(numpy)


def test_a_bundle_that_fails_leaves_nothing(origin: Commands, tmp_path: Path) -> None:
    """A folder of wheels that lacks some, an image that is none, an application."""
    target = tmp_path / "x.muelle"
    (tmp_path / "wheels").mkdir()
    arguments: Words = ["bundle", "fraud", "-o", target]
    assert "no wheel for" in origin.refused(*arguments, "--wheels", tmp_path / "wheels")
    (tmp_path / "image.tar").write_bytes(b"no image")
    origin.refused(*arguments, "--no-wheels", "--image", tmp_path / "image.tar")
    origin.refused(*arguments, "--no-wheels", "--deploy", tmp_path / "missing")
    origin.refused("bundle", "fraud:7", "-o", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "wheels"]


def test_a_bundle_without_wheels_is_no_server(there: Commands, small: Path, tmp_path: Path) -> None:
    """It says what it is for."""
    line = there.refused("install-server", small, "--to", tmp_path / "server")
    assert "it holds no wheels" in line
    assert "muelle import" in line
    assert not (tmp_path / "server").exists()


# --- install-server ---


def python_alone() -> list[str]:
    """The interpreter below every environment, without any site-packages."""
    return [getattr(sys, "_base_executable", sys.executable), "-I", "-S"]


def without_network() -> list[str]:
    """What starts a program in a network namespace without any interface, where that is allowed."""
    tool = shutil.which("unshare")
    command = [tool or "unshare", "--map-root-user", "--net"]
    if (
        tool
        and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    ):
        return command
    return []


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: Words, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with nothing of this process's environment."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        timeout=LIMIT_S,
        check=False,
    )


def ask(url: str, rows: Any) -> dict[str, Any]:
    """Ask the model `fraud` for these rows."""
    body = {
        "inputs": [
            {
                "name": "X",
                "datatype": "FP32",
                "shape": list(rows.shape),
                "data": rows.ravel().tolist(),
            }
        ]
    }
    request = urllib.request.Request(
        f"{url}/v2/models/fraud/infer",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in found["outputs"]}


@contextlib.contextmanager
def stopped_at_the_end(server: Path) -> Iterator[None]:
    """End the server that was started from this folder, whatever the test found."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((server / "server.pid").read_text()), signal.SIGTERM)


KILLED = """
import os, signal, sys
from pathlib import Path
from muelle.packaging import bundle_start
from muelle.packaging.install_server import Options, install

def say(text):
    if text.startswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

install(Options(Path(sys.argv[1]), Path(sys.argv[2]), start=False), say, bundle_start.Texts("en"))
"""


@pytest.mark.timeout(3 * LIMIT_S)
def test_a_server_from_nothing_but_python(bundle: Path, tmp_path: Path) -> None:
    """Killed, gone on with, without a network: then it answers as the model itself does.

    The interpreter has no site-packages, and nothing of this test's environment. A second run finds
    the server running and changes nothing.
    """
    server = tmp_path / "a server"
    shutil.copy(bundle, tmp_path / "fraud.muelle")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, bundle, server, "taking"], check=False, timeout=LIMIT_S
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (server / "venv").exists()  # Nothing that looks like a server yet.
    port = free_port()
    command = [
        *python_alone(),
        "fraud.muelle",
        "install-server",
        "--to",
        server,
        "--port",
        str(port),
    ]

    installed = run([*without_network(), *command, "--no-start"], tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert "installed; start it" in installed.stderr
    assert not (server / "server.pid").exists()

    url = f"http://127.0.0.1:{port}"
    with stopped_at_the_end(server):
        started = run(command, tmp_path)
        assert started.returncode == 0, started.stderr + _log(server)
        assert f"the server runs on {url}" in started.stderr
        assert "the packages are installed already" in started.stderr

        saved = models.onnx_classifier()
        answer = ask(url, saved.inputs["X"])
        np.testing.assert_array_equal(answer["label"], saved.expected["label"])
        np.testing.assert_allclose(
            answer["probabilities"], saved.expected["probabilities"], rtol=1e-4, atol=1e-6
        )

        pid = (server / "server.pid").read_text()
        again = run(command, tmp_path)
        assert again.returncode == 0, again.stderr
        assert f"the server runs already on {url} (process {pid.strip()})" in again.stderr
        assert (server / "server.pid").read_text() == pid
    left = {path.name for path in server.iterdir()}
    assert "unpacked" not in left
    assert {"venv", "venvs", "store", "start", "muelle.service", "server.log"} <= left


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_bundle_without_pip_unpacks_its_wheels_itself(bundle: Path, tmp_path: Path) -> None:
    """The same server, from a bundle whose pip was left out; the command is there too."""
    index = verify_bundle(bundle)
    kept = [entry for entry in index.members if not entry.name.startswith("wheels/pip-")]
    assert len(kept) == len(index.members) - 1
    extract(bundle, index, [entry.name for entry in kept], tmp_path / "members")
    members = [Member(e.name, e.kind, tmp_path / "members" / e.name) for e in kept]
    header = BundleHeader(
        epoch=index.epoch, platform=index.platform, python=index.python, versions=index.versions
    )
    write_bundle(tmp_path / "nopip.muelle", members, header)
    server = tmp_path / "server"
    command: Words = [
        *python_alone(),
        "nopip.muelle",
        "install-server",
        "--to",
        server,
        "--no-start",
    ]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    listed = run([server / "venv/bin/muelle", "list", "--store", server / "store"], tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "fraud" in listed.stdout


def test_the_installer_is_taken_out_of_a_large_bundle(bundle: Path, tmp_path: Path) -> None:
    """Python cannot run a ZIP file of more than 4 GB; its README says how to go on."""
    readme = read_member(bundle, verify_bundle(bundle), "README.md").decode()
    shutil.copy(bundle, tmp_path / "NAME.muelle")
    (line,) = [one for one in readme.splitlines() if "'installer'" in one]
    code = line.strip().removeprefix('python3 -c "').removesuffix('"')
    assert run([*python_alone(), "-c", code], tmp_path).returncode == 0
    checked = run([*python_alone(), "installer", "check", "NAME.muelle"], tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "NAME.muelle: whole" in checked.stderr
    unnamed = run([*python_alone(), "installer", "check"], tmp_path)
    assert unnamed.returncode == 2
    assert "name the bundle" in unnamed.stderr


def _log(server: Path) -> str:
    log = server / "server.log"
    return log.read_text(errors="replace") if log.exists() else ""
