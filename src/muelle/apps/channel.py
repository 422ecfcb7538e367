"""One end of the stream socket between server and application: frames out, frames in.

Works with an event loop (both sides) and without one: an application may ask a model while it is
imported, and in the middle of a coroutine; then `wait_for` turns the channel by hand. Used by one
thread. Not for what frames mean.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable

from muelle.apps.frames import Frame, FrameError, FrameReader, encode_frame

READ_BYTES = 256 * 1024
HIGH_BYTES = 1024 * 1024
"""With more than this unsent, whoever can wait should."""
MAX_BUFFERS = 64
"""Buffers of one sendmsg."""


class Channel:
    """Owns its socket. `on_frame` gets each frame, `on_end` is called once, with the reason."""

    def __init__(
        self,
        sock: socket.socket,
        reader: FrameReader,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = reader
        self._on_frame = on_frame
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._flush_scheduled = False
        self._writing = False
        self._room: asyncio.Event | None = None
        self.ended = False

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self._unsent_bytes if self._out else 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let a loop turn the channel from now on."""
        self._loop = loop
        self._room = asyncio.Event()
        self._room.set()
        loop.add_reader(self._sock, self.read)
        self.flush()

    def send(self, frame: Frame) -> None:
        """Queue a frame; it leaves in this turn of the loop. After the end it is dropped."""
        if self.ended:
            return
        encoded = encode_frame(frame)
        self._out.append(memoryview(encoded))
        self._unsent_bytes += len(encoded)
        if self._room is not None and self._unsent_bytes > HIGH_BYTES:
            self._room.clear()
        if self._loop is not None and not self._flush_scheduled and not self._writing:
            # What is said in one turn of the loop leaves in one system call.
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    async def room(self) -> None:
        """Wait until what was sent has mostly left."""
        if self._room is not None:
            await self._room.wait()

    def flush(self) -> None:
        """Send what the socket takes."""
        self._flush_scheduled = False
        while self._out and not self.ended:
            buffers = [self._out[i] for i in range(min(len(self._out), MAX_BUFFERS))]
            try:
                sent = self._sock.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._end(f"the channel broke: {exc.strerror}")
                return
            self._sent(sent)
        self._watch_writing()

    def _sent(self, nbytes: int) -> None:
        self._unsent_bytes -= nbytes
        while nbytes:
            first = self._out[0]
            if len(first) > nbytes:
                self._out[0] = first[nbytes:]
                break
            nbytes -= len(first)
            self._out.popleft()
        if self._room is not None and self._unsent_bytes <= HIGH_BYTES // 2:
            self._room.set()

    def _watch_writing(self) -> None:
        """Ask the loop to say when there is room again, only while something waits for it."""
        wanted = bool(self._out) and not self.ended
        if self._loop is None or wanted == self._writing:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._sock, self.flush)
        else:
            self._loop.remove_writer(self._sock)

    def read(self) -> None:
        """Take what has come, and hand each whole frame on."""
        if self.ended:
            return
        try:
            chunk = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(f"the channel broke: {exc.strerror}")
            return
        if not chunk:
            self._end("")
            return
        try:
            # A list first: a frame's meaning may turn this channel by hand, which reads again.
            frames = list(self._reader.feed(chunk))
        except FrameError as exc:
            self._end(str(exc))
            return
        for frame in frames:
            self._on_frame(frame)

    def turn(self, timeout_s: float | None) -> None:
        """Without the loop: send and read once, waiting at most so long for something to do."""
        self.flush()
        if self.ended:
            return
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1e3)
        self.flush()
        self.read()

    def close(self) -> None:
        """Give the socket back; nobody is told."""
        if self.ended:
            return
        self.ended = True
        self._detach()
        self._sock.close()

    def _end(self, reason: str) -> None:
        if self.ended:
            return
        self.close()
        self._on_end(reason)

    def _detach(self) -> None:
        self._out.clear()
        if self._room is not None:
            self._room.set()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
            if self._writing:
                self._loop.remove_writer(self._sock)
