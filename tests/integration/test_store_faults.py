"""The store stays whole, whichever system call of an operation fails (goals R-30, R-31).

A sample of the fault points in the fast suite; all of them in the slow one.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.store_operation import OPERATIONS
from tests.integration.store_sweep import BROKEN_ONCE, KILL, STRACE, Sweep

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")

N_SAMPLED = {"push": 9, "label": 4, "rollback": 3, "rm": 3, "route": 2, "gc": 4}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_leaves_the_old_or_the_new_state(operation: str, tmp_path: Path) -> None:
    """R-30, R-31, sampled: the store is whole, and the exit code says what is so."""
    sweep = Sweep(operation, tmp_path)
    points = sweep.points()
    sample = random.Random(operation).sample(points, N_SAMPLED[operation])
    assert sweep.run(sample) == []


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_fault_leaves_the_old_or_the_new_state(operation: str, tmp_path: Path) -> None:
    """R-30, R-31, every point of every operation."""
    sweep = Sweep(operation, tmp_path)
    points = sweep.points()
    assert len(points) > 20
    assert sweep.run(points) == []


@pytest.mark.parametrize(
    ("operation", "call", "fault", "found"),
    [
        ("broken-two-steps", "fdatasync", KILL, "neither old nor new"),
        ("broken-in-place", "write", KILL, "verify: "),
        ("broken-blob-later", "rename", KILL, "verify: "),
        ("broken-success", "fdatasync", BROKEN_ONCE, "said that it is done"),
    ],
)
def test_a_broken_operation_is_caught(
    operation: str, call: str, fault: str, found: str, tmp_path: Path
) -> None:
    """Negative control: an operation that is not atomic, or that lies, does not pass the sweep."""
    sweep = Sweep(operation, tmp_path)
    points = [point for point in sweep.points([fault]) if point.call == call]
    assert any(found in line for line in sweep.run(points))
