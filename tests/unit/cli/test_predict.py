"""`muelle predict` over a real socket: what it sends, what it prints, what it says of an error."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muelle.cli.main import main
from muelle.cli.predict import address


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers what the test has put into `server.answer`, and keeps what came."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.came = (self.path, dict(self.headers.items()), body)
        status, headers, answer = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server on a free port that MUELLE_SERVER names."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        httpd.answer = (200, {"content-type": "application/json"}, b'{"predictions":[1]}')
        monkeypatch.setenv("MUELLE_SERVER", f"http://127.0.0.1:{httpd.server_port}")
        monkeypatch.setenv("MUELLE_LANG", "en")
        yield httpd
        httpd.shutdown()


@pytest.mark.parametrize(
    ("name", "content", "type_"),
    [
        ("rows.json", b"[[1]]", "application/json"),
        ("rows.csv", b"a\n1\n", "text/csv"),
        ("rows.npy", b"\x93NUMPY...", "application/x-npy"),
        ("rows.arrow", b"\xff\xff\xff\xff", "application/vnd.apache.arrow.stream"),
        ("rows", b' {"instances": [[1]]}', "application/json"),
        ("rows.dat", b"\x93NUMPY...", "application/x-npy"),
        ("rows.txt", b"1,2\n", "text/csv"),
    ],
)
def test_a_file_goes_as_it_is_with_its_type(
    server: Any, tmp_path: Path, name: str, content: bytes, type_: str
) -> None:
    """The body is the file's bytes; its type comes from the name, else from the first bytes."""
    (tmp_path / name).write_bytes(content)
    assert main(["predict", "m", "-d", f"@{tmp_path / name}"]) == 0
    path, headers, body = server.came
    assert (path, body, headers["content-type"]) == ("/models/m/predict", content, type_)


def test_stdin_and_text(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-d -` reads stdin; other text is the body."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1,2\n")))
    assert main(["predict", "m", "-d", "-"]) == 0
    assert server.came[2] == b"1,2\n"
    assert main(["predict", "m", "-d", "[[1]]"]) == 0
    assert server.came[1]["content-type"] == "application/json"


def test_options_reach_the_server(server: Any) -> None:
    """Outputs, version, wanted type and deadline are sent as the API wants them."""
    args = ["--outputs", "a,b c", "--model-version", "3", "-o", "csv", "--timeout-s", "2.5"]
    assert main(["predict", "m", "-d", "[1]", *args]) == 0
    path, headers, _ = server.came
    assert path == "/models/m/versions/3/predict?outputs=a,b%20c"
    assert headers["accept"] == "text/csv"
    assert headers["timeout-ms"] == "2500"


def test_the_answer_is_printed_as_it_came(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON to stdout, one line, nothing on stderr."""
    assert main(["predict", "m", "-d", "[1]"]) == 0
    assert capsys.readouterr() == ('{"predictions":[1]}\n', "")


def test_a_table_is_drawn_from_csv(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`-o table` asks for CSV and lines its columns up."""
    server.answer = (200, {"content-type": "text/csv"}, b"label,p\nsetosa,0.9\n")
    assert main(["predict", "m", "-d", "[1]", "-o", "table"]) == 0
    assert capsys.readouterr().out.splitlines() == ["label   p", "setosa  0.9"]


def test_a_binary_answer_goes_through_unchanged(
    server: Any, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """npy bytes reach stdout as bytes."""
    server.answer = (200, {"content-type": "application/x-npy"}, b"\x93NUMPY\x00\xff")
    assert main(["predict", "m", "-d", "[1]", "--accept", "application/x-npy"]) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"\x93NUMPY\x00\xff"


@pytest.mark.parametrize(
    ("status", "headers", "body", "parts"),
    [
        (400, {}, json.dumps({"detail": "x: 29 values"}).encode(), ["x: 29 values", ": 400)"]),
        (404, {}, json.dumps({"error": "no model 'm'"}).encode(), ["no model 'm'"]),
        (429, {"retry-after": "2"}, b'{"detail": "full"}', ["full", "try again in 2 s"]),
        (502, {}, b"<html>Bad\nGateway</html>", ["Bad Gateway", "502"]),
        (500, {}, b"", ["Internal Server Error", "500"]),
        (500, {}, b"\xff[1", ["500"]),
    ],
)
def test_an_error_of_the_server_is_one_line(
    server: Any,
    capsys: pytest.CaptureFixture[str],
    status: int,
    headers: dict[str, str],
    body: bytes,
    parts: list[str],
) -> None:
    """What the server said, its address and status; exit code 1; nothing on stdout."""
    server.answer = (status, headers, body)
    assert main(["predict", "m", "-d", "[1]"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("target", "version", "url"),
    [
        ("m", None, "http://s:1/models/m/predict"),
        ("a/../b", None, "http://s:1/models/a%2F..%2Fb/predict"),
        ("m", "2", "http://s:1/models/m/versions/2/predict"),
        ("http://h/models/m", None, "http://h/models/m/predict"),
        ("http://h/models/m/", "2", "http://h/models/m/versions/2/predict"),
        ("http://h/models/m/predict", None, "http://h/models/m/predict"),
        ("http://h/v2/models/m/infer", None, "http://h/v2/models/m/infer"),
        ("https://h/prefix/models/m/predict", None, "https://h/prefix/models/m/predict"),
    ],
)
def test_names_and_addresses(target: str, version: str | None, url: str) -> None:
    """A name goes to the server; any address of a model becomes that of its predictions."""
    assert address(target, "http://s:1/", version) == url
