"""The client for asyncio programs. Any task of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from muelle.client import calls
from muelle.client.base import Base, as_reply
from muelle.client.calls import Call, Prediction, signature_of
from muelle.client.tensors import encode_request, to_arrays
from muelle.core.admin import (
    AuditEntry,
    LabelAnswer,
    RolloutStatus,
    ServerStatus,
    StartRollout,
)
from muelle.core.errors import BadRequest
from muelle.core.records import RouteSpec
from muelle.core.signature import Signature
from muelle.core.status import ModelStatus

T = TypeVar("T")


class AsyncClient(Base):
    """Asks one server, as `Client` does, without blocking the event loop.

    `async with AsyncClient(url) as client: (await client.predict("fraud", rows)).array()`
    """

    def __init__(
        self,
        url: str = "",
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **settings: Any,
    ) -> None:
        """`settings`: `socket`, `token`, `timeout_s` (30), `retries` (3)."""
        super().__init__(url, **settings)
        self._sleep = sleep
        uds = self._socket
        transport = httpx.AsyncHTTPTransport(uds=uds) if uds is not None else None
        self._http = httpx.AsyncClient(transport=transport, **self._options)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- predictions and what is served ---

    async def predict(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Prediction:
        """Ask a model. `inputs`: a dict of arrays or lists, records, a DataFrame, or rows.

        Arrays travel in binary form. `timeout_s` is also told to the server, which drops the
        request then. Raise BadRequest (the inputs do not fit), ModelNotFound, Unavailable, …
        """
        number = None if version is None else str(version)
        signature = await self.signature(model, version=number)
        body, sent = encode_request(to_arrays(inputs, signature), signature, outputs)
        call = calls.predict(model, number, body, {**sent, **(headers or {})}, timeout_s)
        try:
            return await self._run(call, timeout_s)
        except BadRequest:
            # Another version may answer by now, with other inputs: ask for them anew next time.
            self._signatures.pop((model, number), None)
            raise

    async def signature(self, model: str, *, version: str | int | None = None) -> Signature:
        """Return what a model takes and gives; asked for once. Raise ModelNotFound, …"""
        number = None if version is None else str(version)
        found = self._signatures.get((model, number))
        if found is None:
            status = await self.model(model)
            found = signature_of(status, number)
            self._signatures[model, number] = found
        return found

    async def models(self) -> tuple[ModelStatus, ...]:
        """Return every model that is served."""
        return await self._run(calls.models(managed=self.manages))

    async def model(self, name: str) -> ModelStatus:
        """Return one model. Raise ModelNotFound."""
        return await self._run(calls.model(name, managed=self.manages))

    async def live(self) -> bool:
        """Whether the server runs."""
        return await self._run(calls.live())

    async def ready(self) -> bool:
        """Whether every model answers."""
        return await self._run(calls.ready())

    async def metrics(self) -> str:
        """Return the Prometheus text."""
        return await self._run(calls.metrics())

    # --- management: needs the admin socket, or the admin address and a token ---

    async def status(self) -> ServerStatus:
        """Return the server at a glance."""
        return await self._run(calls.status())

    async def set_label(self, model: str, label: str, version: int, note: str = "") -> LabelAnswer:
        """Let a label name a version; returns when that version answers. Raise: nothing moved."""
        return await self._run(calls.set_label(model, label, version, note))

    async def remove_label(self, model: str, label: str) -> None:
        """Take a label away."""
        await self._run(calls.remove_label(model, label))

    async def rollback(self, model: str, label: str = "stable", note: str = "") -> LabelAnswer:
        """Let a label name again what it named before."""
        return await self._run(calls.rollback(model, label, note))

    async def route(self, model: str) -> RouteSpec | None:
        """Return how a model's unpinned requests are shared; None: its stable version has all."""
        return await self._run(calls.route(model))

    async def set_route(self, model: str, spec: RouteSpec | None) -> RouteSpec | None:
        """Share them anew; None clears the route."""
        return await self._run(calls.set_route(model, spec))

    async def start_rollout(self, model: str, version: int, **limits: Any) -> RolloutStatus:
        """Begin to shift traffic to a version; `limits` are the fields of `StartRollout`."""
        return await self._run(calls.start_rollout(model, StartRollout(version=version, **limits)))

    async def rollout(self, model: str) -> RolloutStatus:
        """Return where the newest rollout stands. Raise VersionNotFound when there was none."""
        return await self._run(calls.rollout(model))

    async def abort_rollout(self, model: str) -> RolloutStatus:
        """Give all traffic back."""
        return await self._run(calls.abort_rollout(model))

    async def watch_rollout(self, model: str, every_s: float = 1.0) -> AsyncIterator[RolloutStatus]:
        """Yield the rollout again and again until it has ended; the last one says how."""
        while True:
            status = await self.rollout(model)
            yield status
            if status.ended:
                return
            await self._sleep(every_s)

    async def load(self, model: str, version: int | None = None) -> ModelStatus:
        """Load a model's versions, or one of them (explicit control)."""
        return await self._run(calls.load(model, version))

    async def unload(self, model: str, version: int | None = None) -> ModelStatus:
        """Unload them."""
        return await self._run(calls.unload(model, version))

    async def sync(self) -> dict[str, float]:
        """Let the server look at its store or folders now, and wait until it has followed."""
        return await self._run(calls.sync())

    async def audit(self, after: int = 0, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return entries of the audit log with higher numbers, oldest first."""
        return await self._run(calls.audit(after, limit))

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        more: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s + 1.0}
        attempt = 0
        while True:
            attempt += 1
            reply, problem = None, None
            try:
                reply = as_reply(await self._http.request(**self._arguments(call), **more))
            except httpx.TransportError as exc:
                problem = exc
            wait = self._judge(call, reply, problem, attempt)
            if wait is not None:
                await self._sleep(wait)
                continue
            if reply is None:
                assert problem is not None
                raise self._unreachable(problem) from problem
            result: T = self._result(call, reply)
            return result
