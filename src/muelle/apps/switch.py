"""Which requests are the application's, and which are ours. Decides by the path alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from muelle.protocols.http import Answer, HttpRequest

OURS = re.compile(
    r"/(?:v2|models)(?:/|\Z)|/(?:live|livez|ready|readyz|healthz|metrics)\Z", re.ASCII
)
"""Paths of the protocols and probes: clients and orchestrators count on them."""
OWN_PREFIX = "/muelle"
"""Where our own pages are when the application has the rest: `/muelle/docs`."""

Done = Callable[[Answer], None]
Failed = Callable[[Exception], Answer]
Cancel = Callable[[], None]


class Way(Protocol):
    """Answers any request, not at once."""

    def begin(self, request: HttpRequest, raw_path: bytes, done: Done, failed: Failed) -> Cancel:
        """Begin; return what cancels it."""


class AppSwitch:
    """Our pages and protocols one way, everything else to the application."""

    def __init__(self, ours: Way, app: Way) -> None:
        self._ours, self._app = ours, app

    def begin(self, request: HttpRequest, raw_path: bytes, done: Done, failed: Failed) -> Cancel:
        """Choose the way."""
        path = request.path
        if OURS.match(path):
            return self._ours.begin(request, raw_path, done, failed)
        if path in (OWN_PREFIX, f"{OWN_PREFIX}/"):
            done(Answer(307, b"text/plain", b"see docs\n", ((b"Location", b"/muelle/docs"),)))
            return _nothing
        if path.startswith(f"{OWN_PREFIX}/"):
            inner = HttpRequest(
                request.method,
                path[len(OWN_PREFIX) :],
                request.query,
                request.headers,
                request.body,
                request.request_id,
            )
            inner.peer = request.peer
            return self._ours.begin(inner, raw_path[len(OWN_PREFIX) :], done, failed)
        return self._app.begin(request, raw_path, done, failed)


def _nothing() -> None:
    """There is nothing to cancel: it was answered at once."""
