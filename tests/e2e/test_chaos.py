"""Models that crash, hang, hoard and raise, under load: every other answer comes, and is right."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import CHAOS_MODEL, Load, Served, chaos_body, eventually, in_parallel

PATH = Load.PATH


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file."""
    path = tmp_path_factory.mktemp("chaos") / "chaos.py"
    path.write_text(CHAOS_MODEL)
    return path


@pytest.fixture
def served(chaos: Path) -> Iterator[Served]:
    """A server whose hung batches are ended after half a second."""
    with Served(str(chaos), "--trust", env={"MUELLE_WORKER__RUN_LIMIT_S": "0.5"}) as server:
        yield server


def test_killed_workers_lose_no_request(served: Served) -> None:
    """SIGKILL of the worker, ten times under load: no request fails, no answer is another's."""
    load = Load(served)
    load.wait_for(200)
    for _ in range(10):
        for pid in served.worker_pids():
            os.kill(pid, signal.SIGKILL)
        load.wait_for(100)
    load.end()


def test_descriptors_are_equal_before_and_after_kills(served: Served) -> None:
    """Ten worker kills later the server has as many descriptors open as before."""
    assert served.ask("POST", PATH, chaos_body(1))[0] == 200
    before = served.open_files()
    for n in range(10):
        for pid in served.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert served.ask("POST", PATH, chaos_body(n))[0] == 200
    # Connections and channels that were just closed take a moment to go.
    eventually(lambda: served.open_files() <= before)


def test_a_stopped_worker_is_replaced(served: Served) -> None:
    """SIGSTOP: the batch's age ends the worker, and its requests are answered by the next one."""
    load = Load(served)
    load.wait_for(100)
    (stopped,) = served.worker_pids()
    os.kill(stopped, signal.SIGSTOP)
    load.wait_for(100)
    load.end()
    assert stopped not in served.worker_pids()


@pytest.mark.parametrize(
    ("command", "status"),
    [(1, 500), (2, 500), (3, 500), (5, 500)],
    ids=["raises", "segfault", "endless loop", "exits"],
)
def test_a_bad_row_fails_alone(served: Served, command: int, status: int) -> None:
    """A row that raises, crashes or hangs the worker gets an error; its mates get their answers."""
    load = Load(served, clients=6)
    load.wait_for(100)
    code, _, body = served.ask("POST", PATH, chaos_body(5, command))
    load.wait_for(100)
    load.end()
    assert code == status, body
    text = json.loads(body)["error"]
    assert text and "Traceback" not in text and "/etc" not in text and "0x7f" not in text


def test_a_hoarding_row_meets_the_memory_limit(chaos: Path) -> None:
    """A row that allocates without end fails at the worker's memory limit; the others do not."""
    with Served(str(chaos), "--trust", "--memory-limit-mb", "600") as served:
        load = Load(served, clients=4)
        load.wait_for(50)
        code, _, body = served.ask("POST", PATH, chaos_body(5, 4))
        load.wait_for(50)
        load.end()
        assert code == 500, body


def test_sigterm_answers_what_was_accepted(chaos: Path) -> None:
    """SIGTERM with requests under way: they are answered, readiness fails, the exit status is 0."""
    with Served(str(chaos), "--trust", "--max-batch-size", "4") as served:
        slow = [lambda n=n: served.ask("POST", PATH, chaos_body(n, 150_000)) for n in range(24)]
        ready = served.connect()
        ready.request("GET", "/ready")
        assert ready.getresponse().read() == b'{"ready":true}'
        import threading

        results: list[tuple[int, dict[str, str], bytes]] = []
        thread = threading.Thread(target=lambda: results.extend(in_parallel(slow)))
        thread.start()
        _wait_until_in_flight(served, 24)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for_line("ending")
        ready.request("GET", "/ready")
        answer = ready.getresponse()
        assert answer.status == 503
        assert answer.getheader("connection") == "close"
        answer.read()
        thread.join(60)
        assert [status for status, _, _ in results] == [200] * 24
        assert served.process.wait(30) == 0


def test_workers_die_with_the_server(served: Served) -> None:
    """SIGKILL of the server: its worker is gone at once, without being asked."""
    (worker,) = served.worker_pids()
    watch = os.pidfd_open(worker)
    try:
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait(10)
        ended, _, _ = select.select([watch], [], [], 10)
        assert ended
    finally:
        os.close(watch)


def test_clients_who_left_cost_no_run(served: Served) -> None:
    """Requests whose clients close before their batch begins are never run."""
    status, _, body = served.ask("POST", PATH, chaos_body(0))
    before = _runs(body)
    blocker = served.connect()
    blocker.request("POST", PATH, chaos_body(0, 300_000), {})
    _wait_until_busy(served)
    for n in range(50):
        sock = socket.create_connection(("127.0.0.1", served.port))
        body = chaos_body(n)
        head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        sock.close()
    assert blocker.getresponse().read()
    status, _, body = served.ask("POST", PATH, chaos_body(0))
    assert status == 200
    assert _runs(body) - before < 20
    assert _metric(served, 'protocol="v2",outcome="cancelled"') >= 30


def test_an_expired_request_is_answered_504(served: Served) -> None:
    """A request whose own deadline passes while it waits gets 504 and is never run."""
    blocker = served.connect()
    blocker.request("POST", PATH, chaos_body(0, 400_000), {})
    _wait_until_busy(served)
    status, _, body = served.ask("POST", PATH, chaos_body(7), {"timeout-ms": "60"})
    assert status == 504, body
    assert b"chaos" in body
    assert blocker.getresponse().status == 200


def test_a_full_queue_sheds_with_retry_after(chaos: Path) -> None:
    """Requests over max_queue get 503 with Retry-After; those that wait are answered."""
    with Served(str(chaos), "--trust", "--max-queue", "4", "--max-batch-size", "1") as served:
        calls = [lambda n=n: served.ask("POST", PATH, chaos_body(n, 100_000)) for n in range(24)]
        results = in_parallel(calls)
    codes = sorted(status for status, _, _ in results)
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 4
    shed = next(headers for status, headers, _ in results if status == 503)
    assert int(shed["retry-after"]) >= 1


def test_a_model_that_keeps_dying_is_quarantined(tmp_path: Path) -> None:
    """A model that dies at every load is refused with a reason; another model still answers."""
    (tmp_path / "chaos.py").write_text(CHAOS_MODEL)
    (tmp_path / "dying.py").write_text(CHAOS_MODEL.replace("self.rows = 0", "os._exit(7)"))
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "muelle", "serve", "--port", "0", "--trust", "dying.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "MUELLE_LANG": "en"},
        check=False,
    )
    assert done.returncode == 1
    assert "keep dying" in done.stderr or "exit status 7" in done.stderr


def _runs(body: bytes) -> int:
    outputs = {o["name"]: o["data"] for o in json.loads(body)["outputs"]}
    return int(outputs["runs"][0])


def _metric(served: Served, labels: str) -> float:
    text = served.ask("GET", "/metrics")[2].decode()
    lines = [x for x in text.splitlines() if not x.startswith("#") and labels in x]
    return sum(float(x.rsplit(" ", 1)[1]) for x in lines)


def _wait_until_in_flight(served: Served, count: int) -> None:
    eventually(lambda: _metric(served, "muelle_inflight_requests{") >= count)


def _wait_until_busy(served: Served) -> None:
    eventually(lambda: _metric(served, 'state="busy"') >= 1)
