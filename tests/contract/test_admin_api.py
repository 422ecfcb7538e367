"""The management API as an app: who may, what is logged, what is refused. Doors are in memory, the
socket is real."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from muelle.api.admin import OPERATIONS, build_admin_app
from muelle.api.admin_doors import AdminDoors
from muelle.core.admin import LabelAnswer, Rollback, SetLabel, StartRollout
from muelle.core.errors import Conflict
from muelle.core.records import RouteSpec

TOKEN = "a-token-that-is-long-enough"


class Doors:
    """What was called and what was logged; calls fail when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.log: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None
        self.log_fails = False

    def door(self, name: str, answer: Any = None) -> Callable[..., Awaitable[Any]]:
        async def called(*args: Any) -> Any:
            self.calls.append((name, *args))
            if self.fails is not None:
                raise self.fails
            return answer

        return called

    def write(self, *entry: Any) -> None:
        if self.log_fails:
            raise OSError("the disk is full")
        self.log.append(entry)

    def check(self) -> None:
        if self.log_fails:
            raise OSError("the disk is full")

    def all(self) -> AdminDoors:
        label = LabelAnswer(
            model="m",
            label="stable",
            version=3,
            previous=2,
            digest="sha256:00",
            seconds=0.1,
            changed=True,
        )
        names = [
            *("status", "models", "model", "set_label", "remove_label", "rollback", "route"),
            *("set_route", "start_rollout", "rollout", "abort_rollout", "load", "unload", "sync"),
        ]
        doors: dict[str, Any] = {name: self.door(name, {}) for name in names}
        doors |= {"set_label": self.door("set_label", label), "rollback": self.door("r", label)}
        return AdminDoors(
            **doors, write_audit=self.write, check_audit=self.check, read_audit=lambda a, b: ()
        )


class Site:
    """The app on a Unix socket. `peer` is who the transport says is at the other end."""

    def __init__(self, path: Path) -> None:
        self.doors = Doors()
        self.peer: dict[str, int] | None = {"uid": 0, "pid": 1}
        self.now = 0.0
        app = build_admin_app(
            self.doors.all(),
            token_hashes=[hashlib.sha256(TOKEN.encode()).hexdigest()],
            uids=frozenset({0}),
            now=lambda: self.now,
        )

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                # What our own transport adds; uvicorn's own extensions stay out of it.
                scope["extensions"] = {} if self.peer is None else {"muelle.peer": self.peer}
            await app(scope, receive, send)

        self.server = uvicorn.Server(
            uvicorn.Config(with_peer, uds=str(path), log_level="error", lifespan="off")
        )
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)
        self.thread.start()
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path), retries=20), base_url="http://m"
        )

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Send one request."""
        return self.http.request(method, path, json=body, headers=headers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A running app."""
    one = Site(tmp_path / "a.sock")
    yield one
    one.http.close()
    one.server.should_exit = True
    one.thread.join(20)


BODIES: dict[Any, Any] = {
    SetLabel: {"label": "stable", "version": 3},
    Rollback: {},
    RouteSpec: {"weights": {"stable": 1}},
    StartRollout: {"version": 3},
}


def path_of(operation: Any) -> str:
    """Fill a path's parts in."""
    return str(operation.path).replace("{model}", "m").replace("{label}", "stable")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: f"{o.method} {o.path}")
def test_every_change_is_logged_and_no_read_is(site: Site, operation: Any) -> None:
    """Each row of the table declares its right; what changes something leaves one entry with who,
    what and how it ended."""
    answer = site.ask(operation.method, path_of(operation), BODIES.get(operation.body, {}))
    assert answer.status_code == operation.status, answer.text
    if operation.right == "read":
        assert site.doors.log == []
        return
    (entry,) = site.doors.log
    who, action, model, _version, _digest, outcome, _detail = entry
    assert who.startswith("uid:0(")
    assert (action, outcome) == (operation.action, "ok")
    assert model == ("m" if "{model}" in operation.path else "")


def test_every_route_is_in_the_table(site: Site) -> None:
    """Nothing is reachable that declares no right: methods change nothing by being GET."""
    assert all(o.right == "read" for o in OPERATIONS if o.method == "GET")
    assert all(o.right == "change" for o in OPERATIONS if o.method != "GET")
    assert site.ask("GET", "/v1/secret").status_code == 404
    assert site.ask("PATCH", "/v1/status").status_code == 405


def test_what_a_label_did_is_written_down(site: Site) -> None:
    """Version, digest and the user's words."""
    body = {"label": "stable", "version": 3, "note": "ticket 7"}
    site.ask("POST", "/v1/models/m/labels", body)
    ((_, action, model, version, digest, _, detail),) = site.doors.log
    assert (action, model, version, digest) == ("label", "m", 3, "sha256:00")
    assert detail == {"label": "stable", "note": "ticket 7"}


def test_a_failed_change_is_logged_with_its_reason(site: Site) -> None:
    """The error goes to the caller and to the log; a fault of ours tells the caller nothing."""
    site.doors.fails = Conflict("version 3 is\nlabelled")
    answer = site.ask("DELETE", "/v1/models/m/labels/stable")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert site.doors.log[0][5] == "version 3 is labelled"
    site.doors.fails = RuntimeError("secret /path")
    answer = site.ask("POST", "/v1/sync")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert site.doors.log[1][5] == "internal error"


def test_without_a_log_nothing_changes(site: Site) -> None:
    """Fail closed: the door is not even called. Reading goes on."""
    site.doors.log_fails = True
    answer = site.ask("POST", "/v1/models/m/rollback", {})
    assert answer.status_code == 503
    assert "nothing was changed" in answer.json()["detail"]
    assert site.doors.calls == []
    assert site.ask("GET", "/v1/status").status_code == 200


def test_another_user_is_turned_away_and_that_is_logged(site: Site) -> None:
    """Whatever is asked, with a good token too: the socket is for its users."""
    site.peer = {"uid": 1000, "pid": 7}
    answer = site.ask("GET", "/v1/status", authorization=f"Bearer {TOKEN}")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert site.doors.calls == []
    ((who, action, *_, detail),) = site.doors.log
    assert (who, action) == ("uid:1000", "denied")
    assert detail == {"method": "GET", "path": "/v1/status"}


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer wrong-but-long-enough", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN],
)
def test_over_tcp_only_the_token_opens(site: Site, given: str) -> None:
    """Missing, wrong, another scheme: 401 that says what is asked for, and an entry."""
    site.peer = None
    headers = {"authorization": given} if given else {}
    answer = site.ask("POST", "/v1/sync", **headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert site.doors.calls == []
    assert [entry[1] for entry in site.doors.log] == ["denied"]
    assert TOKEN not in str(site.doors.log)


def test_the_right_token_opens_and_names_itself(site: Site) -> None:
    """By the first digits of its hash, never by itself."""
    site.peer = None
    assert site.ask("POST", "/v1/sync", authorization=f"bearer {TOKEN}").status_code == 200
    who = site.doors.log[0][0]
    assert who == f"token:{hashlib.sha256(TOKEN.encode()).hexdigest()[:8]}"


def test_hammering_at_the_door_does_not_fill_the_disk(site: Site) -> None:
    """Ten denials a second are written one by one; the rest is counted and told with the next."""
    site.peer = None
    for _ in range(25):
        assert site.ask("GET", "/v1/status").status_code == 401
    assert len(site.doors.log) == 10
    site.now = 5.0
    site.ask("GET", "/v1/status")
    assert site.doors.log[-1][6]["not_written_before"] == 15


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"label":"stable","vresion":3}', "vresion"),
        (b'{"label":"stable"}', "version"),
        (b'{"label":"stable","version":"3"}', "version"),
        (b"{", "request body"),
        (b"[" * 5_000, "request body"),
        (b'{"label":"' + b"x" * 70_000 + b'"}', "no request needs over"),
        (b"\xff\xfe", "request body"),
    ],
)
def test_a_wrong_body_is_refused_in_words(site: Site, body: bytes, told: str) -> None:
    """Unknown and missing members, wrong types, no JSON, too much of it: 400, nothing done."""
    answer = site.http.post("/v1/models/m/labels", content=body)
    assert answer.status_code == 400
    assert told in answer.json()["detail"]
    assert site.doors.calls == []


def test_doors_can_be_replaced_one_by_one() -> None:
    """The contract is a plain value: a test or another server gives its own calls."""
    doors = Doors().all()
    assert replace(doors, sync=doors.status).sync is doors.status
