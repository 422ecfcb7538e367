"""The server keeps its size under mixed requests, and the soak would notice if it did not.

Scaled down: MUELLE_SOAK_REQUESTS sets another number; `python -m bench.soak` runs the million.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import uvloop

from bench.load import free_port, is_up
from bench.models import bench_model
from bench.peers import muelle_command, peers_of
from bench.processes import ServerProcess
from bench.soak import GROWTH_LIMIT_MB, Sample, SoakResult, soak
from bench.traffic import Tally, ask_all, every_one, mixed_questions

N_REQUESTS = int(os.environ.get("MUELLE_SOAK_REQUESTS", "20000"))
N_PLANTED = 10_000
"""Requests of a soak with a planted fault."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is made, once for all soaks."""
    return tmp_path_factory.mktemp("soak")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mixed_requests_leave_the_server_as_it_was(folder: Path) -> None:
    """Good, bad, large and abandoned requests: right answers, no growth, no descriptor left."""
    result = soak(N_REQUESTS, folder=folder)

    assert result.faults() == [], result.text()
    assert result.tally.n_asked == N_REQUESTS
    assert result.tally.asked["left"] > 0
    assert result.tally.asked["large"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_planted_leak_is_caught(folder: Path) -> None:
    """A server that keeps bytes of every request fails the soak, and for that reason only."""
    # Half of the requests must leak four times the limit: a small leak needs the whole million.
    leak_bytes = int(4 * GROWTH_LIMIT_MB * 1e6) // (N_PLANTED // 2)
    faults = soak(N_PLANTED, folder=folder, leak_bytes=leak_bytes).faults()

    assert len(faults) == 1
    assert "the server grew by" in faults[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_descriptors_left_open_are_caught(folder: Path) -> None:
    """A server that opens a file now and then and never closes it fails the soak."""
    faults = soak(N_PLANTED, folder=folder, descriptors_every=1_000).faults()

    assert len(faults) == 1
    assert "open descriptors" in faults[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_wrong_value_is_noted(folder: Path) -> None:
    """When all expected values are off, each good request of each form counts as wrong."""
    model = bench_model("tabular", folder / "models")
    off = dataclasses.replace(model, expected=model.expected + 20 * model.tolerance)
    port, tally = free_port(), Tally()
    command, peer = muelle_command(model, port), peers_of(model)[0]
    with ServerProcess(command, log=folder / "logs" / "wrong.log", core=None) as server:
        server.wait_for(lambda: is_up(peer, model, port))
        questions = every_one(mixed_questions(off))
        uvloop.run(ask_all(iter(questions), port=port, n_callers=4, tally=tally))

    good = [q for q in questions if q.kind.startswith("good")]
    large = [q for q in questions if q.kind == "large"]
    # One of the large ones is refused for its size, rightly.
    assert tally.n_wrong == len(good) + len(large) - 1


def samples(*server_mb: float) -> list[Sample]:
    """Evenly spread samples of a soak of 1,000 requests."""
    step = 1_000 // len(server_mb)
    return [Sample((i + 1) * step, mb, 60.0) for i, mb in enumerate(server_mb)]


STEADY = [70.0] * 20
TWO = {10: 20, 11: 8}


@pytest.mark.parametrize(
    ("server_mb", "after", "n_faults"),
    [
        pytest.param(STEADY, TWO, 0, id="steady"),
        pytest.param([50.0, *[70.0] * 19], TWO, 0, id="grows-while-it-warms"),
        pytest.param([*[70.0] * 17, 170.0, 70.0, 70.0], TWO, 0, id="a-spike-that-goes"),
        pytest.param([70.0 + i for i in range(20)], TWO, 1, id="leak"),
        pytest.param(STEADY, {10: 21, 11: 8}, 1, id="a-descriptor-more"),
        pytest.param(STEADY, {10: 19, 11: 8}, 1, id="a-descriptor-fewer"),
        pytest.param(STEADY, {10: 20, 12: 8}, 1, id="another-worker"),
    ],
)
def test_the_verdict(server_mb: Sequence[float], after: dict[int, int], n_faults: int) -> None:
    """Growth after the middle, other descriptors, other processes are faults; warming is not."""
    result = SoakResult(1_000, Tally(), samples(*server_mb), (TWO, after))

    assert len(result.faults()) == n_faults


def test_a_wrong_answer_is_a_fault() -> None:
    """One wrong answer in a million fails the soak, and the verdict quotes it."""
    tally = Tally()
    tally.note("good", "off by 0.5")
    faults = SoakResult(1_000, tally, samples(*STEADY), (TWO, TWO)).faults()

    assert len(faults) == 1
    assert "good: off by 0.5" in faults[0]
