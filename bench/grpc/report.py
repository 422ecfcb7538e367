"""Turn what the gRPC bench measured into promises kept or missed, and tables. Not for measuring."""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from bench.grpc.measure import Key, Result, Shape
from bench.grpc.models import ECHO_SIZES
from bench.grpc.servers import AIO, BINARY, GRPC, MUELLE, TRITON
from bench.peers import HERE
from bench.report import Promise, machine, number, promise_table, table

OURS = Key(MUELLE, GRPC)
SMALL, ONE = Shape(64), Shape(1)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run of the gRPC bench found."""

    results: Mapping[str, Result]
    machine: Mapping[str, str]
    seconds: float
    quick: bool

    def promises(self) -> list[Promise]:
        """Hold the figures against the wishes of the issue that asked for gRPC."""
        return [
            *_times(self.results.get("tabular"), Key(AIO, GRPC), 6),
            *_times(self.results.get("tabular"), Key(TRITON, GRPC), 2.5),
            *_ahead(self.results),
            *_first(self.results.get("tabular")),
            *_large(self.results),
        ]

    def n_failed(self) -> int:
        """Requests under load that were not answered rightly."""
        return sum(r.n_failed() for r in self.results.values())

    def json(self) -> dict[str, Any]:
        """Return everything, raw points included, as plain values."""
        return {
            "machine": dict(self.machine),
            "quick": self.quick,
            "seconds": self.seconds,
            "promises": [asdict(p) for p in self.promises()],
            "results": {name: _plain(r) for name, r in self.results.items()},
        }

    def markdown(self) -> str:
        """Return the tables."""
        m = self.machine
        length = "quick run" if self.quick else "full run"
        head = (
            f"{m['processor']}, {m['cores']} cores, {m['memory']}, Linux {m['kernel']}, "
            f"Python {m['python']}; {length} of {self.seconds / 60:.0f} minutes.  \n"
            f"Muelle: {m['muelle']}.  \nPeers: {m['peer']}.  \nLoad: {m['load']}."
        )
        parts = [head, promise_table(self.promises())]
        parts += [model_table(result) for result in self.results.values()]
        return "\n\n".join(p for p in parts if p) + "\n"


def grpc_machine() -> dict[str, str]:
    """Say what this ran on, with the versions of these peers and of the load."""
    pins = (HERE / "requirements-triton.txt").read_text()
    named = ("nvidia-pytriton", "onnxruntime", "numpy")
    texts = [m[0].replace("==", " ") for p in named if (m := re.search(rf"^{p}==.*$", pins, re.M))]
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True).stdout
    found = machine()
    found["muelle"] += f", hpack {version('hpack')}, protobuf {version('protobuf')}"
    found["peer"] = f"grpcio {version('grpcio')}, {', '.join(texts)}"
    clients = f"grpcio {version('grpcio')}, tritonclient {version('tritonclient')}"
    found["load"] = f"{h2load.strip()}, {found['load']}, {clients}"
    return found


# --- promises ---


def _times(result: Result | None, peer: Key, must: float) -> list[Promise]:
    if result is None or not {OURS, peer} <= set(result.keys(SMALL)):
        return []
    times = result.ratio(SMALL, OURS, peer, "rps")
    rps = [result.median(SMALL, key, "rps") for key in (OURS, peer)]
    cpu = result.ratio(SMALL, peer, OURS, "cpu_us_per_request")
    figure = f"{result.model}, 64 connections, gRPC on one core"
    measured = (
        f"{times:.1f} times ({rps[0]:,.0f} against {rps[1]:,.0f} requests/s; "
        f"{cpu:.1f} times by CPU per request)"
    )
    return [Promise(figure, f"≥ {must:g} times {peer.server}", measured, times >= must)]


def _rows(results: Mapping[str, Result]) -> Iterator[tuple[Result, Shape, Key]]:
    """Give each peer's row that Muelle has a row beside, asked the same way."""
    for result in results.values():
        for shape in result.rounds:
            keys = result.keys(shape)
            for key in keys:
                if key.server != MUELLE and Key(MUELLE, key.way) in keys:
                    yield result, shape, key


def _ahead(results: Mapping[str, Result]) -> list[Promise]:
    """Every row: as many requests as the peer asked the same way, or more."""
    ratios = [
        (result.ratio(shape, Key(MUELLE, key.way), key, "rps"), result.model, shape, key)
        for result, shape, key in _rows(results)
    ]
    if not ratios:
        return []
    worst, model, shape, key = min(ratios, key=lambda row: row[0])
    n_ahead = sum(ratio >= 1 for ratio, *_ in ratios)
    measured = (
        f"{n_ahead} of {len(ratios)} rows; the worst is {worst:.2f} times "
        f"({model}, {shape.title} connections, {key.server}, {key.way})"
    )
    figure = "every row, requests/s against the peer asked the same way"
    return [Promise(figure, "ahead", measured, n_ahead == len(ratios))]


def _first(result: Result | None) -> list[Promise]:
    if result is None or OURS not in result.keys(ONE):
        return []
    promises = []
    for key in result.keys(ONE):
        if key.way == GRPC and key != OURS:
            ratio = result.ratio(ONE, OURS, key, "p50_ms")
            p50 = [result.median(ONE, one, "p50_ms") for one in (OURS, key)]
            measured = f"{p50[0]:.3f} ms against {p50[1]:.3f} ms"
            figure = f"{result.model}, 1 connection, gRPC, p50"
            promises.append(Promise(figure, f"≤ {key.server}'s", measured, ratio <= 1))
    return promises


def _large(results: Mapping[str, Result]) -> list[Promise]:
    binary = Key(MUELLE, BINARY)
    promises = []
    for result in (results[name] for name in ECHO_SIZES if name in results):
        for shape in result.rounds:
            if {OURS, binary} <= set(result.keys(shape)):
                share = result.ratio(shape, OURS, binary, "rps")
                figure = f"{result.model}, {shape.title} connections, gRPC against HTTP binary"
                measured = f"{share:.0%}"
                promises.append(Promise(figure, "≥ 90 % as many", measured, share >= 0.9))
    return promises


# --- Markdown and JSON ---


def model_table(result: Result) -> str:
    """Return one model's table: a row for each shape, server and way."""
    head = ("connections", "server", "way", "requests/s", "rounds", "p50 ms", "p99 ms",
            "CPU µs/request", "failed", "others", "Muelle, times")  # fmt: skip
    rows = [
        _row(result, shape, key) for shape in result.rounds for key in result.keys(shape)
    ]  # fmt: skip
    text = f"**{result.model}** ({result.n_checked} answers checked by value before and after)"
    below = "; ".join(f"{who}: {why}" for who, why in result.missing.items())
    return "\n\n".join(p for p in (text, table(head, rows), below) if p)


def _row(result: Result, shape: Shape, key: Key) -> tuple[str, ...]:
    points = [r[key] for r in result.rounds[shape]]
    rps = [p.rps for p in points]
    ours = Key(MUELLE, key.way)
    times = ""
    if key != ours and ours in result.keys(shape):
        times = f"{result.ratio(shape, ours, key, 'rps'):.2f}"
    return (
        shape.title,
        key.server,
        key.way,
        number(statistics.median(rps)),
        f"{number(min(rps))} – {number(max(rps))}",
        f"{result.median(shape, key, 'p50_ms'):.3g}",
        f"{result.median(shape, key, 'p99_ms'):.3g}",
        number(result.median(shape, key, "cpu_us_per_request")),
        str(sum(p.failed for p in points)),
        f"{max(p.others_share for p in points):.0%}",
        times,
    )


def _plain(result: Result) -> dict[str, Any]:
    points: Sequence[dict[str, Any]] = [
        {"shape": shape.title, "round": at, "server": key.server, "way": key.way, **asdict(point)}
        for shape, rounds in result.rounds.items()
        for at, one in enumerate(rounds)
        for key, point in one.items()
    ]
    return {"missing": result.missing, "n_checked": result.n_checked, "points": points}
