"""What both kinds of connection share: their states, and what the system tells of a socket."""

from __future__ import annotations

import asyncio
import enum
import fcntl
import socket
import struct
import sys
import termios

_PEER = struct.Struct("3i")
"""Linux's `struct ucred`: process, user, group."""


class State(enum.IntEnum):
    """What a connection does now."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    BUSY = 3
    LINGER = 4
    CLOSED = 5


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return what the client has not taken yet: bytes that lie here, and in the system's buffer.

    The system takes more from us only when a third of its buffer, of megabytes, has become free.
    """
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        size += int.from_bytes(
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder
        )
    return size


def unix_peer(transport: asyncio.BaseTransport) -> tuple[int, int] | None:
    """Return user and process id of the other end of a Unix socket, as the kernel says."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(found)
    return uid, pid
