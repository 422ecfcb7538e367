"""What the store's commands share: opening it, its living servers, its audit log, JSON and sizes.

A change of labels or routes goes through a running server, which first makes it true; without one
it goes to the store. Not for the commands themselves. Imports neither NumPy nor a runtime.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from muelle.core.errors import ConfigError, MuelleError

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.client import Client
    from muelle.core.admin import LabelAnswer
    from muelle.core.records import ServerLease
    from muelle.repository.store import Reference, Store
    from muelle.texts import Texts

T = TypeVar("T")

CHANGE_TIMEOUT_S = 900.0
"""What a server may take to load a version before it answers that the label has moved."""


def store_options(texts: Texts) -> list[click.Parameter]:
    """Return `--store` and `--json`."""
    return [
        click.Option(["--store"], metavar="DIR", help=texts("help.option.store")),
        click.Option(["--json", "as_json"], is_flag=True, help=texts("help.option.json")),
    ]


@contextmanager
def opened(cli: Cli, store: str | None, *, create: bool = False) -> Iterator[Store]:
    """Open the store that is meant. Raise ArtifactError when there is none and not `create`."""
    from muelle.repository.store import Store, default_store

    folder = Path(store).expanduser() if store else default_store(cli.env)
    with Store.open(folder, create=create) as found:
        yield found


def find(store: Store, text: str) -> tuple[str, int]:
    """Return (model, version) of `fraud`, `fraud:3` or `fraud@stable`."""
    from muelle.repository.store import Reference

    return store.resolve(Reference.parse(text))


def model_of(text: str) -> str:
    """Return the model of a reference that must name no version."""
    return _only_model(_parse(text), text)


def labelled(text: str) -> tuple[str, str]:
    """Return (model, label) of `fraud@canary`."""
    reference = _parse(text)
    if reference.label is None:
        raise ConfigError(f"{text!r}: name the label too, for example {reference.model}@canary")
    return reference.model, reference.label


def _parse(text: str) -> Reference:
    from muelle.repository.store import Reference

    return Reference.parse(text)


def _only_model(reference: Reference, text: str) -> str:
    if reference.version is not None or reference.label is not None:
        raise ConfigError(f"{text!r}: name the model alone: {reference.model}")
    return reference.model


# --- who, and the audit log ---


def user() -> str:
    """Return the account of this process, as the audit log names it: `cli:ana`."""
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())  # containers often run under a number without a name
    return f"cli:{name}"


@dataclass(slots=True)
class Entry:
    """What the audit log is told of an action; the action fills in what it finds out."""

    model: str = ""
    version: int | None = None
    digest: str = ""
    detail: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@contextmanager
def audited(
    store: Store, action: str, model: str = "", version: int | None = None
) -> Iterator[Entry]:
    """Write an action on the store down, also when it fails. Nothing is done when that cannot be.

    The log is opened first: where it cannot be written, the action does not begin.
    """
    from muelle.telemetry.audit import AuditLog

    log = AuditLog.open(store.folder / "audit.db")
    log.check()
    entry = Entry(model, version)
    outcome = "interrupted"
    try:
        yield entry
        outcome = "ok"
    except MuelleError as exc:
        outcome = " ".join(exc.message.split())
        raise
    finally:
        log.write(
            who=user(),
            action=action,
            model=entry.model,
            version=entry.version,
            digest=entry.digest,
            outcome=outcome,
            detail=entry.detail,
        )


# --- living servers ---


class Servers:
    """The servers that run on a store here and can be asked. Made for one command."""

    def __init__(self, leases: tuple[ServerLease, ...], model: str) -> None:
        here = socket.gethostname()
        asked = [lease for lease in leases if lease.socket and lease.host in ("", here)]
        # The one that serves the model says whether the version works.
        self._leases = sorted(asked, key=lambda lease: all(m != model for m, _ in lease.versions))

    def __bool__(self) -> bool:
        return bool(self._leases)

    @property
    def url(self) -> str:
        """Where the first one answers."""
        return self._leases[0].url if self._leases else ""

    def ask(self, do: Callable[[Client], T]) -> T:
        """Ask the first server. Raise as it says."""
        with _client(self._leases[0]) as client:
            return do(client)

    def change(self, cli: Cli, do: Callable[[Client], T]) -> T:
        """Let the first server make a change; then the others follow. Raise as the server says."""
        first, *others = self._leases
        with _client(first) as client:
            answer = do(client)
        for lease in others:
            try:
                with _client(lease) as client:
                    client.sync()
            except MuelleError as exc:
                # It is true for the store; that server will find it by looking.
                cli.say(cli.texts("store.not_synced", server=lease.id, reason=exc.message))
        return answer


def servers_of(store: Store, model: str) -> Servers:
    """Return the living servers of the store."""
    return Servers(store.servers(), model)


def _client(lease: ServerLease) -> Client:
    from muelle.client import Client

    return Client(socket=lease.socket, timeout_s=CHANGE_TIMEOUT_S)


def move_label(
    cli: Cli,
    store: Store,
    model: str,
    label: str,
    version: int,
    note: str = "",
    reason: str = "label",
) -> dict[str, Any]:
    """Let a label name a version: through a server when one lives. Return what is true now."""
    servers = servers_of(store, model)
    if servers:
        return told(
            servers.change(cli, lambda client: client.set_label(model, label, version, note=note)),
            servers.url,
        )
    with audited(store, reason, model, version) as entry:
        digest = entry.digest = store.record(model, version).digest
        entry.detail["label"] = label
        words = f"{reason}: {note}" if note else reason
        change = store.set_label(model, label, version, who=user(), reason=words)
    return {
        "model": model,
        "label": label,
        "version": version,
        "previous": change.previous,
        "digest": digest,
        "changed": change.version != change.previous,
        "seconds": None,
        "server": "",
    }


def told(answer: LabelAnswer, url: str) -> dict[str, Any]:
    """Return a server's answer in the same form."""
    return {
        "model": answer.model,
        "label": answer.label,
        "version": answer.version,
        "previous": answer.previous,
        "digest": answer.digest,
        "changed": answer.changed,
        "seconds": answer.seconds,
        "server": url,
    }


def label_text(cli: Cli, moved: dict[str, Any]) -> str:
    """Return `fraud@stable -> 3, answering after 0.41 s`."""
    key = "store.label_moved" if moved["changed"] else "store.label_same"
    text = cli.texts(key, **{k: moved[k] for k in ("model", "label", "version")})
    if moved["seconds"] is None:
        return f"{text} {cli.texts('store.no_server')}"
    if not moved["changed"]:
        return text
    return text + cli.texts("store.answering", seconds=f"{moved['seconds']:.2f}")


# --- shown ---


def show_json(cli: Cli, value: Any) -> None:
    """Print a value as JSON; bytes as base64, NaN and infinity as null."""
    import msgspec
    import orjson

    text = orjson.dumps(msgspec.to_builtins(value, str_keys=True), option=orjson.OPT_INDENT_2)
    cli.show(text.decode())


def short_size(n_bytes: int) -> str:
    """Return `1.2 MB`; powers of 1,000, as disks are sold."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def short_time(text: str) -> str:
    """Return `2026-01-31 12:30` of an RFC 3339 date."""
    return text[:16].replace("T", " ")
