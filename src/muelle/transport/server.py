"""The listener and its connections: accept, sweep, drain. Not for what a request means."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol

from muelle.config.sections import LimitsConfig
from muelle.protocols.http import Answer, HttpRequest
from muelle.transport.asgi import AsgiHost
from muelle.transport.connection import (
    FIXED_LINES,
    STATUS_LINES,
    Cancel,
    Endpoint,
    HttpConnection,
    Reply,
)
from muelle.transport.grpc import Methods
from muelle.transport.heads import HeadReader
from muelle.transport.http2.blocks import header_block
from muelle.transport.http2.connection import Http2Connection
from muelle.transport.state import State

SWEEP_S = 0.25
BACKLOG = 2048
WORKING = (State.BUSY, State.BODY, State.LINGER)

Direct = Callable[[], Answer]
Refusal = Callable[[bytes, int, str, str], Answer]


class Hosted(Protocol):
    """An application of the user's beside our own endpoints."""

    def owns(self, path: str) -> bool:
        """Whether a request for this (decoded) path is the application's."""

    def begin(self, request: HttpRequest, raw_path: bytes, done: Reply) -> Cancel | None:
        """Answer a request. Never raises."""


class HttpServer:
    """One port. Implements `connection.Site`; used on the event loop's thread only."""

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        asgi: AsgiHost,
        direct: dict[bytes, Direct],
        refusal: Refusal,
        internal_error: Callable[[bytes, str], Answer],
        loop: asyncio.AbstractEventLoop,
        hosted: Hosted | None = None,
        root: str = "",
    ) -> None:
        """`hosted` gets the paths that it owns; `root` is a folder in which our own endpoints are
        found, too: where else, when it owns `/`."""
        self.limits = limits
        self.heads = HeadReader(limits)
        self.hot: dict[bytes, Endpoint] = {}
        self.methods: Methods = {}
        """The gRPC methods of this port, by path."""
        self.draining = False
        self.date_line = b""
        self.refusal = refusal
        self._asgi = asgi
        self._direct = direct
        self._hosted = hosted
        self._root = f"{root}/"
        self._internal_error = internal_error
        self._loop = loop
        self._connections: set[HttpConnection | Http2Connection] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._id_prefix = secrets.token_hex(4)
        self._id_count = 0
        self._call_heads: dict[bytes, bytes] = {}

    # --- life ---

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept on a bound socket, TCP or Unix, with or without TLS. May be called for several."""
        listen: Any = self._loop.create_server
        if sock.family == socket.AF_UNIX:
            listen = self._loop.create_unix_server
        more = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": self.limits.header_s}
        server = await listen(
            lambda: HttpConnection(self, self._loop), sock=sock, backlog=BACKLOG, **more
        )
        self._servers.append(server)
        if self._timer is None:
            self._sweep()

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, answer what was accepted, close every connection."""
        self.draining = True
        for server in self._servers:
            server.close()
        deadline = time.monotonic() + timeout_s
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            if not any(c.state in WORKING for c in self._connections):
                now = time.monotonic()
                for connection in list(self._connections):
                    connection.sweep(now)
                if all(c.state is State.HEAD for c in self._connections):
                    break  # Connected, never asked anything.
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.abort()

    # --- connection.Site ---

    def begin(self, request: HttpRequest, raw_path: bytes, done: Reply) -> Cancel | None:
        """Answer a request that is not hot: directly when that costs nothing, else by the app."""
        if request.method in (b"GET", b"HEAD"):
            direct = self._direct.get(raw_path)
            if direct is not None:
                done(direct())
                return None
        if self._hosted is not None and self._hosted.owns(request.path):
            return self._hosted.begin(request, raw_path, done)
        if len(self._root) > 1 and request.path.startswith(self._root):
            # Nothing of ours tells its own address, so nothing has to know of the folder.
            request.path = request.path[len(self._root) - 1 :]
        return self._asgi.begin(
            request,
            raw_path,
            done,
            lambda exc: self._internal_error(raw_path, request.request_id),
        )

    def next_number(self) -> int:
        """Return the next request's number."""
        self._id_count += 1
        return self._id_count

    def request_id(self, number: int) -> str:
        """Return a request id: unique over this server's life, and unlike another server's."""
        return f"{self._id_prefix}-{number:08x}"

    def set_hot(self, hot: dict[bytes, Endpoint]) -> None:
        """Swap the table of hot paths. Connections notice with their next request."""
        self.hot = hot
        self._refresh()

    def _refresh(self) -> None:
        for endpoint in set(self.hot.values()):
            endpoint.refresh(self._ready_head, self._id_prefix)

    def _ready_head(self, answer: Answer, length: bytes) -> bytes:
        """Return an answer's head, to be completed with the request's number (`%08x`).

        `length` is the body's, or `%d` when each answer of this kind has another one.
        """
        own = b"".join(b"%s: %s\r\n" % header for header in answer.headers)
        fixed = FIXED_LINES + self.date_line + answer.head_lines + own
        return b"".join(
            (
                STATUS_LINES[answer.status],
                b"content-type: %s\r\ncontent-length: " % answer.content_type,
                length,
                b"\r\nx-request-id: %s-%%08x\r\n" % self._id_prefix.encode(),
                fixed.replace(b"%", b"%%"),
                b"\r\n",
            )
        )

    def opened(self, connection: HttpConnection | Http2Connection) -> bool:
        """Count a connection in. False: there are too many."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def closed(self, connection: HttpConnection | Http2Connection) -> None:
        """Count it out."""
        self._connections.discard(connection)

    def http2(self, loop: asyncio.AbstractEventLoop) -> Http2Connection:
        """Return what takes over a connection that speaks HTTP/2."""
        return Http2Connection(self, loop)

    def date_field(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the date as a header field."""
        name, _, value = self.date_line.strip().partition(b": ")
        return ((name, value),) if name else ()

    def call_head(self, head_lines: bytes) -> bytes:
        """Return, as a header block, what of an endpoint's header lines goes into calls: the
        digest. (Model and version are in the messages.)"""
        block = self._call_heads.get(head_lines)
        if block is None:
            fields = (line.partition(b": ") for line in head_lines.split(b"\r\n"))
            block = header_block([(n, v) for n, _, v in fields if n == b"muelle-digest" and v])
            if len(self._call_heads) > 1024:
                self._call_heads.clear()
            self._call_heads[head_lines] = block
        return block

    @property
    def n_connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    # --- below ---

    def _sweep(self) -> None:
        self.date_line = b"date: %s\r\n" % formatdate(time.time(), usegmt=True).encode()
        self._refresh()
        now = time.monotonic()
        for connection in list(self._connections):
            connection.sweep(now)
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raise OSError as the system gives it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
