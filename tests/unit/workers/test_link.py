"""A hostile worker at the other end of a link: it is dropped, and nobody's memory is harmed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muelle.core.request import BatchOutput, InferRequest, Tensor, encode_bytes_tensor
from muelle.core.signature import Signature, TensorSpec
from muelle.scheduling.batcher import Batch
from muelle.scheduling.jobs import CallbackJob
from muelle.workers import messages as m
from muelle.workers.link import WorkerLink
from muelle.workers.memory import Region
from muelle.workers.process import WorkerProcess

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),
        TensorSpec(name="t", datatype="BYTES", shape=(-1,)),
    ),
)
Y = m.RanOutput("y", "FP32", (3, 1), 0, 12)
T = m.RanOutput("t", "BYTES", (3,), 64, 12)


class Puppet:
    """What the link takes for a process: this test holds the worker's end of the channel."""

    pid: int | None = 1

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def kill(self) -> None:
        """There is no process."""


class Told:
    """Remembers what the link tells."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.shapes: list[tuple[int, ...]] = []

    def loaded(self, link: WorkerLink, message: m.Loaded) -> None:
        """Take the signature, as the pool does."""
        self.events.append(("loaded", message))
        link.ready = True

    def load_failed(self, link: WorkerLink, message: m.LoadFailed) -> None:
        """Remember."""
        self.events.append(("load_failed", message))

    def ran(self, link: WorkerLink, batch: Batch, outputs: list[BatchOutput], ns: int) -> None:
        """Touch every byte, as a codec does."""
        self.shapes = [o.shape for o in outputs]
        self.events.append(("ran", [bytes(o.data) for o in outputs]))

    def failed(self, link: WorkerLink, batch: Batch, reason: str, detail: str) -> None:
        """Remember."""
        self.events.append(("failed", reason))

    def died(self, link: WorkerLink, reason: str) -> None:
        """Close, as the pool does."""
        self.events.append(("died", reason))
        link.close()


class Bench:
    """A link with one batch of three rows in slot 0, and the hostile end of its channel."""

    def __init__(self) -> None:
        ours, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.told = Told()
        process: Any = Puppet(ours)
        assert not isinstance(process, WorkerProcess)
        self.link = WorkerLink(
            0,
            process,
            self.told,
            slots=2,
            output_limit_bytes=100_000,
            loop=asyncio.get_running_loop(),
        )
        self.link.set_sizes(SIGNATURE, 0, 8)
        request = InferRequest([Tensor.raw("x", "FP32", (3, 2), bytes(range(24)))], 3)
        self.batch = Batch([CallbackJob(request, lambda _: None, arrived=0.0, deadline=9.0)])
        self.link.run(self.batch, 0.0)
        data, self.fds, _, _ = socket.recv_fds(self.worker, m.MAX_MESSAGE_BYTES, 4)
        self.run = msgspec.msgpack.decode(data, type=m.Run)

    async def send(self, *datagrams: bytes | m.Message) -> list[tuple[str, Any]]:
        """Send as the worker would and let the link read; return what it told."""
        for datagram in datagrams:
            raw = datagram if isinstance(datagram, bytes) else msgspec.msgpack.encode(datagram)
            self.worker.send(raw)
        for _ in range(3):
            # Each turn of the loop polls its descriptors once.
            await asyncio.sleep(0)
        return self.told.events

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        self.worker.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A fresh link."""
    before = len(os.listdir("/proc/self/fd"))
    bench = Bench()
    yield bench
    bench.close()
    assert len(os.listdir("/proc/self/fd")) == before


def ran(*outputs: m.RanOutput, slot: int = 0, sequence: int = 1) -> m.Ran:
    """A Ran message."""
    return m.Ran(slot, sequence, 5, outputs)


async def test_an_honest_worker_is_believed(bench: Bench) -> None:
    """Negative control: a right answer arrives, with the bytes of the slot."""
    region = Region.receive(bench.fds[1])
    region.view[0:12] = bytes(range(12))
    region.view[64:76] = encode_bytes_tensor([b"", b"", b""])
    region.fd = -1
    region.close()
    assert await bench.send(ran(Y, T)) == [("ran", [bytes(range(12)), bytes(12)])]
    assert bench.link.has_free_slot and bench.link.served == 1 and not bench.link.batches()


async def test_the_inputs_lie_where_the_message_says(bench: Bench) -> None:
    """The worker maps the descriptor and finds the request's bytes."""
    region = Region.receive(bench.fds[0])
    [at] = bench.run.inputs
    assert (at.index, at.shape, at.nbytes) == (0, (3, 2), 24)
    assert bytes(region.view[at.offset : at.offset + at.nbytes]) == bytes(range(24))
    region.fd = -1
    region.close()


def changed(output: m.RanOutput, **changes: Any) -> m.RanOutput:
    """Return an output with other claims."""
    return msgspec.structs.replace(output, **changes)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (ran(Y, T, slot=1), "slot 1, which has no batch"),
        (ran(Y, T, slot=2), "slot 2, which has no batch"),
        (ran(Y, T, slot=-1), "slot -1"),
        (ran(Y, T, sequence=2), "sequence 2"),
        (ran(Y, T, sequence=0), "sequence 0"),
        (ran(Y), "wrong number of outputs"),
        (ran(Y, T, T), "wrong number of outputs"),
        (ran(T, Y), "is not in the signature"),
        (ran(changed(Y, datatype="FP64"), T), "is not in the signature"),
        (ran(changed(Y, shape=(2, 1), nbytes=8), T), "asked were 3 rows"),
        (ran(changed(Y, shape=()), T), "asked were 3 rows"),
        (ran(changed(Y, shape=(3, -1)), T), "negative dimension"),
        (ran(changed(Y, shape=(3, 2)), T), "shape and bytes disagree"),
        (ran(changed(Y, nbytes=-12), T), "shape and bytes disagree"),
        (ran(changed(Y, offset=-64), T), "outside the slot"),
        (ran(changed(Y, offset=10**9), T), "outside the slot"),
        (ran(changed(Y, offset=4090), T), "outside the slot"),
        (ran(changed(Y, shape=(3, 2**60), nbytes=12 * 2**60), T), "outside the slot"),
        (ran(Y, changed(T, nbytes=4)), "shape and bytes disagree"),
        (ran(Y, changed(T, nbytes=10**9)), "outside the slot"),
        (ran(changed(Y, shape=(3, *[2**62] * 5_000)), T), "5001 axes"),
        (m.RunFailed(1, 1, "x", ""), "slot 1, which has no batch"),
        (m.RunFailed(0, 7, "x", ""), "sequence 7"),
        (m.NeedOutput(9, 10), "a slot that is not there"),
        (m.NeedOutput(0, -1), "a slot that is not there"),
        (m.Stop(), "Invalid value"),
        (b"", ""),
        (b"\xc1", ""),
        (b"\x93\x0d\x00", ""),
        (b"cos\nsystem\n(S'ls'\ntR.", ""),
        (b"\x91" * 100_000, ""),
        (msgspec.msgpack.encode([13, "0", 1, 5, []]), "Expected `int`"),
        (msgspec.msgpack.encode([11, {"inputs": [{"name": "x"}]}, {}, None, 0]), ""),
        (msgspec.msgpack.encode([99, 1, 2]), "Invalid value 99"),
    ],
)
async def test_a_lie_ends_the_worker(bench: Bench, message: m.Message | bytes, words: str) -> None:
    """A claim that does not fit the memory, the slot, the signature or the schema: dropped."""
    events = await bench.send(message)
    assert [kind for kind, _ in events] == ["died"]
    assert words in events[0][1]


async def test_a_second_answer_for_one_batch_ends_the_worker(bench: Bench) -> None:
    """A batch is answered once."""
    events = await bench.send(m.RunFailed(0, 1, "first", ""))
    assert events == [("failed", "first")]
    # Messages that come while nothing runs are read with the next wake-up.
    events = await bench.send(m.RunFailed(0, 1, "second", ""))
    assert [kind for kind, _ in events] == ["failed", "died"]


async def test_loading_twice_ends_the_worker(bench: Bench) -> None:
    """A version's signature is told once."""
    loaded = m.Loaded(SIGNATURE, {}, None, 0)
    events = await bench.send(loaded, loaded)
    assert [kind for kind, _ in events] == ["loaded", "died"]


async def test_parts_without_end_are_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message in parts has a limit; within it, it is joined."""
    whole = msgspec.msgpack.encode(m.RunFailed(0, 1, "long", ""))
    events = await bench.send(m.Part(whole[:3], False), m.Part(whole[3:], True))
    assert events == [("failed", "long")]
    monkeypatch.setattr(m, "MAX_JOINED_BYTES", 1_000)
    events = await bench.send(m.Part(b"x" * 900, False), m.Part(b"x" * 900, False))
    assert events[-1] == ("died", "broke the protocol: a message in parts is too large")


async def test_more_output_memory_comes_up_to_the_limit(bench: Bench) -> None:
    """Asking is answered with a sealed region, or with a refusal over the limit."""
    assert await bench.send(m.NeedOutput(0, 50_000)) == []
    data, fds, _, _ = socket.recv_fds(bench.worker, m.MAX_MESSAGE_BYTES, 4)
    bench.fds += fds
    assert msgspec.msgpack.decode(data, type=m.ToWorker) == m.OutputMemory(0)
    assert os.fstat(fds[0]).st_size >= 50_000
    with pytest.raises(PermissionError):
        os.ftruncate(fds[0], 0)
    assert await bench.send(m.NeedOutput(0, 100_001)) == []
    answer = msgspec.msgpack.decode(bench.worker.recv(m.MAX_MESSAGE_BYTES), type=m.ToWorker)
    assert answer == m.OutputRefused(0, 100_000)


async def test_a_worker_that_leaves_is_seen(bench: Bench) -> None:
    """The end of the channel is the end of the worker."""
    bench.worker.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [kind for kind, _ in bench.told.events] == ["died"]


INTS = st.one_of(st.integers(-3, 5), st.integers(-(2**63), 2**64 - 1))
OUTPUTS = st.builds(
    m.RanOutput,
    name=st.sampled_from("yt"),
    datatype=st.sampled_from(["FP32", "BYTES", "nonsense"]),
    shape=st.lists(INTS, max_size=3).map(tuple),
    offset=INTS,
    nbytes=INTS,
)
HOSTILE = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.builds(m.Ran, INTS, INTS, INTS, st.lists(OUTPUTS, max_size=3).map(tuple)),
    st.builds(m.RunFailed, INTS, INTS, st.text(), st.text()),
    st.builds(m.NeedOutput, INTS, INTS),
    st.builds(m.Part, st.binary(max_size=50), st.booleans()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(HOSTILE, min_size=1, max_size=4))
def test_whatever_a_worker_sends_is_survived(hostile: list[m.Message | bytes]) -> None:
    """Any messages: the link dies cleanly or goes on; no other exception, no descriptor left."""

    async def attack(send: Callable[[Bench], Any]) -> None:
        raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: raised.append(what))
        bench = Bench()
        try:
            await send(bench)
        finally:
            bench.close()
        assert raised == []

    async def send(bench: Bench) -> None:
        for message in hostile:
            try:
                await bench.send(message)
            except OSError:
                return  # The link closed its end already.

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(attack(send))
    assert len(os.listdir("/proc/self/fd")) == before
