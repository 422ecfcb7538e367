"""The client for plain programs. One thread at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Client(Base):
    """Asks one server: predictions by its URL, management by its admin socket (or URL and token).

    `with Client("http://10.0.0.5:8080") as client: client.predict("fraud", rows).array()`
    """

    def __init__(
        self, url: str = "", *, sleep: Callable[[float], None] = time.sleep, **settings: Any
    ) -> None:
        """`settings`: `socket`, `token`, `timeout_s` (30), `retries` (3)."""
        super().__init__(url, **settings)
        self._sleep = sleep
        transport = httpx.HTTPTransport(uds=self._socket) if self._socket is not None else None
        self._http = httpx.Client(transport=transport, **self._options)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # --- predictions and what is served ---

    def predict(
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
        signature = self.signature(model, version=number)
        body, sent = encode_request(to_arrays(inputs, signature), signature, outputs)
        call = calls.predict(model, number, body, {**sent, **(headers or {})}, timeout_s)
        try:
            return self._run(call, timeout_s)
        except BadRequest:
            # Another version may answer by now, with other inputs: ask for them anew next time.
            self._signatures.pop((model, number), None)
            raise

    def signature(self, model: str, *, version: str | int | None = None) -> Signature:
        """Return what a model takes and gives; asked for once. Raise ModelNotFound, …"""
        number = None if version is None else str(version)
        found = self._signatures.get((model, number))
        if found is None:
            status = self.model(model)
            found = signature_of(status, number)
            self._signatures[model, number] = found
        return found

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every model that is served."""
        return self._run(calls.models(managed=self.manages))

    def model(self, name: str) -> ModelStatus:
        """Return one model. Raise ModelNotFound."""
        return self._run(calls.model(name, managed=self.manages))

    def live(self) -> bool:
        """Whether the server runs."""
        return self._run(calls.live())

    def ready(self) -> bool:
        """Whether every model answers."""
        return self._run(calls.ready())

    def metrics(self) -> str:
        """Return the Prometheus text."""
        return self._run(calls.metrics())

    # --- management: needs the admin socket, or the admin address and a token ---

    def status(self) -> ServerStatus:
        """Return the server at a glance."""
        return self._run(calls.status())

    def set_label(self, model: str, label: str, version: int, note: str = "") -> LabelAnswer:
        """Let a label name a version; returns when that version answers. Raise: nothing moved."""
        return self._run(calls.set_label(model, label, version, note))

    def remove_label(self, model: str, label: str) -> None:
        """Take a label away."""
        self._run(calls.remove_label(model, label))

    def rollback(self, model: str, label: str = "stable", note: str = "") -> LabelAnswer:
        """Let a label name again what it named before."""
        return self._run(calls.rollback(model, label, note))

    def route(self, model: str) -> RouteSpec | None:
        """Return how a model's unpinned requests are shared; None: its stable version has all."""
        return self._run(calls.route(model))

    def set_route(self, model: str, spec: RouteSpec | None) -> RouteSpec | None:
        """Share them anew; None clears the route."""
        return self._run(calls.set_route(model, spec))

    def start_rollout(self, model: str, version: int, **limits: Any) -> RolloutStatus:
        """Begin to shift traffic to a version; `limits` are the fields of `StartRollout`."""
        return self._run(calls.start_rollout(model, StartRollout(version=version, **limits)))

    def rollout(self, model: str) -> RolloutStatus:
        """Return where the newest rollout stands. Raise VersionNotFound when there was none."""
        return self._run(calls.rollout(model))

    def abort_rollout(self, model: str) -> RolloutStatus:
        """Give all traffic back."""
        return self._run(calls.abort_rollout(model))

    def watch_rollout(self, model: str, every_s: float = 1.0) -> Iterator[RolloutStatus]:
        """Yield the rollout again and again until it has ended; the last one says how."""
        while True:
            status = self.rollout(model)
            yield status
            if status.ended:
                return
            self._sleep(every_s)

    def load(self, model: str, version: int | None = None) -> ModelStatus:
        """Load a model's versions, or one of them (explicit control)."""
        return self._run(calls.load(model, version))

    def unload(self, model: str, version: int | None = None) -> ModelStatus:
        """Unload them."""
        return self._run(calls.unload(model, version))

    def sync(self) -> dict[str, float]:
        """Let the server look at its store or folders now, and wait until it has followed."""
        return self._run(calls.sync())

    def audit(self, after: int = 0, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return entries of the audit log with higher numbers, oldest first."""
        return self._run(calls.audit(after, limit))

    def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        more: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s + 1.0}
        attempt = 0
        while True:
            attempt += 1
            reply, problem = None, None
            try:
                reply = as_reply(self._http.request(**self._arguments(call), **more))
            except httpx.TransportError as exc:
                problem = exc
            wait = self._judge(call, reply, problem, attempt)
            if wait is not None:
                self._sleep(wait)
                continue
            if reply is None:
                assert problem is not None
                raise self._unreachable(problem) from problem
            result: T = self._result(call, reply)
            return result
