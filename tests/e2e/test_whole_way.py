"""The whole way, nothing faked: train, save, an API around it, image, container, another container.

This is the diagram that people draw of an on-premise deployment, as a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import engines
from tests.serving import eventually

pytestmark = pytest.mark.slow

TRAIN = """
import joblib
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

x, y = load_wine(return_X_y=True)
model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, y)
joblib.dump(model, "wine.joblib")
print(x[::20].tolist())
print(model.predict_proba(x[::20]).tolist())
"""

FASTAPI = """
from fastapi import FastAPI
from pydantic import BaseModel

import muelle
from pricing import price_of

app = FastAPI(title="Cellar")
wine = muelle.model("wine")


class Bottles(BaseModel):
    bottles: list[list[float]]


@app.post("/judge")
def judge(bottles: Bottles):
    answer = wine.predict(bottles.bottles)
    best = answer["label"].tolist()
    return {"kinds": best, "chances": answer["probabilities"].tolist(),
            "prices": [price_of(kind) for kind in best]}
"""

FLASK = """
from flask import Flask, request

import muelle
from pricing import price_of

app = Flask(__name__)


@app.post("/judge")
def judge():
    answer = muelle.model("wine").predict(request.json["bottles"])
    best = answer["label"].tolist()
    return {"kinds": best, "chances": answer["probabilities"].tolist(),
            "prices": [price_of(kind) for kind in best]}
"""

ASK = """
import json, sys, urllib.request
body = sys.argv[2].encode()
request = urllib.request.Request(sys.argv[1], body, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[str]:
    """A Docker engine's address."""
    with engines.engine() as address:
        yield address


def run(folder: Path, *command: str, docker: str) -> str:
    """Run a command in the project's folder and return what it prints."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
    env |= {"DOCKER_HOST": docker, "MUELLE_LANG": "en"}
    env |= {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "source"), [("fastapi", FASTAPI), ("flask", FLASK)])
def test_from_training_to_another_container(
    kind: str, source: str, docker: str, tmp_path: Path
) -> None:
    """A model is trained and saved, an API is put around it, both become an image, and a client in
    another container on the same network gets the model's own numbers."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text(source)
    (folder / "pricing.py").write_text("def price_of(kind):\n    return 10 * (kind + 1)\n")
    (folder / ".env").write_text("PASSWORD=not-for-the-image\n")
    lines = run(folder, sys.executable, "-c", TRAIN, docker=docker).splitlines()
    bottles, chances = json.loads(lines[0]), json.loads(lines[1])
    muelle = (sys.executable, "-m", "muelle")
    store = ("--store", "store")
    run(folder, *muelle, "push", "wine.joblib", "--name", "wine", "--trust", *store, docker=docker)
    what = ("app.py:app", "wine@stable", "-t", f"muelle-test/{kind}:1", "--base", "host")
    built = json.loads(run(folder, *muelle, "build", *what, "--json", *store, docker=docker))
    client = engines.client(docker)
    network = client.networks.create(f"muelle-test-{kind}", internal=True)
    try:
        server = client.containers.run(
            built["name"], name=f"muelle-test-{kind}", network=network.name, detach=True,
            read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"],
            tmpfs={"/tmp": "size=16m"},
        )  # fmt: skip
        try:
            eventually(lambda: _is_healthy(server), 120)
            url = f"http://muelle-test-{kind}:8080/judge"
            said = client.containers.run(
                built["name"], ["-I", "-c", ASK, url, json.dumps({"bottles": bottles})],
                entrypoint=["/opt/muelle/bin/python3"], network=network.name, remove=True,
            )  # fmt: skip
            answer = json.loads(said)
            best = [max(range(3), key=row.__getitem__) for row in chances]
            assert answer["kinds"] == best
            assert answer["prices"] == [10 * (k + 1) for k in best]
            for got, wanted in zip(answer["chances"], chances, strict=True):
                assert got == pytest.approx(wanted, rel=1e-5)
            files = server.exec_run(
                ["/opt/muelle/bin/python3", "-I", "-c", "import os; print(os.listdir('/srv/app'))"]
            ).output.decode()
            assert "app.py" in files
            assert ".env" not in files
        finally:
            server.remove(force=True)
    finally:
        network.remove()
        client.images.remove(built["name"], force=True)


def _is_healthy(container: Any) -> bool:
    container.reload()
    assert container.status in ("created", "running"), container.logs().decode()
    health: str = container.attrs["State"]["Health"]["Status"]
    return health == "healthy"
