"""What the API needs of the server, as plain calls. Not the server's parts themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from muelle.core.status import ModelStatus
from muelle.protocols.http import Answer, HttpRequest
from muelle.protocols.native import JsonNan


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDoors:
    """All that the API may call. Every call but `answer` returns at once."""

    models: Callable[[], tuple[ModelStatus, ...]]
    """Every model with its versions, by name."""
    model: Callable[[str], ModelStatus]
    """One model. Raises ModelNotFound with near names."""
    live: Callable[[], bool]
    ready: Callable[[], tuple[bool, str]]
    """Whether all default versions answer; else what is missing."""
    metrics: Callable[[], bytes]
    """The text of `/metrics`."""
    answer: Callable[[HttpRequest], Awaitable[Answer]]
    """Answers a prediction in any protocol, errors too. Never raises."""
    server_name: str
    server_version: str
    json_nan: JsonNan = "error"
    """What JSON answers do with NaN and infinity, as configured."""
