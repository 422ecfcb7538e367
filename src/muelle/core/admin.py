"""What is asked of, and answered by, a running server's management API. Plain values, no calls."""

from __future__ import annotations

from typing import Literal

import msgspec

from muelle.core.records import STABLE, RouteSpec
from muelle.core.status import ModelStatus


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a caller sends: unknown members are errors."""


class SetLabel(Body, frozen=True):
    """Let a label name a version."""

    label: str
    version: int
    note: str = ""


class Rollback(Body, frozen=True):
    """Let a label name again what it named before."""

    label: str = STABLE
    note: str = ""


class LabelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The label names the version, and the version answers."""

    model: str
    label: str
    version: int
    previous: int | None
    digest: str
    seconds: float
    """From the request until the version answered."""
    changed: bool
    """False when the label named this version already."""


class StartRollout(Body, frozen=True):
    """Shift traffic to a version step by step, as long as no limit breaks. None: no such limit."""

    version: int
    steps: tuple[float, ...] = (5.0, 25.0, 100.0)
    """Percent of the traffic at each step, rising, the last 100."""
    watch_s: float = 600.0
    """How long each step is watched."""
    max_error_rate: float | None = 0.005
    """Share of failed requests (server's fault only), 0 to 1."""
    max_p99_ms: float | None = None
    max_disagreement: float | None = None
    """Share of shadow answers that differ from the old version's, 0 to 1."""
    min_requests: int = 20
    """Fewer than this many requests at a step prove nothing: the step waits for more."""
    note: str = ""


RolloutState = Literal["loading", "watching", "done", "rolled_back", "failed", "aborted"]


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rollout stands."""

    model: str
    version: int
    from_version: int | None
    state: RolloutState
    reason: str
    """Why it ended as it did, or what it waits for; empty while all is well."""
    step: int
    """Index into `steps`."""
    steps: tuple[float, ...]
    step_left_s: float
    requests: int
    """Answered by the new version in this step."""
    error_rate: float
    p99_ms: float
    disagreement: float | None
    """None while nothing has been compared."""
    started: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "rolled_back", "failed", "aborted")


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A running server at a glance."""

    muelle: str
    pid: int
    uptime_s: float
    ready: bool
    reason: str
    store: str
    """Path of the store it follows, "" when it serves files."""
    control: Literal["none", "poll", "explicit"]
    url: str
    rss_bytes: int
    """Of the server process and its workers together."""
    memory_limit_bytes: int
    """0 for no limit."""
    models: tuple[ModelStatus, ...]
    routes: dict[str, RouteSpec]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the audit log. `chain` is the SHA-256 over the entry before and this one."""

    number: int
    at: str
    """RFC 3339, UTC, milliseconds."""
    who: str
    """`uid:1000(ana)` over the Unix socket, `token:<8 digits of its hash>` over TCP, or
    `cli:<user>`."""
    action: str
    """`label`, `rollback`, `route`, `rollout`, `load`, `unload`, `push`, `rm`, `gc`, `denied`, …"""
    model: str
    version: int | None
    digest: str
    outcome: str
    """`ok`, or the error in one line."""
    detail: dict[str, str | int | float | bool | None]
    chain: str
