"""Ask the server of this container whether it is ready: `python -m muelle.healthcheck`.

For an image's HEALTHCHECK: standard library only, no shell and no curl, a few tens of milliseconds.
Reads the same variables as the server. Not for settings that are given as options.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Mapping

TIMEOUT_S = 4.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def check(env: Mapping[str, str], path: str = "/ready") -> str:
    """Return "" when the server answers 200 there, else why not."""

    def given(*names: str) -> str:
        return next((env[name] for name in names if env.get(name)), "")

    unix = given("MUELLE_UNIX_SOCKET", "MUELLE_LISTEN__UNIX_SOCKET")
    host = given("MUELLE_HOST", "MUELLE_LISTEN__HOST")
    port = given("MUELLE_PORT", "MUELLE_LISTEN__PORT", "PORT") or "8080"
    if host in ("", "0.0.0.0", "::"):
        host = "::1" if host == "::" else "127.0.0.1"
    tls = bool(given("MUELLE_TLS_CERT", "MUELLE_LISTEN__TLS_CERT"))
    connection: http.client.HTTPConnection
    try:
        connection = _UnixConnection(unix) if unix else _tcp(host, port, tls)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(1_000).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return f"{unix or f'{host}:{port}'}: {exc}"
    return "" if response.status == 200 else f"{response.status} {body}"


def _tcp(host: str, port: str, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    import ssl

    # The certificate names the service, not the loopback address that this process asks.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=context)


def main() -> int:
    """Exit code 0: ready; 1: not."""
    trouble = check(os.environ)
    if trouble:
        print(trouble)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
