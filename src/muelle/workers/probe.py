"""Load an artifact once in a worker of its own and try it: for `inspect`, `push` and checks.

Blocking; not for serving. Nothing of the artifact is parsed or run in the calling process, and what
the worker says is checked before it is believed.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from muelle.core.errors import ArtifactError, MissingLibrary, ModelFailed
from muelle.core.records import StoredTensor
from muelle.core.signature import TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.workers import messages as m
from muelle.workers.memory import Region, aligned
from muelle.workers.process import WorkerProcess

OUTPUT_LIMIT_BYTES = 256 * 1024 * 1024
"""What one batch may answer."""

_MAX_AXES = 32


class Probe:
    """One worker with one loaded model, while the `with` block lasts. Used by one thread.

    Entering raises ArtifactError (broken, refused, crashed, too slow) or MissingLibrary.
    """

    loaded: m.Loaded
    """What the worker says of the artifact."""

    def __init__(
        self,
        path: Path,
        runtime: str,
        format_name: str,
        *,
        name: str = "",
        threads: int = 1,
        timeout_s: float = 600.0,
        python: str = "",
    ) -> None:
        """`python` is the interpreter of the version's own environment, "" for ours.

        `timeout_s` is what loading may take.
        """
        self._path = path
        self._load = m.Load(
            runtime=runtime,
            path=str(path),
            format=format_name,
            name=name or path.stem,
            threads=threads,
            max_batch_size=1,
            slots=1,
            memory_limit_bytes=0,
        )
        self._timeout_s = timeout_s
        self._python = python
        self._process: WorkerProcess | None = None
        self._sequence = 0

    def __enter__(self) -> Probe:
        self._process = WorkerProcess.spawn(self._load.threads, python=self._python)
        try:
            self.loaded = self._start(time.monotonic() + self._timeout_s)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker at once. Twice is once."""
        process, self._process = self._process, None
        if process is not None:
            process.sock.close()
            process.kill()
            process.wait(10.0)

    def run(
        self, inputs: Sequence[StoredTensor], timeout_s: float = 60.0
    ) -> tuple[StoredTensor, ...]:
        """Run one batch, as the server would, and return the outputs in the signature's order.

        Raise ModelFailed when the model raises (it can be asked again), ArtifactError when the
        worker crashed, hangs or breaks the protocol (then it is over).
        """
        placed, size = self._place(inputs)
        regions = [Region.create(size), Region.create(0)]
        try:
            for at, tensor in zip(placed, inputs, strict=True):
                regions[0].view[at.offset : at.offset + at.nbytes] = tensor.content
            self._sequence += 1
            self._send(m.Run(0, self._sequence, placed, 3), [region.fd for region in regions])
            told = self._answer(regions, time.monotonic() + timeout_s)
            n_rows = inputs[0].shape[0] if self.loaded.signature.has_rows else -1
            try:
                return self._outputs(told, regions[1], n_rows)
            except ValueError as exc:
                raise ArtifactError(f"the worker broke the protocol: {exc}") from exc
        except ArtifactError:
            self.close()
            raise
        finally:
            for region in regions:
                region.close()

    # --- below ---

    def _start(self, deadline: float) -> m.Loaded:
        self._send(self._load)
        message = self._receive(deadline, "loaded in time; allow more with worker.load_timeout_s")
        if isinstance(message, m.Loaded):
            return message
        if isinstance(message, m.LoadFailed):
            kind = MissingLibrary if message.kind == "library" else ArtifactError
            raise kind(message.reason)
        if message is None:
            raise ArtifactError(f"the worker that loaded it ended: {self._end()}")
        raise ArtifactError("the worker broke the protocol: an answer to no question")

    def _place(self, inputs: Sequence[StoredTensor]) -> tuple[tuple[m.TensorAt, ...], int]:
        position = {spec.name: i for i, spec in enumerate(self.loaded.signature.inputs)}
        placed, begin = [], 0
        for tensor in inputs:
            nbytes = len(tensor.content)
            placed.append(m.TensorAt(position[tensor.name], tensor.shape, begin, nbytes))
            begin += aligned(nbytes)
        return tuple(placed), begin

    def _answer(self, regions: list[Region], deadline: float) -> m.Ran:
        """Wait for the batch, giving the output memory that the worker asks for."""
        while True:
            message = self._receive(deadline, "answered in time")
            if message is None:
                raise ArtifactError(f"the worker that ran it ended: {self._end()}")
            if isinstance(message, m.NeedOutput):
                self._give_memory(regions, message.nbytes)
            elif isinstance(message, m.RunFailed):
                raise ModelFailed(message.reason)
            elif isinstance(message, m.Ran) and message.sequence == self._sequence:
                return message
            else:
                raise ArtifactError("the worker broke the protocol: an answer to no question")

    def _give_memory(self, regions: list[Region], nbytes: int) -> None:
        if not 0 <= nbytes <= OUTPUT_LIMIT_BYTES:
            self._send(m.OutputRefused(0, OUTPUT_LIMIT_BYTES))
            return
        regions.append(Region.create(nbytes))
        regions[1], regions[-1] = regions[-1], regions[1]
        self._send(m.OutputMemory(0), [regions[1].fd])

    def _outputs(self, told: m.Ran, region: Region, n_rows: int) -> tuple[StoredTensor, ...]:
        specs = self.loaded.signature.outputs
        if len(told.outputs) != len(specs):
            raise ValueError("wrong number of outputs")
        return tuple(
            _read(out, spec, region, n_rows) for out, spec in zip(told.outputs, specs, strict=True)
        )

    def _send(self, message: m.ToWorker, fds: Sequence[int] = ()) -> None:
        assert self._process is not None, "the probe is closed"
        try:
            socket.send_fds(self._process.sock, [msgspec.msgpack.encode(message)], fds)
        except OSError:
            pass  # it has ended; what is read next says so

    def _receive(self, deadline: float, what: str) -> m.FromWorker | None:
        """Wait for the worker's word; None when it ended without one."""
        assert self._process is not None, "the probe is closed"
        parts: list[bytes] = []
        while True:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._process.sock], [], [], max(left, 0))
            if not readable:
                raise ArtifactError(f"{self._path.name}: not {what}")
            try:
                data = self._process.sock.recv(m.MAX_MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data:
                return None
            message = _decode(data)
            if not isinstance(message, m.Part):
                return message
            parts.append(message.piece)
            if sum(map(len, parts)) > m.MAX_JOINED_BYTES:
                raise ArtifactError("the worker broke the protocol: a message is too large")
            if message.last:
                return _decode(b"".join(parts))

    def _end(self) -> str:
        """Say in words how the worker ended."""
        assert self._process is not None
        self._process.wait(5.0)
        return self._process.reason()


def probe(
    path: Path, runtime: str, format_name: str, *, threads: int = 1, timeout_s: float = 600.0
) -> m.Loaded:
    """Return what a worker says of the artifact.

    Raise ArtifactError (broken, refused, crashed, too slow) or MissingLibrary.
    """
    with Probe(path, runtime, format_name, threads=threads, timeout_s=timeout_s) as worker:
        return worker.loaded


def _decode(data: bytes) -> m.FromWorker:
    try:
        message: m.FromWorker = msgspec.msgpack.decode(data, type=m.FromWorker)
    except msgspec.MsgspecError as exc:
        raise ArtifactError(f"the worker broke the protocol: {exc}") from exc
    return message


def _read(out: m.RanOutput, spec: TensorSpec, region: Region, n_rows: int) -> StoredTensor:
    """Copy one output out of the slot. Raise ValueError when it is not as it should be."""
    if (out.name, out.datatype) != (spec.name, spec.datatype):
        raise ValueError(f"output {out.name!r} {out.datatype} is not in the signature")
    if len(out.shape) > _MAX_AXES or any(d < 0 for d in out.shape):
        raise ValueError(f"output {out.name!r} has shape {list(out.shape)[:_MAX_AXES]}")
    if n_rows >= 0 and (not out.shape or out.shape[0] != n_rows):
        raise ValueError(f"output {out.name!r} has shape {list(out.shape)} for {n_rows} rows")
    count, size = math.prod(out.shape), DATATYPES[spec.datatype].size
    if (size and count * size != out.nbytes) or (not size and count * 4 > out.nbytes):
        raise ValueError(f"output {out.name!r}: shape and bytes disagree")
    if min(out.offset, out.nbytes) < 0 or out.offset + out.nbytes > region.size:
        raise ValueError(f"output {out.name!r} lies outside the slot")
    content = bytes(region.view[out.offset : out.offset + out.nbytes])
    return StoredTensor(name=out.name, datatype=out.datatype, shape=out.shape, content=content)
