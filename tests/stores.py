"""A store with models whose versions can be told apart by their answers. Not for product code."""

from __future__ import annotations

from pathlib import Path

from muelle.publishing.push import Options, push
from muelle.repository.store import Store

STAMPED = '''
"""Answers 2 x + {number}, and says which version it is with every row."""
import os
import signal
import time
from pathlib import Path

import numpy as np

from muelle import Model, TensorSpec


class Stamped(Model):
    inputs = [TensorSpec(name="x", datatype="FP64", shape=(-1,))]
    outputs = [
        TensorSpec(name="y", datatype="FP64", shape=(-1,)),
        TensorSpec(name="stamp", datatype="INT64", shape=(-1,)),
    ]
    example = {{"x": 3.0}}

    def load(self, folder):
        trouble = Path({trouble!r})
        what = trouble.read_text() if trouble.exists() else ""
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "raise":
            raise RuntimeError("the weights are gone")
        self.shift = 1 if what == "drift" else 0
        self.fails = what == "fail"
        self.n_runs = 0

    def predict(self, inputs):
        if self.fails:
            raise ValueError("no such feature")
        x = inputs["x"]
        {extra}
        return {{"y": 2 * x + {number} + self.shift, "stamp": np.full(len(x), {number})}}
'''
"""`trouble` is a file outside the version whose text makes it misbehave from the next load on."""


def stamped(number: int, *, trouble: Path | None = None, extra: str = "pass") -> str:
    """Return the source of version `number` of the stamped model."""
    return STAMPED.format(number=number, trouble=str(trouble or "/nonexistent"), extra=extra)


def push_stamped(
    folder: Path,
    *numbers: int,
    name: str = "stamped",
    label: str | None = "",
    trouble: Path | None = None,
    extra: str = "pass",
) -> None:
    """Push versions into the store at `folder` (made when it is not there)."""
    with Store.open(folder, create=True) as store:
        for number in numbers:
            file = folder.parent / f"{name}.py"
            file.write_text(stamped(number, trouble=trouble, extra=extra))
            options = Options(name=name, trust=True, label=label)
            (result,) = push(store, file, options, who="test")
            assert result.created
            assert result.record.version == number


def label(folder: Path, name: str, label: str, version: int) -> None:
    """Move a label in the store itself, as another machine's command would."""
    with Store.open(folder) as store:
        store.set_label(name, label, version, who="test")
