"""One end of the channel, over a real socket pair: with a loop, without one, and to its end."""

from __future__ import annotations

import asyncio
import socket

from muelle.apps.channel import HIGH_BYTES, Channel
from muelle.apps.frames import Body, Ended, Frame, FrameReader, FromApp, Pong

LIMIT = 16 * 1024 * 1024


class End:
    """A channel, and what it was told."""

    def __init__(self, sock: socket.socket, limit: int = LIMIT) -> None:
        self.frames: list[Frame] = []
        self.reasons: list[str] = []
        self.told = asyncio.Event()
        self.channel = Channel(sock, FrameReader(FromApp, limit), self._take, self._end)

    def _take(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.told.set()

    def _end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.told.set()


def pair(limit: int = LIMIT) -> tuple[End, End]:
    """Two ends of one channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return End(ours, limit), End(theirs, limit)


async def test_frames_arrive_in_order_on_a_loop() -> None:
    """Many small ones, said in one turn."""
    a, b = pair()
    a.channel.attach(asyncio.get_running_loop())
    b.channel.attach(asyncio.get_running_loop())
    for n in range(500):
        a.channel.send(Ended(n))
    async with asyncio.timeout(20):
        while len(b.frames) < 500:
            b.told.clear()
            await b.told.wait()
    assert b.frames == [Ended(n) for n in range(500)]
    a.channel.close()
    b.channel.close()


def test_a_channel_is_turned_by_hand_without_a_loop() -> None:
    """Several megabytes each way, in one thread: neither end waits for the other for ever."""
    a, b = pair()
    large = Body(1, b"x" * 4_000_000, False)
    a.channel.send(large)
    b.channel.send(large)
    turns = 0
    while not (a.frames and b.frames):
        a.channel.turn(0)
        b.channel.turn(0)
        turns += 1
        assert turns < 100_000
    assert a.frames == b.frames == [large]
    assert a.channel.unsent_bytes == 0
    a.channel.close()
    b.channel.close()


async def test_who_sends_much_can_wait_for_room() -> None:
    """Room comes when the other side has read; not before."""
    a, b = pair()
    loop = asyncio.get_running_loop()
    a.channel.attach(loop)
    for _ in range(4):
        a.channel.send(Body(1, bytes(HIGH_BYTES), True))
    room = asyncio.ensure_future(a.channel.room())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not room.done()
    b.channel.attach(loop)
    async with asyncio.timeout(20):
        await room
    a.channel.close()
    b.channel.close()


async def test_the_end_is_told_once() -> None:
    """When the other side goes; what is sent afterwards is dropped, and nobody waits for room."""
    a, b = pair()
    a.channel.attach(asyncio.get_running_loop())
    b.channel.close()
    async with asyncio.timeout(20):
        await a.told.wait()
    a.channel.send(Pong())
    a.channel.flush()
    a.channel.read()
    async with asyncio.timeout(20):
        await a.channel.room()
    assert a.reasons == [""]
    assert a.channel.ended


async def test_nonsense_ends_the_channel() -> None:
    """With a reason; what came before it in the same piece is dropped with it."""
    a, b = pair(limit=1_000)
    a.channel.attach(asyncio.get_running_loop())
    b.channel.send(Body(1, bytes(2_000), False))
    b.channel.flush()
    async with asyncio.timeout(20):
        await a.told.wait()
    assert a.frames == []
    assert "the limit is 1000" in a.reasons[0]
    b.channel.close()
