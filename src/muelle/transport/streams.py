"""Write a body piece by piece, in the framing that its head announced. Not for the head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class BodyStream:
    """The body of one answer. Implements `protocols.http.BodySink`; owned by its connection."""

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        lags: Callable[[int], bool],
        ended: Callable[[], None],
        with_body: bool,
        chunked: bool,
        length: int | None,
    ) -> None:
        """`lags` is told how many bytes were written, and says whether the client is behind.
        `with_body` False: the answer to HEAD, whose body is only spoken of."""
        self.resumed: Callable[[], None] = _nothing
        self._transport = transport
        self._lags = lags
        self._ended = ended
        self._with_body = with_body
        self._chunked = chunked
        self._left = length
        self._over = False

    def write(self, chunk: bytes) -> bool:
        """Send a piece. False: the client lags behind, so wait for `resumed`."""
        if self._over or not chunk or self._transport.is_closing():
            return True
        if not self._with_body:
            return True
        if self._left is not None:
            if len(chunk) > self._left:
                # More than was announced: the client would take the rest for another answer.
                self.abort()
                return True
            self._left -= len(chunk)
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        self._transport.write(chunk)
        return not self._lags(len(chunk))

    def end(self) -> None:
        """The body is whole. One that is shorter than announced ends the connection instead."""
        if self._over:
            return
        if self._left and self._with_body:
            self.abort()
            return
        self._over = True
        if self._transport.is_closing():
            return
        if self._chunked and self._with_body:
            self._transport.write(b"0\r\n\r\n")
        self._ended()

    def abort(self) -> None:
        """It will never be whole: end the connection, so that the client does not think so."""
        if not self._over:
            self._over = True
            self._transport.abort()


def _nothing() -> None:
    """Nobody waits."""
