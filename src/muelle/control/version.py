"""One version in this server: its workers, its check against the stored answers, its endpoints.

Owned by the fleet; used on the event loop's thread only. Not for deciding when it comes and goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from muelle.config.sections import ServeConfig
from muelle.control.wanted import Artifact, Prepared
from muelle.core.events import Listener
from muelle.core.records import VersionRecord
from muelle.core.signature import Signature, made_up_example
from muelle.core.status import VersionState, VersionStatus
from muelle.endpoints import (
    BinaryEndpoint,
    Codec,
    LocalV2,
    NativeHttp,
    PlainCodec,
    PredictEndpoint,
    V2Http,
)
from muelle.generate import GenerateEndpoint, GenerateHttp, GenerateStreamHttp
from muelle.lifecycle.compare import compare_answers
from muelle.protocols.native import NativeCodec
from muelle.protocols.native_plain import NativePlain
from muelle.protocols.v2 import V2Codec
from muelle.protocols.v2_binary import V2BinaryPlain
from muelle.protocols.v2_generate import GenerateCodec
from muelle.protocols.v2_grpc import GrpcCodec, GrpcPlain, GrpcStreamCodec
from muelle.protocols.v2_plain import V2Plain
from muelle.telemetry.metrics import VersionMetrics
from muelle.workers.messages import Loaded
from muelle.workers.pool import Check, PoolSpec, WorkerPool

HUNG_SHARE = 3
"""A batch may take a third of the request timeout, so that one that hung can run again in time."""

Stage = Literal["loading", "ready", "failed", "unloading"]


class LiveVersion:
    """A version that is loaded, or on its way in or out."""

    def __init__(
        self,
        artifact: Artifact,
        config: ServeConfig,
        metrics: VersionMetrics,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
    ) -> None:
        self.artifact = artifact
        self.metrics = metrics
        self.stage: Stage = "loading"
        self.reason = "loading"
        self.digest = artifact.record.digest if artifact.record is not None else ""
        self.endpoints: Mapping[str, PredictEndpoint] = MappingProxyType({})
        self.pool: WorkerPool | None = None
        self.since = time.monotonic()
        self.last_used = self.since
        self._config = config
        self._loop = loop
        self._listener = listener
        self._seen = 0

    async def load(self, prepared: asyncio.Future[Prepared], *, one_try: bool) -> None:
        """Start the workers and wait until they answer their examples right, or have failed.

        `prepared` is awaited first for a version of a store (its folder must be made) and where
        signatures are asked for, and beside the workers' start for any other plain file (only its
        digest is computed). Never raises.
        """
        artifact = self.artifact
        if artifact.refused:
            self.fail(artifact.refused)
            return
        try:
            python = ""
            path = artifact.path
            if artifact.record is not None or self._config.security.require_signature:
                ready = await prepared
                if self.stage != "loading":
                    return  # It was unloaded while its files were laid out: start nothing.
                path, python = ready.path, ready.python
            pool = self._new_pool(str(path), python, one_try)
            self.pool = pool
            starting = self._loop.create_task(pool.start())
            ready = await prepared
            self.digest = ready.digest
            await starting
        except Exception as exc:
            self.fail(str(exc))
            return
        if self.stage != "loading":
            return
        if pool.signature is None:
            self.stage, self.reason = "failed", pool.reason
            return
        self.endpoints = self._new_endpoints(pool, pool.signature)
        self.stage, self.reason = "ready", ""
        self.since = self.last_used = time.monotonic()

    def fail(self, reason: str) -> None:
        """Take it out of service, for a reason."""
        if self.pool is None:
            self.pool = self._new_pool(str(self.artifact.path), "", False)
        self.pool.fail(reason)
        self.stage, self.reason = "failed", reason

    async def unload(self, timeout_s: float) -> None:
        """Answer what it has accepted, then end its workers."""
        self.stage, self.reason = "unloading", "it is being unloaded"
        if self.pool is not None:
            await self.pool.stop(timeout_s)

    # --- what is known of it ---

    @property
    def serving(self) -> bool:
        """Whether it can take requests now."""
        return self.stage == "ready" and self.pool is not None and self.pool.state == "READY"

    @property
    def leased(self) -> bool:
        """Whether somebody waits for an answer of it."""
        return self.pool is not None and self.pool.busy

    def touch(self, now: float) -> None:
        """Note whether it was used since the last look."""
        seen = self.metrics.answered()
        if seen != self._seen or self.leased:
            self._seen = seen
            self.last_used = now

    def memory_bytes(self) -> int:
        """Return the resident memory of its workers."""
        statuses = self.pool.worker_statuses() if self.pool is not None else ()
        return sum(status.rss_bytes for status in statuses)

    def why_not(self) -> str:
        """Say why it does not answer."""
        if self.stage == "ready" and self.pool is not None:
            return self.pool.reason
        return self.reason

    def status(self, labels: tuple[str, ...], share: float, shadow: bool) -> VersionStatus:
        """Return what management tells about it."""
        pool, artifact = self.pool, self.artifact
        workers = pool.worker_statuses() if pool is not None else ()
        return VersionStatus(
            version=artifact.version,
            state=self._state(),
            reason=self.why_not(),
            digest=self.digest,
            format=artifact.format,
            runtime=artifact.runtime,
            signature=pool.signature if pool is not None else None,
            example=self._example(),
            info=pool.info if pool is not None else {},
            workers=workers,
            queue_depth=pool.queue_depth if pool is not None else 0,
            in_flight=pool.in_flight if pool is not None else 0,
            isolation="none" if self._config.worker.isolation == "none" else "process",
            max_batch_size=self._config.batching.max_batch_size,
            labels=labels,
            share=share,
            shadow=shadow,
        )

    def _state(self) -> VersionState:
        if self.stage == "ready" and self.pool is not None:
            return self.pool.state
        states: dict[Stage, VersionState] = {"failed": "FAILED", "unloading": "UNLOADING"}
        return states.get(self.stage, "LOADING")

    def _example(self) -> dict[str, Any] | None:
        """Return the model's own example row, or a made-up one; None while nothing is known."""
        pool = self.pool
        if pool is None or pool.example is not None or pool.signature is None:
            return pool.example if pool is not None else None
        return made_up_example(pool.signature)

    # --- parts ---

    def _new_pool(self, path: str, python: str, one_try: bool) -> WorkerPool:
        config, artifact = self._config, self.artifact
        worker, batching, record = config.worker, config.batching, artifact.record
        spec = PoolSpec(
            model=artifact.model,
            version=artifact.version,
            artifact=path,
            runtime=artifact.runtime,
            format=artifact.format,
            workers=1 if worker.isolation == "none" else worker.workers,
            threads=worker.threads,
            isolation="process" if python else worker.isolation,
            max_batch_size=batching.max_batch_size,
            max_delay_s=batching.max_delay_ms / 1e3,
            max_queue=batching.max_queue,
            max_queue_bytes=batching.max_queue_bytes,
            timeout_s=config.timeout_s,
            run_limit_s=worker.run_limit_s or config.timeout_s / HUNG_SHARE,
            load_timeout_s=worker.load_timeout_s,
            memory_limit_bytes=worker.memory_limit_mb * 1024 * 1024,
            output_limit_bytes=config.limits.output_bytes,
            examples=_examples(record),
            one_try=one_try,
            python=python,
            settings=artifact.settings,
        )
        return WorkerPool(
            spec,
            loop=self._loop,
            listener=self._listener,
            observer=self.metrics,
            check=None if record is None else check_against(record),
        )

    def _new_endpoints(
        self, pool: WorkerPool, signature: Signature
    ) -> Mapping[str, PredictEndpoint]:
        config, artifact = self._config, self.artifact
        common: dict[str, Any] = {
            "json_nan": config.json_nan,
            "json_depth": config.limits.json_depth,
            "max_batch_size": config.batching.max_batch_size,
        }
        name, number, depth = artifact.model, artifact.version, config.limits.json_depth
        v2_codec = V2Codec(name, number, signature, **common)
        codecs: tuple[tuple[Codec, PlainCodec | None], ...] = (
            (
                NativeHttp(NativeCodec(name, number, signature, **common)),
                NativePlain(name, number, signature),
            ),
            (
                V2Http(v2_codec),
                V2Plain(name, number, signature, depth),
            ),
            (LocalV2(v2_codec), None),
        )
        decoupled = pool.settings is not None and pool.settings.decoupled
        grpc = GrpcCodec(name, number, signature)
        generate = GenerateCodec(v2_codec, json_nan=config.json_nan, json_depth=depth)
        named: tuple[tuple[str, Codec, PlainCodec | None], ...] = (
            *((codec.protocol, codec, plain) for codec, plain in codecs),
            ("v2_grpc", grpc, GrpcPlain(grpc)),
            ("v2_stream", GrpcStreamCodec(name, number, signature, decoupled=decoupled), None),
        )
        rest = (pool, self.metrics, time.monotonic, self.digest)
        return MappingProxyType(
            {key: PredictEndpoint(codec, plain, *rest) for key, codec, plain in named}
            | {"v2_binary": BinaryEndpoint(V2Http(v2_codec), V2BinaryPlain(v2_codec), *rest)}
            | {
                codec.protocol: GenerateEndpoint(codec, *rest)
                for codec in (GenerateHttp(generate), GenerateStreamHttp(generate))
            }
        )


def check_against(record: VersionRecord) -> Check:
    """Return the look at a freshly loaded worker: has it the version's signature and answers?"""

    def check(loaded: Loaded) -> str:
        if record.signature is not None and loaded.signature != record.signature:
            return "its signature is not the one that it was pushed with"
        if len(loaded.answers) != len(record.examples):
            return "the worker did not answer the examples"
        for i, (example, answer) in enumerate(zip(record.examples, loaded.answers, strict=True)):
            try:
                trouble = compare_answers(
                    example.outputs,
                    answer,
                    rtol=record.rtol,
                    atol=record.atol,
                    values=example.repeatable,
                )
            except ValueError as exc:
                trouble = f"cannot be read: {exc}"
            if trouble:
                return f"example {i + 1} is answered otherwise than when it was pushed: {trouble}"
        return ""

    return check


def _examples(record: VersionRecord | None) -> bytes:
    if record is None or not record.examples:
        return b""
    return msgspec.msgpack.encode([example.inputs for example in record.examples])
