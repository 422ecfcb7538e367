"""What a hosted application may ask of the server: predictions, and what a model takes.

They go to the same endpoints as everybody's (queue, batches, shares, shadows), without HTTP. Not
for the channel that they come over (`link`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from muelle.apps.exchange import Cancel, Reply
from muelle.apps.frames import Describe, Predict
from muelle.core.ids import is_request_id, new_request_id
from muelle.core.status import ModelStatus
from muelle.protocols import native
from muelle.protocols.http import JSON, Answer, HttpRequest

TAKEN_HEADERS = ("inference-header-content-length", "timeout-ms")
"""Everything of a prediction's headers that has a meaning here."""


class Inference(Protocol):
    """The data plane's door."""

    def begin(
        self, model: str, version: str | None, request: HttpRequest, done: Reply
    ) -> Cancel | None:
        """Answer a v2 request that did not come over HTTP. Never raises."""


class Doors:
    """Used on the event loop's thread only. Closed until the models are loaded: what an
    application asks while it starts is answered then."""

    def __init__(self, inference: Inference, describe: Callable[[str], ModelStatus]) -> None:
        self._inference = inference
        self._describe = describe
        self._is_open = False
        self._early: list[Callable[[], None]] = []

    def open(self) -> None:
        """The models are there, as far as they will be."""
        self._is_open = True
        early, self._early = self._early, []
        for ask in early:
            ask()

    def ask(self, frame: Predict | Describe, reply: Reply) -> Cancel | None:
        """Answer once, perhaps before this returns. Return what drops the question."""
        if not self._is_open:
            return self._later(frame, reply)
        if isinstance(frame, Predict):
            asked_by = frame.request_id
            request_id = asked_by if is_request_id(asked_by) else new_request_id()
            headers = _headers(frame.headers)
            request = HttpRequest(b"POST", "", b"", headers, frame.body, request_id)
            return self._inference.begin(frame.model, frame.version, request, reply)
        try:
            body = msgspec.json.encode(self._describe(frame.model))
        except Exception as exc:
            reply(native.encode_error(exc, ""))
        else:
            reply(Answer(200, JSON, body))
        return None

    def _later(self, frame: Predict | Describe, reply: Reply) -> Cancel:
        cancels: list[Cancel] = []
        wanted = True

        def ask() -> None:
            if wanted:
                cancel = self.ask(frame, reply)
                if cancel is not None:
                    cancels.append(cancel)

        def drop() -> None:
            nonlocal wanted
            wanted = False
            for cancel in cancels:
                cancel()

        self._early.append(ask)
        return drop


def _headers(sent: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): sent[name].encode() for name in TAKEN_HEADERS if name in sent}
