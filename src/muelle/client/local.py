"""`muelle.model("fraud")`: ask a model from inside an application.

In an application that Muelle hosts, over the channel to the server: no HTTP, and its requests share
batches with all others. Elsewhere (plain uvicorn, tests) over HTTP, at MUELLE_URL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from muelle.client import calls
from muelle.client.aio import AsyncClient
from muelle.client.calls import Call, Prediction, Reply, error_of, signature_of
from muelle.client.sync import Client
from muelle.client.tensors import encode_request, to_arrays
from muelle.core.errors import ConfigError, DeadlineExceeded
from muelle.core.signature import Signature

TIMEOUT_S = 35.0
"""A little more than the server's own limit, which says more when it is over."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer as it came over the channel."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Channel(Protocol):
    """The way to the server of the process that this runs in."""

    loop: asyncio.AbstractEventLoop

    async def ask(
        self, method: str, path: str, headers: tuple[tuple[bytes, bytes], ...], body: bytes
    ) -> Asked:
        """Ask the server; on the loop's thread."""


CHANNEL: ContextVar[Channel | None] = ContextVar("muelle-channel", default=None)
"""Set by the process that hosts an application, before it is imported. A context variable, not a
global: whoever has no channel finds none, and asks over HTTP."""


class ServedModel:
    """One model that is served. May be made once and used by many threads and tasks."""

    def __init__(self, name: str, version: str | None, channel: Channel | None, url: str) -> None:
        self.name = name
        self.version = version
        self._channel = channel
        self._url = url
        self._signature: Signature | None = None
        self._client: Client | None = None

    def __repr__(self) -> str:
        version = f", version={self.version!r}" if self.version is not None else ""
        return f"muelle.model({self.name!r}{version})"

    def predict(
        self, inputs: Any, *, outputs: Sequence[str] = (), timeout_s: float | None = None
    ) -> Prediction:
        """Ask and wait. `inputs` as for `Client.predict`: rows, a dict of arrays, records, a frame.

        Not inside a coroutine: there it would hold up the loop that has to answer it. Raise what
        `Client.predict` raises.
        """
        channel = self._channel
        if channel is None:
            return self._http().predict(
                self.name, inputs, version=self.version, outputs=outputs, timeout_s=timeout_s
            )
        if _on_loop(channel.loop):
            raise ConfigError(
                f"muelle.model({self.name!r}).predict is called inside a coroutine, where it would "
                "wait for itself; write: await model.predict_async(rows)"
            )
        future = asyncio.run_coroutine_threadsafe(
            self._ask(channel, inputs, outputs, timeout_s), channel.loop
        )
        return future.result()

    async def predict_async(
        self, inputs: Any, *, outputs: Sequence[str] = (), timeout_s: float | None = None
    ) -> Prediction:
        """Ask; the loop goes on meanwhile."""
        if self._channel is not None:
            return await self._ask(self._channel, inputs, outputs, timeout_s)
        async with AsyncClient(self._url) as client:
            return await client.predict(
                self.name, inputs, version=self.version, outputs=outputs, timeout_s=timeout_s
            )

    async def _ask(
        self, channel: Channel, inputs: Any, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        signature = await self._signature_of(channel)
        body, headers = encode_request(to_arrays(inputs, signature), signature, outputs)
        call = calls.predict(self.name, self.version, body, headers, timeout_s)
        found: Prediction = await _run(channel, call, timeout_s)
        return found

    async def _signature_of(self, channel: Channel) -> Signature:
        if self._signature is None:
            status = await _run(channel, calls.model(self.name, managed=False), None)
            self._signature = signature_of(status, self.version)
        return self._signature

    def _http(self) -> Client:
        if self._client is None:
            self._client = Client(self._url)
        return self._client


def model(name: str, version: str | int | None = None) -> ServedModel:
    """Return a model of the server that hosts this application, to predict with.

    `version` pins one; without it the route decides. Outside a hosted application the server at
    MUELLE_URL is asked (the one on this machine by default). Nothing is asked before `predict`.
    """
    number = None if version is None else str(version)
    return ServedModel(name, number, CHANNEL.get(), os.environ.get("MUELLE_URL", ""))


async def _run(channel: Channel, call: Call[Any], timeout_s: float | None) -> Any:
    headers = tuple((k.encode(), v.encode()) for k, v in call.headers.items())
    limit = TIMEOUT_S if timeout_s is None else timeout_s + 1.0
    try:
        async with asyncio.timeout(limit):
            asked = await channel.ask(call.method, call.path, headers, call.body or b"")
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within {limit:g} s") from None
    reply = Reply(
        asked.status,
        {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in asked.headers},
        asked.body,
    )
    if reply.status >= 400:
        raise error_of(reply)
    return call.read(reply)


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
