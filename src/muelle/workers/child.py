"""The worker process: load one model, run batches from shared memory, until told to stop.

Started with exec as `python -I -m muelle.workers.child FD`. It imports the vocabulary, the
messages, and one runtime: nothing of the server. A model's exception fails a batch; everything
worse ends this process, which the server sees at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.core.records import StoredTensor
from muelle.core.request import decode_array, encode_array
from muelle.core.settings import ModelSettings
from muelle.core.signature import row_bytes
from muelle.core.tensor import DATATYPES
from muelle.runtimes.interface import Arrays, LoadedModel, LoadOptions
from muelle.workers import messages as m
from muelle.workers.memory import Region, aligned

MAX_REASON = 500
"""Characters of a model's own error text that go to a caller."""


class Channel:
    """The worker's end of the socket pair. Blocking: a worker has nothing else to do."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._early: deque[tuple[m.ToWorker, list[int]]] = deque()
        # What a runtime tells of itself may hold things that MessagePack does not know.
        self._encode = msgspec.msgpack.Encoder(enc_hook=str).encode
        self._decode = msgspec.msgpack.Decoder(m.ToWorker).decode

    def receive(self) -> tuple[m.ToWorker, list[int]]:
        """Wait for the next message and its descriptors. Raise ServerGone at the end."""
        return self._early.popleft() if self._early else self._next()

    def receive_memory(self) -> tuple[m.OutputMemory | m.OutputRefused, list[int]]:
        """Wait for the answer to NeedOutput; a batch that comes first is kept for later."""
        while True:
            message, fds = self._next()
            if isinstance(message, m.OutputMemory | m.OutputRefused):
                return message, fds
            self._early.append((message, fds))

    def _next(self) -> tuple[m.ToWorker, list[int]]:
        data, fds, _, _ = socket.recv_fds(self._sock, m.MAX_MESSAGE_BYTES, 4)
        if not data:
            raise ServerGone
        return self._decode(data), fds

    def send(self, message: m.FromWorker) -> None:
        """Send one datagram, or several parts of a message that is larger."""
        data = self._encode(message)
        if len(data) <= m.MAX_MESSAGE_BYTES:
            self._sock.send(data)
            return
        for start in range(0, len(data), m.PART_BYTES):
            end = start + m.PART_BYTES
            self._sock.send(self._encode(m.Part(data[start:end], end >= len(data))))


class Slot:
    """The memory of one batch, as the worker maps it."""

    __slots__ = ("inputs", "outputs")

    def __init__(self) -> None:
        self.inputs: Region | None = None
        self.outputs: Region | None = None


class ServerGone(Exception):
    """The other end of the channel is closed: nobody wants answers any more."""


class OutputTooLarge(Exception):
    """The server refused memory for a batch's outputs."""


def serve(channel: Channel, load: Callable[[m.Load], LoadedModel]) -> None:
    """Answer the server's messages until it stops or goes away."""
    model: LoadedModel | None = None
    try:
        first, fds = channel.receive()
        if not isinstance(first, m.Load):
            return
        model = _load(channel, first, load, _examples(first, fds))
        if model is None:
            return
        batches = Batches(channel, model, [Slot() for _ in range(first.slots)])
        while True:
            message, fds = channel.receive()
            if isinstance(message, m.Stop):
                return
            if isinstance(message, m.Run):
                batches.run(message, fds)
    except (ServerGone, BrokenPipeError, ConnectionResetError):
        return
    finally:
        if model is not None:
            model.close()


def _examples(message: m.Load, fds: list[int]) -> m.Examples:
    """Read the examples out of the memory that came with the first message."""
    if not message.examples_bytes:
        return ()
    region = Region.receive(fds[0])
    os.close(fds[0])
    region.fd = -1
    found = msgspec.msgpack.decode(region.view[: message.examples_bytes], type=m.Examples)
    region.close()
    return found


class ExampleFailed(Exception):
    """The model raised on one of its own examples."""


def _load(
    channel: Channel,
    message: m.Load,
    load: Callable[[m.Load], LoadedModel],
    examples: m.Examples,
) -> LoadedModel | None:
    try:
        model = load(message)
        example = model.example
        completed: ModelSettings | None = getattr(model, "settings", None)
        answers = tuple(_rehearse(model, i, inputs) for i, inputs in enumerate(examples))
        channel.send(
            m.Loaded(
                signature=model.signature,
                info=dict(model.info),
                example=None if example is None else {k: _plain(v) for k, v in example.items()},
                output_row_bytes=row_bytes(model.signature.outputs),
                answers=answers,
                settings=msgspec.msgpack.encode(completed) if completed is not None else b"",
            )
        )
    except ExampleFailed as exc:
        detail = traceback.format_exc(limit=-8)[-8_000:]
        channel.send(m.LoadFailed("example", str(exc), detail))
    except MissingLibrary as exc:
        channel.send(m.LoadFailed("library", str(exc), ""))
    except ArtifactError as exc:
        channel.send(m.LoadFailed("artifact", str(exc), ""))
    except Exception as exc:
        detail = traceback.format_exc(limit=-8)[-8_000:]
        channel.send(m.LoadFailed("crash", caller_text(exc), detail))
    else:
        return model
    return None


def _rehearse(
    model: LoadedModel, index: int, inputs: Sequence[StoredTensor]
) -> tuple[StoredTensor, ...]:
    """Run one example as a batch: it warms the model up, and the server compares the answer."""
    try:
        results = model.run({t.name: decode_array(t.datatype, t.shape, t.content) for t in inputs})
        answer = []
        for spec in model.signature.outputs:
            array = np.asarray(results[spec.name])
            content = encode_array(spec.datatype, array)
            answer.append(
                StoredTensor(
                    name=spec.name, datatype=spec.datatype, shape=array.shape, content=content
                )
            )
        return tuple(answer)
    except Exception as exc:
        raise ExampleFailed(f"example {index + 1} fails: {caller_text(exc)}") from exc


class Batches:
    """Runs batches of one model. Owned by the worker's only thread."""

    def __init__(self, channel: Channel, model: LoadedModel, slots: list[Slot]) -> None:
        self._channel = channel
        self._model = model
        self._slots = slots
        self._inputs = [(spec.name, spec.datatype) for spec in model.signature.inputs]
        self._numpy = [
            np.dtype(DATATYPES[spec.datatype].numpy)
            if spec.datatype not in ("BYTES", "BF16")
            else None
            for spec in model.signature.inputs
        ]
        self._outputs = [(spec.name, spec.datatype) for spec in model.signature.outputs]
        self._has_rows = model.signature.has_rows

    def run(self, message: m.Run, fds: list[int]) -> None:
        """Run one batch and tell how it went."""
        slot = self._slots[message.slot]
        if message.memory & 1:
            slot.inputs = _replace(slot.inputs, fds.pop(0))
        if message.memory & 2:
            slot.outputs = _replace(slot.outputs, fds.pop(0))
        try:
            began = time.perf_counter_ns()
            results = self._model.run(self._views(slot, message.inputs))
            took = time.perf_counter_ns() - began
            n_rows = message.inputs[0].shape[0] if self._has_rows else -1
            outputs = self._store(message.slot, slot, results, n_rows)
        except ServerGone:
            raise
        except OutputTooLarge as exc:
            self._channel.send(m.RunFailed(message.slot, message.sequence, str(exc), ""))
        except Exception as exc:
            detail = traceback.format_exc(limit=-8)[-8_000:]
            self._channel.send(
                m.RunFailed(message.slot, message.sequence, caller_text(exc), detail)
            )
        else:
            self._channel.send(m.Ran(message.slot, message.sequence, took, outputs))

    def _views(self, slot: Slot, tensors: tuple[m.TensorAt, ...]) -> Arrays:
        """Map the batch's inputs: arrays over the slot, no copy (BYTES and BF16 are unpacked)."""
        assert slot.inputs is not None
        view = slot.inputs.view
        arrays: Arrays = {}
        for at in tensors:
            name, datatype = self._inputs[at.index]
            dtype = self._numpy[at.index]
            part = view[at.offset : at.offset + at.nbytes]
            if dtype is not None:
                arrays[name] = np.frombuffer(part, dtype).reshape(at.shape)
            else:
                arrays[name] = decode_array(datatype, at.shape, part)
        return arrays

    def _store(
        self, index: int, slot: Slot, results: Arrays, n_rows: int
    ) -> tuple[m.RanOutput, ...]:
        """Copy the outputs to the slot, asking for more memory when they do not fit."""
        found: list[tuple[str, str, tuple[int, ...], Any, int]] = []
        total = 0
        for name, datatype in self._outputs:
            array = results.get(name)
            if array is None:
                raise ValueError(f"the model gave no output {name!r}")
            array = np.asarray(array)
            if n_rows >= 0 and (array.ndim == 0 or array.shape[0] != n_rows):
                raise ValueError(
                    f"the model answered {name!r} with shape {list(array.shape)} to {n_rows} rows"
                )
            raw: Any
            if datatype in ("BYTES", "BF16"):
                raw = encode_array(datatype, array)
                nbytes = len(raw)
            else:
                dtype = np.dtype(DATATYPES[datatype].numpy)
                raw = array if array.dtype == dtype else array.astype(dtype)
                nbytes = raw.nbytes
            found.append((name, datatype, array.shape, raw, nbytes))
            total += aligned(nbytes)
        if slot.outputs is None or slot.outputs.size < total:
            slot.outputs = self._more_memory(index, slot.outputs, total)
        view = slot.outputs.view
        offset = 0
        outputs = []
        for name, datatype, shape, raw, nbytes in found:
            if isinstance(raw, bytes):
                view[offset : offset + nbytes] = raw
            elif nbytes:
                np.copyto(
                    np.frombuffer(view[offset : offset + nbytes], raw.dtype).reshape(shape), raw
                )
            outputs.append(m.RanOutput(name, datatype, shape, offset, nbytes))
            offset += aligned(nbytes)
        return tuple(outputs)

    def _more_memory(self, index: int, old: Region | None, nbytes: int) -> Region:
        self._channel.send(m.NeedOutput(index, nbytes))
        message, fds = self._channel.receive_memory()
        if isinstance(message, m.OutputRefused):
            raise OutputTooLarge(
                f"the outputs need {nbytes} bytes, the limit is {message.limit_bytes}"
            )
        return _replace(old, fds[0])


def _replace(old: Region | None, fd: int) -> Region:
    if old is not None:
        old.close()
    region = Region.receive(fd)
    os.close(fd)
    region.fd = -1
    return region


def _plain(array: np.ndarray[Any, Any]) -> Any:
    """Return an example array as nested lists that JSON and MessagePack can carry."""
    if array.dtype == object:
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in array.flat]
        return np.array(texts, dtype=object).reshape(array.shape).tolist()
    if array.dtype in (np.float32, np.float16):
        # The shortest text that gives the same number back: 6.1, not 6.099999904632568.
        return array.astype(str).astype(np.float64).tolist()
    return array.tolist()


def caller_text(exc: BaseException) -> str:
    """Return a model's error as one line for a caller: type and text, no path, no address."""
    text = f"{type(exc).__name__}: {exc}".replace("\n", " ").replace("\r", " ")
    words = [
        "…" if ("/" in word and len(word) > 1) or word.lower().startswith("0x") else word
        for word in text.split(" ")
    ]
    return " ".join(words)[:MAX_REASON]


def load_artifact(message: m.Load) -> LoadedModel:
    """Find the runtime by name and load the artifact with it."""
    from muelle.runtimes.registry import Registry

    runtime = Registry().by_name(message.runtime)
    # A version's folder must stay as it was pushed: no __pycache__ beside a model in Python.
    sys.dont_write_bytecode = True
    options = LoadOptions(
        threads=message.threads,
        max_batch_size=message.max_batch_size,
        format=message.format,
        name=message.name,
        version=message.version,
        settings=msgspec.msgpack.decode(message.settings, type=ModelSettings)
        if message.settings
        else None,
    )
    return runtime.load(Path(message.path), options)


def _confine(memory_limit_bytes: int) -> None:
    """Tie this process to the server's life, and make it the first to go when memory is short."""
    import ctypes
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig, pr_set_dumpable = 1, 4
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    libc.prctl(pr_set_dumpable, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        pass  # Some containers forbid it; the server's own score is still lower than ours by size.


def main() -> None:
    """Entry point of the process."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    # Ctrl-C in a terminal reaches the whole group; draining is the server's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)

    def confined_load(message: m.Load) -> LoadedModel:
        _confine(message.memory_limit_bytes)
        if os.getppid() != parent:
            os._exit(0)  # The server died before the death signal was armed.
        return load_artifact(message)

    serve(Channel(sock), confined_load)
    sys.stdout.flush()
    # Native libraries' exit handlers can hang or crash; there is nothing left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
