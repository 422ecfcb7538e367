"""Hostile and broken HTTP on the real port: refused in time, and the server unharmed after each.

The rows are those of the measured table of what Python servers accept as shipped.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import CHAOS_MODEL, Served, chaos_body

PATH = "/v2/models/chaos/infer"
LIMITS = {
    "MUELLE_LIMITS__HEADER_S": "0.6",
    "MUELLE_LIMITS__IDLE_S": "0.8",
    "MUELLE_LIMITS__BODY_GRACE_S": "0.3",
    "MUELLE_LIMITS__BODY_BYTES": "1000000",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with short limits."""
    model = tmp_path_factory.mktemp("hostile") / "chaos.py"
    model.write_text(CHAOS_MODEL)
    with Served(str(model), "--trust", env=LIMITS) as server:
        server.ask("GET", "/models")  # The API is in memory before anything is measured.
        yield server


@pytest.fixture(autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """After each attack the server is live, correct and not bigger."""
    before = resident(served)
    yield
    status, _, body = served.ask("POST", PATH, chaos_body(20))
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [41.0]
    assert resident(served) - before < 16 * 1024 * 1024


def resident(served: Served) -> int:
    """Return the server's resident memory in bytes."""
    text = Path(f"/proc/{served.process.pid}/statm").read_text()
    return int(text.split()[1]) * 4096


def send(served: Served, data: bytes, then: bytes = b"") -> bytes:
    """Send bytes on a new connection and read until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        try:
            sock.sendall(data)
            if then:
                sock.sendall(then)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It closed on us in the middle, as it may; what it said is read below.
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Read until the end, or until the connection is reset."""
    parts = []
    while True:
        try:
            part = sock.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    """Return the status of the first answer, 0 when there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def head(*lines: str, path: str = PATH, method: str = "POST") -> bytes:
    """Return a request head with these header lines."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("Content-Length: 2") + b"{}", 400),
        (head("Host: a", "Host: b", "Content-Length: 2") + b"{}", 400),
        (head("Host: a", "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head("Host: a", "Content-Length: 2", "Content-Length: 2") + b"{}", 400),
        (head("Host: a", "Content-Length: +2") + b"{}", 400),
        (head("Host: a", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 400),
        (head("Host: a", "Transfer-Encoding: chunked") + b"2;x=1\r\n{}\r\n0\r\n\r\n", 400),
        (head("Host: a", "Transfer-Encoding: chunked") + b"2\n{}\r\n0\r\n\r\n", 400),
        (head("Host: a", "Transfer-Encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n", 400),
        (head("Host: a", " folded", "Content-Length: 2") + b"{}", 400),
        (b"POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n\r\n\r\n", 400),
        (head("Host: a"), 411),
        (head("Host: a", "Content-Length: 1000001"), 413),
        (head("Host: a", "Transfer-Encoding: chunked") + b"F4241\r\n", 413),
        (head("Host: a", "X-Long: " + "a" * 9000, "Content-Length: 2") + b"{}", 431),
        (head("Host: a", *[f"X-{n}: 1" for n in range(20000)]), 431),
        (head("Host: a", *[f"X-{n}: 1" for n in range(101)]), 431),
        (b"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    ids=[
        "no Host", "two Hosts", "CL and TE", "CL twice", "CL with sign", "other TE",
        "chunk extension", "chunk with bare LF", "negative chunk", "folded line", "bare LF",
        "no length", "too large", "chunk too large", "long line", "20,000 headers",
        "101 headers", "absolute target", "HTTP/3.0", "TLS hello",
    ],
)  # fmt: skip
def test_what_is_not_clean_http_is_refused(served: Served, data: bytes, status: int) -> None:
    """Each is answered with its status and the connection is closed."""
    answer = send(served, data)
    assert status_of(answer) == status, answer[:300]
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_64_mib_header_line_is_refused_early(served: Served) -> None:
    """The head's limit holds while it comes: memory does not follow the sender."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        try:
            for _ in range(1024):
                sock.sendall(b"a" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert status_of(read_all(sock)) in (431, 0)


def test_silence_is_closed(served: Served) -> None:
    """A connection that never sends anything is closed without an answer."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        assert sock.recv(100) == b""


def test_an_idle_kept_connection_is_closed(served: Served) -> None:
    """After an answer, a connection that asks nothing more is closed."""
    connection = served.connect()
    connection.request("POST", PATH, chaos_body(1))
    assert connection.getresponse().read()
    assert connection.sock is not None
    connection.sock.settimeout(20)
    assert connection.sock.recv(100) == b""


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_drip_is_ended(served: Served, part: str) -> None:
    """One byte at a time, for ever: 408 and closed, however regularly the bytes come."""
    whole = head("Host: a", "Content-Length: 100000") + b"x" * 100000
    start = 0 if part == "head" else whole.index(b"\r\n\r\n") + 4
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(whole[:start])
        stop = threading.Event()

        def drip() -> None:
            for at in range(start, len(whole)):
                try:
                    sock.send(whole[at : at + 1])
                except OSError:
                    return
                if stop.wait(0.05):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read_all(sock)
        stop.set()
        thread.join(10)
    assert status_of(answer) == 408, answer[:200]


def test_a_refused_upload_can_read_why(served: Served) -> None:
    """413 reaches a client that is still sending: the connection lingers before it is closed."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("POST", PATH, b"x" * 3_000_000)
    response = connection.getresponse()
    assert response.status == 413
    assert "limit" in json.loads(response.read())["error"]


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """Fifty requests in one write come back one by one, each with its own answer."""
    one = b"".join(
        head("Host: a", f"Content-Length: {len(chaos_body(n))}") + chaos_body(n)
        for n in range(100, 150)
    )
    last = head("Host: a", "Connection: close", method="GET", path="/live")
    answer = send(served, one + last)
    found = [
        json.loads(part.split(b"\r\n\r\n", 1)[1])["outputs"][0]["data"][0]
        for part in answer.split(b"HTTP/1.1 ")[1:-1]
    ]
    assert found == [2.0 * n + 1 for n in range(100, 150)]


def test_expect_continue_is_answered_first(served: Served) -> None:
    """A client that waits for leave to send its body gets it."""
    body = chaos_body(4)
    lines = head(
        "Host: a", "Expect: 100-continue", "Connection: close", f"Content-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(lines)
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert status_of(read_all(sock)) == 200


def test_a_gzip_bomb_is_refused(served: Served) -> None:
    """A gigabyte of zeros in a megabyte: refused at the body's limit, not unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(900)) + packer.flush()
    assert len(bomb) < 1_000_000
    status, _, body = served.ask("POST", PATH, bomb, {"content-encoding": "gzip"})
    assert status == 413, body


def test_the_guard_itself_is_seen(served: Served) -> None:
    """Negative control: a clean request on the same raw socket is answered 200."""
    body = chaos_body(2)
    clean = head("Host: a", "Connection: close", f"Content-Length: {len(body)}") + body
    assert status_of(send(served, clean)) == 200
