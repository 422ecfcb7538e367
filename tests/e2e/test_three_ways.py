"""The hottest way, the hot way and the comfortable way give the same answer to the same body.

Which way a request takes is chosen by its head alone: plain (JSON, kept open, nothing special),
with its own request id (whole codec), with `Content-Encoding: identity` (ASGI app).
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from tests.serving import Served

WAYS = (
    {"content-type": "application/json"},
    {"content-type": "application/json", "x-request-id": "mine"},
    {"content-type": "application/json", "content-encoding": "identity"},
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server with a model of one tensor, one with classes, and one with mixed columns."""
    one = models.quiet(models.xgboost_binary)
    classes = models.quiet(models.onnx_classifier)
    mixed = models.quiet(models.sklearn_mixed)
    with Served(f"one={one.path}", f"classes={classes.path}", f"mixed={mixed.path}") as server:
        yield server


@pytest.fixture(scope="module")
def examples(served: Served) -> dict[str, list[bytes]]:
    """For each prediction path, bodies that answer 200."""
    found = {}
    for name in ("one", "classes", "mixed"):
        for path, protocol in (
            (f"/models/{name}/predict", "native"),
            (f"/v2/models/{name}/infer", "v2"),
        ):
            status, _, body = served.ask("GET", f"/models/{name}/example?protocol={protocol}")
            assert status == 200, body
            found[path] = [body]
    return found


def ask_each_way(served: Served, path: str, body: bytes) -> list[tuple[int, str, bytes]]:
    """Send the body each way on a kept connection, the hottest twice: the second is cached."""
    results = []
    for headers in (WAYS[0], *WAYS):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        for _ in range(2):
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            text = re.sub(rb'("request_id": ?"|request id )[^",]*', rb"\1ID", response.read())
            seen = {
                k.lower(): v
                for k, v in response.getheaders()
                if k.lower() not in ("date", "x-request-id", "content-length")
            }
            results.append((response.status, json.dumps(seen, sort_keys=True), text))
        connection.close()
    return results


def test_examples_are_the_same_each_way(served: Served, examples: dict[str, list[bytes]]) -> None:
    """Every model's own example is answered 200 with the same bytes, whichever way it takes."""
    for path, bodies in examples.items():
        for body in bodies:
            results = ask_each_way(served, path, body)
            assert results[0][0] == 200, (path, body, results[0])
            assert all(result == results[0] for result in results), (path, body, results)


@settings(max_examples=60)
@given(
    cuts=st.tuples(st.integers(0, 2000), st.integers(0, 6), st.binary(max_size=6)),
    which=st.integers(0, 5),
)
def test_mutated_bodies_are_the_same_each_way(
    served: Served,
    examples: dict[str, list[bytes]],
    cuts: tuple[int, int, bytes],
    which: int,
) -> None:
    """A body with bytes removed and put in gets the same answer or the same error each way."""
    path = sorted(examples)[which]
    body = examples[path][0]
    at, length, put = cuts
    at %= len(body) + 1
    mutated = body[:at] + put + body[at + length :]
    results = ask_each_way(served, path, mutated)
    assert all(result == results[0] for result in results), (path, mutated, results)
    assert results[0][0] < 500, results[0]


def test_the_comparison_sees_a_difference(served: Served) -> None:
    """Negative control: two different bodies do give different results."""
    first = ask_each_way(served, "/v2/models/one/infer", b"{}")
    second = ask_each_way(served, "/v2/models/one/infer", b"[]")
    assert first[0] != second[0]
