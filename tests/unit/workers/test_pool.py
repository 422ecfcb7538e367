"""Real worker processes under a pool: every way a batch can end, each answer by value."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.core.errors import DeadlineExceeded, ModelFailed, QueueFull, Unavailable
from muelle.core.events import VersionFailed, VersionLoading, VersionReady, WorkerDied
from muelle.core.request import InferRequest, Tensor
from tests.unit.workers.models import FREE_SOURCE, WHOLE_SOURCE, Running, doubled, request


def good(answer: Any, number: int) -> bool:
    """Whether request `number` of a mixed batch got its own row."""
    return isinstance(answer, dict) and answer["y"] == doubled(number * 2)


async def mixed(running: Running, trouble: str, n: int = 8, at: int = 3) -> list[Any]:
    """Submit n one-row requests in one turn of the loop, one of them trouble."""
    for number in range(n):
        running.answers.submit(request(trouble if number == at else "", start=number * 2))
    return await running.answers.all()


async def test_requests_of_one_turn_share_a_batch(tmp_path: Path) -> None:
    """Natural batching: what arrives together runs together, and each caller gets its rows."""
    async with Running(tmp_path) as running:
        for number in range(6):
            running.answers.submit(request("size", start=number * 2))
        answers: list[Any] = await running.answers.all()
        assert all(good(answer, number) for number, answer in enumerate(answers))
        assert {answer["note"][0] for answer in answers} == {b"6"}
        assert [type(event) for event in running.events] == [VersionLoading, VersionReady]


async def test_one_bad_row_fails_alone(tmp_path: Path) -> None:
    """The model raises on one request: only it gets the error, without path or address."""
    async with Running(tmp_path) as running:
        pids = running.pids
        answers = await mixed(running, "raise")
        assert [good(a, i) for i, a in enumerate(answers)] == [i != 3 for i in range(8)]
        assert isinstance(answers[3], ModelFailed)
        assert str(answers[3]) == "rogue: the model failed: ValueError: bad row … …"
        assert running.pids == pids


async def test_a_worker_killed_in_mid_batch_loses_nothing(tmp_path: Path) -> None:
    """kill -9 while a batch runs: its requests run once more on the restarted worker."""
    async with Running(tmp_path) as running:
        before = running.pids
        answers = await mixed(running, f"die-once {tmp_path / 'flag'}")
        assert all(good(answer, number) for number, answer in enumerate(answers))
        assert running.pids != before
        [died] = [e for e in running.events if isinstance(e, WorkerDied)]
        assert died.reason == "killed by SIGKILL"


async def test_a_poison_request_is_told_after_two_deaths(tmp_path: Path) -> None:
    """Native code segfaults on one request: it gets an error, its mates their answers."""
    async with Running(tmp_path) as running:
        answers = await mixed(running, "segfault", n=4, at=1)
        assert [good(a, i) for i, a in enumerate(answers)] == [i != 1 for i in range(4)]
        assert isinstance(answers[1], ModelFailed)
        assert await running.note("") == "ok"
        deaths = [e.reason for e in running.events if isinstance(e, WorkerDied)]
        assert deaths == ["killed by SIGSEGV"] * 2


@pytest.mark.parametrize("trouble", ["loop", "stop"])
async def test_a_hung_worker_is_replaced(tmp_path: Path, trouble: str) -> None:
    """An endless loop or a stopped process: killed at the run limit; the mates are answered."""
    async with Running(tmp_path, run_limit_s=0.3) as running:
        answers = await mixed(running, trouble, n=3, at=0)
        assert [good(a, i) for i, a in enumerate(answers)] == [False, True, True]
        assert isinstance(answers[0], ModelFailed)
        deaths = [e.reason for e in running.events if isinstance(e, WorkerDied)]
        assert deaths == ["a batch ran longer than 0.3 s; killed by SIGKILL"] * 2


async def test_memory_over_the_limit_fails_the_request(tmp_path: Path) -> None:
    """A model that takes more memory than it may fails that request; the worker serves on."""
    async with Running(tmp_path, memory_limit_bytes=256 * 2**20) as running:
        answers = await mixed(running, "hoard", n=3, at=2)
        assert [good(a, i) for i, a in enumerate(answers)] == [True, True, False]
        assert isinstance(answers[2], ModelFailed)
        assert "Memory" in str(answers[2])
        assert await running.note("") == "ok"


async def test_without_a_limit_the_same_request_is_answered(tmp_path: Path) -> None:
    """Negative control of the memory limit."""
    async with Running(tmp_path) as running:
        assert await running.note("hoard") == "ok"


async def test_outputs_may_grow(tmp_path: Path) -> None:
    """Answers larger than the memory that lay ready get more, and small ones follow."""
    async with Running(tmp_path) as running:
        for size in (10, 200_000, 3_000_000, 10, 4_000_000):
            assert len(await running.note(f"large {size}")) == size


async def test_outputs_over_the_limit_are_refused(tmp_path: Path) -> None:
    """A batch whose answers need more memory than allowed: its large request fails, no other."""
    async with Running(tmp_path, output_limit_bytes=100_000) as running:
        answers = await mixed(running, "large 500000", n=4)
        assert [good(a, i) for i, a in enumerate(answers)] == [True, True, True, False]
        assert "the limit is 100000" in str(answers[3])


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("rows", "to 1 rows"), ("missing", "the model gave no output 'note'")],
)
async def test_a_model_that_answers_wrongly_is_told(
    tmp_path: Path, trouble: str, words: str
) -> None:
    """Too few rows, or an output left out: an error for that request, not for its mates."""
    async with Running(tmp_path) as running:
        answers = await mixed(running, trouble, n=3, at=1)
        assert [good(a, i) for i, a in enumerate(answers)] == [True, False, True]
        assert words in str(answers[1])


async def test_large_requests_are_split_and_joined(tmp_path: Path) -> None:
    """More rows than a batch holds: the answer has all of them, in order."""
    async with Running(tmp_path) as running:
        answer: Any = await running.ask(*[""] * 100)
        assert answer["y"] == doubled(0, 100)
        assert answer["note"] == [b"ok"] * 100


def row(*numbers: float, plus: float | None = None) -> InferRequest:
    """One row of the free model, of any width."""
    inputs = [Tensor.flat("x", "FP32", (1, len(numbers)), list(numbers))]
    if plus is not None:
        inputs.append(Tensor.flat("plus", "FP32", (1,), [plus]))
    return InferRequest(inputs, 1)


async def test_unequal_shapes_run_apart(tmp_path: Path) -> None:
    """Free dimensions and optional inputs: only requests that are alike share a batch."""
    async with Running(tmp_path, FREE_SOURCE) as running:
        wires = [
            row(1, 2),
            row(1, 2, 3),
            row(4, 5),
            row(1, 2, plus=10),
            row(6, 7, plus=20),
            row(),
        ]
        for wire in wires:
            running.answers.submit(wire)
        answers: list[Any] = await running.answers.all()
        assert [a["y"][0] for a in answers] == [3, 6, 9, 13, 33, 0]
        assert [a["size"][0] for a in answers] == [2, 1, 2, 2, 2, 1]


async def test_a_model_without_rows_answers_one_by_one(tmp_path: Path) -> None:
    """No rows axis: nothing is batched, and a scalar output comes whole."""
    async with Running(tmp_path, WHOLE_SOURCE) as running:
        for number in range(3):
            running.answers.submit(
                InferRequest([Tensor.flat("x", "FP32", (2, 2), [number] * 4)], 1)
            )
        answers: list[Any] = await running.answers.all()
        assert [a["mean"] for a in answers] == [0.0, 1.0, 2.0]


async def test_an_expired_request_is_told(tmp_path: Path) -> None:
    """The deadline passes while the worker is busy: an error, and the row never runs."""
    flag = tmp_path / "ran"
    async with Running(tmp_path, run_limit_s=0.4, max_batch_size=1) as running:
        running.answers.submit(request("loop"))
        late = request(f"die-once {flag}")
        late.timeout_s = 0.1
        running.answers.submit(late)
        answers = await running.answers.all()
        assert isinstance(answers[1], DeadlineExceeded)
        assert not flag.exists()


async def test_a_cancelled_request_does_not_run(tmp_path: Path) -> None:
    """The caller leaves before its row runs: it is never told, and the row never runs."""
    flag = tmp_path / "ran"
    async with Running(tmp_path) as running:
        told: list[Any] = []
        cancel = running.pool.submit(request(f"die-once {flag}"), told.append, _now())
        cancel()
        assert await running.note("size") == "1"
        assert told == [] and not flag.exists()
        assert running.pool.queue_depth == 0


def _now() -> float:
    return time.monotonic()


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """Over max_queue, and nothing that waits is harmed."""
    async with Running(tmp_path, max_queue=3) as running:
        for _ in range(3):
            running.answers.submit(request(""))
        with pytest.raises(QueueFull):
            running.answers.submit(request(""))
        assert all(isinstance(a, dict) for a in await running.answers.all())


async def test_several_workers_share_the_work(tmp_path: Path) -> None:
    """Two workers, one killed from outside: all is answered, and both are there again."""
    async with Running(tmp_path, workers=2, max_batch_size=1) as running:
        while not all(s.state == "ready" for s in running.pool.worker_statuses()):
            await asyncio.sleep(0)
        victim = running.pids[0]
        assert victim is not None
        for number in range(20):
            running.answers.submit(request("pid", start=number * 2))
        os.kill(victim, signal.SIGKILL)
        answers = await running.answers.all()
        assert all(good(answer, number) for number, answer in enumerate(answers))


async def test_a_crash_at_load_ends_in_quarantine(tmp_path: Path) -> None:
    """A model whose file kills its process: after six tries the version says so and refuses."""
    source = "import os\nos._exit(7)\n"
    async with Running(tmp_path, source) as running:
        assert running.pool.state == "QUARANTINED"
        with pytest.raises(Unavailable, match="keep dying"):
            running.answers.submit(request(""))
        deaths = [e for e in running.events if isinstance(e, WorkerDied)]
        assert deaths[0].reason == "exit status 7"


async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    """The version fails once, with the reason, and leaves no process behind."""
    async with Running(tmp_path, "import muelle\n") as running:
        assert running.pool.state == "FAILED"
        assert "no subclass of muelle.Model" in running.pool.reason
        assert [type(e) for e in running.events] == [VersionLoading, VersionFailed]
        assert running.pids == [None]


async def test_a_load_that_never_ends_fails_the_version(tmp_path: Path) -> None:
    """Start returns, and the reason names the setting."""
    source = "while True:\n    pass\n"
    async with Running(tmp_path, source, load_timeout_s=0.3) as running:
        assert running.pool.state == "FAILED"
        assert running.pool.reason.startswith("not loaded within 0.3 s")


async def test_stopping_answers_what_was_accepted(tmp_path: Path) -> None:
    """Accepted requests are answered before the workers end."""
    running = await Running(tmp_path).__aenter__()
    for number in range(8):
        running.answers.submit(request("", start=number * 2))
    await running.pool.stop(30.0)
    answers = await running.answers.all()
    assert all(good(answer, number) for number, answer in enumerate(answers))


async def test_stopping_in_haste_tells_everybody(tmp_path: Path) -> None:
    """Out of time: whoever waits, runs, or is held back by a search is told, once each."""
    running = await Running(tmp_path, max_batch_size=4).__aenter__()
    for number in range(8):
        running.answers.submit(request("raise" if number == 0 else "loop"))
    await running.pool.stop(0.0)
    answers = await running.answers.all()
    assert all(isinstance(answer, Exception) for answer in answers)


def descriptors() -> dict[str, str]:
    """Return this process's descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # The folder's own descriptor.
    return found


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Descriptors and child processes are the same before and after, kills and failures too."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before, had = sorted(descriptors().values()), children.read_text().split()
    async with Running(tmp_path, run_limit_s=0.3) as running:
        await mixed(running, "segfault", n=3, at=1)
        await running.note("large 500000")
        assert sorted(descriptors().values()) != before  # Negative control: a worker is seen.
        await running.ask("loop")
    async with Running(tmp_path, "import muelle\n"):
        pass
    for _ in range(200):
        if children.read_text().split() == had:
            break
        await asyncio.sleep(0.01)  # A bounded wait for exit statuses to be collected.
    assert children.read_text().split() == had
    assert sorted(descriptors().values()) == before


async def test_a_worker_holds_no_secret_and_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment has nothing that was not chosen, and it has loaded nothing of the server."""
    monkeypatch.setenv("API_TOKEN", "hunter2-canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://hunter2-canary:1")
    async with Running(tmp_path) as running:
        environment = await running.note("environment")
        assert "hunter2" not in environment and "PROXY" not in environment
        assert "HF_HUB_OFFLINE" in environment
        modules = set((await running.note("modules")).split())
        parts = {m.split(".")[1] for m in modules if m.startswith("muelle.")}
        assert parts == {"core", "workers", "runtimes"}
        assert not modules & {"asyncio", "uvloop", "httptools", "fastapi"}


async def test_a_worker_cannot_shrink_the_memory(tmp_path: Path) -> None:
    """A worker that cuts its shared memory off would crash the server: the seal refuses it."""
    async with Running(tmp_path) as running:
        tried = await running.note("truncate")
        assert "shrunk" not in tried
        assert await running.note("") == "ok"


async def test_isolation_none_answers_alike(tmp_path: Path) -> None:
    """The same model in a thread of the server: same answers, same errors."""
    async with Running(tmp_path, isolation="none") as running:
        answers = await mixed(running, "raise", n=4)
        assert [good(a, i) for i, a in enumerate(answers)] == [True, True, True, False]
        assert running.pids == [None]


async def test_numbers_arrive_bit_by_bit(tmp_path: Path) -> None:
    """Large batches (copied piece by piece) and small ones (joined) hold the same numbers."""
    async with Running(tmp_path, FREE_SOURCE) as running:
        rng = np.random.default_rng(0)
        wide = [rng.normal(size=(1, 40_000)).astype("<f4") for _ in range(4)]
        for array in wide:
            tensor = Tensor.raw("x", "FP32", array.shape, array.tobytes())
            running.answers.submit(InferRequest([tensor], 1))
        answers: list[Any] = await running.answers.all()
        together = np.concatenate(wide).sum(axis=1)
        assert [a["y"][0] for a in answers] == together.tolist()
