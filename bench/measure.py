"""The questions of the bench, one function each. Not for printing the answers (`report`).

Every comparison is made in rounds, A B then B A, so that a machine that drifts hurts both alike;
what counts is the ratio within a round and the median over the rounds.
"""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from bench.load import Point, check_answers, free_port, is_up, run_wrk
from bench.models import NAMES, BenchModel, bench_model
from bench.peers import HERE, WORK, Peer, environment, peers_of, say
from bench.processes import (
    SERVER_CORE,
    Elsewhere,
    ServerProcess,
    cpu_s_of,
    import_rss_mb,
    pinned_to,
    rss_mb,
)

BATCH_SIZES = {"tabular": (1, 64, 256, 1024), "cnn": (1, 2, 4, 8), "encoder": (1, 2, 4, 8, 16)}
LIMIT_CONNECTIONS = 32
"""Where the slow models are held against the bare loop."""
QUIET_SHARE = 0.06
"""A round during which others took more than this of one core is measured again."""
RETRIES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes."""

    models: tuple[str, ...] = NAMES
    fast_connections: tuple[int, ...] = (1, 8, 32, 64)
    slow_connections: tuple[int, ...] = (1, 8, 64)
    """Beside LIMIT_CONNECTIONS; one round only."""
    fast_rounds: int = 5
    slow_rounds: int = 4
    fast_s: int = 4
    slow_s: int = 14
    side_s: int = 6
    warm_s: float = 1.0
    slow_warm_s: float = 3.0
    starts: int = 5


QUICK = Plan(
    fast_connections=(1, 64),
    slow_connections=(),
    fast_rounds=2,
    slow_rounds=1,
    fast_s=2,
    slow_s=10,
    slow_warm_s=2.0,
    starts=3,
)


@dataclass(slots=True)
class Round:
    """One round at one connection count: a point per peer, and the bare loop where it ran."""

    points: dict[str, Point]
    loop_rows_per_s: float | None = None
    loop_others_share: float = 0.0

    @property
    def others_share(self) -> float:
        """The worst disturbance by strangers during this round, as a share of one core."""
        return max(self.loop_others_share, *(p.others_share for p in self.points.values()))


@dataclass(slots=True)
class ModelResult:
    """All that was measured with one model."""

    model: str
    forms: dict[str, str]
    n_checked: int = 0
    """Answers compared by value before the load."""
    loop_rates: dict[int, float] = field(default_factory=dict)
    """Rows per second of the bare loop by batch size."""
    best_batch: int = 0
    rounds: dict[int, list[Round]] = field(default_factory=dict)
    """By number of connections."""
    memory_mb: dict[str, float] = field(default_factory=dict)

    def median(self, connections: int, peer: str, what: str) -> float:
        """Return the median over rounds of one field of a peer's points."""
        values: list[float] = [getattr(r.points[peer], what) for r in self.rounds[connections]]
        return statistics.median(values)

    def ratio(self, connections: int, what: str) -> float:
        """Return the median over rounds of Muelle's figure divided by FastAPI's."""
        ratios: list[float] = [
            getattr(r.points["muelle"], what) / getattr(r.points["fastapi"], what)
            for r in self.rounds[connections]
        ]
        return statistics.median(ratios)

    def share_of_limit(self, peer: str) -> float:
        """Return the median over rounds of a peer's rows per second divided by the loop's."""
        return statistics.median(
            r.points[peer].rps / r.loop_rows_per_s
            for r in self.rounds[LIMIT_CONNECTIONS]
            if r.loop_rows_per_s
        )

    def tail(self, connections: int, peer: str) -> float:
        """Return the median over rounds of p99 / p50."""
        return statistics.median(
            r.points[peer].p99_ms / r.points[peer].p50_ms for r in self.rounds[connections]
        )

    def n_failed(self) -> int:
        """Requests that were not answered with 200, over all points."""
        return sum(
            p.failed for rounds in self.rounds.values() for r in rounds for p in r.points.values()
        )


class BareLoop:
    """The bare onnxruntime loop: a process on the server's core that runs when it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read_line()

    def rows_per_s(self, batch: int, seconds: float) -> float:
        """Run batches of one size for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch} {seconds}\n")
        self._process.stdin.flush()
        return float(self._read_line())

    def watched(self, batch: int, seconds: float) -> tuple[float, float]:
        """Return rows per second, and others' CPU meanwhile as a share of one core."""
        elsewhere = Elsewhere(lambda: cpu_s_of(self._process.pid))
        rate = self.rows_per_s(batch, seconds)
        return rate, elsewhere.share()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the bare loop ended early")
        return line


@contextmanager
def bare_loop(model: BenchModel) -> Iterator[BareLoop]:
    """Start the loop for one model; end it on leaving."""
    rows = model.path.with_suffix(".npz")
    with subprocess.Popen(
        [str(environment("loop")), str(HERE / "bare_loop.py"), str(model.path), str(rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pinned_to(SERVER_CORE),
    ) as process:
        yield BareLoop(process)
        # Leaving closes stdin, which ends the loop.


def measure_model(name: str, plan: Plan) -> ModelResult:
    """Start everyone with one model, check the answers, then load them in turn."""
    model = bench_model(name, WORK / "models")
    peers = peers_of(model)
    result = ModelResult(name, {p.name: p.form for p in peers})
    with ExitStack() as stack:
        loop = stack.enter_context(bare_loop(model))
        running: list[tuple[Peer, ServerProcess, int]] = []
        for peer in peers:
            port = free_port()
            log = WORK / "logs" / f"{peer.name}-{name}.log"
            server = stack.enter_context(ServerProcess(peer.command(model, port), log=log))
            up = (peer, model, port)
            server.wait_for(lambda up=up: is_up(*up))  # type: ignore[misc]
            result.n_checked += check_answers(peer, model, port, each=6)
            server.settle()
            running.append((peer, server, port))

        for size in BATCH_SIZES[name]:
            result.loop_rates[size] = loop.rows_per_s(size, 1.5)
        result.best_batch = max(result.loop_rates, key=lambda size: result.loop_rates[size])

        fast = name == "tabular"
        steps = _steps(plan, fast=fast)
        for number, (connections, seconds, with_loop) in enumerate(steps):
            say(f"{name}: {connections} connections, step {number + 1} of {len(steps)}")
            rounds = result.rounds.setdefault(connections, [])
            once = partial(
                _round,
                model,
                running if len(rounds) % 2 == 0 else running[::-1],
                loop if with_loop else None,
                batch=result.best_batch,
                loop_first=len(rounds) % 2 == 0,
                connections=connections,
                warm_s=plan.warm_s if fast else plan.slow_warm_s,
                seconds=seconds,
            )
            rounds.append(_undisturbed(once))
        _, server, port = running[0]
        result.memory_mb = memory(server, port)
    return result


def _round(
    model: BenchModel,
    running: Sequence[tuple[Peer, ServerProcess, int]],
    loop: BareLoop | None,
    *,
    batch: int,
    loop_first: bool,
    connections: int,
    warm_s: float,
    seconds: int,
) -> Round:
    """Measure each peer once, in this order, and the bare loop before or after them."""
    one = Round({})
    if loop and loop_first:
        one.loop_rows_per_s, one.loop_others_share = loop.watched(batch, seconds)
    for peer, server, port in running:
        one.points[peer.name] = run_wrk(
            peer, model, server, port, connections=connections, warm_s=warm_s, seconds=seconds
        )
    if loop and not loop_first:
        one.loop_rows_per_s, one.loop_others_share = loop.watched(batch, seconds)
    return one


def _undisturbed(once: Callable[[], Round]) -> Round:
    """Measure a round, again while strangers used the machine; return the quietest."""
    rounds = [once()]
    while rounds[-1].others_share > QUIET_SHARE and len(rounds) <= RETRIES:
        say(f"others took {rounds[-1].others_share:.0%} of a core: once more")
        rounds.append(once())
    return min(rounds, key=lambda r: r.others_share)


def _steps(plan: Plan, *, fast: bool) -> Sequence[tuple[int, int, bool]]:
    """Return connections, seconds and whether the bare loop runs beside, in order."""
    if fast:
        return [
            (c, plan.fast_s, False) for _ in range(plan.fast_rounds) for c in plan.fast_connections
        ]
    sides = [(c, plan.side_s, False) for c in plan.slow_connections]
    return sides + [(LIMIT_CONNECTIONS, plan.slow_s, True)] * plan.slow_rounds


def memory(server: ServerProcess, port: int) -> dict[str, float]:
    """Return MB resident of the server, before and after its docs were built, and of its worker."""
    before = rss_mb(server.pid)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path in ("/docs", "/openapi.json"):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()
    return {
        "server": before,
        "server, docs read": rss_mb(server.pid),
        "worker": max((rss_mb(pid) for pid in server.tree()[1:]), default=0.0),
        "import numpy": import_rss_mb(sys.executable, "import numpy"),
        "import onnxruntime": import_rss_mb(sys.executable, "import onnxruntime"),
    }


def start_times(plan: Plan, *, core: int | None) -> list[float]:
    """Return seconds from exec of `muelle serve` to the first right answer, one per start.

    Nearly twice as many starts are made; those that others disturbed most are left out.
    """
    model = bench_model("tabular", WORK / "models")
    peer = peers_of(model)[0]
    seconds: list[tuple[float, float]] = []
    # The first start is not counted: it may have to compile modules.
    for _ in range(plan.starts * 2):
        port = free_port()
        log = WORK / "logs" / "start.log"
        with ServerProcess(peer.command(model, port), log=log, core=core) as server:
            up = (peer, model, port)
            elsewhere = Elsewhere(server.cpu_s)
            took_s = server.wait_for(lambda up=up: is_up(*up))  # type: ignore[misc]
            seconds.append((elsewhere.share(), took_s))
    return [took_s for _, took_s in sorted(seconds[1:])[: plan.starts]]
