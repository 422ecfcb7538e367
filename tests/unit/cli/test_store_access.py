"""Changes through running servers: the first one decides, the others follow, failures are told."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from muelle.cli import store_access
from muelle.cli.context import Cli
from muelle.cli.store_access import Servers, label_text, servers_of, short_size, told
from muelle.core.admin import LabelAnswer
from muelle.core.errors import Conflict, Unavailable
from muelle.core.records import ServerLease
from muelle.repository.store import Store
from muelle.texts import Texts

HERE = socket.gethostname()


class Puppet:
    """Stands for the client of one server; writes down what it is asked."""

    def __init__(self, name: str, calls: list[str], fails: bool) -> None:
        self._name, self._calls, self._fails = name, calls, fails

    def __enter__(self) -> Puppet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._calls.append(f"{self._name} closed")

    def sync(self) -> None:
        self._calls.append(f"{self._name} sync")
        if self._fails:
            raise Unavailable("it drains")

    def set_label(self) -> LabelAnswer:
        self._calls.append(f"{self._name} label")
        if self._fails:
            raise Conflict("example 1 is answered otherwise")
        return LabelAnswer(
            model="fraud",
            label="stable",
            version=3,
            previous=2,
            digest="sha256:0",
            seconds=0.4123,
            changed=True,
        )


def lease(name: str, *, versions: tuple[tuple[str, int], ...] = (), **changes: Any) -> ServerLease:
    """A server's lease."""
    facts = {"pid": 1, "host": HERE, "socket": f"/run/{name}", "url": f"http://{name}"} | changes
    return ServerLease(id=name, versions=versions, **facts)


@pytest.fixture
def cli() -> Cli:
    """A command line that writes into memory."""
    return Cli(texts=Texts("en"), env={}, stdout=io.StringIO(), stderr=io.StringIO())


def puppets(monkeypatch: pytest.MonkeyPatch, *failing: str) -> list[str]:
    """Let puppets answer for the servers; return the list of calls."""
    calls: list[str] = []

    def client(of: ServerLease) -> Puppet:
        return Puppet(of.id, calls, of.id in failing)

    monkeypatch.setattr(store_access, "_client", client)
    return calls


def test_the_server_that_has_the_model_decides(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """It makes the change, then the others follow; servers elsewhere or without socket do not."""
    calls = puppets(monkeypatch)
    servers = Servers(
        (
            lease("a", versions=(("churn", 1),)),
            lease("b", versions=(("fraud", 2),)),
            lease("far", host="elsewhere"),
            lease("mute", socket=""),
        ),
        "fraud",
    )
    answer = servers.change(cli, lambda client: client.set_label())  # type: ignore[call-arg]
    assert calls == ["b label", "b closed", "a sync", "a closed"]
    text = label_text(cli, told(answer, servers.url))
    assert text == "fraud@stable -> 3, answering after 0.41 s"
    assert servers.url == "http://b"


def test_a_refusal_reaches_the_caller_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """When the version cannot answer, the error comes through and no other server is told."""
    calls = puppets(monkeypatch, "a")
    with pytest.raises(Conflict, match="answered otherwise"):
        Servers((lease("a"), lease("b")), "fraud").change(
            cli,
            lambda client: client.set_label(),  # type: ignore[call-arg]
        )
    assert calls == ["a label", "a closed"]


def test_a_server_that_cannot_follow_is_named(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """The change holds; what could not be told is said."""
    puppets(monkeypatch, "b")
    Servers((lease("a"), lease("b")), "fraud").change(
        cli,
        lambda client: client.set_label(),  # type: ignore[call-arg]
    )
    stderr = cli._stderr
    assert isinstance(stderr, io.StringIO)
    assert "server b does not know of it yet: it drains" in stderr.getvalue()


def test_only_living_servers_of_the_store_count(tmp_path: Path) -> None:
    """A lease counts while it is held, and no longer."""
    with Store.open(tmp_path / "store", create=True) as store:
        assert not servers_of(store, "fraud")
        held = store.lease(lease("a"))
        assert servers_of(store, "fraud")
        held.close()
        assert not servers_of(store, "fraud")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (5_000_000_000, "5.0 GB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_sizes_are_short(n_bytes: int, text: str) -> None:
    """Powers of 1,000, as disks are sold."""
    assert short_size(n_bytes) == text
