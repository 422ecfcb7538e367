"""What the gRPC lane and its services say to each other. Not for frames: see `transport.http2`.

A method is found by its path; each says who may call it, or it cannot be registered. Messages are
serialized protobuf: a service reads and writes them with its own codec.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from muelle.protocols.http import Answer

Role = Literal["infer", "view", "admin"]
"""Who may call: whoever asks for predictions, whoever looks, whoever changes what is served."""

Cancel = Callable[[], None]


class Status(enum.IntEnum):
    """Status codes of gRPC. Source: "gRPC status codes", grpc.github.io."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Call(Protocol):
    """One call under way. Used on the event loop's thread only.

    After `reply` or `finish`, and after the call was cancelled, everything here does nothing.
    """

    deadline: float | None
    """When the caller stops waiting (monotonic seconds), None for never."""

    @property
    def path(self) -> bytes:
        """The method's path."""

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """The caller's own header fields: lower-case names, repeated ones joined by `, `; what
        belongs to HTTP/2 and gRPC themselves is left out. Values of `-bin` names are base64."""

    @property
    def request_id(self) -> str:
        """What errors and logs name the request by."""

    @property
    def peer(self) -> tuple[int, int] | None:
        """User and process id of who calls, over a Unix socket; None over TCP."""

    # What hot endpoints want: the same call, as they see a connection.

    def reply_plain(self, endpoint: Any, body: bytes, now: float) -> None:
        """Send the one answer, written by a hot endpoint."""

    def reply_ready(self, whole: bytes, n_numbers: int) -> None:
        """The queue is full: refuse at the least cost."""

    def reply_answer(self, answer: Answer) -> None:
        """Send an endpoint's answer: its status is one of gRPC, its body the message or a text."""

    def take_request_id(self) -> str:
        """Return the request's id."""

    def reply(self, message: bytes, metadata: bytes = b"") -> None:
        """Send the one answer of a unary call, with status OK. `metadata` is a header block
        fragment made by `header_block`."""

    def send(self, message: bytes) -> None:
        """Send one of several answers of a streaming call."""

    def finish(self, status: Status, text: str = "") -> None:
        """End the call. `text` says what was wrong, where, and what to do."""

    @property
    def unsent_bytes(self) -> int:
        """What was sent and still lies here because the caller does not read."""

    def hold(self, held: bool) -> None:
        """Take no more messages of this call from the network until told otherwise (a streaming
        call whose earlier messages are not dealt with yet)."""


class Stream(Protocol):
    """The service's side of a streaming call."""

    def message(self, message: bytes) -> None:
        """The caller sent a message."""

    def half_closed(self) -> None:
        """The caller sends no more."""

    def cancelled(self) -> None:
        """The caller is gone, or its deadline has passed. Nothing more can be sent."""


UnaryHandler = Callable[[Call, bytes], Cancel | None]
"""Begin to answer one message by `call.reply` or `call.finish`, perhaps before it returns. Never
raises. What it returns is called when the caller leaves, or its time is up, before the answer."""

StreamHandler = Callable[[Call], Stream]
"""Begin a streaming call."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service. Exactly one of `unary` and `stream` is given."""

    role: Role
    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None


Methods = dict[bytes, Method]
"""Path (`b"/package.Service/Method"`) -> method."""
