"""Turn what was measured into a table of promises kept or missed, in Markdown and JSON.

Not for measuring.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.measure import LIMIT_CONNECTIONS, ModelResult
from bench.peers import HERE

PACKAGES = ("muelle", "numpy", "onnxruntime", "uvloop", "httptools", "msgspec", "orjson")


@dataclass(frozen=True, slots=True)
class Promise:
    """One budget and what was measured."""

    figure: str
    must: str
    measured: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run of the bench found."""

    results: Mapping[str, ModelResult]
    starts: Mapping[str, Sequence[float]]
    """Seconds until the first answer: `all cores`, or `one core` (pinned)."""
    machine: Mapping[str, str]
    seconds: float
    quick: bool

    def promises(self) -> list[Promise]:
        """Hold the figures against the budgets."""
        return [
            *_small(self.results.get("tabular")),
            *_limit(self.results.get("cnn"), 0.95),
            *_limit(self.results.get("encoder"), 0.92),
            *_start(self.starts.get("all cores")),
            *_memory(self.results.get("tabular")),
        ]

    def n_failed(self) -> int:
        """Requests under load that were not answered with 200."""
        return sum(r.n_failed() for r in self.results.values())

    def json(self) -> dict[str, Any]:
        """Return everything, raw points included, as plain values."""
        return {
            "machine": dict(self.machine),
            "quick": self.quick,
            "seconds": self.seconds,
            "starts_s": {k: list(v) for k, v in self.starts.items()},
            "promises": [asdict(p) for p in self.promises()],
            "results": {name: asdict(r) for name, r in self.results.items()},
        }

    def markdown(self) -> str:
        """Return the tables."""
        parts = [_machine_text(self), promise_table(self.promises())]
        parts += [_model_table(r) for r in self.results.values()]
        parts.append(_cost_table(self))
        return "\n\n".join(p for p in parts if p) + "\n"


def machine() -> dict[str, str]:
    """Say what this ran on: processor, cores, memory, kernel, versions."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split()
    peer = (HERE / "requirements-fastapi.txt").read_text()
    packages = ("fastapi", "uvicorn", "pydantic", "onnxruntime", "uvloop", "httptools")
    pins = [m[0] for p in packages if (m := re.search(rf"^{p}==.*$", peer, re.M))]
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "?",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "muelle": ", ".join(f"{p} {version(p)}" for p in PACKAGES),
        "peer": ", ".join(pins).replace("==", " "),
        "load": " ".join(wrk[:2]),
    }


# --- promises ---


def _small(result: ModelResult | None) -> list[Promise]:
    if result is None:
        return []
    promises: list[Promise] = []
    if 64 in result.rounds:
        times = result.ratio(64, "rps")
        rps = [result.median(64, peer, "rps") for peer in ("muelle", "fastapi")]
        measured = f"{times:.1f} times ({rps[0]:,.0f} against {rps[1]:,.0f} requests/s)"
        figure = "small model, 64 connections, isolated worker"
        promises.append(Promise(figure, "≥ 8 times FastAPI", measured, times >= 8))
        cpu = result.median(64, "muelle", "cpu_us_per_request")
        figure = "the same, CPU per request, server and worker"
        promises.append(Promise(figure, "≤ 20 µs", f"{cpu:.1f} µs", cpu <= 20))
    if 1 in result.rounds:
        ratio = result.ratio(1, "p50_ms")
        p50 = [result.median(1, peer, "p50_ms") for peer in ("muelle", "fastapi")]
        measured = f"{p50[0]:.3f} ms against {p50[1]:.3f} ms"
        promises.append(
            Promise("small model, 1 connection, p50", "≤ FastAPI's", measured, ratio <= 1)
        )
    return promises


def _limit(result: ModelResult | None, must: float) -> list[Promise]:
    if result is None or LIMIT_CONNECTIONS not in result.rounds:
        return []
    share, tail = result.share_of_limit("muelle"), result.tail(LIMIT_CONNECTIONS, "muelle")
    figure = f"{result.model}, {LIMIT_CONNECTIONS} connections"
    return [
        Promise(
            f"{figure}, share of the bare loop", f"≥ {must:.0%}", f"{share:.1%}", share >= must
        ),
        Promise(f"{figure}, p99 / p50", "≤ 1.5", f"{tail:.2f}", tail <= 1.5),
    ]


def _start(seconds: Sequence[float] | None) -> list[Promise]:
    if not seconds:
        return []
    middle = statistics.median(seconds)
    figure = "`muelle serve` until the first 200"
    return [Promise(figure, "≤ 1.2 s", f"{middle:.2f} s", middle <= 1.2)]


def _memory(result: ModelResult | None) -> list[Promise]:
    if result is None or not result.memory_mb:
        return []
    mb = result.memory_mb
    most = max(mb["server"], mb["server, docs read"])
    more = mb["worker"] - mb["import onnxruntime"]
    return [
        Promise("server process, resident", "≤ 90 MB", f"{most:.0f} MB", most <= 90),
        Promise(
            "worker beyond its runtime's import", "≤ 25 MB", f"{more:.0f} MB", more <= 25
        ),
    ]  # fmt: skip


# --- Markdown ---


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine_text(report: Report) -> str:
    m = report.machine
    length = "quick run" if report.quick else "full run"
    return (
        f"{m['processor']}, {m['cores']} cores, {m['memory']}, Linux {m['kernel']}, "
        f"Python {m['python']}; {length} of {report.seconds / 60:.0f} minutes.  \n"
        f"Muelle: {m['muelle']}.  \nPeer: {m['peer']}.  \nLoad: {m['load']}."
    )


def promise_table(promises: Sequence[Promise]) -> str:
    """Return the budgets as a Markdown table, "" when there are none."""
    if not promises:
        return ""
    rows = [(p.figure, p.must, p.measured, "yes" if p.kept else "**no**") for p in promises]
    return table(("figure", "must reach", "measured", "kept"), rows)


def _model_table(result: ModelResult) -> str:
    head = ("connections", "server", "requests/s", "rounds", "p50 ms", "p99 ms", "CPU µs/request",
            "failed", "others", "times FastAPI")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for connections in sorted(result.rounds):
        for peer in ("muelle", "fastapi"):
            rounds = result.rounds[connections]
            rps = [r.points[peer].rps for r in rounds]
            rows.append(
                (
                    str(connections),
                    peer,
                    number(statistics.median(rps)),
                    f"{number(min(rps))} – {number(max(rps))}",
                    f"{result.median(connections, peer, 'p50_ms'):.3g}",
                    f"{result.median(connections, peer, 'p99_ms'):.3g}",
                    number(result.median(connections, peer, "cpu_us_per_request")),
                    str(sum(r.points[peer].failed for r in rounds)),
                    f"{max(r.points[peer].others_share for r in rounds):.0%}",
                    f"{result.ratio(connections, 'rps'):.2f}" if peer == "muelle" else "1",
                )
            )
    forms = ", ".join(f"{peer}: {form}" for peer, form in result.forms.items())
    loop = ", ".join(f"{number(v)} at {k}" for k, v in result.loop_rates.items())
    text = f"**{result.model}** ({forms}; {result.n_checked} answers checked by value before)"
    below = f"Bare loop, rows/s by batch size: {loop}.{_shares(result)}"
    return "\n\n".join((text, table(head, rows), below))


def _shares(result: ModelResult) -> str:
    beside = [r for r in result.rounds.get(LIMIT_CONNECTIONS, ()) if r.loop_rows_per_s]
    if not beside:
        return ""
    rates = [r.loop_rows_per_s for r in beside if r.loop_rows_per_s]
    texts = []
    for peer in ("muelle", "fastapi"):
        each = [r.points[peer].rps / rate for r, rate in zip(beside, rates, strict=True)]
        texts.append(
            f"{peer} {result.share_of_limit(peer):.1%} "
            f"({', '.join(f'{share:.1%}' for share in each)}), "
            f"p99/p50 {result.tail(LIMIT_CONNECTIONS, peer):.2f}"
        )
    return (
        f" In the rounds at {LIMIT_CONNECTIONS} connections, batch {result.best_batch}: "
        f"{statistics.median(rates):.1f} rows/s; of that {'; '.join(texts)}."
    )


def _cost_table(report: Report) -> str:
    rows: list[tuple[str, ...]] = []
    for name, seconds in report.starts.items():
        each = ", ".join(f"{s:.2f}" for s in seconds)
        rows.append(
            (f"start until first 200, {name}", f"{statistics.median(seconds):.2f} s ({each})")
        )
    for result in report.results.values():
        for name, mb in result.memory_mb.items():
            rows.append((f"{result.model}: {name}, resident", f"{mb:.0f} MB"))
    return table(("cost", "measured"), rows) if rows else ""


def number(value: float) -> str:
    """Three digits are what such a measurement can carry."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_between_marks(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's marks of this name. Raise ValueError without them."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{page.name} lacks the marks {begin} and {end}")
    head, tail = old.split(begin)[0], old.split(end)[1]
    page.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}")
