"""Rollouts in a real server under real requests: good ends, bad ends, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from muelle import Client
from muelle.core.admin import RolloutStatus
from muelle.core.errors import Conflict, VersionNotFound
from muelle.repository.store import Store
from tests.serving import Served, eventually
from tests.stores import label, push_stamped

BODY = json.dumps({"inputs": {"x": [1.0, 2.0]}})
FAST: dict[str, Any] = {"steps": (30.0, 100.0), "watch_s": 0.3, "min_requests": 10}

FAILS = "if len(x) == 2: raise ValueError('no')"
SLOW = "time.sleep(0.03) if len(x) == 2 else None"


class Harness:
    """A server on a store with a good version 2, a failing 3 and a slow 4; and callers."""

    def __init__(self, folder: Path, socket: str) -> None:
        self.folder = folder
        self.served = Served("--store", str(folder), "--admin-socket", socket, "--poll-s", "0.2")
        self.admin = Client(socket=socket)
        self.failed = 0
        self.seen: set[str] = set()
        self.stop = False
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        connection = self.served.connect()
        while not self.stop:
            try:
                connection.request("POST", "/models/stamped/predict", BODY)
                response = connection.getresponse()
                response.read()
            except OSError:
                return
            self.seen.add(response.getheader("muelle-version") or "")
            self.failed += response.status != 200

    def end(self) -> None:
        """Stop asking, then the server."""
        self.stop = True
        for thread in self.threads:
            thread.join(20)
        self.admin.close()
        self.served.__exit__(None, None, None)

    def run(self, version: int, **limits: Any) -> list[RolloutStatus]:
        """Start a rollout and return everything that was told until its end."""
        self.admin.start_rollout("stamped", version, **(FAST | limits))
        return list(self.admin.watch_rollout("stamped", every_s=0.05))

    def stable(self) -> int:
        """Which version the store calls stable."""
        with Store.open(self.folder) as store:
            return store.labels("stamped")["stable"]

    def shares(self) -> dict[str, float]:
        """Version -> share, of those that have one."""
        versions = self.admin.model("stamped").versions
        return {v.version: v.share for v in versions if v.share}


@contextmanager
def harness(tmp_path: Path) -> Iterator[Harness]:
    """Run it."""
    folder = tmp_path / "store"
    push_stamped(folder, 1, 2)
    push_stamped(folder, 3, extra=FAILS)
    push_stamped(folder, 4, extra=SLOW)
    label(folder, "stamped", "stable", 1)
    one = Harness(folder, str(tmp_path / "a.sock"))
    try:
        yield one
    finally:
        one.end()


def test_good_and_bad_ends(tmp_path: Path) -> None:
    """A good version takes its steps and becomes stable. A failing one, one whose answers differ,
    and a slow one go back by themselves, with limit and figure, and nothing else has changed."""
    with harness(tmp_path) as it:
        told = it.run(2)
        assert told[-1].state == "done"
        assert {status.step for status in told} == {0, 1}
        assert told[-1].requests >= 10
        assert it.stable() == 2
        assert it.shares() == {"2": 1.0}
        assert it.failed == 0

        ended = it.run(3)[-1]
        assert ended.state == "rolled_back"
        assert ended.reason.startswith("error rate 100 % over 0.5 %")
        assert it.failed > 0

        ended = it.run(1, max_disagreement=0.05)[-1]
        assert ended.state == "rolled_back"
        assert ended.reason.startswith("disagreement 100 % over 5 %")

        ended = it.run(4, max_p99_ms=20.0)[-1]
        assert ended.state == "rolled_back"
        assert ended.reason.startswith("p99 ")
        assert ended.p99_ms > 20

        assert it.stable() == 2
        assert it.shares() == {"2": 1.0}
        outcomes = [e.outcome for e in it.admin.audit() if e.who == "rollout"]
        assert [text.partition(":")[0] for text in outcomes] == ["done", *["rolled_back"] * 3]


def test_hands_on_a_rollout(tmp_path: Path) -> None:
    """Abort, a label moved by hand, a second rollout meanwhile, and what has no rollout."""
    with harness(tmp_path) as it:
        with pytest.raises(VersionNotFound, match="no rollout"):
            it.admin.rollout("stamped")
        long: dict[str, Any] = {"steps": (50.0, 100.0), "watch_s": 600.0}
        it.admin.start_rollout("stamped", 2, **long)
        eventually(lambda: it.shares() == {"1": 0.5, "2": 0.5})
        eventually(lambda: {"1", "2"} <= it.seen)
        with pytest.raises(Conflict, match="under way"):
            it.admin.start_rollout("stamped", 3, **long)
        assert it.admin.abort_rollout("stamped").state == "aborted"
        assert it.shares() == {"1": 1.0}
        with pytest.raises(Conflict, match="has ended"):
            it.admin.abort_rollout("stamped")
        it.admin.start_rollout("stamped", 2, **long)
        eventually(lambda: it.shares() == {"1": 0.5, "2": 0.5})
        it.admin.set_label("stamped", "stable", 2)
        status = it.admin.rollout("stamped")
        assert (status.state, it.shares()) == ("aborted", {"2": 1.0})
        assert "by hand" in status.reason
        with pytest.raises(Conflict, match="has the traffic already"):
            it.admin.start_rollout("stamped", 2, **long)
        assert it.failed == 0


def test_a_server_that_dies_in_a_rollout_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """kill -9 with half of the traffic on the new version: the next server gives it none."""
    with harness(tmp_path) as it:
        it.admin.start_rollout("stamped", 2, steps=(50.0, 100.0), watch_s=600.0)
        eventually(lambda: it.shares() == {"1": 0.5, "2": 0.5})
        os.kill(it.served.process.pid, signal.SIGKILL)
        it.served.process.wait(20)
        assert it.stable() == 1
        with Served("--store", str(it.folder)) as again:
            for _ in range(4):
                headers = again.ask("POST", "/models/stamped/predict", BODY)[1]
                assert headers["muelle-version"] == "1"


def test_the_command_follows_and_its_exit_code_tells(tmp_path: Path) -> None:
    """`muelle rollout`: 0 and the label moved, or 1 and the reason; without a server what to do."""
    with harness(tmp_path) as it:

        def command(*words: str) -> subprocess.CompletedProcess[str]:
            env = {**os.environ, "MUELLE_STORE": str(it.folder), "MUELLE_LANG": "en"}
            return subprocess.run(
                [sys.executable, "-m", "muelle", "rollout", *words],
                capture_output=True,
                text=True,
                env=env,
                timeout=60,
            )

        steps = ("--canary", "30,100", "--watch", "300ms", "--min-requests", "10")
        done = command("stamped:2", *steps)
        assert done.returncode == 0, done.stderr
        assert "stamped:2 has all traffic and is stable" in done.stdout
        assert "stamped:2 has 30 % of the traffic" in done.stderr
        bad = command("stamped:3", *steps, "--json")
        assert bad.returncode == 1
        assert json.loads(bad.stdout)["state"] == "rolled_back"
        for words, told in (
            (("stamped",), "name the version too"),
            (("stampd:2",), "near it is: stamped"),
            (("stamped:2", "--watch", "soon"), "no duration"),
            (("stamped:2", "--max-error-rate", "150%"), "no share"),
            (("stamped:3", "--canary", "5,50"), "the last one 100"),
        ):
            wrong = command(*words)
            assert wrong.returncode in (1, 2)
            assert told in wrong.stderr, (words, wrong.stderr)
        it.stop = True
        it.served.__exit__(None, None, None)
        assert "no server of this store runs" in command("stamped:1").stderr
