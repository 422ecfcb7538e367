"""A served model as an object: `predict(rows)`, whichever way leads to its server.

The ways are askers: over HTTP (`OverHttp`), over the event loop of a host in this process
(`OverLoop`), over the channel of a hosted application (`apps.local`). Not for management:
`Client` does that.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from muelle.client import calls
from muelle.client.calls import Call, Prediction, Reply, error_of, signature_of
from muelle.client.sync import Client
from muelle.client.tensors import encode_request, to_arrays
from muelle.core.errors import BadRequest, ConfigError, DeadlineExceeded
from muelle.core.signature import Signature

TIMEOUT_S = 35.0
"""A little more than the server's own limit, which says more when it is over."""


class Asker(Protocol):
    """A way to one model. Errors are those of `muelle.Client`."""

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """Ask, and wait for the answer."""

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """The same without holding up the event loop."""

    def signature(self, version: str | None) -> Signature:
        """Return what the model takes and gives."""


class ServedModel:
    """One model that is served. May be made once and used by many threads and tasks."""

    def __init__(self, name: str, version: str | None, asker: Asker) -> None:
        self.name = name
        self.version = version
        """The version that is asked, None for whichever the server's route chooses."""
        self._asker = asker

    def __repr__(self) -> str:
        version = f", version={self.version!r}" if self.version is not None else ""
        return f"muelle.model({self.name!r}{version})"

    @property
    def signature(self) -> Signature:
        """What the model takes and gives. Raise ModelNotFound, Unavailable, …"""
        return self._asker.signature(self.version)

    def predict(
        self,
        inputs: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """Ask and wait. `inputs`: a dict of arrays or lists, records, a DataFrame, or rows.

        For plain functions and threads; a coroutine awaits `predict_async`, so that others go on.
        Raise BadRequest (the inputs do not fit), ModelNotFound, Unavailable, DeadlineExceeded,
        ModelFailed, …
        """
        return self._asker.predict(inputs, self._which(version), outputs, timeout_s)

    async def predict_async(
        self,
        inputs: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """Ask as `predict` does, while other requests go on."""
        return await self._asker.predict_async(inputs, self._which(version), outputs, timeout_s)

    def _which(self, version: str | int | None) -> str | None:
        return self.version if version is None else str(version)


class OverHttp:
    """Asks a running server. One client for each thread."""

    def __init__(self, name: str, url: str) -> None:
        """`url` "" takes the client's default."""
        self._name = name
        self._url = url
        self._kept = threading.local()

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """Ask, and wait for the answer."""
        return self._client().predict(
            self._name, inputs, version=version, outputs=outputs, timeout_s=timeout_s
        )

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """The same in a thread: an async client belongs to one event loop, and tests have many."""
        call = functools.partial(self.predict, inputs, version, outputs, timeout_s)
        return await asyncio.to_thread(call)

    def signature(self, version: str | None) -> Signature:
        """Return what the model takes and gives."""
        return self._client().signature(self._name, version=version)

    def _client(self) -> Client:
        client: Client | None = getattr(self._kept, "client", None)
        if client is None:
            client = self._kept.client = Client(self._url)
        return client


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer as it came over a host's loop."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Channel(Protocol):
    """A host in this process, whose loop answers."""

    loop: asyncio.AbstractEventLoop

    async def ask(
        self, method: str, path: str, headers: tuple[tuple[bytes, bytes], ...], body: bytes
    ) -> Asked:
        """Ask it; on the loop's thread."""


class OverLoop:
    """Asks a host that runs in this process, on its own event loop."""

    def __init__(self, name: str, channel: Channel) -> None:
        self._name = name
        self._channel = channel
        self._signatures: dict[str | None, Signature] = {}

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """Ask, and wait. Raise ConfigError on the loop itself: it would wait for its own turn."""
        found: Prediction = self._waited(self.predict_async(inputs, version, outputs, timeout_s))
        return found

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """The same in a coroutine of that loop."""
        signature = await self._signature(version)
        body, headers = encode_request(to_arrays(inputs, signature), signature, outputs)
        call = calls.predict(self._name, version, body, headers, timeout_s)
        try:
            found: Prediction = await self._run(call, timeout_s)
        except BadRequest:
            # Another version may answer by now, with other inputs: ask for them anew next time.
            self._signatures.pop(version, None)
            raise
        return found

    def signature(self, version: str | None) -> Signature:
        """Return what the model takes and gives."""
        found: Signature = self._waited(self._signature(version))
        return found

    def _waited(self, asking: Any) -> Any:
        if _on_loop(self._channel.loop):
            asking.close()
            raise ConfigError(
                f"muelle.model({self._name!r}).predict is called inside a coroutine, where it "
                "would wait for itself; write: await model.predict_async(rows)"
            )
        return asyncio.run_coroutine_threadsafe(asking, self._channel.loop).result()

    async def _signature(self, version: str | None) -> Signature:
        if version not in self._signatures:
            status = await self._run(calls.model(self._name, managed=False), None)
            self._signatures[version] = signature_of(status, version)
        return self._signatures[version]

    async def _run(self, call: Call[Any], timeout_s: float | None) -> Any:
        headers = tuple((k.encode(), v.encode()) for k, v in call.headers.items())
        limit = TIMEOUT_S if timeout_s is None else timeout_s + 1.0
        try:
            async with asyncio.timeout(limit):
                asked = await self._channel.ask(call.method, call.path, headers, call.body or b"")
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
