"""MLflow's folders, saved by MLflow itself: the same answers, names and examples; no trust."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.runtimes.interface import Format, LoadedModel, LoadOptions
from muelle.runtimes.mlflow import RUNTIME
from muelle.runtimes.registry import Registry, missing_libraries, missing_message

os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})
pytestmark = pytest.mark.filterwarnings("ignore")

COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]])


def iris() -> tuple[Any, Any]:
    """Return the iris table with columns whose names have spaces, and the classes."""
    from sklearn.datasets import load_iris

    rows, classes = load_iris(return_X_y=True, as_frame=True)
    return rows.set_axis(COLUMNS, axis=1), classes


def frame(rows: Any = ROWS) -> Any:
    """Return rows as the frame that the models were trained on."""
    import pandas

    return pandas.DataFrame(rows, columns=COLUMNS)


def save(flavour: str, model: Any, folder: Path, **more: Any) -> None:
    """Save with MLflow, with signature and example, and without looking for requirements."""
    import importlib

    from mlflow.models import infer_signature

    rows, classes = iris()
    module = importlib.import_module(f"mlflow.{flavour}")
    given = {"signature": infer_signature(rows, classes), "input_example": rows.head(2), **more}
    module.save_model(model, str(folder), pip_requirements=["numpy"], **given)


def sklearn_skops(folder: Path) -> Any:
    """scikit-learn, as MLflow saves it by itself."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500).fit(*iris())
    save("sklearn", model, folder, serialization_format="skops")
    return model.predict(frame()), model.predict_proba(frame())


def sklearn_cloudpickle(folder: Path) -> Any:
    """scikit-learn, as older releases of MLflow saved it."""
    from sklearn.tree import DecisionTreeClassifier

    model = DecisionTreeClassifier(max_depth=3, random_state=0).fit(*iris())
    save("sklearn", model, folder, serialization_format="cloudpickle")
    return model.predict(frame()), model.predict_proba(frame())


def xgboost_classifier(folder: Path) -> Any:
    """XGBoost's scikit-learn wrapper, which is saved as its booster."""
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=3).fit(*iris())
    save("xgboost", model, folder)
    return model.predict(frame()), model.predict_proba(frame())


def xgboost_json(folder: Path) -> Any:
    """A booster trained on plain numbers: only MLflow knows the columns' names."""
    from xgboost import XGBClassifier

    rows, classes = iris()
    model = XGBClassifier(n_estimators=3).fit(rows.values, classes)
    save("xgboost", model.get_booster(), folder, model_format="json", input_example=ROWS[:1])
    return model.predict(ROWS), model.predict_proba(ROWS)


def lightgbm_booster(folder: Path) -> Any:
    """LightGBM's text model."""
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(n_estimators=3, verbose=-1).fit(*iris())
    save("lightgbm", model.booster_, folder)
    return model.predict(frame()), model.predict_proba(frame())


def lightgbm_wrapper(folder: Path) -> Any:
    """LightGBM's scikit-learn wrapper, which is a skops file."""
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(n_estimators=3, verbose=-1).fit(*iris())
    save("lightgbm", model, folder)
    return model.predict(frame()), model.predict_proba(frame())


def catboost_classifier(folder: Path) -> Any:
    """CatBoost."""
    from catboost import CatBoostClassifier

    rows, classes = iris()
    model = CatBoostClassifier(iterations=3, verbose=0, allow_writing_files=False)
    model.fit(rows, classes)
    save("catboost", model, folder)
    return model.predict(frame()).reshape(-1), model.predict_proba(frame())


def onnx_classifier(folder: Path) -> Any:
    """ONNX, made of scikit-learn."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows, classes = iris()
    model = LogisticRegression(max_iter=500).fit(rows.values, classes)
    graph = to_onnx(model, ROWS[:1].astype(np.float32), options={"zipmap": False})
    save("onnx", graph, folder)
    return model.predict(ROWS), model.predict_proba(ROWS)


NATIVE: dict[str, tuple[Callable[[Path], Any], str, bool]] = {
    "sklearn_skops": (sklearn_skops, "MLflow (scikit-learn skops)", False),
    "sklearn_cloudpickle": (sklearn_cloudpickle, "MLflow (scikit-learn pickle)", True),
    "xgboost_classifier": (xgboost_classifier, "MLflow (XGBoost UBJSON)", False),
    "xgboost_json": (xgboost_json, "MLflow (XGBoost JSON)", False),
    "lightgbm_booster": (lightgbm_booster, "MLflow (LightGBM text)", False),
    "lightgbm_wrapper": (lightgbm_wrapper, "MLflow (scikit-learn skops)", False),
    "catboost_classifier": (catboost_classifier, "MLflow (CatBoost)", False),
    "onnx_classifier": (onnx_classifier, "MLflow (ONNX)", False),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Return a folder by name, saved once, and what the library itself answers to ROWS."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp("mlflow") / name
            made[name] = (folder, NATIVE[name][0](folder))
        return made[name]

    return get


def find(folder: Path) -> tuple[Format, LoadOptions]:
    """Return the folder's format, and the options of a load that was decided upon it."""
    runtime, form = Registry().find_format(folder)
    assert runtime is RUNTIME
    return form, LoadOptions(format=form.name)


def load(folder: Path) -> LoadedModel:
    """Load a folder as the server does."""
    return RUNTIME.load(folder, find(folder)[1])


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_flavour_answers_as_its_library(
    name: str, saved: Callable[[str], tuple[Path, Any]]
) -> None:
    """Label and probabilities are the library's own; columns and example are those of MLflow."""
    folder, (labels, probabilities) = saved(name)
    form, options = find(folder)
    assert (form.name, form.runs_code) == NATIVE[name][1:]
    model = RUNTIME.load(folder, options)

    (spec,) = model.signature.inputs
    assert spec.columns == tuple(COLUMNS)
    assert spec.datatype == ("FP32" if name == "onnx_classifier" else "FP64")
    assert model.example is not None
    expected = ROWS[:1] if name == "xgboost_json" else iris()[0].values[:1]
    np.testing.assert_allclose(model.example[spec.name], expected, rtol=1e-6)
    answer = model.run({spec.name: ROWS.astype(model.example[spec.name].dtype)})
    by_role = {s.role: answer[s.name] for s in model.signature.outputs}
    assert by_role["label"].tolist() == labels.tolist()
    np.testing.assert_allclose(by_role["probabilities"], probabilities, rtol=1e-5, atol=1e-6)
    assert model.info["mlflow"]["flavour"] in name
    assert "warnings" not in model.info
    model.close()


def test_a_stated_type_of_all_columns_is_the_tensors(tmp_path: Path) -> None:
    """Whole numbers stay whole numbers for the caller, and answers stay the library's."""
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    rows = frame((ROWS * 10).astype(np.int64))
    model = LinearRegression().fit(rows, [1.0, 2.0, 3.0])
    save("sklearn", model, tmp_path / "m", signature=infer_signature(rows), input_example=rows)

    loaded = load(tmp_path / "m")

    assert loaded.signature.inputs[0].datatype == "INT64"
    answer = loaded.run({"x": rows.values})
    np.testing.assert_allclose(answer["predictions"], [1.0, 2.0, 3.0])


def test_columns_of_strings_are_tensors_of_their_own(tmp_path: Path) -> None:
    """A table with text: a tensor per column, with MLflow's types; spaces in LightGBM's names."""
    import lightgbm
    import pandas
    from mlflow.models import infer_signature

    rows = pandas.DataFrame(
        {"the city": pandas.Categorical(["Vigo", "León"] * 40), "the age": range(80)}
    )
    model = lightgbm.LGBMRegressor(n_estimators=5, min_child_samples=5, verbose=-1)
    model.fit(rows, np.arange(80) + (rows["the city"] == "Vigo") * 100)
    signature = infer_signature(rows.astype({"the city": str, "the age": "int32"}))
    example = rows.astype({"the city": str, "the age": "int32"}).head(1)
    save("lightgbm", model.booster_, tmp_path / "m", signature=signature, input_example=example)

    loaded = load(tmp_path / "m")

    assert [s.describe() for s in loaded.signature.inputs] == ["BYTES [-1]", "INT32 [-1]"]
    assert [s.name for s in loaded.signature.inputs] == ["the city", "the age"]
    assert loaded.example is not None
    assert loaded.example["the city"].tolist() == [b"Vigo"]
    answer = loaded.run(
        {
            "the city": np.array([b"Vigo", "León".encode()], dtype=object),
            "the age": np.array([4, 9], dtype=np.int32),
        }
    )
    expected = model.predict(rows.iloc[[4, 9]])
    np.testing.assert_allclose(answer["predictions"], expected)


def test_a_signature_of_other_columns_is_told_and_not_used(
    saved: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """The model's own names stand, and the contradiction is a warning."""
    folder = copy(saved("xgboost_classifier")[0], tmp_path)
    edit(folder, "sepal width", "width of sepal")

    model = load(folder)

    assert model.signature.inputs[0].columns == tuple(COLUMNS)
    assert any("width of sepal" in text for text in model.info["warnings"])


@pytest.mark.parametrize(
    ("content", "message"), [("[[1, 2]]", "shape"), ("[[1", "cannot be read"), ("{}", "length")]
)
def test_a_bad_input_example_does_not_hinder(
    content: str, message: str, saved: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """The runtime's own example takes its place, and a warning says so."""
    folder = copy(saved("sklearn_skops")[0], tmp_path)
    (folder / "input_example.json").write_text(content)

    model = load(folder)

    assert model.example is not None
    assert model.example["x"].shape == (1, 4)
    assert "input example" in model.info["warnings"][0]


# --- python_function ---


def save_pyfunc(folder: Path, predict: Callable[[Any], Any], example: Any, **more: Any) -> None:
    """Save a custom Python model."""
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    class Custom(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return predict(model_input)

    Custom.predict.__annotations__ = {}  # MLflow checks requests against hints that it knows.
    given = {"signature": infer_signature(example, predict(example)), **more}
    mlflow.pyfunc.save_model(
        str(folder), python_model=Custom(), pip_requirements=["numpy"], **given
    )


def test_a_custom_model_runs_by_mlflow(tmp_path: Path) -> None:
    """Texts, times and numbers come as its signature says; a frame's columns are the outputs."""
    import pandas

    rows = pandas.DataFrame(
        {
            "name": ["a", "b"],
            "when": pandas.to_datetime(["2026-03-01", "2025-01-02"]),
            "n": np.array([1, 2], dtype=np.int64),
        }
    )

    def predict(given: Any) -> Any:
        import pandas

        return pandas.DataFrame(
            {"text": given["name"] + "!", "year": given["when"].dt.year + given["n"]}
        )

    save_pyfunc(tmp_path / "m", predict, rows, input_example=rows)
    form, options = find(tmp_path / "m")
    assert form.runs_code
    model = RUNTIME.load(tmp_path / "m", options)

    assert {s.name: s.describe() for s in model.signature.inputs} == {
        "name": "BYTES [-1]",
        "when": "BYTES [-1]",
        "n": "INT64 [-1]",
    }
    assert [s.name for s in model.signature.outputs] == ["text", "year"]
    assert model.example is not None
    answer = model.run(model.example)
    assert (answer["text"].tolist(), answer["year"].tolist()) == ([b"a!"], [2027])
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_custom_model_of_tensors(tmp_path: Path) -> None:
    """A tensor signature comes as an array; one array out is called `predictions`."""

    def predict(given: Any) -> Any:
        return given.sum(axis=(1, 2))

    save_pyfunc(tmp_path / "m", predict, np.ones((2, 3, 4), dtype=np.float32))
    model = load(tmp_path / "m")

    assert [s.describe() for s in model.signature.inputs] == ["FP32 [-1, 3, 4]"]
    answer = model.run({"x": np.ones((5, 3, 4), dtype=np.float32)})
    assert answer["predictions"].tolist() == [12.0] * 5


def test_a_custom_model_of_numbers_is_one_table(tmp_path: Path) -> None:
    """Columns of one type are the tensor x, and come by their names."""

    def predict(given: Any) -> Any:
        return given["petal width"] * 2

    save_pyfunc(tmp_path / "m", predict, frame())
    model = load(tmp_path / "m")

    assert model.signature.inputs[0].columns == tuple(COLUMNS)
    answer = model.run({"x": ROWS})
    np.testing.assert_allclose(next(iter(answer.values())), ROWS[:, 3] * 2)


def test_a_custom_model_needs_a_signature_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a signature nobody knows what it takes; without MLflow nobody can run it."""
    save_pyfunc(tmp_path / "bare", lambda given: given, frame(), signature=None)
    with pytest.raises(ArtifactError, match="infer_signature"):
        load(tmp_path / "bare")
    save_pyfunc(tmp_path / "m", lambda given: given, frame())
    options = find(tmp_path / "m")[1]
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", None)
    with pytest.raises(MissingLibrary, match="mlflow-skinny"):
        RUNTIME.load(tmp_path / "m", options)


# --- folders that are not as they should be ---


def copy(folder: Path, tmp_path: Path) -> Path:
    """Return a copy that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(folder: Path, old: str, new: str) -> None:
    """Replace a text in MLmodel."""
    text = (folder / "MLmodel").read_text()
    assert old in text
    (folder / "MLmodel").write_text(text.replace(old, new))


def mlmodel(tmp_path: Path, text: str) -> Path:
    """Return a folder with this MLmodel."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text(text)
    return folder


ENDLESS = '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [1e999]}}]'
ONE = "flavors:\n  xgboost:\n    data: {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: [", "not plain YAML"),
        ("just words", "a mapping is expected"),
        ("flavors: {}", "none of its flavours"),
        ("flavors: {spark: {model_data: x}}", "can be served: spark"),
        ("flavors: !!python/object:os.system {}", "not plain YAML"),
        ("flavors: !!python/object/apply:os.getcwd []", "not plain YAML"),
        ("flavors: {xgboost: {data: !!int ''}}", "not plain YAML"),
        ("a: &a {x: 1}\nflavors: {<<: *a}", "merge keys"),
        ("flavors: " + "[" * 100 + "]" * 100, "nested deeper"),
        ("flavors: " + "[" * 200_000, "nested deeper"),
        ("# " + "x" * 2_000_000, "larger than"),
        ("flavors: \x00", "not plain YAML"),
        (ONE.format("../outside.ubj"), "leads out of the folder"),
        (ONE.format("/etc/passwd"), "leads out of the folder"),
        (ONE.format("link.ubj"), "leads out of the folder"),
        (ONE.format("missing.ubj"), "is not there"),
        (ONE.format("null"), "must name a file"),
        (ONE.format("[1]"), "must name a file"),
        (ONE.format("."), "not a file"),
        (ONE.format("MLmodel"), "is no file of flavour xgboost"),
        (ONE.format("MLmodel") + "signature: {inputs: '['}", "signature: inputs"),
        (ONE.format("MLmodel") + f"signature: {{inputs: '{ENDLESS}'}}", "signature: inputs"),
    ],
)
def test_a_hostile_or_broken_folder_is_refused_in_words(
    text: str, message: str, tmp_path: Path
) -> None:
    """It is still known as MLflow's, needs no trust, since nothing is loaded, and says why."""
    (tmp_path / "outside.ubj").write_bytes(b"{}")
    folder = mlmodel(tmp_path, text)
    (folder / "link.ubj").symlink_to(tmp_path / "outside.ubj")

    form, options = find(folder)

    assert (form.name, form.runs_code) == ("MLflow", False)
    with pytest.raises(ArtifactError, match=message):
        RUNTIME.load(folder, options)


def test_trust_is_of_what_was_seen(
    saved: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """A pickle in place of the skops file needs trust, and cannot slip in after the decision."""
    folder = copy(saved("sklearn_skops")[0], tmp_path)
    _, before = find(folder)
    pickled = saved("sklearn_cloudpickle")[0] / "model.pkl"
    shutil.copyfile(pickled, folder / "model.skops")

    assert find(folder)[0].runs_code
    with pytest.raises(ArtifactError, match="changed while it was being loaded"):
        RUNTIME.load(folder, before)
    RUNTIME.load(folder, find(folder)[1])  # The control: with the decision renewed, it loads.


def test_code_beside_a_safe_model_is_not_run(
    saved: Callable[[str], tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of modules is searched for pickles only."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, is_searched in (("sklearn_skops", False), ("sklearn_cloudpickle", True)):
        folder = copy(saved(name)[0], tmp_path / name)
        (folder / "code").mkdir()
        edit(folder, "code: null", "code: code")
        load(folder)
        assert (str((folder / "code").resolve()) in sys.path) is is_searched


def test_what_is_missing_is_named_with_both_extras(
    saved: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flavour's library is looked for before a worker is started."""
    form, _ = find(saved("xgboost_json")[0])
    assert missing_libraries(RUNTIME, form) == []
    text = missing_message(RUNTIME, form, ["xgboost"])
    assert text.endswith("not installed: pip install 'muelle[mlflow,xgboost]'")


def test_without_pyyaml_the_folder_says_so(
    saved: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known as MLflow's by its file, and the command is told."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    folder = saved("sklearn_cloudpickle")[0]
    form, options = find(folder)
    assert not form.runs_code
    with pytest.raises(MissingLibrary, match=r"pip install 'muelle\[mlflow\]'"):
        RUNTIME.load(folder, options)


def test_the_known_formats_name_folders_once() -> None:
    """The list in an error stays short."""
    assert Registry().formats_text().count("MLflow") == 1
