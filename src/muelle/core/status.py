"""What management tells about models: plain snapshots. Not live objects."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from muelle.core.signature import Signature

VersionState = Literal["LOADING", "READY", "UNAVAILABLE", "QUARANTINED", "FAILED", "UNLOADING"]
WorkerState = Literal["starting", "ready", "busy", "restarting", "quarantined", "stopped"]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process. `rss_bytes` is its resident memory, 0 when it does not run."""

    index: int
    state: WorkerState
    pid: int | None
    restarts: int
    rss_bytes: int


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
