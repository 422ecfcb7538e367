"""Applications under Muelle's roof: real FastAPI and Flask, real models, real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.serving import Served, eventually, in_parallel

APPS = Path(__file__).parents[1] / "apps"
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]]


@pytest.fixture(scope="module")
def flowers() -> str:
    """The model beside the applications, as an argument of `serve`."""
    return f"flowers={models.quiet(models.onnx_classifier).path}"


@pytest.fixture(scope="module")
def shop(flowers: str) -> Iterator[Served]:
    """A FastAPI application and a model."""
    with Served(f"{APPS}/shop.py:app", flowers) as served:
        yield served


@pytest.fixture(scope="module")
def till(flowers: str) -> Iterator[Served]:
    """A Flask application, made by its factory, in two processes."""
    args = (f"{APPS}/till.py:create_app()", flowers, "--app-workers", "2")
    with Served(*args) as served:
        yield served


def ask(served: Served, method: str, path: str, value: Any = None) -> tuple[int, Any]:
    """Ask with and for JSON."""
    body = None if value is None else json.dumps(value)
    status, _, answer = served.ask(method, path, body, {"content-type": "application/json"})
    return status, json.loads(answer)


def labels_of(served: Served) -> list[int]:
    """Return what the model itself answers, asked directly."""
    status, answer = ask(served, "POST", "/models/flowers/predict", {"instances": ROWS})
    assert status == 200
    return [one["label"] for one in answer["predictions"]]


@pytest.mark.parametrize("path", ["/score", "/score-async"])
def test_a_fastapi_app_answers_with_the_model(shop: Served, path: str) -> None:
    """Sync and async endpoints of the application get the model's own answers."""
    status, answer = ask(shop, "POST", path, {"rows": ROWS})
    assert (status, answer["labels"]) == (200, labels_of(shop))


def test_a_flask_app_answers_with_the_model(till: Served) -> None:
    """A WSGI application too, from any of its processes and threads."""
    expected = labels_of(till)
    calls = [lambda: ask(till, "POST", "/score", {"rows": ROWS}) for _ in range(24)]
    assert in_parallel(calls) == [(200, {"labels": expected})] * 24


def test_requests_of_an_app_share_batches(shop: Served) -> None:
    """What the application asks at the same time is batched, as what clients ask is."""

    def batches() -> tuple[int, int]:
        text = shop.ask("GET", "/metrics")[2].decode()
        asked = re.search(
            r'muelle_requests_total\{[^}]*protocol="local",outcome="ok"[^}]*\} (\d+)', text
        )
        asked = asked or re.search(r'outcome="ok"[^}]*protocol="local"[^}]*\} (\d+)', text)
        ran = re.search(r"muelle_batch_size_count\{[^}]*\} (\d+)", text)
        assert asked is not None, [x for x in text.splitlines() if "requests_total" in x]
        assert ran is not None, [x for x in text.splitlines() if "batch" in x]
        return int(asked[1]), int(ran[1])

    asked_before, ran_before = batches()
    for _ in range(20):
        calls = [lambda: ask(shop, "POST", "/score-async", {"rows": ROWS}) for _ in range(32)]
        assert {status for status, _ in in_parallel(calls)} == {200}
        asked, ran = batches()
        if ran - ran_before < asked - asked_before:
            return
    raise AssertionError("640 requests, and no two of them shared a batch")


def test_errors_of_a_model_are_exceptions_in_the_app(shop: Served) -> None:
    """A model that is not there, inputs that do not fit: the client's own exceptions."""
    status, answer = ask(shop, "POST", "/refused", {"rows": ROWS})
    assert (status, answer["kind"]) == (200, "ModelNotFound")
    assert "no-such-model" in answer["error"]


def test_waiting_inside_a_coroutine_works_and_is_warned_of(shop: Served) -> None:
    """A sync call where it holds up the others is answered; the log says what to write instead."""
    status, answer = ask(shop, "POST", "/score-wrongly", {"rows": ROWS})
    assert (status, answer) == (200, None)
    eventually(lambda: any("await model.predict_async" in line for line in shop.log))


def test_ours_and_theirs(shop: Served) -> None:
    """The application has its own docs; protocols and probes stay ours; our docs move."""
    assert ask(shop, "GET", "/")[1]["shop"] == "open"
    assert ask(shop, "GET", "/openapi.json")[1]["info"]["title"] == "Shop"
    assert "flowers" in json.dumps(ask(shop, "GET", "/muelle/openapi.json")[1])
    assert shop.ask("GET", "/muelle/docs")[0] == 200
    assert ask(shop, "GET", "/v2/models/flowers")[0] == 200
    assert ask(shop, "GET", "/ready") == (200, {"ready": True})
    assert ask(shop, "GET", "/nowhere")[1] == {"detail": "Not Found"}


def test_http_goes_through_whole(shop: Served) -> None:
    """Bodies, uploads, streams, redirects, cookies twice, odd statuses, request ids."""
    body = os.urandom(5_000_000)
    status, headers, answer = shop.ask("POST", "/echo", body)
    assert (status, answer == body, headers["x-len"]) == (200, True, "5000000")
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        + b"z" * 100_000
        + b"\r\n--x--\r\n"
    )
    status, _, answer = shop.ask(
        "POST", "/upload", form, {"content-type": "multipart/form-data; boundary=x"}
    )
    assert json.loads(answer) == {"name": "a.bin", "size": 100_000}
    status, _, answer = shop.ask("GET", "/stream")
    assert answer.decode().splitlines() == [f"line {i}" for i in range(1000)]
    status, headers, _ = shop.ask("GET", "/go")
    assert (status, headers["location"]) == (302, "/cookies")
    assert shop.ask("GET", "/teapot")[0] == 418
    status, headers, _ = shop.ask("GET", "/headers", None, {"x-request-id": "abc-1"})
    assert (headers["x-mine"], headers["x-seen"]) == ("yes", "abc-1")
    assert headers["x-request-id"] == "abc-1"
    status, headers, answer = shop.ask("HEAD", "/chatty?n=10")
    assert (status, answer) in ((200, b""), (405, b""))


def test_chunked_bodies_arrive(shop: Served, till: Served) -> None:
    """A body of unknown length reaches both kinds of application whole."""
    for served, path in ((shop, "/echo"), (till, "/size")):
        connection = served.connect()
        pieces = (b"x" * 1000 for _ in range(50))
        connection.request("POST", path, pieces, encode_chunked=True,
                           headers={"transfer-encoding": "chunked"})  # fmt: skip
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == 200, body
        assert body == b"x" * 50_000 or json.loads(body) == {"size": 50_000}


def test_what_the_lifespan_keeps_reaches_requests(shop: Served) -> None:
    """The state that an application makes at its start is there in each request."""
    assert ask(shop, "GET", "/state")[1] == {"opened": "at nine"}


def test_two_cookies_stay_two(shop: Served, till: Served) -> None:
    """`set-cookie` may come several times; joining them would break both."""
    for served in (shop, till):
        connection = served.connect()
        connection.request("GET", "/cookies")
        response = connection.getresponse()
        response.read()
        found = [value.split(";")[0] for name, value in response.getheaders()
                 if name.lower() == "set-cookie"]  # fmt: skip
        connection.close()
        assert found == ["a=1", "b=2"]


@pytest.mark.parametrize("which", ["shop", "till"])
def test_an_app_that_raises(which: str, request: pytest.FixtureRequest) -> None:
    """The caller gets 500 without a traceback; the log has it."""
    served: Served = request.getfixturevalue(which)
    status, _, answer = served.ask("GET", "/raise")
    assert status == 500
    assert b"till is empty" not in answer
    assert b"Traceback" not in answer
    eventually(lambda: any("till is empty" in line for line in served.log))


def test_metrics_of_the_app(shop: Served) -> None:
    """Requests by class, their times, processes: no label comes from a caller."""
    ask(shop, "GET", "/nowhere/at/all/" + "x" * 50)
    text = shop.ask("GET", "/metrics")[2].decode()
    assert re.search(r'muelle_app_requests_total\{code="404"\} [1-9]', text)
    assert re.search(r"muelle_app_request_duration_seconds_count [1-9]", text)
    assert "nowhere" not in text


def test_a_process_that_dies_comes_back(flowers: str) -> None:
    """`os._exit` in the application: 502 for that request, the models go on, and it returns."""
    with Served(f"{APPS}/shop.py:app", flowers) as served:
        first = ask(served, "GET", "/")[1]["pid"]
        assert served.ask("GET", "/die")[0] == 502
        assert ask(served, "POST", "/models/flowers/predict", {"instances": ROWS})[0] == 200

        def is_back() -> bool:
            status, _, answer = served.ask("GET", "/")
            return status == 200 and json.loads(answer)["pid"] != first

        eventually(is_back)
        assert ask(served, "POST", "/score", {"rows": ROWS})[1]["labels"] == labels_of(served)
        text = served.ask("GET", "/metrics")[2].decode()
        assert "muelle_app_worker_restarts_total 1" in text


def test_slow_and_hung_requests(flowers: str) -> None:
    """A slow request gets 504 and harms nobody; a loop that hangs is replaced."""
    args = (f"{APPS}/shop.py:app", flowers, "--app-timeout-s", "0.5")
    with Served(*args) as served:
        first = ask(served, "GET", "/")[1]["pid"]
        assert served.ask("GET", "/slow?seconds=30")[0] == 504
        assert ask(served, "GET", "/")[1]["pid"] == first
        assert served.ask("GET", "/block?seconds=60")[0] == 504

        def replaced() -> bool:
            status, _, answer = served.ask("GET", "/")
            return status == 200 and json.loads(answer)["pid"] != first

        eventually(replaced, 30)


def test_threads_that_hang_are_replaced(flowers: str) -> None:
    """When every thread of a WSGI process hangs, the process is replaced and answers again."""
    args = (f"{APPS}/till.py:app", flowers, "--app-threads", "2", "--app-timeout-s", "0.5")
    with Served(*args) as served:
        first = ask(served, "GET", "/")[1]["pid"]
        calls = [lambda: served.ask("GET", "/hang")[0] for _ in range(2)]
        assert set(in_parallel(calls)) <= {502, 504}

        def replaced() -> bool:
            status, _, answer = served.ask("GET", "/")
            return status == 200 and json.loads(answer)["pid"] != first

        eventually(replaced, 30)


def test_too_many_at_a_time_are_told_so(flowers: str) -> None:
    """Above the limit the answer is 503 with Retry-After, at once."""
    with Served(f"{APPS}/shop.py:app", flowers, "--app-concurrency", "2") as served:
        calls = [lambda: served.ask("GET", "/slow?seconds=0.5") for _ in range(6)]
        answers = in_parallel(calls)
        assert sorted(status for status, _, _ in answers) == [200, 200, 503, 503, 503, 503]
        assert all(h["retry-after"] for status, h, _ in answers if status == 503)


def test_stopping_lets_requests_end(flowers: str, tmp_path: Path) -> None:
    """SIGTERM: what runs is answered, the lifespan is ended, no process is left."""
    marks = tmp_path / "marks"
    with Served(f"{APPS}/shop.py:app", flowers, env={"SHOP_MARKS": str(marks)}) as served:
        pid = ask(served, "GET", "/")[1]["pid"]
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(served.ask("GET", "/slow?seconds=1")[0])
        )
        thread.start()

        def under_way() -> bool:
            return b"muelle_app_in_flight 1" in served.ask("GET", "/metrics")[2]

        eventually(under_way)
        served.process.send_signal(signal.SIGTERM)
        thread.join(30)
        assert served.process.wait(30) == 0
        assert answers == [200]
        assert marks.read_text().split() == ["started", "stopped"]
        assert not Path(f"/proc/{pid}").exists()


def test_an_app_alone(tmp_path: Path) -> None:
    """No model and no store: the application is served by itself, and is ready."""
    (tmp_path / "alone.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http':\n"
        "        raise ValueError(scope['type'])\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'alone'})\n"
    )
    with Served(f"{tmp_path}/alone.py:app", env={"XDG_DATA_HOME": str(tmp_path)}) as served:
        assert served.ask("GET", "/anything")[2] == b"alone"
        assert served.ask("GET", "/ready")[0] == 200


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("import nosuchmodule\n", "bad.py:app", "No module named 'nosuchmodule' (bad.py:1)"),
        ("x = = 1\n", "bad.py:app", "SyntaxError"),
        ("application = 1\n", "bad.py:aplication", "did you mean application?"),
        ("app = 1\n", "bad.py:app", "not an application"),
        ("def app(a):\n    pass\n", "bad.py:app", "neither ASGI"),
        ("def app():\n    raise ValueError('no config')\n", "bad.py:app()", "no config"),
        ("import os\nos._exit(3)\n", "bad.py:app", "exit status 3"),
        ("", "none.py:app", "no such file"),
    ],
)
def test_an_app_that_cannot_be_loaded(tmp_path: Path, source: str, target: str, words: str) -> None:
    """The server does not start, and one line says what and where."""
    (tmp_path / "bad.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "muelle", "serve", target, "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "MUELLE_LANG": "en"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("muelle: ")
    assert words in last
