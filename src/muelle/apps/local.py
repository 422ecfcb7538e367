"""`muelle.model("fraud")`: ask a served model from inside an application, without HTTP.

In an application that `muelle serve` hosts, requests go over the channel to the server and are
batched there with everybody else's. Anywhere else (tests, another web server) the same object asks
a running server over HTTP. Not for management: `muelle.Client` does that.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from muelle.apps.hosted import Hosted, inherited
from muelle.client import Client, Prediction
from muelle.client.calls import Reply, error_of, predict, signature_of
from muelle.client.calls import model as model_call
from muelle.client.tensors import encode_request, to_arrays
from muelle.core.errors import BadRequest, TooLarge
from muelle.core.signature import Signature

_LATE_S = 5.0
"""How much longer than the server's own deadline an application waits for it."""


class Asker(Protocol):
    """A way to a served model. Errors are those of `muelle.Client`."""

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


class LocalModel:
    """One served model. May be kept, and used by any thread or task."""

    def __init__(self, name: str, version: str | None, asker: Asker) -> None:
        self.name = name
        self.version = version
        """The version that is asked, None for whichever the server's route chooses."""
        self._asker = asker

    def __repr__(self) -> str:
        pinned = f":{self.version}" if self.version is not None else ""
        return f"muelle.model({self.name + pinned!r})"

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
        """Ask the model. `inputs`: a dict of arrays or lists, records, a DataFrame, or rows.

        For plain functions and threads. In a coroutine it works but holds up every other request
        of this process: there, `await predict_async(...)`. Raise BadRequest (the inputs do not
        fit), ModelNotFound, Unavailable, DeadlineExceeded, ModelFailed, …
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
        """Ask the model as `predict` does, while other requests go on."""
        return await self._asker.predict_async(inputs, self._which(version), outputs, timeout_s)

    def _which(self, version: str | int | None) -> str | None:
        return self.version if version is None else str(version)


def model(name: str, *, version: str | int | None = None) -> LocalModel:
    """Return a served model by name; `fraud:3` and `version=3` ask for a version.

    In an app that `muelle serve` hosts, its own server answers. Elsewhere the server at MUELLE_URL
    (or MUELLE_SERVER), by default http://127.0.0.1:8080. Nothing is asked before the first use.
    """
    name, _, pinned = name.partition(":")
    wanted = pinned or None if version is None else str(version)
    hosted = inherited()
    return LocalModel(name, wanted, _Near(name, hosted) if hosted is not None else _Far(name))


class _Near:
    """Over the channel of a hosted application."""

    def __init__(self, name: str, hosted: Hosted) -> None:
        self._name = name
        self._hosted = hosted

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        signature = self.signature(version)
        body, headers = self._encode(inputs, signature, outputs, timeout_s)
        ask = self._hosted.predict(self._name, version, headers, body)
        reply = self._hosted.wait(ask, None if timeout_s is None else timeout_s + _LATE_S)
        return self._read(reply, version)

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        signature = self._hosted.signatures.get((self._name, version))
        if signature is None:
            reply = await self._hosted.awaited(self._hosted.describe(self._name))
            signature = self._keep(reply, version)
        body, headers = self._encode(inputs, signature, outputs, timeout_s)
        ask = self._hosted.predict(self._name, version, headers, body)
        return self._read(await self._hosted.awaited(ask), version)

    def signature(self, version: str | None) -> Signature:
        found = self._hosted.signatures.get((self._name, version))
        if found is None:
            reply = self._hosted.wait(self._hosted.describe(self._name), None)
            found = self._keep(reply, version)
        return found

    def _keep(self, reply: Reply, version: str | None) -> Signature:
        if reply.status >= 400:
            raise error_of(reply)
        found = signature_of(model_call(self._name, managed=False).read(reply), version)
        self._hosted.signatures[self._name, version] = found
        return found

    def _encode(
        self, inputs: Any, signature: Signature, outputs: Sequence[str], timeout_s: float | None
    ) -> tuple[bytes, dict[str, str]]:
        body, headers = encode_request(to_arrays(inputs, signature), signature, outputs)
        limit = self._hosted.predict_limit_bytes
        if len(body) > limit:
            raise TooLarge(
                f"{self._name}: the inputs have {len(body)} bytes, the limit is {limit}; send "
                "fewer rows at a time, or raise limits.body_bytes"
            )
        if timeout_s is not None:
            headers["timeout-ms"] = f"{timeout_s * 1e3:.0f}"
        return body, headers

    def _read(self, reply: Reply, version: str | None) -> Prediction:
        if reply.status >= 400:
            error = error_of(reply)
            if isinstance(error, BadRequest):
                # Another version may answer by now, with other inputs: ask for them anew.
                self._hosted.signatures.pop((self._name, version), None)
            raise error
        return predict(self._name, version, b"", {}, None).read(reply)


class _Far:
    """Over HTTP, outside of a hosted application. One client for each thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept = threading.local()

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        return self._client().predict(
            self._name, inputs, version=version, outputs=outputs, timeout_s=timeout_s
        )

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        # A thread, as an async client belongs to one event loop and tests have many.
        call = functools.partial(self.predict, inputs, version, outputs, timeout_s)
        return await asyncio.to_thread(call)

    def signature(self, version: str | None) -> Signature:
        return self._client().signature(self._name, version=version)

    def _client(self) -> Client:
        client: Client | None = getattr(self._kept, "client", None)
        if client is None:
            client = self._kept.client = Client(server_url(os.environ))
        return client


def server_url(env: Mapping[str, str]) -> str:
    """Return the server that an application asks when it is not hosted, "" for the default."""
    return env.get("MUELLE_URL", "").strip() or env.get("MUELLE_SERVER", "").strip()
