"""What HTTP allows, what it forbids and what people try: each gets its status, and nothing breaks.

After every test here the same server must still answer a prediction rightly. Not for bodies of one
protocol (the codecs' tests) nor for models that misbehave (`test_chaos`).
"""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests import models
from tests.serving import Served, eventually

MIB = 1024 * 1024
NGINX = Path("/usr/sbin/nginx")
PREDICT = "/models/flowers/predict"
INFER = "/v2/models/flowers/infer"
ROW = b"[[5.1, 3.5, 1.4, 0.2]]"
LIMITS = {"MUELLE_LIMITS__BODY_BYTES": str(4 * MIB)}
HASTY = {
    "MUELLE_LIMITS__HEADER_S": "0.5",
    "MUELLE_LIMITS__BODY_GRACE_S": "0.5",
    "MUELLE_LIMITS__BODY_S": "1.5",
    "MUELLE_LIMITS__IDLE_S": "0.5",
    "MUELLE_LIMITS__WRITE_STALL_S": "1",
    "MUELLE_LIMITS__CONNECTIONS": "20",
}

RAISING = '''
import muelle
from muelle import TensorSpec


class Raising(muelle.Model):
    """Fails on every row, and its error tells too much."""

    inputs = [TensorSpec(name="x", datatype="FP32", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP32", shape=(-1,))]

    def predict(self, inputs):
        raise RuntimeError(f"secret at {id(self):#x} in {__file__}")
'''


class Reply(NamedTuple):
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the limits as they are, but for smaller bodies."""
    flowers = models.quiet(models.onnx_classifier)
    raising = tmp_path_factory.mktemp("edges") / "raising.py"
    raising.write_text(RAISING)
    with Served(f"flowers={flowers.path}", f"hot={raising}", "--trust", env=LIMITS) as started:
        warm(started)
        yield started


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    """The server; after the test it still answers rightly."""
    yield server
    assert_answers(server)


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[Served]:
    """A server that waits half a second at most, and has few connections."""
    flowers = models.quiet(models.onnx_classifier)
    with Served(f"flowers={flowers.path}", env=HASTY) as started:
        warm(started)
        yield started


@pytest.fixture
def hasty(hasty_server: Served) -> Iterator[Served]:
    """The server of short patience; after the test it still answers rightly."""
    yield hasty_server
    assert_answers(hasty_server)


def warm(served: Served) -> None:
    """Ask once for what is loaded at its first use, so that memory and files can be compared."""
    for path in ("/docs", "/docs/assets/docs.js", "/openapi.json", "/metrics"):
        assert served.ask("GET", path)[0] == 200
    assert_answers(served)


def assert_answers(served: Served) -> None:
    """A prediction in each protocol is answered rightly."""
    status, _, body = served.ask("POST", PREDICT, ROW)
    assert status == 200, body
    assert json.loads(body)["predictions"][0]["label"] == 0
    whole = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [6, 3, 5, 2]}]}
    status, _, body = served.ask("POST", INFER, json.dumps(whole))
    assert status == 200, body
    assert json.loads(body)["outputs"][0]["data"] == [2]


class Wire:
    """A raw connection: bytes out, answers in."""

    def __init__(self, served: Served) -> None:
        self.sock = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> bool:
        """Send; False when the server has closed already."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def reply(self, head_only: bool = False) -> Reply:
        """Read one answer."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self.file.readline()) != b"\r\n":
            assert field.endswith(b"\r\n"), field
            name, _, value = field.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} comes twice"
            headers[name.lower()] = value.strip()
        size = 0 if head_only else int(headers.get("content-length", "0"))
        return Reply(int(line.split()[1]), headers, self.file.read(size))

    def is_closed(self) -> bool:
        """Wait for the server's end of the connection, without another byte."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


def post(body: bytes = ROW, *fields: str, path: str = PREDICT) -> bytes:
    """A whole request."""
    head = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def head_of(*lines: str) -> bytes:
    """A head of these lines."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def ask_raw(served: Served, data: bytes) -> Reply:
    """Send bytes, read one answer, and see that the server closes after a refusal of transport."""
    with Wire(served) as wire:
        wire.send(data)
        reply = wire.reply()
        assert reply.headers["connection"] == "close"
        assert wire.is_closed()
        return reply


def assert_problem(reply: Reply, status: int) -> str:
    """The answer is a problem document of that status; return its text."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert problem["status"] == status
    assert problem["request_id"] == reply.headers["x-request-id"]
    return str(problem["detail"])


# --- what is there, and what is not ---


def test_unknown_models_list_near_names(served: Served) -> None:
    """404 names what is near; v2 says the same with Triton's 400."""
    reply = Reply(*served.ask("POST", "/models/flower/predict", ROW))
    assert "near: flowers" in assert_problem(reply, 404)
    status, _, body = served.ask("POST", "/v2/models/flower/infer", b"{}")
    assert status == 400
    assert "near: flowers" in json.loads(body)["error"]
    assert "near: flowers" in assert_problem(Reply(*served.ask("GET", "/models/flower")), 404)


def test_unknown_versions_list_those_that_are(served: Served) -> None:
    """404 names the versions that there are, in either protocol."""
    reply = Reply(*served.ask("POST", "/models/flowers/versions/9/predict", ROW))
    assert "there is: 1" in assert_problem(reply, 404)
    status, _, body = served.ask("POST", "/v2/models/flowers/versions/9/infer", b"{}")
    assert status == 404
    assert "there is: 1" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/models/flowers/predict/", "/models//predict", "/models/../live", "/%00"]
)
def test_unknown_paths_are_404(served: Served, path: str) -> None:
    """A path that is not there, or nearly one that is, is a problem document; v2 has its form."""
    assert_problem(Reply(*served.ask("GET", path)), 404)
    status, headers, body = served.ask("GET", "/v2" + path)
    assert (status, headers["content-type"]) in (
        (404, "application/json"),
        (400, "application/json"),
    )
    assert set(json.loads(body)) == {"error"}


def test_a_path_may_be_percent_encoded(served: Served) -> None:
    """`%66lowers` is the same model."""
    assert served.ask("POST", "/models/%66lowers/predict", ROW)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PREDICT, "POST"),
        ("PUT", PREDICT, "POST"),
        ("DELETE", INFER, "POST"),
        ("PATCH", INFER, "POST"),
        ("HEAD", PREDICT, "POST"),
        ("POST", "/models", "GET"),
        ("POST", "/v2/models/flowers", "GET"),
        ("DELETE", "/live", "GET"),
    ],
)
def test_wrong_methods_are_405_with_allow(
    served: Served, method: str, path: str, allowed: str
) -> None:
    """405 says in Allow what the path takes."""
    status, headers, body = served.ask(method, path, b"" if method != "HEAD" else None)
    assert status == 405, body
    assert allowed in headers["allow"].split(", ")
    assert method not in headers["allow"].split(", ")


def test_head_is_get_without_its_body(served: Served) -> None:
    """HEAD has the status and the length of GET, and no body: the next answer is in its place."""
    for path in ("/models", "/live", "/ready", "/openapi.json", "/nothing"):
        status, headers, _ = served.ask("GET", path)
        with Wire(served) as wire:
            wire.send(head_of(f"HEAD {path} HTTP/1.1", "Host: a"))
            reply = wire.reply(head_only=True)
            assert (reply.status, reply.headers["content-type"]) == (
                status,
                headers["content-type"],
            )
            assert reply.headers["content-length"] == headers["content-length"]
            wire.send(post())
            assert wire.reply().status == 200


def test_options_tells_the_methods(served: Served) -> None:
    """OPTIONS of a path: 204, no body, and Allow."""
    for path, allowed in ((PREDICT, "POST"), ("/models", "GET"), ("/live", "GET")):
        status, headers, body = served.ask("OPTIONS", path)
        assert (status, body) == (204, b"")
        assert allowed in headers["allow"].split(", ")


# --- bodies ---


def test_a_body_without_length_is_411(served: Served) -> None:
    """POST with neither Content-Length nor chunks."""
    reply = ask_raw(served, head_of(f"POST {PREDICT} HTTP/1.1", "Host: a"))
    assert "Content-Length" in assert_problem(reply, 411)


@pytest.mark.parametrize("size", [4 * MIB + 1, 12 * MIB])
def test_413_can_be_read_by_a_client_that_sends_on(served: Served, size: int) -> None:
    """A body over the limit: 413 is there to be read, though the client wrote all of it first."""
    response = requests.post(
        f"http://127.0.0.1:{served.port}{PREDICT}", data=b" " * size, timeout=30
    )
    assert response.status_code == 413
    assert str(4 * MIB) in response.json()["detail"]
    assert response.headers["connection"] == "close"


def test_413_for_chunks_comes_at_the_limit(served: Served) -> None:
    """A chunked body that has no announced end is refused once it is over the limit."""
    response = requests.post(
        f"http://127.0.0.1:{served.port}{PREDICT}",
        data=iter([b" " * 65536] * 65),
        timeout=30,
    )
    assert response.status_code == 413


def test_a_body_at_the_limit_is_read(served: Served) -> None:
    """Exactly the limit is allowed: the answer is about the rows, not about the size."""
    body = ROW + b" " * (4 * MIB - len(ROW))
    assert served.ask("POST", PREDICT, body)[0] == 200


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({"content-type": "text/html"}, "text/csv"),
        ({"content-type": "multipart/form-data; boundary=x"}, "application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content-encoding": "br"}, "gzip"),
        ({"content-encoding": "gzip, gzip"}, "gzip"),
    ],
)
def test_what_is_not_read_is_415(served: Served, headers: dict[str, str], part: str) -> None:
    """A content type or encoding that is not known: 415 with those that are."""
    assert part in assert_problem(Reply(*served.ask("POST", PREDICT, ROW, headers)), 415)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "request body"),
        (b"[[5.1, 3.5", "request body"),
        (b"[[NaN, 1, 2, 3]]", "NaN"),
        (b'"\xff"', "UTF-8"),
        (b"[" * 100_000, "deeper"),
        (b"[[1, 2, 3]]", "instances[0]"),
        (b'[[1, 2, 3, "a"]]', "instances[0][3]"),
        (b"[]", "empty"),
        (b'{"instances": 3}', "a list of rows"),
        (b'{"inputs": {"Y": [[1, 2, 3, 4]]}}', "inputs.Y"),
    ],
)
def test_a_bad_body_is_400_that_names_the_place(served: Served, body: bytes, part: str) -> None:
    """What cannot be read, or does not fit the signature, is 400 with where."""
    assert part in assert_problem(Reply(*served.ask("POST", PREDICT, body)), 400)


def test_a_gzip_bomb_is_refused_in_little_memory(served: Served) -> None:
    """1 GiB of zeros in 1 MiB: 413, and the server's peak grows by less than 80 MiB."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(16 * MIB)
    bomb = b"".join([*(packer.compress(zeros) for _ in range(64)), packer.flush()])
    assert len(bomb) < 2 * MIB
    for path in (PREDICT, INFER):
        before = Memory(served)
        status, _, body = served.ask("POST", path, bomb, {"content-encoding": "gzip"})
        assert status == 413, body
        assert before.growth_bytes() < 80 * MIB


def test_compressed_bodies_are_read(served: Served) -> None:
    """gzip and deflate give the plain answer; a cut one, or one with bytes behind it, is 400."""
    plain = served.ask("POST", PREDICT, ROW)[2]
    for encoding, packed in (("gzip", gzip.compress(ROW)), ("deflate", zlib.compress(ROW))):
        headers = {"content-encoding": encoding}
        assert served.ask("POST", PREDICT, packed, headers)[::2] == (200, plain)
        for broken in (packed[:-3], packed + b"x", b"", ROW):
            assert served.ask("POST", PREDICT, broken, headers)[0] == 400


# --- errors of the model ---


@pytest.mark.parametrize("own_id", ["", "order-66"])
def test_500_has_the_request_id_and_nothing_else(served: Served, own_id: str) -> None:
    """A model that raises: 500 with the request id; no traceback, path or address."""
    v2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    for path, body in (
        ("/models/hot/predict", b"[1]"),
        ("/v2/models/hot/infer", json.dumps(v2)),
    ):
        status, headers, answer = served.ask(
            "POST", path, body, {"x-request-id": own_id} if own_id else {}
        )
        assert status == 500
        assert headers["x-request-id"] == (own_id or headers["x-request-id"]) != ""
        if "v2" not in path:
            assert json.loads(answer)["request_id"] == headers["x-request-id"]
        for secret in (b"Traceback", b"raising", b"0x", b".py", b"/tmp", b"line"):
            assert secret not in answer, answer


# --- framing ---


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """60 requests in one write, of three kinds: the answers come in order, with their ids."""
    asked = []
    for n in range(20):
        asked.append(post(ROW, f"X-Request-Id: p{n}"))
        asked.append(head_of("GET /live HTTP/1.1", "Host: a", f"X-Request-Id: l{n}"))
        asked.append(post(b"[]", f"X-Request-Id: e{n}"))
    with Wire(served) as wire:
        wire.send(b"".join(asked))
        for n in range(20):
            for letter, status in (("p", 200), ("l", 200), ("e", 400)):
                reply = wire.reply()
                assert (reply.headers["x-request-id"], reply.status) == (f"{letter}{n}", status)


def test_requests_may_come_byte_by_byte(served: Served) -> None:
    """One byte per write, head and body and the next request's head: two answers."""
    with Wire(served) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post() + post(b"[]"):
            wire.send(bytes([byte]))
        assert (wire.reply().status, wire.reply().status) == (200, 400)


def test_expect_is_continued(served: Served) -> None:
    """`Expect: 100-continue`: 100 first, then the answer; a body over the limit is 413 at once."""
    with Wire(served) as wire:
        request = post(ROW, "Expect: 100-continue")
        wire.send(request[: -len(ROW)])
        assert wire.reply().status == 100
        wire.send(ROW)
        assert wire.reply().status == 200
    large = ["Expect: 100-continue", f"Content-Length: {5 * MIB}"]
    assert ask_raw(served, head_of(f"POST {PREDICT} HTTP/1.1", "Host: a", *large)).status == 413


def test_chunked_bodies_are_read(served: Served) -> None:
    """Chunks of any size, upper and lower case hex; what is pipelined behind is not lost."""
    head = head_of(f"POST {PREDICT} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
    whole = b"[" + b",".join([b"[5.1, 3.5, 1.4, 0.2]"] * 20) + b"]"
    for size in (1, 7, 26, 171, len(whole)):
        parts = [whole[i : i + size] for i in range(0, len(whole), size)]
        chunks = [b"%x\r\n" % len(p) + p + b"\r\n" for p in parts]
        body = b"".join(c.upper() if i % 2 else c for i, c in enumerate(chunks)) + b"0\r\n\r\n"
        with Wire(served) as wire:
            wire.send(head + body + post())
            assert len(json.loads(wire.reply().body)["predictions"]) == 20
            assert wire.reply().status == 200


CHUNKED = ("Host: a", "Transfer-Encoding: chunked")
LENGTH = ("Host: a", "Content-Length: 2")


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ((), b""),
        (("Host: a", "Host: b", "Content-Length: 2"), b"[]"),
        (("Host: a", "Host: a", "Content-Length: 2"), b"[]"),
        ((*LENGTH, "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
        ((*CHUNKED, "Content-Length: 2"), b"0\r\n\r\n"),
        ((*LENGTH, "Content-Length: 2"), b"[]"),
        ((*LENGTH, "Content-Length: 3"), b"[] "),
        (("Host: a", "Content-Length: 2, 2"), b"[]"),
        (("Host: a", "Content-Length: +2"), b"[]"),
        (("Host: a", "Content-Length: -2"), b"[]"),
        (("Host: a", "Content-Length: 0x2"), b"[]"),
        (("Host: a", "Content-Length: 1_0"), b"[]        "),
        (("Host: a", "Content-Length: " + "9" * 40), b"[]"),
        (("Host: a", "Transfer-Encoding: gzip, chunked"), b"0\r\n\r\n"),
        (("Host: a", "Transfer-Encoding: chunked, chunked"), b"0\r\n\r\n"),
        (("Host: a", "Transfer-Encoding: identity"), b"[]"),
        (("Host: a", "Transfer-Encoding: xchunked"), b"0\r\n\r\n"),
        (("Host: a", "Transfer-Encoding : chunked"), b"0\r\n\r\n"),
        ((*LENGTH, "X-Folded: a\r\n b"), b"[]"),
        ((*LENGTH, "X-Nul: a\0b"), b"[]"),
        ((*LENGTH, "X-Cr: a\rb"), b"[]"),
        ((*LENGTH, "X-Lf: a\nX-More: b"), b"[]"),
        ((*LENGTH, "X Space: a"), b"[]"),
        ((*LENGTH, ": no name"), b"[]"),
        (CHUNKED, b"2;name=value\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"2\n[]\n0\n\n"),
        (CHUNKED, b"-2\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"0x2\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"2 \r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"3\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"1\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"f" * 40 + b"\r\n[]\r\n0\r\n\r\n"),
        (CHUNKED, b"2\r\n[]\r\n0\r\nX-Trailer: a\r\n\r\n"),
    ],
    ids=repr,
)
def test_ambiguous_framing_is_refused(served: Served, fields: Sequence[str], body: bytes) -> None:
    """What two parsers may read differently: 4xx and the end of the connection, in either protocol.

    A request smuggled behind is not answered.
    """
    smuggled = head_of("GET /live HTTP/1.1", "Host: a")
    for path in (PREDICT, INFER):
        data = head_of(f"POST {path} HTTP/1.1", *fields) + body + smuggled
        reply = ask_raw(served, data)
        assert reply.status in (400, 411, 413), reply


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /live HTTP/2.0", (400, 505)),
        ("GET /live HTTP/0.9", (400, 505)),
        ("GET /live", (400, 505)),
        ("get /live HTTP/1.1", (400,)),
        ("BREW /live HTTP/1.1", (400,)),
        ("GET live HTTP/1.1", (400,)),
        ("GET /li ve HTTP/1.1", (400,)),
        ("CONNECT a:80 HTTP/1.1", (400, 411)),
        ("\x16\x03\x01\x02\x00\x01", (400,)),
        ("PRI * HTTP/2.0", (400, 505)),
    ],
)
def test_what_is_no_request_is_refused(served: Served, line: str, status: tuple[int, ...]) -> None:
    """Other protocols and broken request lines: an answer, and the end of the connection."""
    assert ask_raw(served, head_of(line, "Host: a")).status in status


def test_http_1_0_closes_unless_it_asks_to_stay(served: Served) -> None:
    """HTTP/1.0 needs no Host, gets an answer with a length, and its connection ends."""
    with Wire(served) as wire:
        wire.send(head_of("GET /live HTTP/1.0"))
        assert wire.reply().status == 200
        assert wire.is_closed()


# --- sizes of heads ---


def test_a_64_mib_header_line_costs_no_memory(served: Served) -> None:
    """A header line without end: 431, and the server's peak grows by less than 8 MiB."""
    before = Memory(served)
    with Wire(served) as wire:
        wire.send(b"GET /live HTTP/1.1\r\nHost: a\r\nX-Long: ")
        sent = 0
        while sent < 64 * MIB and wire.send(b"a" * MIB):
            sent += MIB
    assert before.growth_bytes() < 8 * MIB
    long = head_of("GET /live HTTP/1.1", "Host: a", "X-Long: " + "a" * 9000)
    assert "header line" in assert_problem(ask_raw(served, long), 431)
    longer = head_of("GET /live HTTP/1.1", "Host: a", "X-Long: " + "a" * 17000)
    assert_problem(ask_raw(served, longer), 431)


def test_the_memory_measure_sees_growth(served: Served) -> None:
    """Negative control: a body of 4 MiB does show in the server's peak."""
    before = Memory(served)
    assert served.ask("POST", PREDICT, ROW + b" " * (4 * MIB - len(ROW)))[0] == 200
    assert before.growth_bytes() > 2 * MIB


def test_20_000_headers_are_refused(served: Served) -> None:
    """20,000 header fields, and 101 small ones: 431 in little memory; 98 are allowed."""
    before = Memory(served)
    many = head_of("GET /live HTTP/1.1", "Host: a", *(f"X-{n}: a" for n in range(20_000)))
    assert_problem(ask_raw(served, many), 431)
    assert before.growth_bytes() < 8 * MIB
    few = head_of("GET /live HTTP/1.1", "Host: a", *(f"X-{n}: a" for n in range(101)))
    assert "header fields" in assert_problem(ask_raw(served, few), 431)
    with Wire(served) as wire:
        fine = [f"X-{n}: a" for n in range(98)]
        wire.send(head_of("GET /live HTTP/1.1", "Host: a", *fine))
        assert wire.reply().status == 200


def test_a_431_of_v2_has_the_form_of_v2(served: Served) -> None:
    """Transport's own refusals speak the protocol of the path."""
    long = head_of(f"POST {INFER} HTTP/1.1", *LENGTH, "X-Long: " + "a" * 9000)
    reply = ask_raw(served, long)
    assert reply.status == 431
    assert set(json.loads(reply.body)) == {"error"}


# --- slow, idle and too many ---


def test_a_slow_head_is_408(hasty: Served) -> None:
    """A head that does not end within its time: 408, and the connection ends."""
    reply = ask_raw(hasty, b"POST /models/flowers/predict HTTP/1.1\r\nHost: a\r\n")
    assert "head" in assert_problem(reply, 408)


def test_a_slow_body_is_408(hasty: Served) -> None:
    """A body that stops: 408 in the protocol of its path, with a length and in chunks."""
    assert_problem(ask_raw(hasty, post(ROW)[:-3]), 408)
    reply = ask_raw(hasty, post(ROW, path=INFER)[:-3])
    assert (reply.status, set(json.loads(reply.body))) == (408, {"error"})
    chunked = head_of(f"POST {PREDICT} HTTP/1.1", *CHUNKED) + b"5\r\n[[1"
    assert_problem(ask_raw(hasty, chunked), 408)


def test_a_body_that_drips_is_408(hasty: Served) -> None:
    """Bytes that keep coming, but too few of them a second, do not keep a connection."""
    with Wire(hasty) as wire:
        wire.send(head_of(f"POST {PREDICT} HTTP/1.1", "Host: a", "Content-Length: 1000000"))
        wire.sock.settimeout(0.1)
        reply = b""
        for _ in range(300):
            if not wire.send(b" "):
                break
            try:
                reply = wire.sock.recv(65536)
                break
            except TimeoutError:
                continue
    assert reply.startswith(b"HTTP/1.1 408")


def test_idle_connections_are_closed(hasty: Served) -> None:
    """One that never asks, and one that asked once and then waits: closed without a word."""
    with Wire(hasty) as silent, Wire(hasty) as asked:
        asked.send(post())
        assert asked.reply().status == 200
        assert silent.is_closed()
        assert asked.is_closed()


def test_too_many_connections_are_turned_away(hasty: Served) -> None:
    """Connections over the limit get 503 at once; when the others have left, new ones go on."""
    wires = [Wire(hasty) for _ in range(24)]
    try:
        assert wires[-1].reply().status == 503
    finally:
        for wire in wires:
            wire.__exit__()
    eventually(lambda: hasty.ask("GET", "/live")[0] == 200)


@pytest.mark.parametrize("path", ["/metrics", "/docs/assets/docs.js"])
def test_a_client_that_never_reads_costs_little(hasty: Served, path: str) -> None:
    """Pipelined requests whose answers nobody reads: they wait outside, and the connection ends.

    Both the requests and the answers would grow without end, whichever way answers them.
    """
    before = Memory(hasty)
    request = head_of(f"GET {path} HTTP/1.1", "Host: a") * 500
    with Wire(hasty) as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        while sent < 256 * MIB and wire.send(request):
            sent += len(request)
    assert sent < 256 * MIB
    assert before.growth_bytes() < 8 * MIB


def test_a_slow_reader_of_a_large_answer_gets_all_of_it(hasty: Served) -> None:
    """A client that reads steadily is not one that never reads, though it takes longer."""
    body = b"[" + b",".join([b"[5.1, 3.5, 1.4, 0.2]"] * 100_000) + b"]"
    with Wire(hasty) as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wire.send(post(body))
        found = wire.sock.recv(65536)
        limit = time.monotonic() + 3.0
        while time.monotonic() < limit:
            found += wire.sock.recv(4096)
            # Other work between two reads; the write limit is 1 s.
            assert [hasty.ask("GET", "/live")[0] for _ in range(5)] == [200] * 5
        size = int(found.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        start = found.index(b"\r\n\r\n") + 4
        assert len(found) < start + size
        found += wire.file.read(start + size - len(found))
    assert len(json.loads(found[start:])["predictions"]) == 100_000


def test_a_client_that_reads_slower_than_it_asks_gets_every_answer(served: Served) -> None:
    """1,000 requests pipelined, more than is held and answered at a time: all answers, in order."""
    padding = "X-Padding: " + "a" * 500
    asked = [
        head_of("GET /metrics HTTP/1.1", "Host: a", f"X-Request-Id: n{n}", padding)
        for n in range(1000)
    ]
    with Wire(served) as wire:
        sender = threading.Thread(target=wire.send, args=(b"".join(asked),))
        sender.start()
        for n in range(1000):
            assert wire.reply().headers["x-request-id"] == f"n{n}"
        sender.join(30)


class Memory:
    """A process's memory from now on: its peak is set to what it has."""

    def __init__(self, served: Served) -> None:
        self._pid = served.process.pid
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        self._start = self._read("VmRSS")

    def _read(self, name: str) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(name)

    def growth_bytes(self) -> int:
        """Return how much its peak is above what it had."""
        return self._read("VmHWM") - self._start


# --- behind a proxy ---


@pytest.mark.skipif(not NGINX.exists(), reason="nginx is not installed")
def test_behind_nginx(tmp_path: Path) -> None:
    """Behind a real nginx with kept upstream connections: predictions, errors, sizes and gzip."""
    flowers = models.quiet(models.onnx_classifier)
    with Served(f"flowers={flowers.path}") as served:
        warm(served)
        before = served.open_files()
        port = free_port()
        (tmp_path / "nginx.conf").write_text(nginx_config(tmp_path, port, served.port))
        command = [str(NGINX), "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
        nginx = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: can_connect(port))
            url = f"http://127.0.0.1:{port}"
            with requests.Session() as session:
                for n in range(300):
                    row = [[5.1, 3.5, 1.4, 0.2 if n % 2 else 0.3]]
                    response = session.post(f"{url}{PREDICT}", json=row, timeout=30)
                    assert response.status_code == 200, response.text
                    assert response.json()["predictions"][0]["label"] == 0
                many = session.post(
                    f"{url}{PREDICT}", json=[[5.1, 3.5, 1.4, 0.2]] * 20_000, timeout=60
                )
                assert len(many.json()["predictions"]) == 20_000
                packed = session.post(
                    f"{url}{PREDICT}",
                    data=gzip.compress(ROW),
                    headers={"content-encoding": "gzip"},
                    timeout=30,
                )
                assert packed.status_code == 200
                chunked = session.post(f"{url}{PREDICT}", data=iter([ROW[:5], ROW[5:]]), timeout=30)
                assert chunked.status_code == 200
                assert session.post(f"{url}{PREDICT}", data=b"[]", timeout=30).status_code == 400
                assert session.get(f"{url}/models/flower", timeout=30).status_code == 404
                assert session.head(f"{url}/models", timeout=30).status_code == 200
                assert session.get(f"{url}/docs", timeout=30).status_code == 200
            # 300 requests went over the few connections that are still open.
            assert 1 <= served.open_files() - before <= 6
            assert connections_of(served.port) <= 12
        finally:
            nginx.terminate()
            nginx.wait(20)
        assert_answers(served)


def nginx_config(folder: Path, port: int, upstream: int) -> str:
    """Return a configuration of one process that writes below the folder only."""
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
        daemon off;
        master_process off;
        pid {folder}/nginx.pid;
        events {{ worker_connections 128; }}
        http {{
            access_log off;
            {temporary}
            client_max_body_size 64m;
            upstream muelle {{ server 127.0.0.1:{upstream}; keepalive 4; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://muelle;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Host $host;
                }}
            }}
        }}
    """


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def can_connect(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def connections_of(port: int) -> int:
    """Return how many connections to a local port there are, ended ones that linger included."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [(int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16)) for row in rows]
    return sum(remote == port for _, remote in ends)
