"""Write the text of `/metrics`: Prometheus text format 0.0.4. Not for counting.

Pure but for `ProcessFacts.read`, which asks the kernel about this process.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from muelle.core.status import ModelStatus, VersionStatus, WorkerState

if TYPE_CHECKING:
    from muelle.telemetry.metrics import Histogram, VersionMetrics

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """This process, as the kernel sees it. None where the system does not tell."""

    cpu_s: float
    resident_bytes: int | None = None
    virtual_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    start_time_s: float | None = None
    """Seconds since 1970."""

    @classmethod
    def read(cls, proc: Path = Path("/proc")) -> ProcessFacts:
        """Ask now. Off Linux only the CPU time and the descriptor limit are known."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        max_fds = limit if limit != resource.RLIM_INFINITY else None
        try:
            # The name in parentheses may hold spaces: fields are counted behind it.
            fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
            boot_s = next(
                float(line.split()[1])
                for line in (proc / "stat").read_text().splitlines()
                if line.startswith("btime ")
            )
            return cls(
                cpu_s=cpu_s,
                resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
                virtual_bytes=int(fields[20]),
                open_fds=len(os.listdir(proc / "self/fd")),
                max_fds=max_fds,
                start_time_s=boot_s + int(fields[19]) / os.sysconf("SC_CLK_TCK"),
            )
        except (OSError, StopIteration, ValueError, IndexError):
            return cls(cpu_s=cpu_s, max_fds=max_fds)


def render(
    models: Sequence[ModelStatus],
    metrics: Iterable[VersionMetrics],
    server_version: str,
    process: ProcessFacts | None = None,
) -> bytes:
    """Return the whole text. `process` None: ask the kernel."""
    text = Text()
    _build(text, server_version)
    _requests(text, tuple(metrics))
    _versions(text, [(model, version) for model in models for version in model.versions])
    _process(text, process or ProcessFacts.read())
    return text.encode()


class Text:
    """Lines under way; each family is opened once, with its help and type."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def family(self, name: str, kind: Kind, text: str) -> None:
        self._name = name
        text = text.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")

    def sample(self, labels: Labels, value: float, suffix: str = "") -> None:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        braces = f"{{{shown}}}" if shown else ""
        self._lines.append(f"{self._name}{suffix}{braces} {_number(value)}")

    def histogram(self, labels: Labels, histogram: Histogram) -> None:
        bounds, counts, total = histogram.buckets()
        for bound, count in zip((*map(_number, bounds), "+Inf"), counts, strict=True):
            self.sample((*labels, ("le", bound)), count, "_bucket")
        self.sample(labels, total, "_sum")
        self.sample(labels, counts[-1], "_count")

    def encode(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _build(text: Text, server_version: str) -> None:
    text.family("muelle_build_info", "gauge", "Version of the server.")
    text.sample((("version", server_version),), 1)


def _requests(text: Text, metrics: Sequence[VersionMetrics]) -> None:
    text.family("muelle_requests_total", "counter", "Prediction requests by outcome.")
    for one in metrics:
        for protocol, outcome, value in one.requests():
            text.sample((*_of(one), ("protocol", protocol), ("outcome", outcome)), value)
    for name, attribute, what in (
        ("muelle_request_duration_seconds", "total", "From a request's arrival to its answer."),
        ("muelle_queue_duration_seconds", "queue", "From a request's arrival to its batch."),
        ("muelle_inference_duration_seconds", "compute", "Computing time of a batch."),
        ("muelle_batch_size", "batch_size", "Rows of a batch."),
    ):
        text.family(name, "histogram", what)
        for one in metrics:
            text.histogram(_of(one), getattr(one, attribute))

    text.family(
        "muelle_shadow_requests_total",
        "counter",
        "Copies of requests that a version got as a shadow, by how its answers compared.",
    )
    for one in metrics:
        for outcome, counter in one.shadow.items():
            text.sample((*_of(one), ("outcome", outcome)), counter.value)


def _of(one: VersionMetrics) -> Labels:
    return (("model", one.model), ("version", one.version))


def _versions(text: Text, served: Sequence[tuple[ModelStatus, VersionStatus]]) -> None:
    rows = [((("model", m.name), ("version", v.version)), m, v) for m, v in served]
    text.family("muelle_model_info", "gauge", "What is served; the value is always 1.")
    for labels, model, version in rows:
        facts = (
            ("format", version.format),
            ("runtime", version.runtime),
            ("digest", version.digest),
            ("isolation", version.isolation),
            ("default", "true" if version.version == model.default else "false"),
        )
        text.sample((*labels, *facts), 1)
    text.family("muelle_model_ready", "gauge", "1 when the version answers, else 0.")
    for labels, _, version in rows:
        text.sample(labels, version.state == "READY")
    text.family("muelle_traffic_share", "gauge", "Part of the unpinned requests, 0 to 1.")
    for labels, _, version in rows:
        text.sample(labels, version.share)
    text.family("muelle_queue_depth", "gauge", "Requests that wait for a batch.")
    for labels, _, version in rows:
        text.sample(labels, version.queue_depth)
    text.family("muelle_inflight_requests", "gauge", "Requests accepted and not yet answered.")
    for labels, _, version in rows:
        text.sample(labels, version.in_flight)
    text.family("muelle_workers", "gauge", "Worker processes by state.")
    for labels, _, version in rows:
        states = [worker.state for worker in version.workers]
        for state in get_args(WorkerState):
            text.sample((*labels, ("state", state)), states.count(state))
    text.family("muelle_worker_restarts_total", "counter", "Workers that were replaced.")
    for labels, _, version in rows:
        text.sample(labels, sum(worker.restarts for worker in version.workers))
    text.family("muelle_worker_memory_bytes", "gauge", "Resident memory of a worker.")
    for labels, _, version in rows:
        for worker in version.workers:
            text.sample((*labels, ("worker", str(worker.index))), worker.rss_bytes)


def _process(text: Text, process: ProcessFacts) -> None:
    for name, kind, value, what in (
        ("cpu_seconds_total", "counter", process.cpu_s, "User and system CPU time spent."),
        ("resident_memory_bytes", "gauge", process.resident_bytes, "Resident memory."),
        ("virtual_memory_bytes", "gauge", process.virtual_bytes, "Virtual memory."),
        ("open_fds", "gauge", process.open_fds, "Open file descriptors."),
        ("max_fds", "gauge", process.max_fds, "Limit on open file descriptors."),
        ("start_time_seconds", "gauge", process.start_time_s, "Start, in seconds since 1970."),
    ):
        if value is not None:
            text.family(f"process_{name}", "counter" if kind == "counter" else "gauge", what)
            text.sample((), value)
