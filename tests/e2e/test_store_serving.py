"""A running server follows its store: labels, routes, shadows, bad versions, memory."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muelle import Client
from muelle.core.errors import MuelleError
from muelle.core.records import RouteSpec
from muelle.repository.store import Store
from tests.serving import Served, eventually
from tests.stores import label, push_stamped

BODY = json.dumps({"inputs": {"x": [1.0, 2.0]}})


def ask(served: Served, name: str = "stamped", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Return status, version and headers of a prediction, after checking its values."""
    status, found, body = served.ask("POST", f"/models/{name}/predict", BODY, headers)
    if status == 200:
        check(found["muelle-version"], body)
    return status, found.get("muelle-version", ""), found


def check(version: str, body: bytes) -> None:
    """Every row of an answer is of the version that the answer names."""
    answer = json.loads(body)
    number = int(version)
    assert answer["version"] == version
    rows = answer["predictions"]
    assert rows == [{"y": 2 * x + number, "stamp": number} for x in (1.0, 2.0)]


def versions_of(served: Served, name: str = "stamped") -> dict[str, dict[str, Any]]:
    """Return what the server tells about each version."""
    model = json.loads(served.ask("GET", f"/models/{name}")[2])
    return {v["version"]: v for v in model["versions"]}


def answers(served: Served, version: str, name: str = "stamped") -> bool:
    """Whether this version answers unpinned requests."""
    return ask(served, name)[1] == version


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's store lies."""
    return tmp_path / "store"


def test_a_label_moved_in_the_store_is_followed(folder: Path) -> None:
    """Another process moves the label: the server loads the version and then serves it; the old
    one stays warm, and can be asked by its number."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    with Served("--store", str(folder), "--poll-s", "0.1") as served:
        assert ask(served)[:2] == (200, "1")
        label(folder, "stamped", "stable", 2)
        eventually(lambda: answers(served, "2"))
        status, headers, body = served.ask("POST", "/models/stamped/versions/1/predict", BODY)
        assert (status, headers["muelle-version"]) == (200, "1")
        check("1", body)
        assert versions_of(served)["2"]["labels"] == ["stable"]


def test_only_selected_models_are_served_and_by_the_label_asked_for(folder: Path) -> None:
    """--models a,b@canary: the others are unknown, and b's canary answers."""
    for name in ("one", "two", "three"):
        push_stamped(folder, 1, name=name, label=None)
    push_stamped(folder, 2, name="two", label="canary")
    with Served("--store", str(folder), "--models", "one,two@canary") as served:
        assert ask(served, "one")[:2] == (200, "1")
        assert ask(served, "two")[:2] == (200, "2")
        assert ask(served, "three")[0] == 404


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("crash", "SIGSEGV"),
        ("raise", "weights are gone"),
        ("fail", "ValueError: no such feature"),
        ("drift", "example 1 is answered otherwise"),
    ],
)
def test_a_bad_version_never_takes_traffic(tmp_path: Path, trouble: str, reason: str) -> None:
    """A crash or an error at load, a failing example, another answer: the old version goes on, the
    reason can be read, and going back to good labels mends it."""
    folder, switch = tmp_path / "store", tmp_path / "trouble"
    push_stamped(folder, 1, label=None)
    push_stamped(folder, 2, trouble=switch)
    with Served("--store", str(folder), "--poll-s", "0.1") as served:
        switch.write_text(trouble)
        label(folder, "stamped", "stable", 2)
        eventually(lambda: versions_of(served).get("2", {}).get("state") == "FAILED")
        assert reason in versions_of(served)["2"]["reason"]
        for _ in range(5):
            assert ask(served)[:2] == (200, "1")
        assert served.ask("GET", "/ready")[0] == 200
        label(folder, "stamped", "stable", 1)
        eventually(lambda: versions_of(served)["1"]["labels"] == ["stable"])
        switch.unlink()
        label(folder, "stamped", "stable", 2)
        eventually(lambda: answers(served, "2"))


def test_weights_share_the_traffic_exactly(folder: Path) -> None:
    """stable=3,canary=1: of 80 requests 60 and 20, in the plain form and in a form that is not."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    label(folder, "stamped", "canary", 2)
    with Store.open(folder) as store:
        store.set_route("stamped", RouteSpec(weights={"stable": 3, "canary": 1}), who="test")
    with Served("--store", str(folder)) as served:
        connection = served.connect()
        plain = json.dumps({"instances": [1.0]})
        for body in (plain, BODY):
            seen: Counter[str] = Counter()
            for _ in range(80):
                connection.request("POST", "/models/stamped/predict", body)
                response = connection.getresponse()
                answer = json.loads(response.read())
                assert answer["version"] == response.getheader("muelle-version")
                assert {row["stamp"] for row in answer["predictions"]} == {int(answer["version"])}
                seen[answer["version"]] += 1
            assert abs(seen["1"] - 60) <= 1
            assert abs(seen["2"] - 20) <= 1
        connection.close()
        assert [v["share"] for v in versions_of(served).values()] == [0.25, 0.75]


def test_a_sticky_route_by_query_field(folder: Path) -> None:
    """?user=… decides; the same user gets the same version in both protocols' paths."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    spec = RouteSpec(weights={"stable": 1, "2": 1}, sticky="query:user")
    with Store.open(folder) as store:
        store.set_route("stamped", spec, who="test")
    v2 = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]})
    with Served("--store", str(folder)) as served:
        seen = set()
        for n in range(20):
            answers = [
                served.ask("POST", f"{path}?a=1&user=u{n}", body)[1]["muelle-version"]
                for path, body in (
                    ("/models/stamped/predict", BODY),
                    ("/models/stamped/predict", '{"instances":[1.0]}'),
                    ("/v2/models/stamped/infer", v2),
                )
            ]
            assert len(set(answers)) == 1
            seen.add(answers[0])
        assert seen == {"1", "2"}


def test_a_sticky_route_keeps_callers_where_they_are(folder: Path) -> None:
    """The same header value always gets the same version; a growing share takes none away."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    label(folder, "stamped", "canary", 2)

    def route(canary: float) -> RouteSpec:
        weights = {"stable": 100 - canary, "canary": canary}
        return RouteSpec(weights=weights, sticky="header:x-user")

    with Store.open(folder) as store:
        store.set_route("stamped", route(30), who="test")
        with Served("--store", str(folder), "--poll-s", "0.1") as served:
            users = [f"user-{n}" for n in range(40)]
            first = {user: ask(served, **{"x-user": user})[1] for user in users}
            assert {user: ask(served, **{"x-user": user})[1] for user in users} == first
            assert set(first.values()) == {"1", "2"}
            store.set_route("stamped", route(60), who="test")
            eventually(lambda: versions_of(served)["2"]["share"] == 0.6)
            second = {user: ask(served, **{"x-user": user})[1] for user in users}
            assert all(second[user] == "2" for user in users if first[user] == "2")
            assert list(second.values()).count("2") > list(first.values()).count("2")


def shadow_counts(served: Served, version: str) -> dict[str, int]:
    """Return what /metrics tells of a version's shadow answers."""
    counts = {}
    for line in served.ask("GET", "/metrics")[2].decode().splitlines():
        if line.startswith("muelle_shadow_requests_total{") and f'version="{version}"' in line:
            outcome = line.split('outcome="')[1].split('"')[0]
            counts[outcome] = int(float(line.rsplit(" ", 1)[1]))
    return counts


def test_a_shadow_is_compared_and_never_returned(folder: Path) -> None:
    """Version 2 gets a copy of each request; callers see version 1 only, and the difference is
    counted. A shadow that agrees is counted as such."""
    push_stamped(folder, 1, 2)
    push_stamped(folder, 3, extra='return {"y": 2 * x + 1, "stamp": np.full(len(x), 1)}')
    label(folder, "stamped", "stable", 1)
    with Store.open(folder) as store:
        store.set_route("stamped", RouteSpec(weights={"stable": 1}, shadow="2"), who="test")
        with Served("--store", str(folder), "--poll-s", "0.1") as served:
            assert [ask(served)[1] for _ in range(10)] == ["1"] * 10
            eventually(lambda: shadow_counts(served, "2")["differed"] == 10)
            assert shadow_counts(served, "2")["agreed"] == 0
            store.set_route("stamped", RouteSpec(weights={"stable": 1}, shadow="3"), who="test")
            eventually(lambda: versions_of(served).get("3", {}).get("shadow") is True)
            assert [ask(served)[1] for _ in range(10)] == ["1"] * 10
            eventually(lambda: shadow_counts(served, "3")["agreed"] == 10)
            assert shadow_counts(served, "3")["differed"] == 0


def test_every_answer_names_version_and_digest(folder: Path) -> None:
    """Native and v2, plain, compressed and wrong requests: model, version and digest are there."""
    push_stamped(folder, 1, label=None)
    with Store.open(folder) as store:
        digest = store.record("stamped", 1).digest
    v2 = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]})
    packed = gzip.compress(BODY.encode())
    with Served("--store", str(folder)) as served:
        requests: list[tuple[str, Any, dict[str, str], int]] = [
            ("/models/stamped/predict", '{"instances":[1.0]}', {}, 200),
            ("/models/stamped/predict", BODY, {}, 200),
            ("/models/stamped/predict", packed, {"content-encoding": "gzip"}, 200),
            ("/models/stamped/predict", '{"inputs":{"z":[1]}}', {}, 400),
            ("/models/stamped/predict", "{", {}, 400),
            ("/v2/models/stamped/infer", v2, {}, 200),
            ("/v2/models/stamped/versions/1/infer", v2, {}, 200),
            ("/v2/models/stamped/infer", "{}", {}, 400),
        ]
        for path, body, headers, expected in requests:
            status, found, _ = served.ask("POST", path, body, headers)
            assert (status, found.get("muelle-digest")) == (expected, digest), (path, body)
            assert (found["muelle-model"], found["muelle-version"]) == ("stamped", "1")


HEAVY = "self.ballast = np.ones(12_000_000)"
"""A worker of about 100 MB more, once it has run its example."""


def test_versions_come_on_demand_and_make_room_for_each_other(folder: Path) -> None:
    """--on-demand with room for one: nobody is loaded at first; who is asked for gets loaded (503
    with Retry-After meanwhile), and the one that idles goes."""
    for name in ("one", "two"):
        push_stamped(folder, 1, name=name, label=None, extra=HEAVY)
    with Served(
        "--store", str(folder), "--on-demand", "--memory-limit", "280", "--keep-warm-s", "0"
    ) as served:
        assert served.ask("GET", "/ready")[0] == 200
        assert served.worker_pids() == []
        status, _, headers = ask(served, "one")
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        eventually(lambda: ask(served, "one")[0] == 200)
        eventually(lambda: ask(served, "two")[0] == 200)
        eventually(lambda: len(served.worker_pids()) == 1)
        assert versions_of(served, "one")["1"]["state"] == "UNLOADED"
        eventually(lambda: ask(served, "one")[0] == 200)


def test_a_version_that_cannot_fit_is_refused_with_figures(folder: Path) -> None:
    """One byte of limit too few: the server runs, says so, and does not load it."""
    push_stamped(folder, 1, label=None)
    with Served("--store", str(folder), "--memory-limit", "70") as served:
        status, _, body = served.ask("POST", "/models/stamped/predict", BODY)
        assert status == 503
        assert b"MB" in body
        assert served.ask("GET", "/ready")[0] == 503


def test_resource_preserving_ends_the_old_version_first(folder: Path) -> None:
    """--update resource: never are both loaded at a time; after the gap the new one answers."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    with Served(
        "--store", str(folder), "--poll-s", "0.1", "--update", "resource", "--keep-warm-s", "0"
    ) as served:
        label(folder, "stamped", "stable", 2)
        most = 0

        def settled() -> bool:
            nonlocal most
            most = max(most, len(served.worker_pids()))
            return ask(served)[:2] == (200, "2")

        eventually(settled)
        assert most == 1


def test_a_version_without_traffic_goes_after_its_time(folder: Path) -> None:
    """--keep-warm-s: the old version's worker ends once the time is over."""
    push_stamped(folder, 1, 2)
    label(folder, "stamped", "stable", 1)
    with Served("--store", str(folder), "--poll-s", "0.1", "--keep-warm-s", "0.5") as served:
        label(folder, "stamped", "stable", 2)
        eventually(lambda: answers(served, "2"))
        served.wait_for_line("unloaded stamped 1")
        eventually(lambda: len(served.worker_pids()) == 1)
        assert served.ask("POST", "/models/stamped/versions/1/predict", BODY)[0] == 404


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """An empty plain repository."""
    folder = tmp_path / "repository"
    folder.mkdir()
    yield folder


def test_every_worker_is_checked_at_every_start(tmp_path: Path) -> None:
    """Of two workers one is killed, and what replaces it answers its example otherwise: it never
    gets a request, and comes back once its files are as they were pushed."""
    folder, switch = tmp_path / "store", tmp_path / "trouble"
    push_stamped(folder, 1, label=None, trouble=switch)
    with Served("--store", str(folder), "--workers", "2") as served:

        def n_ready() -> int:
            states = [w["state"] for w in versions_of(served)["1"]["workers"]]
            return states.count("ready") + states.count("busy")

        # The server listens when the first of them can answer; the second must have loaded, too.
        eventually(lambda: n_ready() == 2)
        switch.write_text("drift")
        os.kill(served.worker_pids()[0], signal.SIGKILL)
        served.wait_for_line("example 1 is answered otherwise")
        for _ in range(30):
            assert ask(served)[:2] == (200, "1")
        switch.unlink()
        eventually(lambda: n_ready() == 2, limit_s=40)


def test_resource_preserving_comes_back_when_the_new_version_fails(tmp_path: Path) -> None:
    """--update resource, by the management API: the old version goes first; when the new one then
    fails, the label has not moved and the old one is loaded again; when it works, it serves."""
    folder, switch, socket = tmp_path / "store", tmp_path / "trouble", str(tmp_path / "a.sock")
    push_stamped(folder, 1, label=None)
    push_stamped(folder, 2, trouble=switch)
    options = ("--update", "resource", "--admin-socket", socket)
    with Served("--store", str(folder), *options) as served, Client(socket=socket) as admin:
        switch.write_text("raise")
        with pytest.raises(MuelleError, match="weights are gone"):
            admin.set_label("stamped", "stable", 2)
        eventually(lambda: ask(served)[:2] == (200, "1"))
        assert admin.model("stamped").default == "1"
        switch.unlink()
        admin.set_label("stamped", "stable", 2)
        assert ask(served)[:2] == (200, "2")
        eventually(lambda: len(served.worker_pids()) == 1)
        admin.rollback("stamped")
        assert ask(served)[:2] == (200, "1")
