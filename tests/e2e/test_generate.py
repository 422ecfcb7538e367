"""generate and generate_stream of real models, over httpx and over a raw socket."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import models
from tests.serving import CHAOS_MODEL, Served, eventually

PARROT = '''
import numpy as np
from muelle import Model, TensorSpec


class Parrot(Model):
    """Says it again, so many times: the form of a text generator."""

    inputs = (
        TensorSpec(name="text_input", datatype="BYTES", shape=(-1, 1)),
        TensorSpec(name="max_tokens", datatype="INT32", shape=(-1, 1), optional=True),
    )
    outputs = (TensorSpec(name="text_output", datatype="BYTES", shape=(-1, 1)),)
    example = {"text_input": ["hola"]}

    def predict(self, inputs):
        texts = inputs["text_input"]
        times = inputs.get("max_tokens")
        said = np.empty(texts.shape, dtype=object)
        for i, text in enumerate(texts[:, 0]):
            said[i, 0] = b" ".join([text] * (1 if times is None else int(times[i, 0])))
        return {"text_output": said}
'''


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A classifier, a text generator of a kind, and a model that fails or is slow on demand."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "parrot.py").write_text(PARROT)
    (folder / "chaos.py").write_text(CHAOS_MODEL)
    iris = models.quiet(models.onnx_classifier).path
    words = (f"iris={iris}", f"parrot={folder}/parrot.py", f"chaos={folder}/chaos.py")
    with Served(*words, "--trust", "--json-nan", "null") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/v2/models/", timeout=60) as found:
        yield found


def events(response: httpx.Response) -> list[Any]:
    """Read the events of a stream as a browser would."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    found, lines = [], list(response.iter_lines())
    assert lines[1::2] == [""] * len(lines[1::2])
    for line in lines[::2]:
        assert line.startswith("data: ")
        found.append(json.loads(line[6:]))
    return found


def streamed(client: httpx.Client, path: str, value: Any) -> tuple[int, list[Any]]:
    """Ask for a stream."""
    with client.stream("POST", path, json=value) as response:
        return response.status_code, events(response)


def metric(served: Served, protocol: str, outcome: str) -> float:
    """Return how many requests ended so."""
    text = served.ask("GET", "/metrics")[2].decode()
    lines = [x for x in text.splitlines() if f'protocol="{protocol}",outcome="{outcome}"' in x]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_an_ordinary_model_generates(client: httpx.Client) -> None:
    """The same numbers as `infer` gives, flat; by its name, and by name and version."""
    expected = models.onnx_classifier().expected
    rows = models.onnx_classifier().inputs["X"][:3]
    body = {"X": rows.ravel().tolist(), "id": "a", "parameters": {"seed": 7}}
    for prefix in ("iris", "iris/versions/1", "iri%73"):
        answer = client.post(f"{prefix}/generate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["muelle-model"] == "iris"
        value = answer.json()
        names = (value["id"], value["model_name"], value["model_version"])
        assert names == ("a", "iris", "1")
        status, found = streamed(client, f"{prefix}/generate_stream", body)
        assert (status, found) == (200, [value])
        for name, want in expected.items():
            assert np.allclose(np.reshape(value[name], want[:3].shape), want[:3], rtol=1e-5)


def test_the_form_of_a_text_generator(client: httpx.Client) -> None:
    """`text_input` and `parameters` in, `text_output` out: what clients of such models send."""
    body = {"text_input": 'a "b"\n', "parameters": {"max_tokens": 3, "temperature": 0.1}}
    assert client.post("parrot/generate", json=body).json() == {
        "model_name": "parrot",
        "model_version": "1",
        "text_output": 'a "b"\n a "b"\n a "b"\n',
    }
    body = {"text_input": "uno", "stream": True}
    assert streamed(client, "parrot/versions/1/generate_stream", body)[1] == [
        {"model_name": "parrot", "model_version": "1", "text_output": "uno"}
    ]


@pytest.mark.parametrize("last", ["generate", "generate_stream"])
def test_errors_before_the_model_runs_are_json(client: httpx.Client, last: str) -> None:
    """With the status of the protocol, whatever was asked for."""
    for name, content, headers, status, says in (
        ("parrot", b'{"text_input": 3}', {}, 400, "text_input"),
        ("parrot", b"{", {}, 400, "request body"),
        ("parrot", b'{"text_input":"a"}', {"content-encoding": "gzip"}, 400, "compressed"),
        ("parrot", b'{"text_input":"a"}', {"timeout-ms": "soon"}, 400, "timeout-ms"),
        ("nobody", b'{"text_input":"a"}', {}, 400, "nobody"),
        ("parrot/versions/9", b'{"text_input":"a"}', {}, 404, "9"),
    ):
        answer = client.post(f"{name}/{last}", content=content, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert says in answer.json()["error"]
    answer = client.get(f"parrot/{last}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")


def test_errors_of_the_model(client: httpx.Client) -> None:
    """JSON from generate; an event with the status from generate_stream. No path, no address."""
    body = {"x": 1.0, "command": 1}
    answer = client.post("chaos/generate", json=body)
    assert answer.status_code == 500
    status, found = streamed(client, "chaos/generate_stream", body)
    assert (status, found) == (500, [answer.json()])
    assert "the model failed" in found[0]["error"]
    assert client.post("chaos/generate", json={"x": 1.0, "command": 0}).json()["y"] == 3.0


def test_a_deadline_is_kept(client: httpx.Client) -> None:
    """The caller's own limit holds here, too."""
    headers = {"timeout-ms": "50"}
    slow = {"x": 1.0, "command": 400_000}
    answer = client.post("chaos/generate", json=slow, headers=headers)
    assert answer.status_code == 504


def test_who_leaves_is_dropped_before_it_runs(served: Served, client: httpx.Client) -> None:
    """Two wait behind a slow one and go away: the model never sees their rows."""
    before = client.post("chaos/generate", json={"x": 1.0, "command": 0}).json()["runs"]
    counted = {last: metric(served, last, "cancelled") for last in ("generate", "generate_stream")}
    slow = served.connect()
    slow.request("POST", "/v2/models/chaos/generate", b'{"x":1.0,"command":1500000}')
    for last in counted:
        with socket.create_connection(("127.0.0.1", served.port)) as sock:
            body = b'{"x":1.0,"command":0}'
            sock.sendall(
                b"POST /v2/models/chaos/%b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"
                % (last.encode(), len(body), body)
            )

            def queued() -> bool:
                text = served.ask("GET", "/metrics")[2].decode()
                found = re.findall(r'muelle_queue_depth\{model="chaos"[^}]*\} (\d+)', text)
                return bool(found) and int(found[0]) >= 1

            eventually(queued)
        eventually(lambda last=last: metric(served, last, "cancelled") == counted[last] + 1)  # type: ignore[misc]
    assert json.loads(slow.getresponse().read())["runs"] == before + 1
    slow.close()
    assert client.post("chaos/generate", json={"x": 1.0, "command": 0}).json()["runs"] == before + 2


def raw(served: Served, wire: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as sock:
        sock.sendall(wire)
        found = b""
        while chunk := sock.recv(65_536):
            found += chunk
    return found


def test_on_the_wire(served: Served) -> None:
    """Pipelined, chunked, and from an old client: answers in order, framed as each can read."""
    body = b'{"text_input":"a"}'
    path = b"POST /v2/models/parrot/generate_stream HTTP/1.1\r\nHost: h\r\n"
    one = path + b"Content-Length: %d\r\n\r\n" % len(body) + body
    two = path + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    last = path + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answer = raw(served, one + two + last)
    event = b'data: {"model_name":"parrot","model_version":"1","text_output":"a"}\n\n'
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == answer.count(event) == 3
    old = raw(served, one.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, rest = old.partition(b"\r\n\r\n")
    assert rest == event
    assert b"transfer-encoding" not in head.lower()


def test_limits_hold(tmp_path: Path) -> None:
    """A body over the limit, and nesting over the limit, are refused on these paths, too."""
    (tmp_path / "parrot.py").write_text(PARROT)
    settings = tmp_path / "muelle.toml"
    settings.write_text("[limits]\nbody_bytes = 2000\n")
    with Served(f"parrot={tmp_path}/parrot.py", "--trust", "--config", str(settings)) as served:
        for last in ("generate", "generate_stream"):
            path = f"/v2/models/parrot/{last}"
            big = json.dumps({"text_input": "x" * 3_000})
            assert served.ask("POST", path, big)[0] == 413
            deep = '{"text_input":' + "[" * 300 + "]" * 300 + "}"
            status, _, answer = served.ask("POST", path, deep)
            assert status == 400
            assert b"deeper" in answer
