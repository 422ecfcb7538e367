"""What the scikit-learn runtime promises beyond the contract of all runtimes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.runtimes.interface import LoadOptions
from muelle.runtimes.registry import find_format
from muelle.runtimes.sklearn import RUNTIME, SklearnModel
from tests import models
from tests.models import bytes_column


def load(estimator: Any, tmp_path: Path) -> Any:
    """Save an estimator with joblib and load it as a worker would."""
    import joblib

    path = tmp_path / "model.joblib"
    joblib.dump(estimator, path)
    return RUNTIME.load(path, LoadOptions())


def test_a_mixed_pipeline_has_a_tensor_per_column() -> None:
    """String columns are BYTES, the others FP64, in the order of the training table."""
    model = RUNTIME.load(models.sklearn_mixed().path, LoadOptions())

    assert [(s.name, s.describe()) for s in model.signature.inputs] == [
        ("age", "FP64 [-1]"),
        ("city", "BYTES [-1]"),
        ("income", "FP64 [-1]"),
    ]
    label, probabilities = model.signature.outputs
    assert (label.role, label.datatype) == ("label", "BYTES")
    assert (probabilities.role, probabilities.classes) == ("probabilities", ("go", "stay"))
    assert model.example is not None
    assert model.example["city"].tolist() == [b"Vigo"]


def test_missing_values_are_answered_as_by_the_pipeline() -> None:
    """None in a string column and NaN in a number column mean what they meant in training."""
    import pandas as pd

    model = RUNTIME.load(models.sklearn_mixed().path, LoadOptions())
    gaps = {
        "age": np.array([np.nan, 30.0]),
        "city": bytes_column([None, "unseen"]),
        "income": np.array([30_000.0, np.nan]),
    }
    frame = pd.DataFrame(
        {"age": [np.nan, 30.0], "city": [np.nan, "unseen"], "income": [30_000.0, np.nan]}
    )

    answer = model.run(gaps)["probabilities"]

    np.testing.assert_allclose(answer, models.people_pipeline().predict_proba(frame))


def test_none_stays_none_where_training_had_none(tmp_path: Path) -> None:
    """An encoder that learnt None as a category finds it again."""
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = pd.DataFrame({"c": pd.Series(["a", None, "b", None], dtype=object)})
    pipeline = make_pipeline(make_column_transformer((OneHotEncoder(), ["c"])), Ridge(alpha=0.1))
    pipeline.fit(frame, [1.0, 5.0, 2.0, 5.0])

    model = load(pipeline, tmp_path)
    answer = model.run({"c": bytes_column(["a", None])})["predictions"]

    np.testing.assert_allclose(answer, pipeline.predict(frame[:2]))


def test_string_columns_without_names_are_numbered(tmp_path: Path) -> None:
    """A model fitted on an object array takes x0, x1, … and answers the same."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    rows = np.array([["a", 1.0], ["b", 2.0], ["a", 2.0], ["b", 1.0]], dtype=object)
    pipeline = make_pipeline(OrdinalEncoder(), LogisticRegression()).fit(rows, [0, 1, 0, 1])

    model = load(pipeline, tmp_path)
    answer = model.run({"x0": bytes_column(["a", "b"]), "x1": np.array([1.0, 2.0])})

    assert [s.describe() for s in model.signature.inputs] == ["BYTES [-1]", "FP64 [-1]"]
    assert answer["label"].tolist() == pipeline.predict(rows[:2]).tolist()


def test_strings_are_found_inside_wrappers(tmp_path: Path) -> None:
    """A search over a calibrated pipeline still shows the pipeline's string columns."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import GridSearchCV

    frame, target = models.people()
    inner = CalibratedClassifierCV(copy.deepcopy(models.people_pipeline()), cv=2)
    search = GridSearchCV(inner, {"method": ["sigmoid"]}, cv=2).fit(frame, target)

    model = load(search, tmp_path)
    answer = model.run(models.people_tensors())

    assert [s.datatype for s in model.signature.inputs] == ["FP64", "BYTES", "FP64"]
    np.testing.assert_allclose(answer["probabilities"], search.predict_proba(frame[:12]))


def test_column_names_are_kept_for_numbers() -> None:
    """A table of numbers is one tensor that knows its columns; the example is the training mean."""
    model = RUNTIME.load(models.sklearn_named().path, LoadOptions())

    assert model.signature.inputs[0].columns == ("sepal length", "sepal width", "petal length")
    assert model.example is not None
    np.testing.assert_allclose(
        model.example["x"][0], models.iris()[0][:, :3].mean(axis=0), rtol=1e-3
    )


def test_threads_are_those_of_the_options() -> None:
    """A forest saved with n_jobs=2 runs one batch on one thread when told so."""
    model = RUNTIME.load(models.sklearn_forest().path, LoadOptions(threads=1))

    assert model.info["class"] == "RandomForestClassifier"
    assert model._final.n_jobs == 1


class Stranger:
    """Not an estimator, and not of a module that skops knows."""


def test_skops_refuses_unknown_types_by_name(tmp_path: Path) -> None:
    """A type outside scikit-learn is not made; the error lists it."""
    import skops.io
    from sklearn.linear_model import Ridge

    estimator = Ridge().fit([[0.0], [1.0]], [0.0, 1.0])
    estimator.stranger_ = Stranger()
    path = tmp_path / "model.skops"
    skops.io.dump(estimator, path)

    with pytest.raises(ArtifactError, match=r"not known to be safe: .*Stranger"):
        RUNTIME.load(path, LoadOptions())


def test_another_librarys_version_is_a_warning_in_info(tmp_path: Path) -> None:
    """A pickle of another scikit-learn loads, and says so."""
    path = tmp_path / "model.pkl"
    from sklearn.linear_model import Ridge

    estimator = Ridge().fit([[0.0], [1.0]], [0.0, 1.0])
    state = pickle.dumps(estimator, protocol=0)
    import sklearn

    version = sklearn.__version__
    path.write_bytes(state.replace(f"V{version}".encode(), b"V0.9.9".ljust(len(version) + 1, b"0")))

    model = RUNTIME.load(path, LoadOptions())

    assert any("0.9.9" in text for text in model.info["warnings"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"no": "estimator"}), "holds a dict, not an estimator"),
        (pickle.dumps([1, 2])[:-2], "cannot be read"),
        (b"\x80\x04cno_such_module\nThing\n.", "no_such_module, which is not installed"),
    ],
)
def test_a_pickle_of_something_else_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    """What is no estimator is named; what needs another module is said to."""
    path = tmp_path / "model.pkl"
    path.write_bytes(content)

    with pytest.raises((ArtifactError, MissingLibrary), match=message):
        RUNTIME.load(path, LoadOptions())


def test_an_unfitted_estimator_is_refused() -> None:
    """An estimator without columns cannot be served, and the error says why."""
    from sklearn.linear_model import Ridge

    with pytest.raises(ArtifactError, match=r"ridge\.pkl: .*how many columns"):
        SklearnModel(Ridge(), Path("ridge.pkl"))


@pytest.mark.parametrize(("name", "runs"), [("model.skops", False), ("model.pkl", True)])
def test_what_needed_no_trust_is_never_unpickled(name: str, runs: bool, tmp_path: Path) -> None:
    """A pickle that no content check sees through runs only where its name asked for trust."""
    canary = tmp_path / "canary"
    path = tmp_path / name
    # An unusual first opcode (a None that is dropped) hides it from the content check.
    path.write_bytes(b"N0cbuiltins\nopen\n(V" + str(canary).encode() + b"\nVw\ntR.")
    runtime, format = find_format(path)

    with pytest.raises(ArtifactError):
        runtime.load(path, LoadOptions())

    assert format.runs_code is runs
    assert canary.exists() is runs


# --- saved by another scikit-learn ---


def saved_by(version: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a pickle whose state says that it was saved by this version."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.base.__version__", version)
        return pickle.dumps(model)


def load_bytes(raw: bytes, tmp_path: Path) -> Any:
    """Load a pickle as a worker would."""
    path = tmp_path / "model.pkl"
    path.write_bytes(raw)
    return RUNTIME.load(path, LoadOptions())


def test_a_pickle_of_another_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads, and tells both versions and the line that would give it its own."""
    import sklearn

    info = load_bytes(saved_by("1.2.2", monkeypatch), tmp_path).info

    assert info["made_with"] == "scikit-learn 1.2.2"
    assert sklearn.__version__ in info["warning"]
    assert "scikit-learn==1.2.2" in info["warning"]
    same = load_bytes(saved_by(sklearn.__version__, monkeypatch), tmp_path).info
    assert not {"made_with", "warning", "warnings"} & set(same)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"LinearRegression", b"LinearRegressioX", id="class"),
        pytest.param(b"sklearn.linear_model._base", b"sklearn.linear_model._basX", id="module"),
    ],
)
def test_a_pickle_of_another_version_that_cannot_be_read_says_so(
    old: bytes, new: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class or module that has gone since is not a library that is missing: nobody is told to
    install what is there. The same file of this very version blames no version."""
    import sklearn

    raw = saved_by("1.2.2", monkeypatch)
    assert old in raw
    with pytest.raises(ArtifactError, match=r"saved by scikit-learn 1\.2\.2.*scikit-learn==1\.2"):
        load_bytes(raw.replace(old, new), tmp_path)
    here = saved_by(sklearn.__version__, monkeypatch)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_bytes(here.replace(old, new), tmp_path)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_the_version_is_found_in_every_kind_of_pickle(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older Pythons wrote older protocols, whose marks between two texts are longer."""
    from sklearn.linear_model import LinearRegression

    # More than 255 marks before it: the long form.
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    model.a_notes = [f"note {i}" for i in range(300)]
    monkeypatch.setattr("sklearn.base.__version__", "1.2.2")
    raw = pickle.dumps(model, protocol).replace(
        b"sklearn.linear_model._base", b"sklearn.gone.then_________"
    )
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"scikit-learn 1\.2\.2"):
        load_bytes(raw, tmp_path)
