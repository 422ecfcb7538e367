"""A worker's tie to its server: it starts by exec and ends with it. Real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.workers.probe import probe
from muelle.workers.process import WorkerProcess
from tests.unit.workers.models import SOURCE

TINY_SERVER = """
    import sys, msgspec
    from muelle.workers import messages as m
    from muelle.workers.process import WorkerProcess

    worker = WorkerProcess.spawn(1)
    load = m.Load("python", sys.argv[1], "Python model", "x", 1, 8, 2, 0)
    worker.sock.setblocking(True)
    worker.sock.send(msgspec.msgpack.encode(load))
    worker.sock.recv(m.MAX_MESSAGE_BYTES)
    print(worker.pid, flush=True)
    sys.stdin.read()
"""


def ended(pidfd: int, timeout_s: float = 20) -> bool:
    """Wait until the process of a pidfd has ended, with a bound."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1_000))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_dies_with_its_server(tmp_path: Path, stopped: bool) -> None:
    """SIGKILL of the server: the worker is gone too, also when it is stopped."""
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TINY_SERVER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None and server.stdin is not None
    pid = int(server.stdout.readline())
    pidfd = os.pidfd_open(pid)
    try:
        if stopped:
            # Stopped, it cannot notice the closed channel; the signal from the kernel ends it.
            os.kill(pid, signal.SIGSTOP)
        server.kill()
        server.wait(20)
        assert ended(pidfd)
    finally:
        os.close(pidfd)
        server.stdin.close()
        server.stdout.close()


def test_a_worker_whose_channel_closes_ends() -> None:
    """Without any signal."""
    worker = WorkerProcess.spawn(1)
    worker.sock.close()
    assert worker.wait(20) == 0
    assert worker.reason() == "exit status 0"


def test_how_a_worker_ended_is_told() -> None:
    """By its exit status or its signal's name; a stopped one can be killed."""
    worker = WorkerProcess.spawn(1)
    assert worker.wait(0) is None and worker.reason() == "still running"
    assert worker.rss_bytes() > 0 and worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    worker.kill()
    assert worker.wait(20) == -signal.SIGKILL
    assert worker.reason() == "killed by SIGKILL"
    assert worker.rss_bytes() == 0
    worker.kill()
    worker.sock.close()


def test_ctrl_c_is_not_for_workers() -> None:
    """SIGINT and SIGTERM reach the whole group; only the server decides when a worker ends."""
    worker = WorkerProcess.spawn(1)
    assert worker.pid is not None
    status = Path(f"/proc/{worker.pid}/status")
    wanted = (1 << (signal.SIGINT - 1)) | (1 << (signal.SIGTERM - 1))
    pidfd = os.pidfd_open(worker.pid)
    try:
        for _ in range(2_000):
            [line] = [x for x in status.read_text().splitlines() if x.startswith("SigIgn")]
            if int(line.split()[1], 16) & wanted == wanted:
                break
            assert not ended(pidfd, 0.01)  # A bounded wait for the worker's first lines to run.
        else:
            pytest.fail("the worker never ignored the signals")
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        assert not ended(pidfd, 0.1)
    finally:
        os.close(pidfd)
        worker.sock.close()
        worker.wait(20)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nos._exit(9)\n", "exit status 9"),
        ("import ctypes\nctypes.string_at(0)\n", "killed by SIGSEGV"),
        ("x = = 1\n", "line 1"),
    ],
)
def test_a_probe_survives_the_artifact(tmp_path: Path, source: str, words: str) -> None:
    """Whatever loading does, the asking process gets one error in words, and no child is left."""
    path = tmp_path / "model.py"
    path.write_text(source)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with pytest.raises(ArtifactError, match=words):
        probe(path, "python", "Python model")
    assert children.read_text() == before


def test_a_probe_ends_what_takes_too_long(tmp_path: Path) -> None:
    """The error names the setting."""
    path = tmp_path / "model.py"
    path.write_text("while True:\n    pass\n")
    with pytest.raises(ArtifactError, match="load_timeout_s"):
        probe(path, "python", "Python model", timeout_s=0.3)


def test_a_probe_names_the_missing_library(tmp_path: Path) -> None:
    """With the command that installs it."""
    path = tmp_path / "model.py"
    path.write_text("import no_such_library_here\n")
    with pytest.raises(MissingLibrary, match="pip install no_such_library_here"):
        probe(path, "python", "Python model")


def test_a_probe_tells_the_signature(tmp_path: Path) -> None:
    """What the artifact takes and gives, without loading it here."""
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    sys.modules.pop("muelle_served_model", None)  # Another test may have loaded one in here.
    loaded = probe(path, "python", "Python model")
    assert [spec.name for spec in loaded.signature.inputs] == ["x", "do"]
    assert "muelle_served_model" not in sys.modules
