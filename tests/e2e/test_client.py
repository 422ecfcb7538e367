"""The Python client against a real server: predictions, management, errors, addresses."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muelle import AsyncClient, Client
from muelle.client import ServerUnreachable
from muelle.core import errors
from tests import models
from tests.serving import Served
from tests.stores import label, push_stamped

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two versions, the first one stable."""
    push_stamped(tmp_path / "store", 1, 2)
    label(tmp_path / "store", "stamped", "stable", 1)
    return tmp_path / "store"


def test_predictions_are_typed_and_name_their_version(folder: Path) -> None:
    """Sync and async, all forms of inputs, a pinned version, chosen outputs."""
    x = np.array([1.0, 2.0])
    with Served("--store", str(folder)) as served:
        url = f"http://127.0.0.1:{served.port}"
        with Client(url) as client:
            found = client.predict("stamped", {"x": x})
            assert found["y"].tolist() == [3.0, 5.0]
            assert found["stamp"].dtype == np.int64
            assert (found.model, found.version) == ("stamped", "1")
            assert found.digest.startswith("sha256:")
            assert client.predict("stamped", [{"x": 1.0}], outputs=["y"]).array().tolist() == [3.0]
            assert client.live() and client.ready()
            assert "muelle_requests_total" in client.metrics()
            assert [m.name for m in client.models()] == ["stamped"]
            with pytest.raises(errors.VersionNotFound):
                client.predict("stamped", {"x": x}, version=9)
            with pytest.raises(errors.ModelNotFound, match="near: stamped"):
                client.predict("stampd", {"x": x})
            with pytest.raises(errors.BadRequest, match="several outputs"):
                client.predict("stamped", {"x": x}).array()

        async def ask() -> list[list[float]]:
            async with AsyncClient(url) as client:
                calls = [client.predict("stamped", {"x": [float(n)]}) for n in range(20)]
                return [answer["y"].tolist() for answer in await asyncio.gather(*calls)]

        assert asyncio.run(ask()) == [[2.0 * n + 1] for n in range(20)]


@pytest.mark.parametrize(
    "make", [models.onnx_classifier, models.xgboost_classes, models.sklearn_named]
)
def test_a_real_model_answers_as_its_library(make: Callable[[], models.Saved]) -> None:
    """Arrays of another datatype are cast; the answers are those of the model's own library."""
    saved = models.quiet(make)
    (rows,) = saved.inputs.values()
    with (
        Served("--trust", f"m={saved.path}") as served,
        Client(f"http://127.0.0.1:{served.port}") as client,
    ):
        found = client.predict("m", rows.astype(np.float64))
        for name, values in saved.expected.items():
            if np.asarray(values).dtype.kind == "f":
                np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)
        spec = client.signature("m").inputs[0]
        if spec.columns:
            named = [dict(zip(spec.columns, row, strict=True)) for row in rows.tolist()]
            again = client.predict("m", named)
            for name in found.outputs:
                assert again[name].tolist() == found[name].tolist()


def test_an_absent_server_is_told_with_what_to_do() -> None:
    """After its retries, whose waits are not the real clock's here."""
    waits: list[float] = []
    with (
        Client("http://127.0.0.1:9", sleep=waits.append, retries=2) as client,
        pytest.raises(ServerUnreachable, match="is the server running there"),
    ):
        client.live()
    assert len(waits) == 2


def test_a_loading_model_is_waited_for(folder: Path) -> None:
    """503 with Retry-After is tried again: the first prediction of an on-demand model succeeds."""
    with (
        Served("--store", str(folder), "--on-demand") as served,
        Client(f"http://127.0.0.1:{served.port}", retries=8) as client,
    ):
        assert client.predict("stamped", {"x": [1.0]}, version=1)["y"].tolist() == [3.0]


def test_the_admin_socket_is_for_its_owner(folder: Path, tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700; gone when the server is."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    (tmp_path / "run").mkdir()
    with Served("--store", str(folder), env=env) as served:
        socket = tmp_path / "run" / "muelle" / f"{served.process.pid}.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        with Client(socket=str(socket)) as admin:
            status = admin.status()
            assert (status.pid, status.store) == (served.process.pid, str(folder))
            assert status.ready
            admin.set_label("stamped", "stable", 2)
            assert [entry.action for entry in admin.audit()] == ["label"]
            assert admin.audit()[0].who.startswith(f"uid:{os.getuid()}(")
    assert not socket.exists()


def test_another_user_is_turned_away_and_that_is_logged(folder: Path, tmp_path: Path) -> None:
    """A process of another user that can open the socket file all the same gets 403."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    socket = tmp_path / "a.sock"
    with Served("--store", str(folder), "--admin-socket", str(socket)) as served:
        assert served.port
        for path in (tmp_path, *tmp_path.parents):
            if os.stat(path).st_uid == os.getuid() and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)
        socket.chmod(0o666)
        program = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(b'GET /v1/status HTTP/1.1\\r\\nhost: m\\r\\n\\r\\n')\n"
            "print(s.recv(4096).decode())\n"
        )
        command = [sys.executable, "-I", "-c", program, str(socket)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("HTTP/1.1 403"), done.stderr
        with Client(socket=str(socket)) as admin:
            (entry,) = admin.audit()
            assert (entry.action, entry.who) == ("denied", "uid:65534")


def test_a_tcp_listener_asks_for_its_token(folder: Path, tmp_path: Path) -> None:
    """With the token all is open, without or with a wrong one nothing; and no token file, no
    listener."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    port = free_port()
    options = ("--admin-listen", str(port), "--admin-token-file", str(file))
    with Served("--store", str(folder), *options, "--admin-socket", "none"):
        url = f"http://127.0.0.1:{port}"
        with Client(url, token=TOKEN) as admin:
            assert admin.set_label("stamped", "stable", 2).version == 2
        for token in (None, "x" * 28, TOKEN[:-1], TOKEN + "x"):
            with Client(url, token=token) as stranger, pytest.raises(errors.Unauthenticated):
                stranger.status()
        with Client(url, token=TOKEN) as admin:
            actions = [entry.action for entry in admin.audit()]
            assert actions == ["label"] + ["denied"] * 4
            assert TOKEN not in str(admin.audit())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--admin-listen", "127.0.0.1:0"), "needs a token"),
        (("--admin-listen", "nonsense", "--admin-token-file", "TOKEN"), "not .HOST:.PORT"),
        (("--admin-listen", "127.0.0.1:0", "--admin-token-file", "SHORT"), "shorter than"),
        (("--admin-listen", "127.0.0.1:0", "--admin-token-file", "/none"), "cannot be read"),
        (("--admin-socket", "/nonexistent/a.sock"), "cannot listen"),
    ],
)
def test_a_wrong_admin_address_stops_the_start(
    folder: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    """In words, before anything listens open."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "short").write_text("abc")
    words = [
        {"TOKEN": str(tmp_path / "token"), "SHORT": str(tmp_path / "short")}.get(o, o)
        for o in options
    ]
    with pytest.raises(AssertionError, match=told):
        Served("--store", str(folder), *words)


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
