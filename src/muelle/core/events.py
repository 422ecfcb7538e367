"""What happens in a server's life, told to whoever listens. Nothing waits for it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from muelle.core.status import ModelStatus


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events."""


class VersionLoading(Event, tag=True, frozen=True):
    """A version's worker starts to load it."""

    model: str
    version: str
    artifact: str
    """Path as the user gave it: for the terminal and the log, never for a caller."""


class VersionReady(Event, tag=True, frozen=True):
    """A version can answer."""

    model: str
    version: str
    seconds: float


class VersionFailed(Event, tag=True, frozen=True):
    """A version will not answer."""

    model: str
    version: str
    reason: str


class WorkerDied(Event, tag=True, frozen=True):
    """A worker ended unasked; it is restarted after `restart_in_s` (None: quarantined)."""

    model: str
    version: str
    worker: int
    reason: str
    restart_in_s: float | None


class Listening(Event, tag=True, frozen=True):
    """The server accepts connections; every model has been loaded or has failed."""

    url: str
    models: tuple[ModelStatus, ...]
    moved: bool = False
    """Whether a hosted application has taken `/`, and our own pages are below `/muelle/`."""
    app: str = ""
    """The application that is hosted, `ASGI app.py:app`; "" for none."""


class TrafficMoved(Event, tag=True, frozen=True):
    """A model's unpinned requests are answered otherwise from now on."""

    model: str
    shares: dict[str, float]
    """Version -> part of the requests, 0 to 1; empty when none answers."""
    shadow: str
    """The version that gets a copy, "" for none."""


class VersionUnloaded(Event, tag=True, frozen=True):
    """A version has answered what it had accepted, and its workers have ended."""

    model: str
    version: str
    reason: str


class AppReady(Event, tag=True, frozen=True):
    """The hosted application answers. `kind` is asgi or wsgi."""

    app: str
    """Its short name: `app.py:app`."""
    kind: str
    workers: int
    seconds: float


class AppDied(Event, tag=True, frozen=True):
    """A process of the hosted application ended unasked; it is started again."""

    worker: int
    reason: str
    restart_in_s: float


class Draining(Event, tag=True, frozen=True):
    """A signal asked the server to end; `waiting` requests are still to be answered."""

    waiting: int


Listener = Callable[[Event], None]
