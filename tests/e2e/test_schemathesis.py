"""schemathesis, from outside, against the OpenAPI document of a running server.

Whatever it makes up: no answer is a fault of the server, and each is one that the document tells.
Not for CSV, npy and Arrow bodies, whose rules JSON Schema cannot say: `test_formats` sends those.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models
from tests.serving import Served

CONFIG = """
seed = {seed}

[generation]
max-examples = {examples}
database = "none"

# A made-up `timeout-ms` of 1 is rightly answered 504: the document says so too.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]

# JSON Schema cannot say that tensors have as many rows as one another, nor as many elements as
# their shapes: a prediction that the document allows may be answered 400.
[[operations]]
include-tag = ["flowers", "people"]
checks.positive_data_acceptance.enabled = false
"""

HOOKS = """
import schemathesis


@schemathesis.hook
def filter_case(context, case):
    return case.media_type in (None, "application/json")
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server with a classifier of one tensor and one of named columns."""
    flowers, people = models.quiet(models.onnx_classifier), models.quiet(models.sklearn_mixed)
    with Served(f"flowers={flowers.path}", f"people={people.path}") as server:
        yield server


def run_schemathesis(
    location: str, folder: Path, *, examples: int, seed: int, limit_s: float, base: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run all checks and phases against a document, on its own, with no state kept."""
    (folder / "schemathesis.toml").write_text(CONFIG.format(examples=examples, seed=seed))
    (folder / "hooks.py").write_text(HOOKS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", location, "--no-color"]
    return subprocess.run(
        [*command, *(["--url", base] if base else [])],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def test_no_made_up_request_breaks_the_document(served: Served, tmp_path: Path) -> None:
    """Examples, boundary values, random and stateful cases: every check of schemathesis passes."""
    url = f"http://127.0.0.1:{served.port}/openapi.json"
    done = run_schemathesis(url, tmp_path, examples=10, seed=1, limit_s=110)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert "24 selected / 24 total" in done.stdout


def test_the_checks_see_a_document_that_lies(served: Served, tmp_path: Path) -> None:
    """Negative control: a wrong answer schema and a status that is not told are both found."""
    document = json.loads(served.ask("GET", "/openapi.json")[2])
    kept = "/models/flowers/predict"
    live = document["paths"]["/live"]
    live["get"]["responses"]["200"]["content"]["application/json"]["schema"] = {"type": "array"}
    del document["paths"][kept]["post"]["responses"]["400"]
    document["paths"] = {"/live": live, kept: document["paths"][kept]}
    (tmp_path / "lies.json").write_text(json.dumps(document))
    done = run_schemathesis(
        "lies.json",
        tmp_path,
        examples=5,
        seed=1,
        limit_s=110,
        base=f"http://127.0.0.1:{served.port}",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Response violates schema" in done.stdout
    assert "Undocumented status code" in done.stdout, done.stdout
