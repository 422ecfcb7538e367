"""Signed versions, bundles and images from the command line, and a server that insists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models
from tests.serving import Served


def muelle(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
    return subprocess.run(
        [sys.executable, "-m", "muelle", *args],
        cwd=folder, env={**env, "MUELLE_LANG": "en"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs, and a store with a version signed by the first of them."""
    folder = tmp_path_factory.mktemp("signing")
    for name in ("ours", "theirs"):
        assert muelle(folder, "keygen", name).returncode == 0
    path = str(models.quiet(models.onnx_classifier).path)
    done = muelle(folder, "push", path, "--name", "fraud", "--store", "st", "--sign", "ours.key")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_signed_version_verifies(place: Path) -> None:
    """By the right key: yes. By another one: no, and the exit code says so."""
    good = muelle(place, "verify", "fraud", "--store", "st", "--key", "ours.pub")
    assert good.returncode == 0, good.stderr
    assert "signed by ours.pub" in good.stdout
    bad = muelle(place, "verify", "fraud", "--store", "st", "--key", "theirs.pub")
    assert bad.returncode == 1
    assert "none of the keys that count" in bad.stderr


def test_a_server_that_insists(place: Path) -> None:
    """`--require-signature`: the right key serves; another one is told which was expected."""
    with Served("--store", f"{place}/st", "--require-signature", f"{place}/ours.pub") as served:
        assert served.ask("GET", "/v2/models/fraud/ready")[0] == 200
    with Served("--store", f"{place}/st", "--require-signature", f"{place}/theirs.pub") as served:
        status, _, body = served.ask("GET", "/models/fraud")
        assert status == 200
        assert "none of the keys that count" in json.dumps(json.loads(body))
        assert served.ask("GET", "/ready")[0] == 503


def test_a_content_that_was_changed_is_not_served(place: Path, tmp_path: Path) -> None:
    """A file of the store that somebody changes does not pass, whatever its record says."""
    subprocess.run(["cp", "-r", str(place / "st"), str(tmp_path / "st")], check=True)
    (blob,) = [p for p in (tmp_path / "st/blobs").rglob("*") if p.is_file()]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    with Served("--store", f"{tmp_path}/st", "--require-signature", f"{place}/ours.pub") as served:
        assert served.ask("GET", "/ready")[0] == 503


def test_plain_files_need_their_signature_beside_them(place: Path, tmp_path: Path) -> None:
    """`model.onnx.sig`: without it the server does not start, with it it does."""
    model = tmp_path / "model.onnx"
    model.write_bytes(models.quiet(models.onnx_classifier).path.read_bytes())
    args = ("serve", str(model), "--port", "0", "--require-signature", "ours.pub")
    refused = muelle(place, *args)
    assert refused.returncode == 1
    assert "not signed (model.onnx.sig)" in refused.stderr
    assert muelle(place, "sign", str(model), "--key", "ours.key").returncode == 0
    with Served(str(model), "--require-signature", f"{place}/ours.pub") as served:
        assert served.ask("GET", "/ready")[0] == 200
    with open(model, "ab") as stream:
        stream.write(b"\0")
    assert "not the file that was signed" in muelle(place, *args).stderr


def test_a_signed_bundle_carries_its_versions_signatures(place: Path) -> None:
    """The bundle verifies by its key; after the import the version does, too."""
    made = muelle(place, "bundle", "fraud", "--store", "st", "-o", "f.muelle", "--sign", "ours.key",
                  "--no-wheels")  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert muelle(place, "verify", "f.muelle", "--key", "ours.pub").returncode == 0
    wrong = muelle(place, "import", "f.muelle", "--store", "other", "--key", "theirs.pub")
    assert wrong.returncode == 1
    assert not (place / "other/store.db").exists() or "fraud" not in muelle(
        place, "list", "--store", "other"
    ).stdout  # fmt: skip
    done = muelle(place, "import", "f.muelle", "--store", "other", "--key", "ours.pub")
    assert done.returncode == 0, done.stderr
    good = muelle(place, "verify", "fraud", "--store", "other", "--key", "ours.pub")
    assert good.returncode == 0, good.stderr


def test_a_key_that_is_not_there_stops_a_push_before_it_begins(place: Path) -> None:
    """Nothing is published when it could not be signed."""
    path = str(models.quiet(models.onnx_classifier).path)
    done = muelle(place, "push", path, "--name", "late", "--store", "st", "--sign", "none.key")
    assert done.returncode == 2
    assert "none.key" in done.stderr
    assert "late" not in muelle(place, "list", "--store", "st").stdout
