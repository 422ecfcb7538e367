"""MLflow's folders through the store: pushed as they are, served, pulled out again unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_store_cli import Commands
from tests.serving import Served

os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})
pytestmark = pytest.mark.filterwarnings("ignore")


def iris() -> tuple[Any, Any]:
    """Return the iris table and its classes."""
    from sklearn.datasets import load_iris

    rows, classes = load_iris(return_X_y=True, as_frame=True)
    return rows, classes


def save(flavour: str, model: Any, folder: Path, requirements: list[str], **more: Any) -> None:
    """Save with MLflow: signature, input example and requirements as it writes them."""
    import importlib

    from mlflow.models import infer_signature

    rows, classes = iris()
    importlib.import_module(f"mlflow.{flavour}").save_model(
        model,
        str(folder),
        signature=infer_signature(rows, classes),
        input_example=rows.head(1),
        pip_requirements=requirements,
        **more,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a folder's files by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_folders_of_mlflow_are_pushed_and_served(tmp_path: Path) -> None:
    """scikit-learn as pickle (with --trust only) and XGBoost: the library's answers to the last
    digit that JSON carries, MLflow's columns and example, no environment of their own."""
    from sklearn.linear_model import LogisticRegression
    from xgboost import XGBClassifier

    rows, classes = iris()
    forest = LogisticRegression(max_iter=500).fit(rows, classes)
    boosted = XGBClassifier(n_estimators=3).fit(rows, classes)
    mlflow = ["mlflow==0.0.1", "numpy"]  # Of no weight: MLflow is not what loads them.
    save("sklearn", forest, tmp_path / "sk", mlflow, serialization_format="cloudpickle")
    save("xgboost", boosted, tmp_path / "xgb", [*mlflow, "xgboost"])
    muelle = Commands(tmp_path / "store")

    assert "--trust" in muelle.refused("push", tmp_path / "sk")
    muelle.ok("push", tmp_path / "sk", "--trust")
    muelle.ok("push", tmp_path / "xgb", "--name", "boosted")

    shown = muelle.json("show", "boosted")
    assert shown["format"] == "MLflow (XGBoost UBJSON)"
    assert "xgboost" in " ".join(shown["libraries"])
    assert not shown.get("environment")
    muelle.ok("export", "boosted:1", tmp_path / "out")
    wanted = files_of(tmp_path / "xgb")
    assert wanted.items() <= files_of(tmp_path / "out").items()
    with Served("--store", str(muelle.store), "--trust") as served:
        for name, model in (("sk", forest), ("boosted", boosted)):
            picked = rows.iloc[[3, 70, 140]]
            body = json.dumps({"instances": picked.to_dict("records")})
            status, _, answer = served.ask("POST", f"/models/{name}/predict", body)
            assert status == 200, answer
            predictions = json.loads(answer)["predictions"]
            assert [p["label"] for p in predictions] == model.predict(picked).tolist()
            np.testing.assert_allclose(
                [list(p["probabilities"].values()) for p in predictions],
                model.predict_proba(picked),
                rtol=1e-5,
                atol=1e-9,
            )


def test_a_custom_model_runs_in_its_worker(tmp_path: Path) -> None:
    """python_function in a worker's clean surroundings; MLflow leaves nothing behind there."""
    import mlflow.pyfunc
    import pandas
    from mlflow.models import infer_signature

    class Greeter(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return "hello " + model_input["name"]

    rows = pandas.DataFrame({"name": ["Ana"], "n": [1]})
    mlflow.pyfunc.save_model(
        str(tmp_path / "greeter"),
        python_model=Greeter(),
        signature=infer_signature(rows, ["hello Ana"]),
        input_example=rows,
        pip_requirements=["mlflow"],
    )
    before = files_of(tmp_path / "greeter")

    with Served(str(tmp_path / "greeter"), "--trust") as served:
        body = json.dumps({"instances": [{"name": "Bo", "n": 2}, {"name": "Zoë", "n": 3}]})
        status, _, answer = served.ask("POST", "/models/greeter/predict", body)

    assert status == 200, answer
    assert json.loads(answer)["predictions"] == ["hello Bo", "hello Zoë"]
    assert files_of(tmp_path / "greeter") == before
