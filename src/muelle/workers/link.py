"""The server's end of one worker: its slots, its messages, the batches it holds.

Not for deciding what runs or when to restart: the pool does that. Everything a worker sends is
checked before it is believed: a worker may be hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Protocol

import msgspec

from muelle.core.request import BatchOutput
from muelle.core.signature import Signature
from muelle.core.tensor import DATATYPES
from muelle.scheduling.batcher import Batch
from muelle.scheduling.jobs import Place
from muelle.workers import messages as m
from muelle.workers.memory import Region, aligned
from muelle.workers.process import Process

MAX_READS = 64
"""Messages taken per wake-up, so that one busy worker does not starve the loop."""


MAX_AXES = 32
"""Of one output: the product of thousands of dimensions would keep the loop busy for seconds."""

JOIN_BELOW_BYTES = 64 * 1024
"""Small batches are joined in one go and copied once; large ones are copied piece by piece."""


class LinkEvents(Protocol):
    """Who is told what a worker says. All calls come on the event loop's thread."""

    def loaded(self, link: WorkerLink, message: m.Loaded) -> None:
        """The model is in memory."""

    def load_failed(self, link: WorkerLink, message: m.LoadFailed) -> None:
        """The model cannot be loaded."""

    def ran(self, link: WorkerLink, batch: Batch, outputs: list[BatchOutput], ns: int) -> None:
        """A batch is done. The outputs' memory is valid until this returns."""

    def failed(self, link: WorkerLink, batch: Batch, reason: str, detail: str) -> None:
        """The model raised on a batch."""

    def died(self, link: WorkerLink, reason: str) -> None:
        """The worker is gone or broke the protocol; `link.batches()` are lost."""


class BadWorker(Exception):
    """A worker sent what it must not. It is killed."""


class _Slot:
    """One batch's memory and, while it computes, the batch."""

    __slots__ = ("batch", "began", "input_is_new", "inputs", "output_is_new", "outputs")

    def __init__(self) -> None:
        self.inputs: Region | None = None
        self.outputs: Region | None = None
        self.input_is_new = False
        self.output_is_new = False
        self.batch: Batch | None = None
        self.began = 0.0


class WorkerLink:
    """One running worker. Owned by the pool; used on the event loop's thread only."""

    def __init__(
        self,
        index: int,
        process: Process,
        events: LinkEvents,
        *,
        slots: int,
        output_limit_bytes: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.index = index
        self.process = process
        self.ready = False
        self.served = 0
        """Batches answered since the start."""
        self.in_flight = 0
        self._events = events
        self._slots = [_Slot() for _ in range(slots)]
        self._free = list(range(slots))[::-1]
        self._sequence = 0
        self._parts: list[bytes] = []
        self._output_limit_bytes = output_limit_bytes
        self._output_hint = 0
        self._sock: socket.socket | None = process.sock
        self._loop = loop
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(m.FromWorker).decode
        self._signature: Signature | None = None
        self._places: list[Place] = []
        self._has_rows = True
        loop.add_reader(process.sock.fileno(), self._readable)

    # --- out ---

    def load(self, message: m.Load, examples: bytes = b"") -> None:
        """Send the first message, with the examples (MessagePack) that it announces."""
        if not examples:
            self._send(message)
            return
        region = Region.create(len(examples))
        try:
            region.view[: len(examples)] = examples
            self._send(message, [region.fd])
        finally:
            region.close()

    def set_sizes(self, signature: Signature, output_row_bytes: int, max_batch_size: int) -> None:
        """Remember what Loaded told, so that the first batch finds output memory that fits."""
        self._signature = signature
        self._has_rows = signature.has_rows
        self._places = [
            (i, spec.row_shape if signature.has_rows else spec.shape)
            for i, spec in enumerate(signature.inputs)
        ]
        n_outputs = len(signature.outputs)
        self._output_hint = min(output_row_bytes * max_batch_size, self._output_limit_bytes)
        self._output_hint += n_outputs * 64

    @property
    def has_free_slot(self) -> bool:
        """Whether a batch can be given to this worker now."""
        return bool(self._free)

    def run(self, batch: Batch, now: float) -> None:
        """Copy a batch's columns into a free slot and start it. Raise OSError on a broken channel.

        This copy is the batch assembly: each input's requests lie one after the other.
        """
        index = self._free[-1]
        slot = self._slots[index]
        jobs = batch.jobs
        places = jobs[0].places or self._places
        room = batch.nbytes + 64 * len(places)
        if slot.inputs is None or slot.inputs.size < room:
            self._grow_input(slot, room)
        if slot.outputs is None:
            slot.outputs = Region.create(self._output_hint)
            slot.output_is_new = True
        inputs = slot.inputs
        assert inputs is not None
        view = inputs.view
        placed: list[m.TensorAt] = []
        begin = 0
        for column, (position, row_shape) in enumerate(places):
            if batch.nbytes < JOIN_BELOW_BYTES:
                joined = b"".join([job.columns[column] for job in jobs])
                end = begin + len(joined)
                view[begin:end] = joined
            else:
                end = begin
                for job in jobs:
                    data = job.columns[column]
                    view[end : end + len(data)] = data
                    end += len(data)
            shape = (batch.n_rows, *row_shape) if self._has_rows else row_shape
            placed.append(m.TensorAt(position, shape, begin, end - begin))
            begin = aligned(end)
        self._sequence += 1
        memory = slot.input_is_new + 2 * slot.output_is_new
        message = m.Run(index, self._sequence, tuple(placed), memory)
        if memory:
            fds = [inputs.fd] if slot.input_is_new else []
            if slot.output_is_new:
                fds.append(slot.outputs.fd)
            self._send(message, fds)
            slot.input_is_new = slot.output_is_new = False
        else:
            self._send(message)
        self._free.pop()
        slot.batch = batch
        slot.began = now
        self.in_flight += 1

    def stop(self) -> None:
        """Ask the worker to end, when what it computes is done."""
        with contextlib.suppress(OSError):
            self._send(m.Stop())

    def close(self) -> None:
        """Let go of the channel and the memory. The process notices, if it still lives."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for slot in self._slots:
            slot.batch = None
            for region in (slot.inputs, slot.outputs):
                if region is not None:
                    region.close()
            slot.inputs = slot.outputs = None

    # --- what it holds ---

    def batches(self) -> list[Batch]:
        """Return the batches that were given and not answered."""
        return [slot.batch for slot in self._slots if slot.batch is not None]

    def oldest_began(self) -> float | None:
        """Return when the batch that computes now was given, None when idle."""
        began = [slot.began for slot in self._slots if slot.batch is not None]
        return min(began) if began else None

    # --- in ---

    def _readable(self) -> None:
        for _ in range(MAX_READS):
            sock = self._sock
            if sock is None:
                return
            try:
                data = sock.recv(m.MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                self._events.died(self, exc.strerror or "channel broken")
                return
            if not data:
                self._events.died(self, "")
                return
            try:
                self._take(self._decode(data))
            except (msgspec.DecodeError, msgspec.ValidationError, BadWorker) as exc:
                self._events.died(self, f"broke the protocol: {exc}")
                return
            if not self.in_flight:
                # Nothing can follow but the end, which comes with its own wake-up.
                return

    def _take(self, message: m.FromWorker) -> None:
        match message:
            case m.Ran():
                slot = self._slot_of(message.slot, message.sequence)
                batch = slot.batch
                assert batch is not None
                outputs = self._outputs(slot, message.outputs, batch.n_rows)
                self._release(slot)
                self.served += 1
                self._events.ran(self, batch, outputs, message.compute_ns)
                self._free.append(message.slot)
            case m.RunFailed():
                slot = self._slot_of(message.slot, message.sequence)
                batch = slot.batch
                assert batch is not None
                self._release(slot)
                self._free.append(message.slot)
                self._events.failed(self, batch, message.reason, message.detail)
            case m.NeedOutput():
                self._need_output(message)
            case m.Loaded():
                if self.ready:
                    raise BadWorker("loaded twice")
                self._events.loaded(self, message)
            case m.LoadFailed():
                self._events.load_failed(self, message)
            case m.Part():
                self._parts.append(message.piece)
                if sum(map(len, self._parts)) > m.MAX_JOINED_BYTES:
                    raise BadWorker("a message in parts is too large")
                if message.last:
                    whole, self._parts = b"".join(self._parts), []
                    self._take(self._decode(whole))

    def _slot_of(self, index: int, sequence: int) -> _Slot:
        if not 0 <= index < len(self._slots) or self._slots[index].batch is None:
            raise BadWorker(f"answer for slot {index}, which has no batch")
        if not 0 < sequence <= self._sequence:
            raise BadWorker(f"answer with sequence {sequence}")
        return self._slots[index]

    def _release(self, slot: _Slot) -> None:
        slot.batch = None
        self.in_flight -= 1
        if self.in_flight:
            # The next batch begins to compute only now; its age must not count the wait.
            now = time.monotonic()
            for other in self._slots:
                if other.batch is not None:
                    other.began = now

    def _outputs(
        self, slot: _Slot, told: tuple[m.RanOutput, ...], n_rows: int
    ) -> list[BatchOutput]:
        """Check what the worker says of its outputs against the memory that is there."""
        region, signature = slot.outputs, self._signature
        assert region is not None and signature is not None
        if len(told) != len(signature.outputs):
            raise BadWorker("wrong number of outputs")
        has_rows = self._has_rows
        outputs = []
        for out, spec in zip(told, signature.outputs, strict=True):
            if out.name != spec.name or out.datatype != spec.datatype:
                raise BadWorker(f"output {out.name!r} {out.datatype} is not in the signature")
            if has_rows and (not out.shape or out.shape[0] != n_rows):
                raise RowsMismatch(spec.name, n_rows, out.shape)
            if len(out.shape) > MAX_AXES:
                raise BadWorker(f"output {out.name!r} has {len(out.shape)} axes")
            count = 1
            for d in out.shape:
                if d < 0:
                    raise BadWorker("negative dimension")
                count *= d
            size = DATATYPES[out.datatype].size
            if (size and count * size != out.nbytes) or (not size and count * 4 > out.nbytes):
                raise BadWorker(f"output {out.name!r}: shape and bytes disagree")
            if out.offset < 0 or out.nbytes < 0 or out.offset + out.nbytes > region.size:
                raise BadWorker(f"output {out.name!r} lies outside the slot")
            part = region.view[out.offset : out.offset + out.nbytes]
            outputs.append(BatchOutput(out.name, out.datatype, out.shape, part))
        return outputs

    def _need_output(self, message: m.NeedOutput) -> None:
        if not 0 <= message.slot < len(self._slots) or message.nbytes < 0:
            raise BadWorker("asks memory for a slot that is not there")
        slot = self._slots[message.slot]
        if message.nbytes > self._output_limit_bytes:
            self._send(m.OutputRefused(message.slot, self._output_limit_bytes))
            return
        if slot.outputs is not None:
            slot.outputs.close()
        # Half as much again, so that slowly growing answers do not ask each time.
        slot.outputs = Region.create(min(message.nbytes * 3 // 2, self._output_limit_bytes))
        self._send(m.OutputMemory(message.slot), [slot.outputs.fd])

    # --- below ---

    def _grow_input(self, slot: _Slot, nbytes: int) -> None:
        if slot.inputs is not None:
            slot.inputs.close()
        slot.inputs = Region.create(max(64 * 1024, nbytes * 3 // 2))
        slot.input_is_new = True

    def _send(self, message: m.ToWorker, fds: list[int] | None = None) -> None:
        if self._sock is None:
            raise BrokenPipeError
        data = self._encode(message)
        if fds:
            socket.send_fds(self._sock, [data], fds)
        else:
            self._sock.send(data)


class RowsMismatch(BadWorker):
    """The model answered with another number of rows than it was asked."""

    def __init__(self, name: str, n_rows: int, shape: tuple[int, ...]) -> None:
        super().__init__(f"output {name!r} has shape {list(shape)}, asked were {n_rows} rows")
