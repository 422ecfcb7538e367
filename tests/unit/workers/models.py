"""A small model written in Python that does on command what models must not do. Not fixtures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from muelle.core.events import Event
from muelle.core.request import InferRequest, InferResponse, Tensor
from muelle.workers.pool import PoolSpec, WorkerPool

SOURCE = '''
import ctypes, os, signal, sys
import numpy as np
from muelle import Model, TensorSpec

SEEN = []

class Rogue(Model):
    """y = 2 x; commands in the column `do` ask for trouble."""

    inputs = (
        TensorSpec(name="x", datatype="INT64", shape=(-1, 2)),
        TensorSpec(name="do", datatype="BYTES", shape=(-1,)),
    )
    outputs = (
        TensorSpec(name="y", datatype="INT64", shape=(-1, 2)),
        TensorSpec(name="note", datatype="BYTES", shape=(-1,)),
    )

    def predict(self, inputs):
        x = inputs["x"]
        commands = [c.decode() for c in inputs["do"].tolist()]
        notes = [b"ok"] * len(x)
        for i, what in enumerate(commands):
            verb, _, rest = what.partition(" ")
            if verb == "raise":
                raise ValueError("bad row /etc/passwd 0x7f00")
            if verb == "segfault":
                ctypes.string_at(0)
            if verb == "loop":
                while True:
                    pass
            if verb == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if verb == "die-once":
                if not os.path.exists(rest):
                    open(rest, "x").close()
                    os.kill(os.getpid(), signal.SIGKILL)
            if verb == "hoard":
                self.hoard = np.ones(40_000_000)
            if verb == "rows":
                return {"y": x[:-1] * 2, "note": np.array(notes[:-1], dtype=object)}
            if verb == "missing":
                return {"y": x * 2}
            if verb == "large":
                notes[i] = b"z" * int(rest)
            if verb == "pid":
                notes[i] = str(os.getpid()).encode()
            if verb == "size":
                notes[i] = str(len(x)).encode()
            if verb == "environment":
                notes[i] = repr(sorted(os.environ.items())).encode()
            if verb == "modules":
                notes[i] = " ".join(sorted(sys.modules)).encode()
            if verb == "truncate":
                notes[i] = self.truncate().encode()
        return {"y": x * 2, "note": np.array(notes, dtype=object)}

    def truncate(self):
        tried = []
        for name in os.listdir("/proc/self/map_files"):
            path = "/proc/self/map_files/" + name
            try:
                if "memfd:muelle" not in os.readlink(path):
                    continue
                handle = os.open(path, os.O_RDWR)
            except OSError as exc:
                tried.append("open " + type(exc).__name__)
                continue
            try:
                os.ftruncate(handle, 0)
                tried.append("shrunk")
            except PermissionError:
                tried.append("refused")
            finally:
                os.close(handle)
        return ",".join(tried) or "nothing to try"
'''

FREE_SOURCE = '''
import numpy as np
from muelle import Model, TensorSpec

class Free(Model):
    """Sums rows of any width; `plus` may be left out. `size` is how many rows ran together."""

    inputs = (
        TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),
        TensorSpec(name="plus", datatype="FP32", shape=(-1,), optional=True),
    )
    outputs = (
        TensorSpec(name="y", datatype="FP32", shape=(-1,)),
        TensorSpec(name="size", datatype="INT32", shape=(-1,)),
    )

    def predict(self, inputs):
        x = inputs["x"]
        y = x.sum(axis=1) + inputs.get("plus", 0)
        return {"y": y, "size": np.full(len(x), len(x))}
'''

WHOLE_SOURCE = '''
import numpy as np
from muelle import Model, TensorSpec

class Whole(Model):
    """No rows axis: a matrix in, its mean out."""

    inputs = (TensorSpec(name="x", datatype="FP32", shape=(2, 2)),)
    outputs = (TensorSpec(name="mean", datatype="FP32", shape=()),)

    def predict(self, inputs):
        return {"mean": np.asarray(inputs["x"].mean(), dtype=np.float32)}
'''

Result = InferResponse | Exception


def request(*commands: str, start: int = 0) -> InferRequest:
    """One row per command; x counts on from start."""
    n = len(commands)
    x = list(range(start, start + 2 * n))
    do = b"".join(len(c).to_bytes(4, "little") + c.encode() for c in commands)
    return InferRequest(
        [Tensor.flat("x", "INT64", (n, 2), x), Tensor.raw("do", "BYTES", (n,), do)], n
    )


class Answers:
    """What callers got, copied out of the batch's memory. `all` waits for every one."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._futures: list[asyncio.Future[dict[str, object] | Exception]] = []
        self.order: list[int] = []

    def submit(self, wire: InferRequest) -> int:
        """Submit a request; return its number."""
        number = len(self._futures)
        future: asyncio.Future[dict[str, object] | Exception] = (
            asyncio.get_running_loop().create_future()
        )

        def done(result: Result) -> None:
            # A second settling would raise InvalidStateError: exactly once is checked here.
            if isinstance(result, Exception):
                future.set_result(result)
            else:
                future.set_result({t.name: t.array().tolist() for t in result.outputs})
            self.order.append(number)

        self._pool.submit(wire, done, time.monotonic())
        self._futures.append(future)
        return number

    async def all(self, timeout_s: float = 60) -> list[dict[str, object] | Exception]:
        """Wait for every answer so far."""
        return list(await asyncio.wait_for(asyncio.gather(*self._futures), timeout_s))


class Running:
    """A pool over a model's source, started and stopped."""

    def __init__(self, folder: Path, source: str = SOURCE, **changes: object) -> None:
        path = folder / "model.py"
        path.write_text(source)
        spec = PoolSpec(
            model="rogue",
            version="1",
            artifact=str(path),
            runtime="python",
            format="Python model",
            max_batch_size=8,
            timeout_s=30.0,
            run_limit_s=20.0,
        )
        self.events: list[Event] = []
        self.spec = replace(spec, **changes)  # type: ignore[arg-type]

    async def __aenter__(self) -> Running:
        loop = asyncio.get_running_loop()
        self.pool = WorkerPool(self.spec, loop=loop, listener=self.events.append)
        self.answers = Answers(self.pool)
        await asyncio.wait_for(self.pool.start(), 60)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.pool.stop(5.0)

    async def ask(self, *commands: str) -> dict[str, object] | Exception:
        """Submit one request and wait for its answer."""
        answers = Answers(self.pool)
        answers.submit(request(*commands))
        [answer] = await answers.all()
        return answer

    async def note(self, command: str) -> str:
        """Return what the model says to a command of one row."""
        answer = await self.ask(command)
        assert isinstance(answer, dict), answer
        [note] = answer["note"]  # type: ignore[misc]
        assert isinstance(note, bytes)
        return note.decode()

    @property
    def pids(self) -> list[int | None]:
        """The workers' pids."""
        return [status.pid for status in self.pool.worker_statuses()]


def doubled(start: int, n_rows: int = 1) -> list[list[int]]:
    """What a well-behaved row answers."""
    return (np.arange(start, start + 2 * n_rows).reshape(n_rows, 2) * 2).tolist()  # type: ignore[no-any-return]


def texts(values: Sequence[object]) -> list[str]:
    """Return the texts of errors, empty for answers."""
    return [str(v) if isinstance(v, Exception) else "" for v in values]
