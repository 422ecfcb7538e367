"""`muelle serve app.py:app`: real FastAPI and Flask applications beside a real model."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.serving import Served, eventually, in_parallel

APPS = Path(__file__).parents[1] / "apps"
FAST = str(APPS / "fast.py:app")
FLASK = str(APPS / "flasky.py:create_app()")
JSON = {"content-type": "application/json"}
ROW = [[5.1, 3.5, 1.4, 0.2]]


def iris() -> str:
    """The model beside the applications."""
    return f"iris={models.onnx_classifier().path}"


@pytest.fixture(scope="module")
def fast() -> Iterator[Served]:
    """The FastAPI application in two processes, and a model that waits a little for a batch."""
    with Served(FAST, iris(), "--app-workers", "2", "--max-delay-ms", "20") as served:
        yield served


@pytest.fixture(scope="module")
def flask() -> Iterator[Served]:
    """The Flask application, with two threads."""
    with Served(FLASK, iris(), "--app-threads", "2", "--app-timeout-s", "3") as served:
        yield served


def ask(served: Served, method: str, path: str, value: Any = None) -> tuple[int, Any]:
    """Ask with a JSON body and read JSON."""
    body = None if value is None else json.dumps(value)
    status, _, answer = served.ask(method, path, body, JSON if body else {})
    return status, json.loads(answer) if answer else None


def metric(served: Served, name: str) -> float:
    """Return the sum of a metric's samples whose line begins so."""
    text = served.ask("GET", "/metrics")[2].decode()
    return sum(float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith(name))


def as_the_model_says(outputs: dict[str, Any], n_rows: int) -> bool:
    """Whether an application's answer is the library's own."""
    expected = models.onnx_classifier().expected
    return all(
        np.allclose(np.asarray(outputs[name]), expected[name][:n_rows], rtol=1e-5)
        for name in expected
    )


# --- asking the model ---


@pytest.mark.parametrize("path", ["/sync", "/async", "/blocking"])
def test_an_app_answers_as_the_model_does(fast: Served, path: str) -> None:
    """From a thread, from a coroutine, and from a coroutine that blocks."""
    rows = models.onnx_classifier().inputs["X"][:12].tolist()
    status, answer = ask(fast, "POST", path, rows)
    assert status == 200
    assert as_the_model_says(answer["outputs"], 12)


def test_a_flask_app_answers_as_the_model_does(flask: Served) -> None:
    """A factory's application, from its own threads."""
    rows = models.onnx_classifier().inputs["X"][:12].tolist()
    status, answer = ask(flask, "POST", "/predict", rows)
    assert status == 200
    assert as_the_model_says(answer["outputs"], 12)


def test_an_app_may_ask_while_it_starts(fast: Served) -> None:
    """Its lifespan asked the model before there was any HTTP, and passed on what it learned."""
    status, answer = ask(fast, "GET", "/")
    assert (status, answer["started_with"]) == (200, "iris")


def test_requests_of_all_app_workers_share_batches(fast: Served) -> None:
    """Many app requests, one row each: the model ran fewer batches than there were requests."""
    before = metric(fast, "muelle_batch_size_count"), metric(fast, "muelle_batch_size_sum")
    calls = [lambda: ask(fast, "POST", "/async", ROW)] * 60
    assert {status for status, _ in in_parallel(calls)} == {200}
    batches = metric(fast, "muelle_batch_size_count") - before[0]
    assert metric(fast, "muelle_batch_size_sum") - before[1] == 60
    assert batches < 45
    assert metric(fast, 'muelle_requests_total{model="iris",version="1",protocol="local"') >= 60


def test_both_workers_answer(fast: Served) -> None:
    """A request goes to the process with the least to do, so slow ones spread."""
    eventually(lambda: metric(fast, "muelle_app_workers ") == 2)
    connections = [fast.connect() for _ in range(6)]
    for n, connection in enumerate(connections, start=1):
        connection.request("GET", "/slow?seconds=2")
        eventually(lambda n=n: metric(fast, "muelle_app_in_flight") >= n)  # type: ignore[misc]
    pids = [connection.getresponse().headers["x-pid"] for connection in connections]
    for connection in connections:
        connection.close()
    assert len(set(pids)) == 2


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ({"model": "irys", "rows": ROW}, "ModelNotFound", "near: iris"),
        ({"model": "iris:9", "rows": ROW}, "VersionNotFound", "there is: 1"),
        ({"model": "iris", "rows": [[1.0, 2.0]]}, "BadRequest", ""),
        ({"model": "iris", "rows": {"Y": [1]}}, "BadRequest", "there are: X"),
        ({"model": "iris:1", "rows": ROW}, "", ""),
    ],
)
def test_errors_are_those_of_the_client(
    fast: Served, body: dict[str, Any], error: str, text: str
) -> None:
    """An application catches the same exceptions as a program that uses `muelle.Client`."""
    _, answer = ask(fast, "POST", "/wrong", body)
    assert answer["error"] == error, answer
    assert text in answer.get("text", "")


def test_the_signature_is_known(fast: Served) -> None:
    """What the model takes, without asking it to predict."""
    assert ask(fast, "GET", "/signature")[1] == {"inputs": ["X"]}


# --- requests and answers ---


@pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_000])
def test_bodies_come_through_whole(fast: Served, flask: Served, size: int) -> None:
    """There and back, in both kinds of application, up to megabytes."""
    body = os.urandom(size)
    for served in (fast, flask):
        status, headers, answer = served.ask(
            "POST", "/echo", body, {"content-type": "application/octet-stream"}
        )
        assert status == 200
        assert answer == body
        assert headers["content-length"] == str(size)


def test_many_large_bodies_at_once(fast: Served) -> None:
    """Bodies do not mix on the channel."""
    bodies = [bytes([n]) * 700_000 for n in range(12)]
    answers = in_parallel([lambda b=b: fast.ask("POST", "/echo", b)[2] for b in bodies])
    assert answers == bodies


def test_a_chunked_body_comes_as_a_plain_one(flask: Served) -> None:
    """WSGI reads by Content-Length: the server knows it by then."""
    connection = flask.connect()
    connection.request("POST", "/echo", iter([b"ab", b"cd"]), encode_chunked=True)
    assert connection.getresponse().read() == b"abcd"
    connection.close()


def test_a_file_of_a_form(fast: Served, flask: Served) -> None:
    """Multipart uploads, as browsers send them."""
    content = os.urandom(2_000_000)
    edge = "edge0815"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="who"\r\n\r\nAna\r\n'.encode(),
        f"--{edge}\r\nContent-Disposition: form-data;".encode(),
        b' name="file"; filename="a.bin"\r\n\r\n',
        content,
        f"\r\n--{edge}--\r\n".encode(),
    ]
    headers = {"content-type": f"multipart/form-data; boundary={edge}"}
    status, _, answer = fast.ask("POST", "/upload", b"".join(parts), headers)
    assert status == 200, answer
    assert json.loads(answer) == {
        "name": "a.bin",
        "size": len(content),
        "sum": sum(content) % 65_521,
    }
    status, _, answer = flask.ask("POST", "/form", b"".join(parts), headers)
    assert (status, json.loads(answer)["size"]) == (200, len(content))


def raw_headers(served: Served, method: str, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Ask and keep repeated headers apart."""
    connection = served.connect()
    connection.request(method, path, headers={"cookie": "x=1; y=2"})
    response = connection.getresponse()
    found = [(k.lower(), v) for k, v in response.getheaders()]
    body = response.read()
    connection.close()
    return response.status, found, body


def test_cookies_stay_apart(fast: Served, flask: Served) -> None:
    """Two cookies are two headers; those of the client arrive."""
    for served in (fast, flask):
        _, headers, _ = raw_headers(served, "GET", "/cookies")
        assert [v.split(";")[0] for k, v in headers if k == "set-cookie"] == ["a=1", "b=2"]
    assert json.loads(raw_headers(flask, "GET", "/cookies")[2]) == {"x": "1", "y": "2"}


def test_redirects_and_empty_answers(fast: Served, flask: Served) -> None:
    """307 with its place; 204 without a length; HEAD with the length but no body."""
    assert ask(fast, "GET", "/old")[0] == 307
    assert dict(raw_headers(flask, "GET", "/old")[1])["location"] == "/new"
    status, headers, body = raw_headers(fast, "DELETE", "/nothing")
    assert (status, body) == (204, b"")
    assert "content-length" not in dict(headers)
    status, headers, body = raw_headers(fast, "HEAD", "/head")
    assert (status, dict(headers)["content-length"], body) == (200, "5", b"")


def test_connections_are_kept_through_every_kind_of_answer(fast: Served) -> None:
    """Whole, streamed, empty and HEAD answers leave the connection fit for the next request."""
    connection = fast.connect()
    for method, path, size in (
        ("GET", "/stream?pieces=5", 50),
        ("HEAD", "/head", 0),
        ("DELETE", "/nothing", 0),
        ("GET", "/head", 5),
        ("GET", "/stream?pieces=2&size=600000", 1_200_000),
        ("GET", "/nowhere", len(b'{"detail":"Not Found"}')),
    ):
        connection.request(method, path)
        assert len(connection.getresponse().read()) == size, path
    connection.close()


def test_an_app_sees_the_request_as_it_came(fast: Served) -> None:
    """Path, query, client; no header that is the connection's own; the request's id."""
    _, headers, answer = fast.ask(
        "GET",
        "/about?a=1&b=%20",
        headers={"x-request-id": "mine", "te": "trailers", "proxy": "evil", "x-hop": "1",
                 "connection": "keep-alive, x-hop"},
    )  # fmt: skip
    seen = json.loads(answer)
    assert headers["x-request-id"] == "mine"
    assert (seen["path"], seen["query"], seen["client"]) == ("/about", "a=1&b=+", "127.0.0.1")
    assert "x-request-id" in seen["headers"]
    assert not {"te", "proxy", "x-hop", "connection"} & set(seen["headers"])


def test_a_wsgi_app_sees_the_request_as_it_came(flask: Served) -> None:
    """Paths in UTF-8; a header that an environ would confuse with another is left out."""
    _, _, answer = flask.ask("GET", "/about/a%20b/%C3%B1?q=%26", headers={"x_user": "root"})
    seen = json.loads(answer)
    assert (seen["rest"], seen["query"], seen["script"]) == ("a b/ñ", "q=%26", "")
    assert (seen["remote"], seen["user"]) == ("127.0.0.1", None)


def test_an_answer_without_end_reaches_the_client_piece_by_piece(fast: Served) -> None:
    """Events come while the application still works; it learns that the listener has left."""
    connection = fast.connect()
    connection.request("GET", "/events")
    response = connection.getresponse()
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.read(36) == b"data: tick\n\n" * 3
    connection.sock.close()  # type: ignore[union-attr]
    response.close()
    connection.close()
    fast.wait_for_line("events: the listener left")


def test_a_slow_reader_holds_up_only_itself(fast: Served) -> None:
    """The application waits for who does not read, in bounded memory; others are answered."""
    sock = socket.create_connection(("127.0.0.1", fast.port))
    sock.sendall(b"GET /stream?pieces=400&size=500000 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert sock.recv(10) == b"HTTP/1.1 2"
    assert ask(fast, "GET", "/about")[0] == 200
    in_flight = metric(fast, "muelle_app_in_flight")
    assert in_flight == 1, "200 MB went somewhere"
    sock.close()
    eventually(lambda: metric(fast, "muelle_app_in_flight") == 0)


def test_a_stream_to_an_old_client_ends_with_the_connection(fast: Served) -> None:
    """HTTP/1.0 knows no chunks."""
    with socket.create_connection(("127.0.0.1", fast.port)) as sock:
        sock.sendall(b"GET /stream?pieces=3&size=2 HTTP/1.0\r\nHost: a\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b"001122"


# --- whose path it is ---


def test_ours_stay_ours(fast: Served) -> None:
    """Predictions, health and metrics are never the application's; the rest is."""
    assert ask(fast, "GET", "/models/iris")[1]["name"] == "iris"
    assert ask(fast, "GET", "/v2/models/iris/ready")[0] == 200
    status, answer = ask(fast, "POST", "/models/iris/predict", {"instances": ROW})
    assert status == 200, answer
    for path in ("/live", "/livez", "/ready", "/readyz", "/healthz"):
        assert ask(fast, "GET", path)[0] == 200
    assert ask(fast, "GET", "/modelsandmore")[1] == {"detail": "Not Found"}


def test_our_pages_move_aside(fast: Served) -> None:
    """`/docs` is the application's own; ours are below `/muelle/`, and work there."""
    assert b"swagger" in fast.ask("GET", "/docs")[2].lower()
    assert ask(fast, "GET", "/openapi.json")[1]["info"]["title"] == "FastAPI"
    status, _, page = fast.ask("GET", "/muelle/docs")
    assert status == 200
    for address in re.findall(r'(?:src|href)="(docs/assets/[^"]+)"', page.decode()):
        assert fast.ask("GET", f"/muelle/{address}")[0] == 200
    assert "iris" in json.dumps(ask(fast, "GET", "/muelle/openapi.json")[1])
    status, answer = ask(fast, "POST", "/muelle/models/iris/predict", {"instances": ROW})
    assert status == 200, answer
    assert fast.ask("GET", "/muelle")[1]["location"] == "muelle/docs"


def test_an_app_below_a_path() -> None:
    """With `--app-path` only that folder is the application's, and it knows where it lives."""
    with Served(FLASK, iris(), "--app-path", "/shop") as served:
        status, answer = ask(served, "GET", "/shop/about/x")
        assert (status, answer["rest"], answer["script"]) == (200, "x", "/shop")
        assert ask(served, "GET", "/about/x")[0] == 404
        assert b"muelle" in served.ask("GET", "/docs")[2].lower()


# --- when it goes wrong ---


def test_an_error_of_the_app_is_in_the_log_only(fast: Served, flask: Served) -> None:
    """500 without a word of it; the log has it under the request's id."""
    for served in (fast, flask):
        status, headers, body = served.ask("GET", "/boom")
        assert status == 500
        assert b"secret" not in body
        assert b"Traceback" not in body
        line = served.wait_for_line(headers["x-request-id"])
        assert "/boom" in line
        served.wait_for_line("ValueError: the secret is 42")


def test_a_header_that_would_split_the_answer_is_refused(fast: Served) -> None:
    """Nothing of it reaches the client."""
    status, headers, _ = fast.ask("GET", "/evil")
    assert status == 500
    assert "set-cookie" not in headers


def test_a_stream_that_fails_is_seen_to_fail(fast: Served) -> None:
    """The connection ends without the last chunk: nobody takes the half for the whole."""
    with pytest.raises(http.client.IncompleteRead):
        fast.ask("GET", "/breaks")


def test_a_crash_leaves_the_model_unharmed() -> None:
    """502 for who was in it, 503 while nobody is there; the process comes back by itself."""
    with Served(FAST, iris()) as served:
        status, answer = ask(served, "GET", "/exit")
        assert (status, answer["code"]) == (502, "bad_gateway")
        status, answer = ask(served, "POST", "/models/iris/predict", {"instances": ROW})
        assert status == 200, answer
        served.wait_for_line("exit status 3")
        eventually(lambda: served.ask("GET", "/ready")[0] == 200)
        assert ask(served, "POST", "/sync", ROW)[0] == 200
        assert metric(served, "muelle_app_worker_restarts_total") == 1


def test_a_process_left_behind_does_not_hide_a_crash() -> None:
    """A child that the application forked has no part in the channel."""
    with Served(FAST, iris()) as served:
        assert ask(served, "GET", "/fork-and-exit")[0] == 502
        served.wait_for_line("exit status 4")


def test_memory_has_a_limit() -> None:
    """The request that wants too much fails; the application and the model go on."""
    with Served(FAST, iris(), "--app-memory-limit-mb", "1000") as served:
        assert served.ask("GET", "/hoard")[0] == 500
        assert ask(served, "POST", "/sync", ROW)[0] == 200


def test_without_a_worker_the_server_is_not_ready() -> None:
    """`/ready` says why; requests get 503 and when to come again."""
    with Served(FAST, iris()) as served:
        for _ in range(3):  # The pauses grow: the third is long enough to look at.
            assert ask(served, "GET", "/exit")[0] == 502
            eventually(lambda: served.ask("GET", "/ready")[0] == 200)
        ask(served, "GET", "/exit")
        status, _, body = served.ask("GET", "/ready")
        assert (status, b"fast.py:app" in body) == (503, True)
        status, headers, _ = served.ask("GET", "/")
        assert (status, headers["retry-after"]) == (503, "1")


def test_a_late_answer_is_an_error_in_time() -> None:
    """504 for the one that waits; the process goes on when it still answers pings, and one that
    does not is replaced."""
    with Served(FAST, iris(), "--app-timeout-s", "0.3") as served:
        pid = ask(served, "GET", "/")[1]["pid"]
        status, answer = ask(served, "GET", "/slow?seconds=60")
        assert (status, answer["code"]) == (504, "deadline_exceeded")
        assert ask(served, "GET", "/")[1]["pid"] == pid
        assert ask(served, "GET", "/block?seconds=600")[0] == 504
        served.wait_for_line("does not answer any more")
        eventually(lambda: served.ask("GET", "/ready")[0] == 200)
        assert ask(served, "GET", "/")[1]["pid"] != pid


def test_threads_that_hang_do_not_take_the_app_with_them(flask: Served) -> None:
    """When every thread of a WSGI process is late, the process is replaced."""
    pid = ask(flask, "GET", "/about/x")[1]["pid"]
    calls = [lambda: ask(flask, "GET", "/slow?seconds=600")[0]] * 2
    assert in_parallel(calls) == [504, 504]
    flask.wait_for_line("2 requests did not end in time")
    eventually(lambda: flask.ask("GET", "/ready")[0] == 200)
    assert ask(flask, "GET", "/about/x")[1]["pid"] != pid


def test_more_than_it_can_take_is_told_at_once() -> None:
    """Over `--app-concurrency`: 503 with Retry-After, and the others are answered."""
    with Served(FAST, iris(), "--app-concurrency", "2") as served:
        calls = [lambda: served.ask("GET", "/slow?seconds=1")] * 6
        answers = in_parallel(calls)
        refused = [headers for status, headers, _ in answers if status == 503]
        assert sorted(status for status, _, _ in answers) == [200] * 2 + [503] * 4
        assert {headers["retry-after"] for headers in refused} == {"1"}


def test_sigterm_lets_requests_finish() -> None:
    """What was accepted is answered, work after an answer is done, the lifespan ends in order."""
    with Served(FAST, iris()) as served:
        assert ask(served, "GET", "/later")[0] == 200
        connection = served.connect()
        connection.request("GET", "/slow?seconds=1")
        eventually(lambda: metric(served, "muelle_app_in_flight") >= 1)
        served.process.send_signal(signal.SIGTERM)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b'"done"')
        connection.close()
        assert served.process.wait(30) == 0
    log = "\n".join(served.log)
    assert "later: done" in log
    assert "lifespan: over" in log


def test_sigterm_ends_an_app_that_is_still_starting(tmp_path: Path) -> None:
    """It hears nothing while it is imported; nobody waits for it."""
    (tmp_path / "it.py").write_text("print('importing', flush=True)\nimport time; time.sleep(600)")
    words = [sys.executable, "-m", "muelle", "serve", "--port", "0", f"{tmp_path}/it.py:app"]
    with subprocess.Popen([*words, iris()], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "importing" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_same_app_runs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of `muelle serve`, in a test or another web server, a running server is asked."""
    from starlette.testclient import TestClient

    with Served(iris()) as served:
        monkeypatch.setenv("MUELLE_URL", f"http://127.0.0.1:{served.port}")
        from tests.apps.fast import app

        with TestClient(app) as client:
            for path in ("/sync", "/async"):
                answer = client.post(path, json=ROW)
                assert answer.status_code == 200
                assert as_the_model_says_of_row(answer.json()["outputs"])


def as_the_model_says_of_row(outputs: dict[str, Any]) -> bool:
    """Whether an answer to ROW is of the first kind of iris."""
    return outputs["label"] == [0] and outputs["probabilities"][0][0] > 0.9


def test_an_app_has_its_settings_but_not_the_servers() -> None:
    """Variables come through, but for those of Muelle itself."""
    env = {"SHOP_KEY": "k", "MUELLE_LOG_LEVEL": "info"}
    with Served(FAST, iris(), env=env) as served:
        names = ["SHOP_KEY", "MUELLE_LOG_LEVEL", "MUELLE_APP_CHANNEL", "PATH"]
        found = ask(served, "POST", "/settings", names)[1]
    assert found["SHOP_KEY"] == "k"
    assert found["PATH"]
    assert found["MUELLE_LOG_LEVEL"] is found["MUELLE_APP_CHANNEL"] is None


# --- starting ---


def test_an_app_alone(tmp_path: Path) -> None:
    """No model at all is a server, too."""
    (tmp_path / "hello.py").write_text(
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'http'\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'hello'})\n"
    )
    env = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with Served(f"{tmp_path}/hello.py:app", env=env) as served:
        assert served.ask("GET", "/")[2] == b"hello"
        assert served.ask("GET", "/ready")[0] == 200


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("app = 3", "app", "is an int, not an application"),
        ("import nosuchthing", "app", "No module named 'nosuchthing' (it.py:1)"),
        ("def f():\n    1 / 0\nf()", "app", "ZeroDivisionError: division by zero (it.py:2)"),
        ("from fastapi import FastAPI\nweb = FastAPI()", "app", "did you mean web?"),
        ("def make():\n    raise KeyError('db')", "make()", "KeyError: 'db' (it.py:2)"),
        ("def make():\n    pass", "make", "a factory is named with ()"),
        ("x = (", "app", "SyntaxError"),
        (
            "import contextlib, fastapi\n@contextlib.asynccontextmanager\nasync def l(app):\n"
            "    raise OSError('no database')\n    yield\napp = fastapi.FastAPI(lifespan=l)",
            "app",
            "no database (it.py:4)",
        ),
        ("import os\nos._exit(7)", "app", "exit status 7"),
    ],
)
def test_an_app_that_cannot_start_says_why(
    tmp_path: Path, source: str, name: str, says: str
) -> None:
    """One line that names the place; the server ends, as who started it waits for that."""
    (tmp_path / "it.py").write_text(source)
    with pytest.raises(AssertionError) as caught:
        Served(f"{tmp_path}/it.py:{name}", iris())
    lines = [line for line in str(caught.value).splitlines() if line.startswith("muelle:")]
    assert len(lines) == 1, caught.value
    assert says in lines[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a.py:app", "b.py:app"), "one application at a time"),
        (("nowhere.py:app",), "nowhere.py: no such file"),
        (("no.such.module:app",), "no module 'no'"),
        ((FAST, "--app-path", "shop"), "is not like / or /shop"),
        ((FAST, "--app-path", "/v2/x"), "/v2 is the server's own"),
    ],
)
def test_a_wrong_command_line_is_told(words: tuple[str, ...], says: str) -> None:
    """Before anything is served."""
    with pytest.raises(AssertionError, match=re.escape(says)):
        Served(*words)
