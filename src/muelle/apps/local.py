"""`muelle.model("fraud")`: ask a served model from inside an application, without HTTP.

In an application that `muelle serve` hosts, requests go over the channel to the server and are
batched there with everybody else's. Anywhere else (tests, another web server) the same object asks
a running server over HTTP. Not for management: `muelle.Client` does that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from muelle.apps.hosted import Hosted, inherited
from muelle.client.calls import Prediction, Reply, error_of, predict, signature_of
from muelle.client.calls import model as model_call
from muelle.client.local import OverHttp, ServedModel
from muelle.client.tensors import encode_request, to_arrays
from muelle.core.errors import BadRequest, TooLarge
from muelle.core.signature import Signature

_LATE_S = 5.0
"""How much longer than the server's own deadline an application waits for it."""


def model(name: str, version: str | int | None = None) -> ServedModel:
    """Return a served model by name; `fraud:3` and `version=3` ask for a version.

    In an app that `muelle serve` hosts, its own server answers. Elsewhere the server at MUELLE_URL
    (or MUELLE_SERVER), by default http://127.0.0.1:8080. Nothing is asked before the first use.
    """
    name, _, pinned = name.partition(":")
    wanted = pinned or None if version is None else str(version)
    hosted = inherited()
    if hosted is not None:
        return ServedModel(name, wanted, OverChannel(name, hosted))
    return ServedModel(name, wanted, OverHttp(name, server_url(os.environ)))


class OverChannel:
    """Asks the server that hosts this process. Any thread, any task."""

    def __init__(self, name: str, hosted: Hosted) -> None:
        self._name = name
        self._hosted = hosted

    def predict(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """Ask, and wait. In a coroutine that holds up every other request of this process."""
        signature = self.signature(version)
        body, headers = self._encode(inputs, signature, outputs, timeout_s)
        ask = self._hosted.predict(self._name, version, headers, body)
        reply = self._hosted.wait(ask, None if timeout_s is None else timeout_s + _LATE_S)
        return self._read(reply, version)

    async def predict_async(
        self, inputs: Any, version: str | None, outputs: Sequence[str], timeout_s: float | None
    ) -> Prediction:
        """The same while other requests go on."""
        signature = self._hosted.signatures.get((self._name, version))
        if signature is None:
            reply = await self._hosted.awaited(self._hosted.describe(self._name))
            signature = self._keep(reply, version)
        body, headers = self._encode(inputs, signature, outputs, timeout_s)
        ask = self._hosted.predict(self._name, version, headers, body)
        return self._read(await self._hosted.awaited(ask), version)

    def signature(self, version: str | None) -> Signature:
        """Return what the model takes and gives; asked for once."""
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


def server_url(env: Mapping[str, str]) -> str:
    """Return the server that an application asks when it is not hosted, "" for the default."""
    return env.get("MUELLE_URL", "").strip() or env.get("MUELLE_SERVER", "").strip()
