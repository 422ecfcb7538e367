"""Labels move, versions are rolled back and reloaded, under load: nothing fails, nothing is mixed.

Goal R-11. Every answer is wholly of one version and says which; answers on one connection follow
the order of the switches; a connection made after an acknowledgement gets the new version.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from muelle import Client
from muelle.core.records import RouteSpec
from tests.serving import Served
from tests.stores import label, push_stamped

PATH = "/models/stamped/predict"


class History:
    """Which version was the right one when. A switch is under way from `begin` to `done`."""

    def __init__(self, first: str) -> None:
        self._lock = threading.Lock()
        self.versions = [first]

    def begin(self, version: str) -> None:
        """The label is about to move."""
        with self._lock:
            self.versions.append(version)

    def take_back(self) -> None:
        """The move was refused."""
        with self._lock:
            self.versions.pop()

    def follows(self, seen: list[str]) -> str:
        """Return "" when what one connection saw is in the order of the history."""
        with self._lock:
            versions = list(self.versions)
        at = 0
        for n, version in enumerate(seen):
            while at < len(versions) and versions[at] != version:
                at += 1
            if at == len(versions):
                return f"answer {n} came from {version} out of order"
        return ""


class Caller:
    """One client that asks without pause, in all forms, and checks each answer."""

    def __init__(self, served: Served, history: History, seed: int, *, fresh: bool) -> None:
        self.answered = 0
        self.trouble: list[str] = []
        self.stop = False
        self._served = served
        self._history = history
        self._random = random.Random(seed)
        self._fresh = fresh
        self._seen: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        connection = self._served.connect()
        try:
            while not self.stop and not self.trouble:
                if self._fresh:
                    connection.close()
                    connection = self._served.connect()
                    self._seen.clear()
                self._ask(connection)
                if self.answered % 50 == 0:
                    self._check_order()
        except Exception as exc:
            self.trouble.append(f"{type(exc).__name__}: {exc}")
        finally:
            connection.close()
        self._check_order()

    def _check_order(self) -> None:
        wrong = self._history.follows(self._seen)
        if wrong:
            self.trouble.append(wrong)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        n_rows = self._random.choice((1, 1, 3, 50))
        x = [float(self._random.randrange(10**6)) for _ in range(n_rows)]
        v2 = self._random.random() < 0.5
        if v2:
            tensor = {"name": "x", "shape": [n_rows], "datatype": "FP64", "data": x}
            connection.request("POST", "/v2/models/stamped/infer", json.dumps({"inputs": [tensor]}))
        else:
            connection.request("POST", PATH, json.dumps({"inputs": {"x": x}}))
        response = connection.getresponse()
        body = response.read()
        version = response.getheader("muelle-version") or ""
        if response.status != 200:
            self.trouble.append(f"{response.status} {body[:200]!r}")
            return
        answer = json.loads(body)
        if v2:
            named = answer["model_version"]
            found = {o["name"]: o["data"] for o in answer["outputs"]}
            y, stamps = found["y"], found["stamp"]
        else:
            named = answer["version"]
            y = [row["y"] for row in answer["predictions"]]
            stamps = [row["stamp"] for row in answer["predictions"]]
        number = int(version)
        right = [2 * value + number for value in x]
        if named != version or set(stamps) != {number} or y != right:
            self.trouble.append(f"mixed: header {version}, body {named}, stamps {set(stamps)}")
            return
        self._seen.append(version)
        self.answered += 1


def first_answer(served: Served) -> str:
    """Return which version answers a connection that is made now."""
    status, headers, body = served.ask("POST", PATH, '{"instances":[1.0]}')
    assert status == 200, body
    return headers["muelle-version"]


def start_wrk(served: Served, seconds: int) -> subprocess.Popen[str]:
    """Load the server with wrk, from a few connections: about 60 percent of what it can take."""
    if shutil.which("wrk") is None:
        pytest.skip("needs wrk")
    script = Path("/tmp") / f"muelle-wrk-{served.port}.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.body = \'{"instances":[1.0]}\'\n'
        'wrk.headers["content-type"] = "application/json"\n'
    )
    command = ["wrk", "-t1", "-c3", f"-d{seconds}s", "-s", str(script)]
    address = f"http://127.0.0.1:{served.port}{PATH}"
    return subprocess.Popen([*command, address], stdout=subprocess.PIPE, text=True)


def wrk_failures(output: str) -> str:
    """Return wrk's lines about what went wrong."""
    return "\n".join(re.findall(r"(?:Non-2xx|Socket errors).*", output))


def switch_under_load(
    tmp_path: Path, switches: int, *, wrk_seconds: int = 0, keep_warm_s: str = "0"
) -> None:
    """Move the label so often, by label, rollback and reload, while clients check each answer."""
    folder, socket = tmp_path / "store", tmp_path / "admin.sock"
    push_stamped(folder, 1, 2, 3, 4)
    label(folder, "stamped", "stable", 1)
    options = ["--store", str(folder), "--admin-socket", str(socket)]
    with (
        Served(*options, "--keep-warm-s", keep_warm_s) as served,
        Client(socket=str(socket), timeout_s=60) as admin,
    ):
        wrk = start_wrk(served, wrk_seconds) if wrk_seconds else None
        history = History("1")
        callers = [Caller(served, history, n, fresh=n == 3) for n in range(4)]
        chance = random.Random(7)
        now = 1
        undo: list[int] = []
        for n in range(switches):
            if undo and n % 3 == 2:
                target = undo.pop()
                history.begin(str(target))
                answer = admin.rollback("stamped")
            else:
                target = chance.choice([v for v in (1, 2, 3, 4) if v != now])
                history.begin(str(target))
                answer = admin.set_label("stamped", "stable", target)
                undo.append(now)
            assert answer.version == target
            assert answer.changed
            # After the acknowledgement no new connection gets the old version.
            assert first_answer(served) == str(target)
            now = target
            if n % 10 == 9:
                admin.sync()
        for caller in callers:
            caller.stop = True
        for caller in callers:
            caller.thread.join(60)
        troubles = [trouble for caller in callers for trouble in caller.trouble]
        assert not troubles, troubles[:5]
        assert all(caller.answered > switches for caller in callers)
        loads = sum(line.startswith("loading stamped") for line in served.log)
        if keep_warm_s == "0":
            # Versions that lost their traffic were unloaded and came back: reloads are part of it.
            assert loads > switches / 2, loads
        else:
            assert loads == 4, loads  # All of them stayed warm.
        if wrk is not None:
            output = wrk.communicate(timeout=wrk_seconds + 60)[0]
            assert "requests in" in output
            assert not wrk_failures(output), output


def test_forty_switches_fail_and_mix_nothing(tmp_path: Path) -> None:
    """Labels and rollbacks, with versions unloaded and loaded again in between: 0 failed, 0 mixed,
    in order, and true once acknowledged."""
    switch_under_load(tmp_path, 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_switches_under_wrk_fail_and_mix_nothing(tmp_path: Path) -> None:
    """The same 200 times, half of them to versions that must be loaded first, with wrk's load
    beside the checking clients: no socket error and no answer but 200 in wrk's account either."""
    for name in ("cold", "warm"):
        (tmp_path / name).mkdir()
    switch_under_load(tmp_path / "cold", 100, wrk_seconds=40)
    switch_under_load(tmp_path / "warm", 100, wrk_seconds=10, keep_warm_s="600")


def test_the_order_check_can_fail() -> None:
    """Negative control: a connection that goes back to the old version by itself is found."""
    history = History("1")
    history.begin("2")
    assert history.follows(["1", "1", "2", "2"]) == ""
    assert history.follows(["2", "1"]) == "answer 1 came from 1 out of order"
    history.begin("1")
    assert history.follows(["2", "1"]) == ""


def test_wrk_failures_can_be_found() -> None:
    """Negative control: wrk's account of trouble is recognised."""
    assert wrk_failures("  Non-2xx or 3xx responses: 3\n  12 requests in 1.00s")
    assert not wrk_failures("  12 requests in 1.00s, 3MB read")


def test_routes_change_under_load_and_fail_nothing(tmp_path: Path) -> None:
    """Weights, shadows and their removal, thirty times: 0 failed, 0 mixed."""
    folder, socket = tmp_path / "store", tmp_path / "admin.sock"
    push_stamped(folder, 1, 2, 3)
    label(folder, "stamped", "stable", 1)
    with (
        Served("--store", str(folder), "--admin-socket", str(socket)) as served,
        Client(socket=str(socket), timeout_s=60) as admin,
    ):
        history = History("1")
        # With shares there is no order: any version may answer at any time.
        history.follows = lambda seen: ""  # type: ignore[method-assign]
        callers = [Caller(served, history, n, fresh=n == 2) for n in range(3)]
        for n in range(30):
            if n % 3 == 2:
                admin.set_route("stamped", None)
                assert first_answer(served) == "1"
            else:
                shadow = "3" if n % 2 else ""
                weights = {"stable": 100.0 - n, "2": 1.0 + n}
                admin.set_route("stamped", RouteSpec(weights=weights, shadow=shadow))
        for caller in callers:
            caller.stop = True
        for caller in callers:
            caller.thread.join(60)
        troubles = [trouble for caller in callers for trouble in caller.trouble]
        assert not troubles, troubles[:5]
        assert all(caller.answered > 30 for caller in callers)
