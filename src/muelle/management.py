"""The control plane's door: which models there are, and what state they are in.

Loads versions through worker pools and swaps the routing table when one is ready. Not for
predictions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muelle.config.sections import ServeConfig
from muelle.core.errors import MuelleError
from muelle.core.events import Listener
from muelle.core.signature import Signature, made_up_example
from muelle.core.status import ModelStatus, VersionStatus
from muelle.inference import (
    Codec,
    InferenceService,
    NativeHttp,
    PlainCodec,
    PredictEndpoint,
    Served,
    V2Http,
)
from muelle.protocols.native import NativeCodec
from muelle.protocols.native_plain import NativePlain
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_plain import V2Plain
from muelle.repository.digest import digest_artifact
from muelle.routing.table import ModelRoute, RouteTable, default_version
from muelle.telemetry.metrics import VersionMetrics
from muelle.workers.pool import PoolSpec, WorkerPool

HUNG_SHARE = 3
"""A batch may take a third of the request timeout, so that one that hung can run again in time."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version to serve, as the repository found it."""

    model: str
    version: str
    path: Path
    runtime: str
    format: str
    refused: str = ""
    """Why it must not be loaded (no trust, missing library); empty when it may."""


class _Version:
    """One version's pool and what is known of it beside."""

    def __init__(self, artifact: Artifact, pool: WorkerPool, metrics: VersionMetrics) -> None:
        self.artifact = artifact
        self.pool = pool
        self.metrics = metrics
        self.digest = ""
        self.endpoints: Mapping[str, PredictEndpoint] = MappingProxyType({})


class ManagementService:
    """Owns every version. Used on the event loop's thread only."""

    def __init__(
        self,
        config: ServeConfig,
        inference: InferenceService,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        table_changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._inference = inference
        self._loop = loop
        self._listener = listener
        self._table_changed = table_changed
        self._versions: dict[str, dict[str, _Version]] = {}
        self._digests: set[asyncio.Future[None]] = set()
        self.draining = False

    # --- life ---

    async def load_all(self, artifacts: Iterable[Artifact]) -> None:
        """Load every artifact, side by side, and wait until each answers or has failed."""
        loads = [self._loop.create_task(self._load(artifact)) for artifact in artifacts]
        await asyncio.gather(*loads)

    async def stop(self) -> None:
        """Answer what waits and end every worker."""
        timeout_s = self._config.drain_s
        await asyncio.gather(*(v.pool.stop(timeout_s) for v in self._all()))
        for future in self._digests:
            future.cancel()

    async def _load(self, artifact: Artifact) -> None:
        metrics = VersionMetrics(artifact.model, artifact.version)
        pool = WorkerPool(
            self._spec(artifact), loop=self._loop, listener=self._listener, observer=metrics
        )
        version = _Version(artifact, pool, metrics)
        self._versions.setdefault(artifact.model, {})[artifact.version] = version
        if artifact.refused:
            pool.refuse(artifact.refused)
        else:
            await pool.start()
        if pool.signature is not None:
            version.endpoints = self._endpoints(version, pool.signature)
        self._swap()
        if not artifact.refused:
            future = asyncio.ensure_future(self._loop.run_in_executor(None, self._hash, version))
            self._digests.add(future)
            future.add_done_callback(self._digests.discard)

    def _hash(self, version: _Version) -> None:
        try:
            version.digest = digest_artifact(version.artifact.path)
        except (OSError, MuelleError):
            version.digest = ""  # The file went away; its workers have it in memory.

    def _spec(self, artifact: Artifact) -> PoolSpec:
        config = self._config
        worker, batching = config.worker, config.batching
        return PoolSpec(
            model=artifact.model,
            version=artifact.version,
            artifact=str(artifact.path),
            runtime=artifact.runtime,
            format=artifact.format,
            workers=1 if worker.isolation == "none" else worker.workers,
            threads=worker.threads,
            isolation=worker.isolation,
            max_batch_size=batching.max_batch_size,
            max_delay_s=batching.max_delay_ms / 1e3,
            max_queue=batching.max_queue,
            max_queue_bytes=batching.max_queue_bytes,
            timeout_s=config.timeout_s,
            run_limit_s=worker.run_limit_s or config.timeout_s / HUNG_SHARE,
            load_timeout_s=worker.load_timeout_s,
            memory_limit_bytes=worker.memory_limit_mb * 1024 * 1024,
            output_limit_bytes=config.limits.output_bytes,
        )

    def _endpoints(self, version: _Version, signature: Signature) -> Mapping[str, PredictEndpoint]:
        config, artifact = self._config, version.artifact
        common: dict[str, Any] = {
            "json_nan": config.json_nan,
            "json_depth": config.limits.json_depth,
            "max_batch_size": config.batching.max_batch_size,
        }
        name, number, depth = artifact.model, artifact.version, config.limits.json_depth
        codecs: tuple[tuple[Codec, PlainCodec | None], ...] = (
            (
                NativeHttp(NativeCodec(name, number, signature, **common)),
                NativePlain(name, number, signature),
            ),
            (
                V2Http(V2Codec(name, number, signature, **common)),
                V2Plain(name, number, signature, depth),
            ),
        )
        return MappingProxyType(
            {
                codec.protocol: PredictEndpoint(
                    codec, plain, version.pool, version.metrics, time.monotonic
                )
                for codec, plain in codecs
            }
        )

    def _swap(self) -> None:
        """Make the new routing table and let transport see it."""
        models = {}
        for name, versions in self._versions.items():
            served = {
                number: Served(version.pool, version.endpoints)
                for number, version in versions.items()
            }
            usable = [n for n, v in versions.items() if v.pool.signature is not None]
            models[name] = ModelRoute(
                name, MappingProxyType(served), default_version(usable or versions)
            )
        self._inference.table = RouteTable(MappingProxyType(models))
        self._table_changed()

    # --- what there is ---

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every model with its versions, by name."""
        return tuple(self.model(name) for name in sorted(self._versions))

    def model(self, name: str) -> ModelStatus:
        """Return one model. Raise ModelNotFound with near names."""
        route = self._inference.table.model(name)
        versions = self._versions[name]
        newest_first = sorted(versions, key=int, reverse=True)
        return ModelStatus(
            name=name,
            default=route.default,
            versions=tuple(self._status(versions[number]) for number in newest_first),
        )

    def metrics(self) -> tuple[VersionMetrics, ...]:
        """Return every version's counters."""
        return tuple(version.metrics for version in self._all())

    def live(self) -> bool:
        """Whether the server runs: its loop turns, or this would not be called."""
        return True

    def ready(self) -> tuple[bool, str]:
        """Whether every default version has a serving worker; else what is missing."""
        if self.draining:
            return False, "the server is shutting down"
        table = self._inference.table
        if not table.models:
            return False, "no model has been loaded yet"
        for name, route in table.models.items():
            if route.default is None:
                return False, f"{name}: no version"
            pool = route.versions[route.default].pool
            if pool.state != "READY":
                return False, f"{name}: {pool.reason}"
            if not pool.serving:
                return False, f"{name}: its worker restarts"
        return True, ""

    def failures(self) -> list[tuple[Artifact, str]]:
        """Return the versions that will not answer, with the reasons."""
        return [(v.artifact, v.pool.reason) for v in self._all() if v.pool.signature is None]

    def waiting(self) -> int:
        """Requests that wait, over all versions."""
        return sum(version.pool.queue_depth for version in self._all())

    def _all(self) -> list[_Version]:
        return [v for versions in self._versions.values() for v in versions.values()]

    def _status(self, version: _Version) -> VersionStatus:
        pool, artifact = version.pool, version.artifact
        return VersionStatus(
            version=artifact.version,
            state=pool.state,
            reason=pool.reason,
            digest=version.digest,
            format=artifact.format,
            runtime=artifact.runtime,
            signature=pool.signature,
            example=_example(pool),
            info=pool.info,
            workers=pool.worker_statuses(),
            queue_depth=pool.queue_depth,
            in_flight=pool.in_flight,
            isolation="none" if pool.spec.isolation == "none" else "process",
            max_batch_size=pool.spec.max_batch_size,
        )


def _example(pool: WorkerPool) -> dict[str, Any] | None:
    """Return the model's own example row, or a made-up one; None while nothing is known of it."""
    if pool.example is not None or pool.signature is None:
        return pool.example
    return made_up_example(pool.signature)
