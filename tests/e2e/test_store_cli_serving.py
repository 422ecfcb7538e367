"""The store's commands while a server runs: acknowledged only when the new version answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.test_store_cli import Commands
from tests.serving import Served

NUMBERED = '''
from pathlib import Path
from muelle import Model, TensorSpec


class Numbered(Model):
    """y = x + {number}; cannot be loaded while a file forbids it."""

    inputs = [TensorSpec(name="x", datatype="FP64", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP64", shape=(-1,))]

    def load(self, folder):
        if Path({forbidden!r}).exists():
            raise ValueError("forbidden now")

    def predict(self, inputs):
        return {{"y": inputs["x"] + {number}}}
'''


@pytest.fixture
def muelle(tmp_path: Path) -> Commands:
    """A store with three versions; stable names the first."""
    commands = Commands(tmp_path / "store")
    for number in (1, 2, 3):
        file = tmp_path / "numbered.py"
        forbidden = str(tmp_path / f"forbid-{number}")
        file.write_text(NUMBERED.format(number=number, forbidden=forbidden))
        commands.ok("push", file, "--trust")
    return commands


def answer(served: Served) -> float:
    """Ask over a new connection which number is added."""
    status, _, body = served.ask("POST", "/models/numbered/predict", '{"instances": [10.0]}')
    assert status == 200, body
    (row,) = json.loads(body)["predictions"]
    return float(row["y"] if isinstance(row, dict) else row) - 10


def test_labels_take_effect_when_the_command_returns(muelle: Commands, tmp_path: Path) -> None:
    """label, rollback and push --label: the next request gets what the command said."""
    with Served("--store", str(muelle.store), "--poll-s", "3600") as served:
        assert answer(served) == 1
        told = muelle.json("label", "numbered:2", "stable")
        assert (told["version"], told["changed"], told["server"] != "") == (2, True, True)
        assert answer(served) == 2
        assert "answering after" in muelle.ok("rollback", "numbered")
        assert answer(served) == 1
        assert "has it" in muelle.refused("rm", "numbered:1")
        file = tmp_path / "numbered.py"
        file.write_text(NUMBERED.format(number=4, forbidden=str(tmp_path / "forbid-4")))
        assert "numbered@stable -> 4, answering" in muelle.ok(
            "push", file, "--trust", "--label", "stable"
        )
        assert answer(served) == 4


def test_a_refused_label_changes_nothing(muelle: Commands, tmp_path: Path) -> None:
    """A version that cannot be loaded: exit 1 with the reason; the old one serves on."""
    with Served("--store", str(muelle.store), "--poll-s", "3600") as served:
        (tmp_path / "forbid-3").touch()
        assert "forbidden now" in muelle.refused("label", "numbered:3", "stable")
        assert answer(served) == 1
        assert muelle.json("list")[0]["labels"] == {"stable": 1}
