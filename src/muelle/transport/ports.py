"""Bind a port, or say in words why not: who has it, and which one is free."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path

from muelle.core.errors import ConfigError
from muelle.transport.server import bind


def bind_or_explain(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raise ConfigError that says what to do."""
    try:
        return bind(host, port)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            owner = owner_of(port)
            by = f" by {owner}" if owner else ""
            free = next_free(host, port)
            hint = f"; free: --port {free}" if free else ""
            raise ConfigError(f"port {port} on {host} is taken{by}{hint}") from None
        if exc.errno == errno.EACCES:
            raise ConfigError(
                f"port {port} needs more rights than this user has; try --port 8080"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror}") from None


def bind_unix_or_explain(path: Path) -> socket.socket:
    """Return a socket bound to a path, for this user and group. Raise ConfigError."""
    try:
        return bind_unix(path, 0o660)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigError(f"--unix-socket {path}: cannot listen there: {reason}") from None


def bind_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """Bind a Unix socket. A file that nobody listens on is taken away first. Raise OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass
            else:
                raise FileExistsError(17, f"another server listens on {path}")
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Return what a listener speaks TLS with: 1.2 at least. Raise ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        # A key with a password would ask for it on the terminal: a service has none.
        context.load_cert_chain(cert, key or None, password=lambda: b"")
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        files = f"{cert} and {key}" if key else cert
        raise ConfigError(f"--tls-cert: {files} cannot be used: {reason}") from None
    return context


def next_free(host: str, port: int) -> int | None:
    """Return the next port that can be bound now."""
    for candidate in range(port + 1, min(port + 50, 65_536)):
        try:
            bind(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None


def owner_of(port: int) -> str:
    """Return `name (pid)` of the process that listens on a port, as far as /proc tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == port and fields[3] == "0A":
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{fd}") in inodes:
                    name = Path(f"/proc/{entry}/comm").read_text().strip()
                    return f"{name} ({entry})"
        except OSError:
            continue
    return ""
