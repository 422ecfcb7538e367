"""Count what a hosted application does, and write it as Prometheus text. No label comes from a
caller: only the class of a status."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from muelle.telemetry.metrics import SECONDS, Counter, Histogram

CLASSES = ("2xx", "3xx", "4xx", "5xx")


class AppMetrics:
    """The numbers of one application. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._requests = MappingProxyType({name: Counter() for name in CLASSES})
        self.duration = Histogram(SECONDS)
        """From the whole request's arrival to the answer's last byte, in seconds."""
        self.restarts = Counter()

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer."""
        name = f"{status // 100}xx"
        self._requests[name if name in CLASSES else "5xx"].add()
        self.duration.observe(seconds)

    def render(self, in_flight: int, processes: int) -> bytes:
        """Return the text."""
        return "".join(f"{line}\n" for line in self._lines(in_flight, processes)).encode()

    def _lines(self, in_flight: int, processes: int) -> Iterator[str]:
        yield "# HELP muelle_app_requests_total Requests answered by the application."
        yield "# TYPE muelle_app_requests_total counter"
        for name, counter in self._requests.items():
            yield f'muelle_app_requests_total{{code="{name}"}} {counter.value}'
        yield "# HELP muelle_app_request_duration_seconds From a request to its whole answer."
        yield "# TYPE muelle_app_request_duration_seconds histogram"
        bounds, counts, total = self.duration.buckets()
        for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts, strict=True):
            yield f'muelle_app_request_duration_seconds_bucket{{le="{bound}"}} {count}'
        yield f"muelle_app_request_duration_seconds_sum {total:g}"
        yield f"muelle_app_request_duration_seconds_count {counts[-1]}"
        yield "# HELP muelle_app_in_flight Requests that run in the application now."
        yield "# TYPE muelle_app_in_flight gauge"
        yield f"muelle_app_in_flight {in_flight}"
        yield "# HELP muelle_app_processes Processes of the application that live."
        yield "# TYPE muelle_app_processes gauge"
        yield f"muelle_app_processes {processes}"
        yield "# HELP muelle_app_worker_restarts_total Processes that ended and were replaced."
        yield "# TYPE muelle_app_worker_restarts_total counter"
        yield f"muelle_app_worker_restarts_total {self.restarts.value}"
