"""Does the server keep its size? A million mixed requests, memory and descriptors watched.

    python -m bench.soak [--requests 1000000] [--plant-leak [BYTES]] [--plant-open-files] [--docs]

Fails when an answer is wrong, when the server grows by more than 5 MB from the middle on, when a
descriptor is left over, or when a worker was replaced. Not a speed figure. The planted faults are
its negative control: with them it must fail.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.load import free_port, is_up
from bench.models import BenchModel, bench_model
from bench.peers import HERE, WORK, muelle_command, peers_of, say
from bench.processes import ServerProcess, n_descriptors, rss_mb
from bench.report import machine, write_between_marks
from bench.traffic import Question, Tally, ask_all, every_one, in_turn, mixed_questions

GROWTH_LIMIT_MB = 5.0
N_SAMPLES = 200
N_CALLERS = 32
WARM_REQUESTS = 4_000
QUIET_S = 15.0
PLANTED_BYTES = 100
PLANTED_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Sizes after so many requests, in MB."""

    n_done: int
    server_mb: float
    workers_mb: float


@dataclass(slots=True)
class SoakResult:
    """What a soak saw."""

    n_requests: int
    tally: Tally
    samples: list[Sample] = field(default_factory=list)
    descriptors: tuple[dict[int, int], dict[int, int]] = ({}, {})
    """Open descriptors by process id with no client connected, before and after."""
    seconds: float = 0.0

    def growth_mb(self) -> float:
        """Return by how much the server grew from the middle (45-55 %) to the end (last 10 %)."""
        return self._median(0.9, 1.01) - self._median(0.45, 0.55)

    def faults(self) -> list[str]:
        """Return what is wrong, in words; empty when the server kept its size and its word."""
        found: list[str] = []
        if self.tally.n_wrong:
            first = self.tally.faults[0]
            found.append(f"{self.tally.n_wrong} wrong answers, the first: {first}")
        if (growth := self.growth_mb()) > GROWTH_LIMIT_MB:
            found.append(f"the server grew by {growth:.1f} MB from the middle on")
        before, after = self.descriptors
        if before.keys() != after.keys():
            found.append(f"processes {sorted(before)} before, {sorted(after)} after")
        elif before != after:
            found.append(f"open descriptors {before} before, {after} after")
        return found

    def text(self) -> str:
        """Return a short account."""
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(self.tally.asked.items()))
        n = self.tally.n_asked
        first, last = self.samples[0], self.samples[-1]
        before, after = self.descriptors
        return (
            f"{n:,} requests in {self.seconds:.0f} s ({kinds}); "
            f"{self.tally.n_wrong} wrong answers; server {first.server_mb:.1f} MB at first, "
            f"{last.server_mb:.1f} MB at last, {self.growth_mb():+.1f} MB from the middle on; "
            f"workers {first.workers_mb:.1f} to {last.workers_mb:.1f} MB; descriptors "
            f"{sorted(before.values())} before, {sorted(after.values())} after"
        )

    def _median(self, start: float, stop: float) -> float:
        inside = [
            s.server_mb
            for s in self.samples
            if start * self.n_requests <= s.n_done <= stop * self.n_requests
        ]
        return statistics.median(inside)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak; return 0 when the server kept its size and every answer was right."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=N_CALLERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--plant-leak", type=int, nargs="?", const=PLANTED_BYTES, default=0, metavar="BYTES",
        help="keep so many bytes per request (default 100)",
    )  # fmt: skip
    parser.add_argument("--plant-open-files", action="store_true", help="leave descriptors open")
    parser.add_argument("--docs", action="store_true", help="write it to docs/performance.md")
    options = parser.parse_args(arguments)
    result = soak(
        options.requests,
        n_callers=options.callers,
        seed=options.seed,
        leak_bytes=options.plant_leak,
        descriptors_every=PLANTED_EVERY if options.plant_open_files else 0,
        progress=True,
    )
    print(result.text())
    if options.docs:
        page = HERE.parent / "docs" / "performance.md"
        write_between_marks(page, "soak", f"{machine()['processor']}: {result.text()}.\n")
    for fault in result.faults():
        say(f"soak: {fault}")
    return 1 if result.faults() else 0


def soak(
    n_requests: int,
    *,
    n_callers: int = N_CALLERS,
    seed: int = 1,
    leak_bytes: int = 0,
    descriptors_every: int = 0,
    folder: Path = WORK,
    progress: bool = False,
) -> SoakResult:
    """Serve the small model in a process of its own and ask it n_requests mixed questions."""
    model = bench_model("tabular", folder / "models")
    port = free_port()
    command = muelle_command(model, port)
    if leak_bytes or descriptors_every:
        planted = [sys.executable, str(HERE / "leaky.py"), str(leak_bytes), str(descriptors_every)]
        command = planted + command[1:]
    peer = peers_of(model)[0]
    with ServerProcess(command, log=folder / "logs" / "soak.log", core=None) as server:
        server.wait_for(lambda: is_up(peer, model, port))
        watch = Watch(server, model, port, n_requests, n_callers, progress)
        return uvloop.run(watch.run(seed))


class Watch:
    """One soak under way: asks, samples, compares. Used once."""

    def __init__(
        self,
        server: ServerProcess,
        model: BenchModel,
        port: int,
        n_requests: int,
        n_callers: int,
        progress: bool,
    ) -> None:
        self._server = server
        self._questions = mixed_questions(model)
        self._port = port
        self._n_callers = n_callers
        self._progress = progress
        self._every = max(1, n_requests // N_SAMPLES)
        self._n_done = 0
        self.result = SoakResult(n_requests, Tally())

    async def run(self, seed: int) -> SoakResult:
        """Warm every way, then ask what was ordered, then look at what is left."""
        result = self.result
        warming = Tally()
        warm = itertools.chain(
            every_one(self._questions), itertools.islice(in_turn(self._questions, 0), WARM_REQUESTS)
        )
        await self._ask(warm, warming)
        before = await self._quiet()
        # The warm-up's wrong answers count too.
        result.tally.n_wrong, result.tally.faults = warming.n_wrong, warming.faults
        begun = time.monotonic()
        ordered = itertools.islice(in_turn(self._questions, seed), result.n_requests)
        await self._ask(ordered, result.tally, sampling=True)
        result.seconds = time.monotonic() - begun
        result.descriptors = (before, await self._quiet(like=before))
        return result

    async def _ask(
        self, questions: Iterator[Question], tally: Tally, *, sampling: bool = False
    ) -> None:
        await ask_all(
            questions,
            port=self._port,
            n_callers=self._n_callers,
            tally=tally,
            noted=self._note if sampling else lambda: None,
        )

    def _note(self) -> None:
        self._n_done += 1
        if self._n_done % self._every:
            return
        server, *workers = self._server.tree()
        workers_mb = sum(rss_mb(pid) for pid in workers)
        self.result.samples.append(Sample(self._n_done, rss_mb(server), workers_mb))
        if self._progress and len(self.result.samples) % (N_SAMPLES // 20) == 0:
            say(f"{self._n_done:,} done, server {self.result.samples[-1].server_mb:.1f} MB")

    async def _quiet(self, like: dict[int, int] | None = None) -> dict[int, int]:
        """Return open descriptors by process once they stand still, or are as they were before."""
        deadline = time.monotonic() + QUIET_S
        last: dict[int, int] = {}
        same = 0
        while time.monotonic() < deadline:
            now = {pid: n_descriptors(pid) for pid in self._server.tree()}
            same = same + 1 if now == last else 0
            last = now
            if now == like or (like is None and same >= 10):
                break
            await asyncio.sleep(0.1)
        return last


if __name__ == "__main__":
    sys.exit(main())
