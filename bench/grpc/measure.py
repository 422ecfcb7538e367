"""The questions of the gRPC bench. Not for printing the answers (`report`).

All servers of a model run at once on one core, and are asked in turn: forwards in one round,
backwards in the next. Ratios are taken within a round, then the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.grpc.load import check_grpc, run_client, run_h2load
from bench.grpc.models import ECHO_SIZES, model_called
from bench.grpc.servers import (
    ALL,
    BINARY,
    GRPC,
    NotInstalled,
    Started,
    http_peer,
    start_of,
    ways_of,
)
from bench.load import Point, check_answers, is_up, run_wrk
from bench.measure import QUIET_SHARE
from bench.models import BenchModel
from bench.peers import WORK, say
from bench.processes import Elsewhere, ServerProcess


@dataclass(frozen=True, slots=True)
class Shape:
    """How the load asks: so many connections, so many requests at once on each (gRPC only)."""

    connections: int
    streams: int = 1
    client: str = ""
    """Instead of h2load and wrk: one of Python's clients, alone."""

    @property
    def title(self) -> str:
        if self.client:
            return f"1, {self.client}"
        return f"{self.connections} × {self.streams}" if self.streams > 1 else f"{self.connections}"


SMALL_SHAPES = (
    Shape(1),
    Shape(64),
    Shape(1, 64),
    Shape(1, client="grpcio"),
    Shape(1, client="tritonclient"),
)
SLOW_SHAPES = (Shape(1), Shape(32))
LARGE_SHAPES = (Shape(1), Shape(4), Shape(1, client="tritonclient"))
SHAPES = {"tabular": SMALL_SHAPES, "cnn": SLOW_SHAPES, "encoder": SLOW_SHAPES} | dict.fromkeys(
    ECHO_SIZES, LARGE_SHAPES
)

CLIENTS = {
    ("grpcio", GRPC): "grpcio",
    ("tritonclient", GRPC): "triton-grpc",
    ("tritonclient", BINARY): "triton-http",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes."""

    models: tuple[str, ...] = tuple(SHAPES)
    servers: tuple[str, ...] = ALL
    rounds: int = 5
    slow_rounds: int = 3
    fast_s: int = 4
    slow_s: int = 12
    warm_s: int = 1
    retries: int = 2
    """How often a point that strangers disturbed is measured again."""


QUICK = Plan(rounds=2, slow_rounds=1, fast_s=2, slow_s=6, retries=0)


@dataclass(frozen=True, slots=True)
class Key:
    """One row of a table: who is asked, and how."""

    server: str
    way: str


@dataclass(slots=True)
class Result:
    """All that was measured with one model: per shape a list of rounds, each key -> point."""

    model: str
    missing: dict[str, str] = field(default_factory=dict)
    """Servers, or `server, way`, that could not be asked, and why."""
    n_checked: int = 0
    rounds: dict[Shape, list[dict[Key, Point]]] = field(default_factory=dict)

    def keys(self, shape: Shape) -> list[Key]:
        """Return who was measured with a shape, in the order of the servers."""
        return list(self.rounds[shape][0]) if self.rounds.get(shape) else []

    def median(self, shape: Shape, key: Key, what: str) -> float:
        """Return the median over rounds of one field of a key's points."""
        values: list[float] = [getattr(r[key], what) for r in self.rounds[shape]]
        return statistics.median(values)

    def ratio(self, shape: Shape, one: Key, other: Key, what: str) -> float:
        """Return the median over rounds of one's figure divided by the other's."""
        ratios: list[float] = [
            getattr(r[one], what) / getattr(r[other], what) for r in self.rounds[shape]
        ]
        return statistics.median(ratios)

    def n_failed(self) -> int:
        """Requests that were not answered rightly, over all points."""
        return sum(p.failed for rounds in self.rounds.values() for r in rounds for p in r.values())


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is up, with what its gRPC answers must weigh (None: it does not speak it)."""

    name: str
    process: ServerProcess
    started: Started
    answer_bytes: int | None

    def port(self, way: str) -> int:
        """Return where this way leads."""
        port = self.started.grpc_port if way == GRPC else self.started.http_port
        assert port is not None
        return port


def measure_model(name: str, plan: Plan) -> Result:
    """Start everyone with one model, check the answers, load them in turn, check again."""
    model = model_called(name, WORK / "models")
    result = Result(name)
    with ExitStack() as stack:
        running = _start_all(model, plan, result, stack)
        keys = [
            (one, way)
            for one in running
            for way in ways_of(one.name, model)
            if way != GRPC or one.answer_bytes is not None
        ]
        slow = name in ("cnn", "encoder")
        n_rounds = plan.slow_rounds if slow else plan.rounds
        for number in range(n_rounds):
            for shape in SHAPES[name]:
                say(f"{name}: {shape.title}, round {number + 1} of {n_rounds}")
                order = keys if number % 2 == 0 else keys[::-1]
                seconds = plan.slow_s if slow else plan.fast_s
                points = {
                    Key(one.name, way): _point(one, way, shape, model, plan, seconds)
                    for one, way in order
                    if _can(way, shape)
                }
                ordered = [Key(one.name, way) for one, way in keys]
                result.rounds.setdefault(shape, []).append(
                    {key: points[key] for key in ordered if key in points}
                )
        for one in running:
            if one.answer_bytes is not None:
                result.n_checked += check_grpc(one.name, model, one.port(GRPC), each=0)[0]
    return result


def _start_all(
    model: BenchModel, plan: Plan, result: Result, stack: ExitStack
) -> Sequence[Running]:
    each = 1 if model.name in ECHO_SIZES else 6
    running: list[Running] = []
    for name in plan.servers:
        try:
            started = start_of(name, model)
        except NotInstalled as exc:
            result.missing[name] = str(exc)
            continue
        log = WORK / "logs" / f"{name}-{model.name}.log"
        process = stack.enter_context(ServerProcess(started.command, log=log, env=started.env))
        process.wait_for(_is_up(name, model, started), timeout_s=120)
        for way in ways_of(name, model):
            if way != GRPC:
                assert started.http_port is not None
                peer = http_peer(name, way)
                result.n_checked += check_answers(peer, model, started.http_port, each=each)
        answer_bytes = None
        try:
            asked, answer_bytes = check_grpc(name, model, started.grpc_port, each=each)
            result.n_checked += asked
        except RuntimeError as exc:
            # A wrong answer must end the run; a server that does not speak gRPC is a gap.
            if "UNAVAILABLE" not in str(exc) and "UNIMPLEMENTED" not in str(exc):
                raise
            result.missing[f"{name}, {GRPC}"] = "does not answer"
        process.settle()
        running.append(Running(name, process, started, answer_bytes))
    return running


def _is_up(name: str, model: BenchModel, started: Started) -> Callable[[], bool]:
    if started.http_port is not None:
        http_port = started.http_port
        return lambda: is_up(http_peer(name, BINARY), model, http_port)
    return lambda: not run_client("check", model, started.grpc_port, 0)["wrong"]


def _can(way: str, shape: Shape) -> bool:
    """Whether this way can be asked in this shape."""
    if shape.client:
        return (shape.client, way) in CLIENTS
    return way == GRPC or shape.streams == 1


def _point(
    one: Running, way: str, shape: Shape, model: BenchModel, plan: Plan, seconds: int
) -> Point:
    """Measure one point, again while strangers used the machine; return the quietest."""
    points = [_once(one, way, shape, model, plan.warm_s, seconds)]
    while points[-1].others_share > QUIET_SHARE and len(points) <= plan.retries:
        say(f"others took {points[-1].others_share:.0%} of a core: once more")
        points.append(_once(one, way, shape, model, 0, seconds))
    return min(points, key=lambda p: p.others_share)


def _once(
    one: Running, way: str, shape: Shape, model: BenchModel, warm_s: int, seconds: int
) -> Point:
    port = one.port(way)
    if way != GRPC and not shape.client:
        return run_wrk(
            http_peer(one.name, way), model, one.process, port,
            connections=shape.connections, warm_s=warm_s, seconds=seconds,
        )  # fmt: skip

    def load(for_s: int) -> dict[str, Any]:
        if shape.client:
            return run_client(CLIENTS[shape.client, way], model, port, for_s)
        assert one.answer_bytes is not None
        return run_h2load(
            model, port, connections=shape.connections, streams=shape.streams,
            seconds=for_s, answer_bytes=one.answer_bytes,
        )  # fmt: skip

    if warm_s:
        load(warm_s)
        one.process.settle()
    elsewhere = Elsewhere(one.process.cpu_s)
    before = one.process.cpu_s()
    told = load(seconds)
    cpu_s = one.process.cpu_s() - before
    share = elsewhere.share()
    one.process.settle()
    return Point(
        peer=f"{one.name}, {way}",
        model=model.name,
        connections=shape.connections,
        others_share=share,
        cpu_us_per_request=cpu_s * 1e6 / max(1, told["requests"]),
        **told,
    )
