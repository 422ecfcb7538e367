"""Plain repository folders are followed: versions that come, go, change, or are half there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muelle import Client
from muelle.core.errors import MuelleError
from tests.serving import Served, eventually
from tests.stores import stamped

BODY = '{"inputs":{"x":[1.0]}}'


def put(folder: Path, version: int, stamp: int | None = None) -> Path:
    """Write a version's file; `stamp` is the number that its answers carry."""
    file = folder / "stamped" / str(version) / "model.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(stamped(version if stamp is None else stamp))
    return file


def answer(served: Served) -> tuple[int, str, int]:
    """Return status, version by the header, and stamp by the values."""
    status, headers, body = served.ask("POST", "/models/stamped/predict", BODY)
    stamp = json.loads(body)["predictions"][0]["stamp"] if status == 200 else -1
    return status, headers.get("muelle-version", ""), stamp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with version 1."""
    put(tmp_path / "repository", 1)
    return tmp_path / "repository"


def test_versions_come_change_and_go_while_the_server_runs(folder: Path) -> None:
    """A new version takes over, a replaced file is loaded anew, a removed version leaves the one
    before; and every answer is of a whole version."""
    with Served("--trust", str(folder), "--poll-s", "0.1") as served:
        assert answer(served) == (200, "1", 1)
        file = put(folder, 2)
        eventually(lambda: answer(served) == (200, "2", 2))
        file.write_text(stamped(22))
        eventually(lambda: answer(served) == (200, "2", 22))
        file.unlink()
        file.parent.rmdir()
        eventually(lambda: answer(served) == (200, "1", 1))


def test_a_half_copied_version_is_never_loaded(folder: Path) -> None:
    """A file that grows in pieces, each of them a broken model, is touched by no worker until it
    lies still."""
    with Served("--trust", str(folder), "--poll-s", "0.1") as served:
        whole = stamped(2)
        file = put(folder, 2)
        file.write_text("")
        pieces = [whole[: len(whole) * n // 12] for n in range(1, 12)]
        for piece in pieces:
            file.write_text(piece)
            for _ in range(15):
                assert answer(served) == (200, "1", 1)
        file.write_text(whole)
        eventually(lambda: answer(served) == (200, "2", 2))
        assert not [line for line in served.log if "will not answer" in line]


def test_a_broken_replacement_leaves_the_old_content(folder: Path) -> None:
    """The same version with a file that cannot be loaded: the workers of the old content go on."""
    with Served("--trust", str(folder), "--poll-s", "0.1") as served:
        (folder / "stamped/1/model.py").write_text("raise RuntimeError('broken')\n")
        served.wait_for_line("will not answer")
        assert answer(served) == (200, "1", 1)
        put(folder, 1, stamp=11)
        eventually(lambda: answer(served) == (200, "1", 11))


def test_control_none_keeps_what_there_was(folder: Path, tmp_path: Path) -> None:
    """--control none: a new version is not even looked at, also when told to sync."""
    socket = str(tmp_path / "a.sock")
    options = ("--control", "none", "--poll-s", "0.05", "--admin-socket", socket)
    with Served("--trust", str(folder), *options) as served:
        put(folder, 2)
        for _ in range(50):
            assert answer(served) == (200, "1", 1)


def test_control_explicit_loads_only_when_told(folder: Path, tmp_path: Path) -> None:
    """--control explicit: nothing runs at the start; the management API loads and unloads."""
    put(folder, 2)
    socket = str(tmp_path / "a.sock")
    options = ("--control", "explicit", "--admin-socket", socket, "--keep-warm-s", "0")
    with Served("--trust", str(folder), *options) as served, Client(socket=socket) as admin:
        assert served.worker_pids() == []
        assert answer(served)[0] == 503
        assert served.ask("GET", "/ready")[0] == 200
        admin.load("stamped", 1)
        assert answer(served) == (200, "1", 1)
        admin.load("stamped")
        assert answer(served) == (200, "2", 2)
        admin.unload("stamped", 2)
        eventually(lambda: answer(served) == (200, "1", 1))
        admin.unload("stamped")
        eventually(lambda: answer(served)[0] == 503)
        eventually(lambda: served.worker_pids() == [])
        with pytest.raises(MuelleError, match="no model 'stampd'; near: stamped"):
            admin.load("stampd")


def test_files_have_no_labels(folder: Path, tmp_path: Path) -> None:
    """Labels, routes and rollouts need a store, and the answer says how to get one."""
    socket = str(tmp_path / "a.sock")
    with (
        Served("--trust", str(folder), "--admin-socket", socket),
        Client(socket=socket) as admin,
        pytest.raises(MuelleError, match="muelle push"),
    ):
        admin.set_label("stamped", "stable", 1)
