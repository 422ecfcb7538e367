"""A streamed answer as a Starlette response, under our own server or another. Not for its content.

Between the two lies a bounded piece of memory: who writes is told when the client lags behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from muelle.protocols.http import StreamedAnswer

LAG_BYTES = 256 * 1024
"""What may lie here before who writes is told that the client lags."""


class BrokenStream(Exception):
    """An answer will never be whole; the server above must end the connection."""


class Pipe:
    """Implements `protocols.http.BodySink`; read as an async iterator, once."""

    def __init__(self) -> None:
        self.resumed: Callable[[], None] = _nothing
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._broken = False
        self._news = asyncio.Event()

    def write(self, chunk: bytes) -> bool:
        """Take a piece. False: wait for `resumed`."""
        if not self._over and chunk:
            self._pieces.append(chunk)
            self._size += len(chunk)
            self._news.set()
        return self._size <= LAG_BYTES

    def end(self) -> None:
        """The body is whole."""
        self._over = True
        self._news.set()

    def abort(self) -> None:
        """It will never be."""
        self._over = self._broken = True
        self._pieces.clear()
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces. Raise BrokenStream in place of an end that is none."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                yield piece
                lagged = self._size > LAG_BYTES
                self._size -= len(piece)
                if lagged and self._size <= LAG_BYTES:
                    self.resumed()
            if self._broken:
                raise BrokenStream("the answer broke off")
            if self._over:
                return
            self._news.clear()
            await self._news.wait()


class PipedResponse(StreamingResponse):
    """Tells who answers when the client left first."""

    def __init__(self, answer: StreamedAnswer) -> None:
        self._answer = answer
        pipe = Pipe()
        super().__init__(aiter(pipe), answer.status)
        answer.begin(pipe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all. However this ends, nobody reads any more then."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.leave()


def _nothing() -> None:
    """Nobody waits."""
