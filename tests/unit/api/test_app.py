"""The app's endpoints: statuses, forms of errors, headers; and that bodies go on as they came."""

from __future__ import annotations

import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from muelle.api.app import build_app
from tests.unit.api.served import MODELS, doors


@pytest.fixture(scope="module")
def client() -> TestClient:
    """A client of the app over all models."""
    return TestClient(build_app(doors()), follow_redirects=False)


def unready() -> TestClient:
    """A client of an app whose server is not ready."""
    return TestClient(build_app(doors(ready=lambda: (False, "iris: its worker restarts"))))


# --- native ---


def test_models_are_listed_without_what_is_nobody_s_business(client: TestClient) -> None:
    """GET /models has every model and version; process ids and large examples are left out."""
    told = client.get("/models").json()["models"]
    assert [model["name"] for model in told] == [model.name for model in MODELS]
    by_name = {model["name"]: model for model in told}
    assert by_name["churn"]["default"] == "2" and by_name["churn"]["ready"] is True
    assert by_name["sick"]["ready"] is False
    assert by_name["image.net"]["versions"][0]["example"] is None
    assert "pid" not in str(told)


def test_one_model_and_one_version(client: TestClient) -> None:
    """A model has its signature; int64 keeps every digit."""
    model = client.get("/models/churn").json()
    version = client.get("/models/churn/versions/1").json()
    assert version in model["versions"]
    assert [i["name"] for i in version["signature"]["inputs"]] == ["age", "city", "note"]
    assert version["example"]["age"] == [2**53 + 1]


@pytest.mark.parametrize(
    "path", ["/models/nope", "/models/iris/versions/9", "/nowhere", "/models/", "/docs/assets/x"]
)
def test_what_is_not_there_is_a_problem_with_404(client: TestClient, path: str) -> None:
    """Native errors are problem details with the request's id."""
    answer = client.get(path, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine-1"


def test_near_names_are_in_the_text(client: TestClient) -> None:
    """The door's text reaches the caller."""
    assert "near: iris" in client.get("/models/irs").json()["detail"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_tells_the_right_one(client: TestClient, method: str) -> None:
    """405 with Allow, in the form of the path's protocol."""
    native = client.request(method, "/models/iris/predict")
    assert native.status_code == 405 and native.headers["allow"] == "POST, OPTIONS"
    assert native.json()["code"] == "method_not_allowed"
    v2 = client.request(method, "/v2/models/iris/infer")
    assert v2.status_code == 405 and v2.json() == {"error": "Method Not Allowed"}


def test_head_and_options(client: TestClient) -> None:
    """HEAD is GET without its body; OPTIONS names the methods and does nothing."""
    head, get = client.head("/models/iris"), client.get("/models/iris")
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == str(len(get.content))
    options = client.options("/models/iris")
    assert options.status_code == 204 and "GET" in options.headers["allow"]
    assert options.content == b""


@pytest.mark.parametrize("given", ["", "a" * 129, "tab\there", "ümlaut".encode()])
def test_a_strange_request_id_is_not_echoed(client: TestClient, given: str | bytes) -> None:
    """An id that could break a log line is replaced by a fresh one; every answer has one."""
    for path in ("/models", "/v2", "/nowhere", "/metrics", "/docs"):
        told = client.get(path, headers={"X-Request-Id": given}).headers["x-request-id"]
        assert told != given and len(told) == 16


# --- health ---


def test_health_and_its_other_names(client: TestClient) -> None:
    """All usual names of the probes answer 200 with JSON."""
    for path in ("/live", "/livez", "/healthz", "/v2/health/live"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"live": True}), path
    for path in ("/ready", "/readyz", "/v2/health/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"ready": True}), path


def test_not_ready_is_503_and_in_v2_400() -> None:
    """Each protocol's own status, with the reason; liveness is not touched."""
    client = unready()
    for path, status in (("/ready", 503), ("/readyz", 503), ("/v2/health/ready", 400)):
        answer = client.get(path)
        assert answer.status_code == status, path
        assert answer.json() == {"ready": False, "reason": "iris: its worker restarts"}
        assert answer.headers["retry-after"] == "1"
    assert client.get("/live").status_code == 200


def test_metrics_come_as_prometheus_text(client: TestClient) -> None:
    """The content type is that of text format 0.0.4."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("up 1\n")


# --- v2 ---


def test_v2_metadata(client: TestClient) -> None:
    """Server and model metadata have the protocol's members."""
    server = client.get("/v2").json()
    assert server["name"] == "muelle" and "binary_tensor_data" in server["extensions"]
    assert client.get("/v2/models").json() == {"models": [m.name for m in MODELS]}
    model = client.get("/v2/models/churn").json()
    assert model["versions"] == ["2", "1"]
    assert model["inputs"][0] == {"name": "age", "datatype": "INT64", "shape": [-1]}
    assert client.get("/v2/models/churn/versions/1").json()["versions"] == ["1"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nope", 400),
        ("/v2/models/nope/ready", 400),
        ("/v2/models/iris/versions/9", 404),
        ("/v2/models/iris/versions/9/ready", 404),
        ("/v2/models/iris/versions/one", 400),
        ("/v2/models/sick", 503),
    ],
)
def test_v2_errors_have_triton_s_statuses(client: TestClient, path: str, status: int) -> None:
    """Unknown model 400, unknown version 404, not ready 503, all with the single member."""
    answer = client.get(path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_v2_model_readiness(client: TestClient) -> None:
    """200 with the protocol's body, 503 when the model is known and does not answer."""
    good, bad = client.get("/v2/models/iris/ready"), client.get("/v2/models/sick/ready")
    assert (good.status_code, good.json()) == (200, {"name": "iris", "ready": True})
    assert (bad.status_code, bad.json()) == (503, {"name": "sick", "ready": False})
    assert client.get("/v2/models/churn/versions/1/ready").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/models/iris/", "/v2/models/iris/ready/", "/v2/x", "/v2/models/a/b"]
)
def test_v2_paths_match_whole(client: TestClient, path: str) -> None:
    """A trailing slash or any other path is Triton's 404, not a redirect."""
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


# --- predictions ---


@pytest.mark.parametrize(
    "path",
    [
        "/models/iris/predict",
        "/models/iris/versions/1/predict",
        "/v2/models/iris/infer",
        "/v2/models/iris/versions/1/infer",
    ],
)
def test_predictions_go_through_the_door_as_they_came(client: TestClient, path: str) -> None:
    """Path, query, headers and body arrive whole; the answer's headers come back."""
    answer = client.post(
        f"{path}?outputs=a,b",
        content=b"\x00\xff" * 1000,
        headers=[
            ("Content-Type", "application/x-npy"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
            ("X-Request-Id", "r-7"),
        ],
    )
    assert answer.json() == {
        "method": "POST",
        "path": path,
        "query": "outputs=a,b",
        "type": "application/x-npy",
        "twice": "1, 2",
        "n_bytes": 2000,
        "request_id": "r-7",
        "big": 2**53 + 1,
    }
    assert answer.headers["muelle-model"] == "puppet"


def test_a_fault_of_ours_tells_nothing_but_the_id() -> None:
    """500 in the protocol's form, without a path, a traceback or the exception's text."""

    def broken() -> None:
        raise RuntimeError("/secret/path is at 0x7f00")

    client = TestClient(build_app(doors(answer=broken, models=broken)))
    for answer in (
        client.get("/models", headers={"X-Request-Id": "r-8"}),
        client.post("/v2/models/iris/infer", headers={"X-Request-Id": "r-8"}),
    ):
        assert answer.status_code == 500
        assert "secret" not in answer.text and "0x" not in answer.text
        assert "r-8" in answer.text


def test_an_example_predicts_as_it_stands(client: TestClient) -> None:
    """The example of each protocol is a whole body; what JSON cannot carry says so."""
    native = client.get("/models/churn/example").json()
    assert native["instances"][0]["age"] == 2**53 + 1
    v2 = client.get("/models/churn/versions/1/example?protocol=v2").json()
    assert v2["inputs"][0] == {
        "name": "age",
        "shape": [1],
        "datatype": "INT64",
        "data": [2**53 + 1],
    }
    assert client.get("/models/half/example?protocol=v2").status_code == 406
    assert client.get("/models/iris/example?protocol=v9").status_code == 400
    assert client.get("/models/sick/example").status_code == 503
    large = client.get("/models/image.net/example?protocol=v2").json()["inputs"][0]
    assert large["shape"] == [1, 3, 64, 64] and len(large["data"]) == 3 * 64 * 64


# --- pages ---


def test_the_root_leads_to_the_docs(client: TestClient) -> None:
    """The redirect is relative: it also works behind a proxy that adds a prefix."""
    answer = client.get("/")
    assert answer.status_code == 307 and answer.headers["location"] == "docs"


def test_importing_the_package_does_not_import_the_framework() -> None:
    """FastAPI takes half a second: only `api.app` may pull it in."""
    code = (
        "import sys, muelle.api.answers, muelle.api.openapi, muelle.api.page;"
        "sys.exit(any(m in sys.modules for m in ('fastapi', 'starlette', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
