"""What the management API needs of the server, as calls. Not the server's parts themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from muelle.core.admin import (
    AuditEntry,
    LabelAnswer,
    Rollback,
    RolloutStatus,
    ServerStatus,
    SetLabel,
    StartRollout,
)
from muelle.core.records import RouteSpec
from muelle.core.status import ModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminDoors:
    """All that the management API may call. Every call may raise MuelleError; `who` did it."""

    status: Callable[[], Awaitable[ServerStatus]]
    models: Callable[[], Awaitable[tuple[ModelStatus, ...]]]
    model: Callable[[str], Awaitable[ModelStatus]]
    set_label: Callable[[str, SetLabel, str], Awaitable[LabelAnswer]]
    """(model, change, who). Returns when the version answers predictions."""
    remove_label: Callable[[str, str, str], Awaitable[None]]
    """(model, label, who)."""
    rollback: Callable[[str, Rollback, str], Awaitable[LabelAnswer]]
    route: Callable[[str], Awaitable[RouteSpec | None]]
    set_route: Callable[[str, RouteSpec | None, str], Awaitable[RouteSpec | None]]
    start_rollout: Callable[[str, StartRollout, str], Awaitable[RolloutStatus]]
    rollout: Callable[[str], Awaitable[RolloutStatus]]
    abort_rollout: Callable[[str, str], Awaitable[RolloutStatus]]
    load: Callable[[str, int | None, str], Awaitable[ModelStatus]]
    unload: Callable[[str, int | None, str], Awaitable[ModelStatus]]
    sync: Callable[[str], Awaitable[dict[str, float]]]
    """(who). Returns the store's generation and the seconds that it took."""
    write_audit: Callable[
        [str, str, str, int | None, str, str, dict[str, str | int | float | bool | None]], object
    ]
    """(who, action, model, version, digest, outcome, detail). Blocking; durable when it returns."""
    check_audit: Callable[[], None]
    """Raise when the audit log cannot be written now. Blocking."""
    read_audit: Callable[[int, int], tuple[AuditEntry, ...]]
    """(after, limit). Blocking."""
