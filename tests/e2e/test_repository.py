"""Several models and versions from one command, and several workers of one model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.serving import CHAOS_MODEL, Load, Served, chaos_body

SOURCE = """
from muelle import Model, TensorSpec


class Times(Model):
    inputs = (TensorSpec(name="x", datatype="FP64", shape=(-1,)),)
    outputs = (TensorSpec(name="y", datatype="FP64", shape=(-1,)),)

    def predict(self, inputs):
        return {"y": inputs["x"] * FACTOR}
"""


def test_a_folder_is_a_repository_of_versions(tmp_path: Path) -> None:
    """The newest version answers by default, each one by its number, and the answer says which."""
    for version, factor in ((1, 10), (2, 20), (10, 100)):
        folder = tmp_path / "models" / "times" / str(version)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(SOURCE.replace("FACTOR", str(factor)))
    single = tmp_path / "alone.py"
    single.write_text(SOURCE.replace("FACTOR", "7"))
    with Served(str(tmp_path / "models"), f"other={single}", "--trust") as served:

        def ask(path: str) -> tuple[str, float]:
            status, headers, body = served.ask("POST", path, '{"instances": [1.5]}')
            assert status == 200, body
            answer = json.loads(body)
            assert headers["muelle-version"] == answer["version"]
            return answer["version"], answer["predictions"][0]

        assert ask("/models/times/predict") == ("10", 150.0)
        assert ask("/models/times/versions/1/predict") == ("1", 15.0)
        assert ask("/models/times/versions/2/predict") == ("2", 30.0)
        assert ask("/models/other/predict") == ("1", 10.5)
        status, _, body = served.ask("POST", "/models/times/versions/3/predict", "[1]")
        assert status == 404
        assert "1, 2, 10" in json.loads(body)["detail"]
        status, _, body = served.ask("POST", "/models/tims/predict", "[1]")
        assert status == 404
        assert "times" in json.loads(body)["detail"]


def test_several_workers_share_the_load(tmp_path: Path) -> None:
    """With two workers one may die under load: the other goes on, and no request fails."""
    model = tmp_path / "chaos.py"
    model.write_text(CHAOS_MODEL)
    with Served(str(model), "--trust", "--workers", "2") as served:
        load = Load(served)
        load.wait_for(200)
        first, second = served.worker_pids()
        os.kill(first, signal.SIGKILL)
        load.wait_for(200)
        assert second in served.worker_pids()
        load.end()


def test_no_isolation_serves_from_a_thread(tmp_path: Path) -> None:
    """`--isolation none` answers without any worker process, and says so in the status."""
    model = tmp_path / "chaos.py"
    model.write_text(CHAOS_MODEL)
    with Served(str(model), "--trust", "--isolation", "none") as served:
        assert served.worker_pids() == []
        assert served.ask("POST", "/v2/models/chaos/infer", chaos_body(3))[0] == 200
        status, _, body = served.ask("GET", "/models/chaos")
        assert status == 200
        assert json.loads(body)["versions"][0]["isolation"] == "none"


def test_a_request_larger_than_a_batch_is_split(tmp_path: Path) -> None:
    """A thousand rows with batches of eight come back whole and in order."""
    model = tmp_path / "times.py"
    model.write_text(SOURCE.replace("FACTOR", "2"))
    with Served(str(model), "--trust", "--max-batch-size", "8") as served:
        rows = [float(n) for n in range(1000)]
        status, _, body = served.ask("POST", "/models/times/predict", json.dumps(rows))
        assert status == 200
        assert json.loads(body)["predictions"] == [2 * x for x in rows]
