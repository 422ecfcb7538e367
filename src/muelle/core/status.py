"""What management tells about models: plain snapshots. Not live objects."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from muelle.core.signature import Signature

VersionState = Literal[
    "LOADING", "READY", "UNAVAILABLE", "QUARANTINED", "FAILED", "UNLOADING", "UNLOADED"
]
WorkerState = Literal["starting", "ready", "busy", "restarting", "quarantined", "stopped"]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process. `rss_bytes` is its resident memory, 0 when it does not run."""

    index: int
    state: WorkerState
    pid: int | None = None
    restarts: int = 0
    rss_bytes: int = 0


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model. `signature` is None until it has been loaded once."""

    version: str
    state: VersionState
    reason: str
    """Why it is not READY; empty when it is."""
    digest: str
    """`sha256:<64 hex>` of the artifact, empty while it is being computed."""
    format: str
    runtime: str
    signature: Signature | None
    example: dict[str, Any] | None
    """Tensor name -> nested list with one row; always there when the signature is."""
    info: dict[str, Any]
    workers: tuple[WorkerStatus, ...]
    queue_depth: int
    in_flight: int = 0
    """Requests accepted and not yet answered, the waiting ones included."""
    isolation: Literal["process", "none"]
    max_batch_size: int
    labels: tuple[str, ...] = ()
    """The labels that name it, in a store."""
    share: float = 0.0
    """Its part of the requests that ask for no version, 0 to 1."""
    shadow: bool = False
    """Whether it gets a copy of the requests, whose answers are thrown away."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model with its versions, newest first. `default` is the version that answers unasked."""

    name: str
    default: str | None
    versions: tuple[VersionStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether the default version answers."""
        return any(v.version == self.default and v.state == "READY" for v in self.versions)

    @property
    def default_version(self) -> VersionStatus | None:
        """The version that answers when none is asked for."""
        return next((v for v in self.versions if v.version == self.default), None)
