"""An HTTP request and its answer as values, for codecs and both ways of transport alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

Headers = Mapping[bytes, bytes]
"""Header names in lower case. Repeated headers are joined by `, ` before they come here."""


class HttpRequest:
    """One whole request. `path` is percent-decoded, `query` is the raw text after `?`."""

    __slots__ = ("body", "client", "headers", "method", "path", "peer", "query", "request_id")

    def __init__(
        self,
        method: bytes,
        path: str,
        query: bytes,
        headers: Headers,
        body: bytes,
        request_id: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.request_id = request_id
        self.peer: tuple[int, int] | None = None
        """User and process id of who sent it, over a Unix socket; None over TCP."""
        self.client: tuple[str, int] | None = None
        """Address and port of who sent it, over TCP, where somebody may want to know."""


class Answer:
    """One whole answer. `content_type` and `body` always, `headers` for what is special to it.

    `head_lines` are header lines that were rendered before (`b"a: b\r\n"`): the hot way's headers
    are the same in every answer of a model version.
    """

    __slots__ = ("body", "content_type", "head_lines", "headers", "status")

    def __init__(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.headers = headers
        self.head_lines = b""

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Return every header but those of the body, as pairs."""
        lines = (line.partition(b": ") for line in self.head_lines.split(b"\r\n") if line)
        return [*self.headers, *((name, value) for name, _, value in lines)]


class BodySink(Protocol):
    """Takes a body piece by piece, on the event loop's thread."""

    resumed: Callable[[], None]
    """Set by who writes: called when the client has caught up."""

    def write(self, chunk: bytes) -> bool:
        """Send a piece. False: the client lags behind, so wait for `resumed`."""

    def end(self) -> None:
        """The body is whole."""

    def abort(self) -> None:
        """It will never be whole: the client must see that."""


class StreamedAnswer(Answer):
    """An answer whose body comes later. `length` None: nobody knows how long it will be."""

    __slots__ = ("begin", "leave", "length")

    def __init__(
        self,
        status: int,
        content_type: bytes,
        headers: tuple[tuple[bytes, bytes], ...],
        length: int | None,
        begin: Callable[[BodySink], None],
    ) -> None:
        super().__init__(status, content_type, b"", headers)
        self.length = length
        self.begin = begin
        """Called once, when the head has been written."""
        self.leave: Callable[[], None] = _nobody
        """Called when the client left, by whoever has no other way to cancel the request."""


def _nobody() -> None:
    """Who began the request has another way to cancel it."""


JSON = b"application/json"
