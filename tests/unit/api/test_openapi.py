"""The OpenAPI document: valid 3.1, one typed operation per model, examples that are true."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from starlette.testclient import TestClient

from muelle.api.app import build_app
from muelle.api.openapi import describe
from tests.unit.api.served import IRIS, MODELS, doors, model, version


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document of all models."""
    return describe(MODELS, "0.0.test")


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    """The standard's own schema accepts it; a planted fault is found (negative control)."""
    OpenAPIV31SpecValidator(document).validate()
    broken = copy.deepcopy(document)
    del broken["paths"]["/models"]["get"]["responses"]
    broken["paths"]["/models"]["get"]["operationId"] = 7
    with pytest.raises(OpenAPIValidationError):
        OpenAPIV31SpecValidator(broken).validate()


def test_a_server_without_models_has_a_document() -> None:
    """Nothing is served yet, and the document is valid."""
    OpenAPIV31SpecValidator(describe((), "0.0.test")).validate()


def test_one_operation_per_model_version_and_protocol(document: dict[str, Any]) -> None:
    """Versions have their own when there are several; what never loaded has none."""
    predicts = {path for path in document["paths"] if path.endswith(("/predict", "/infer"))}
    assert predicts == {
        f"{prefix}/models/{name}/{verb}"
        for prefix, verb in (("", "predict"), ("/v2", "infer"))
        for name in (
            *("churn", "churn/versions/1", "churn/versions/2"),
            *("half", "image.net", "iris", "scalar"),
        )
    }
    for last in ("/generate", "/generate_stream"):
        generates = {path for path in document["paths"] if path.endswith(last)}
        # JSON cannot carry half floats, and generate knows nothing else.
        assert generates == {
            path.removesuffix("/infer") + last
            for path in predicts
            if path.endswith("/infer") and "half" not in path
        }


def test_operation_ids_are_unique_identifiers() -> None:
    """Names that differ in signs only stay apart."""
    models = (model("a.b", version(IRIS)), model("a-b", version(IRIS)), model("a", version(IRIS)))
    paths = describe(models, "1")["paths"]
    ids = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)


def test_examples_are_the_model_s_own(document: dict[str, Any]) -> None:
    """A small example is there; a large one has an address that answers."""
    iris = document["paths"]["/models/iris/predict"]["post"]["requestBody"]["content"]
    assert len(iris["application/json"]["example"]["instances"]) == 1
    image = document["paths"]["/models/image.net/predict"]["post"]["requestBody"]["content"]
    address = image["application/json"]["examples"]["one row"]["externalValue"]
    client = TestClient(build_app(doors()), base_url="http://test/")
    assert client.get(address).status_code == 200


def test_every_question_that_it_names_is_answered(document: dict[str, Any]) -> None:
    """No GET of the document is a 404 in the app, and statuses and types are those promised."""
    client = TestClient(build_app(doors()))
    for path, item in document["paths"].items():
        if "get" not in item:
            continue
        for name, number in (("iris", "1"), ("nope", "1"), ("iris", "9"), ("sick", "1")):
            answer = client.get(path.format(name=name, version=number))
            promised = item["get"]["responses"]
            assert str(answer.status_code) in promised, (path, answer.status_code)
            response = promised[str(answer.status_code)]
            if "$ref" in response:
                response = document["components"]["responses"][response["$ref"].split("/")[-1]]
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in response["content"], (path, kind)


def test_the_app_serves_it(document: dict[str, Any]) -> None:
    """GET /openapi.json is this document."""
    assert TestClient(build_app(doors())).get("/openapi.json").json() == document


def test_nothing_points_elsewhere(document: dict[str, Any]) -> None:
    """No address of another host stands in the document."""
    assert "://" not in str(document)
