"""Load an artifact once in a worker of its own and tell what it is: for `inspect` and checks.

Blocking; not for serving. Nothing of the artifact is parsed or run in the calling process.
"""

from __future__ import annotations

import select
import time
from pathlib import Path

import msgspec

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.workers import messages as m
from muelle.workers.process import WorkerProcess


def probe(
    path: Path, runtime: str, format_name: str, *, threads: int = 1, timeout_s: float = 600.0
) -> m.Loaded:
    """Return what a worker says of the artifact.

    Raise ArtifactError (broken, refused, crashed, too slow) or MissingLibrary.
    """
    process = WorkerProcess.spawn(threads)
    try:
        process.sock.send(
            msgspec.msgpack.encode(
                m.Load(
                    runtime=runtime,
                    path=str(path),
                    format=format_name,
                    name=path.stem,
                    threads=threads,
                    max_batch_size=1,
                    slots=1,
                    memory_limit_bytes=0,
                )
            )
        )
        message = _receive(process, time.monotonic() + timeout_s)
    finally:
        process.sock.close()
        process.kill()
        process.wait(10.0)
    if isinstance(message, m.Loaded):
        return message
    if isinstance(message, m.LoadFailed):
        kind = MissingLibrary if message.kind == "library" else ArtifactError
        raise kind(message.reason)
    raise ArtifactError(f"the worker that loaded it ended: {process.reason()}")


def _receive(process: WorkerProcess, deadline: float) -> m.FromWorker | None:
    """Wait for the worker's word; None when it ended without one."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        readable, _, _ = select.select([process.sock], [], [], max(left, 0))
        if not readable:
            raise ArtifactError("not loaded in time; allow more with worker.load_timeout_s")
        try:
            data = process.sock.recv(m.MAX_MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            process.wait(5.0)
            return None
        message: m.FromWorker = msgspec.msgpack.decode(data, type=m.FromWorker)
        if not isinstance(message, m.Part):
            return message
        parts.append(message.piece)
        if message.last:
            whole: m.FromWorker = msgspec.msgpack.decode(b"".join(parts), type=m.FromWorker)
            return whole
