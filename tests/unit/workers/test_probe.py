"""What a probe promises: a try in a real worker; crashes, hangs and lies end in words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from muelle.core.errors import ArtifactError, ModelFailed
from muelle.core.records import StoredTensor
from muelle.core.request import decode_array, encode_array
from muelle.core.signature import Signature, TensorSpec
from muelle.workers import messages as m
from muelle.workers import probe as probes
from muelle.workers.probe import Probe, probe

SOURCE = '''
import os
import numpy as np
from muelle import Model, TensorSpec


class Tried(Model):
    """Doubles, and does worse when told."""

    inputs = [TensorSpec(name="x", datatype="FP32", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP32", shape=(-1, 20_000))]

    def load(self, folder):
        if (folder / "die").exists():
            os.abort()

    def predict(self, inputs):
        x = inputs["x"]
        if x[0] == 1:
            raise ValueError("one is not wanted")
        if x[0] == 2:
            os.abort()
        while x[0] == 3:
            pass
        return {"y": np.repeat(x[:, None] * 2, 20_000, axis=1)}
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file in a folder of its own."""
    path = tmp_path / "tried.py"
    path.write_text(SOURCE)
    return path


def tensor(*values: float) -> StoredTensor:
    """The input x."""
    array = np.array(values, np.float32)
    return StoredTensor(
        name="x", datatype="FP32", shape=array.shape, content=encode_array("FP32", array)
    )


def test_a_batch_runs_in_the_worker_whatever_its_size(model: Path) -> None:
    """Answers come back by value, also when they need more memory than there was."""
    with Probe(model, "python", "Python model") as worker:
        assert [spec.name for spec in worker.loaded.signature.inputs] == ["x"]
        for n in (1, 50, 2):
            (y,) = worker.run([tensor(*[4.0] * n)])
            array = decode_array(y.datatype, y.shape, y.content)
            assert (y.name, y.shape) == ("y", (n, 20_000))
            assert (array == 8.0).all()


def test_a_model_that_raises_can_be_asked_again(model: Path) -> None:
    """The model's own error comes as ModelFailed, and the worker lives on."""
    with Probe(model, "python", "Python model") as worker:
        with pytest.raises(ModelFailed, match="one is not wanted"):
            worker.run([tensor(1.0)])
        assert worker.run([tensor(5.0)])[0].shape == (1, 20_000)


def test_a_crash_is_told_in_words(model: Path) -> None:
    """A worker that dies in a batch, or at load, ends in an ArtifactError that says how."""
    with (
        Probe(model, "python", "Python model") as worker,
        pytest.raises(ArtifactError, match="ended: killed by SIGABRT"),
    ):
        worker.run([tensor(2.0)])
    (model.parent / "die").touch()
    with pytest.raises(ArtifactError, match="ended: killed by SIGABRT"):
        probe(model, "python", "Python model")


def test_a_batch_that_hangs_is_ended(model: Path) -> None:
    """After its time a batch is an error, and the worker is gone."""
    with Probe(model, "python", "Python model") as worker:
        process = worker._process
        assert process is not None
        with pytest.raises(ArtifactError, match="not answered in time"):
            worker.run([tensor(3.0)], timeout_s=0.3)
        assert process.wait(10.0) is not None


class Liar:
    """Stands for a worker process; a thread speaks for it."""

    pid = None

    def __init__(self, speak: Callable[[socket.socket], None]) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._run, args=(speak, theirs), daemon=True)
        self._thread.start()

    def _run(self, speak: Callable[[socket.socket], None], sock: socket.socket) -> None:
        with sock:
            speak(sock)

    def kill(self) -> None:
        """Nothing to kill."""

    def wait(self, timeout_s: float) -> int | None:
        self._thread.join(timeout_s)
        return 0

    def reason(self) -> str:
        return "ended"


@contextmanager
def lying(
    monkeypatch: pytest.MonkeyPatch, speak: Callable[[socket.socket], None]
) -> Iterator[None]:
    """Let probes meet this worker."""

    class Spawns:
        spawn = staticmethod(lambda threads, **_: Liar(speak))

    monkeypatch.setattr(probes, "WorkerProcess", Spawns)
    yield


LOADED = m.Loaded(
    signature=Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
    ),
    info={},
    example=None,
    output_row_bytes=4,
)


def ran(**changes: Any) -> m.Ran:
    """A right answer to one row, and what is changed of it."""
    out = {"name": "y", "datatype": "FP32", "shape": (1,), "offset": 0, "nbytes": 4} | changes
    return m.Ran(0, 1, 1, (m.RanOutput(**out),))


@pytest.mark.parametrize(
    "answer",
    [
        ran(offset=4096),
        ran(offset=-4),
        ran(nbytes=8),
        ran(shape=(2,), nbytes=8),
        ran(shape=(1, -1)),
        ran(shape=(1,) * 40),
        ran(name="z"),
        ran(datatype="INT32"),
        m.Ran(0, 1, 1, ()),
        m.Ran(0, 7, 1, ran().outputs),
        LOADED,
        b"\xc1",
    ],
    ids=str,
)
def test_what_a_worker_says_is_checked(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """An answer that does not fit the signature or the memory is a breach, never believed."""
    with (
        lying(monkeypatch, says(answer)),
        Probe(Path("m"), "r", "f") as worker,
        pytest.raises(ArtifactError, match="broke the protocol"),
    ):
        worker.run([tensor(1.0)])


def test_a_right_answer_of_the_same_worker_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the checks."""
    with lying(monkeypatch, says(ran())), Probe(Path("m"), "r", "f") as worker:
        assert worker.run([tensor(1.0)])[0].content == bytes(4)


def says(answer: Any) -> Callable[[socket.socket], None]:
    """A worker that loads and gives this answer to its first batch."""

    def speak(sock: socket.socket) -> None:
        sock.recv(m.MAX_MESSAGE_BYTES)
        sock.send(msgspec.msgpack.encode(LOADED))
        sock.recv(m.MAX_MESSAGE_BYTES)
        sock.send(answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer))
        sock.recv(1)

    return speak
