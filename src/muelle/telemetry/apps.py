"""Count what a hosted application does, and write it as Prometheus text. Not for models.

The only open label is the status of an answer, which is one of some hundreds at most.
"""

from __future__ import annotations

from muelle.telemetry.exposition import Text
from muelle.telemetry.metrics import SECONDS, Counter, Histogram


class AppMetrics:
    """Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._answers: dict[int, Counter] = {}
        self.duration = Histogram(SECONDS)
        """From a request's arrival to the end of its answer, in seconds."""
        self.in_flight = 0
        """Requests whose answer is not out."""
        self.restarts = 0
        """Processes that ended unasked."""
        self.workers = 0
        """Processes that take requests."""

    def answered(self, code: int, seconds: float) -> None:
        """An answer is out, or nobody waits for it any more (499)."""
        self._answers.setdefault(code, Counter()).add()
        self.duration.observe(seconds)

    def count(self, code: int) -> int:
        """Return how many answers had this status."""
        return self._answers[code].value if code in self._answers else 0

    def render(self) -> bytes:
        """Return the families of `/metrics` that are the application's."""
        text = Text()
        text.family("muelle_app_requests_total", "counter", "Requests to the app by status.")
        for code in sorted(self._answers):
            text.sample((("code", str(code)),), self._answers[code].value)
        text.family(
            "muelle_app_request_duration_seconds",
            "histogram",
            "From a request's arrival to the end of the app's answer.",
        )
        text.histogram((), self.duration)
        for name, kind, value, what in (
            ("in_flight", "gauge", self.in_flight, "Requests that the app works on."),
            ("workers", "gauge", self.workers, "Processes of the app that take requests."),
            (
                "worker_restarts_total",
                "counter",
                self.restarts,
                "App processes that ended unasked.",
            ),
        ):
            text.family(f"muelle_app_{name}", "counter" if kind == "counter" else "gauge", what)
            text.sample((), value)
        return text.encode()
