"""Small real models for the tests: trained or exported here, seeded, once per test session.

Not for benchmarks. Each function returns a `Saved`; files lie in one temporary folder that goes
with the process, so every pytest worker has its own.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import textwrap
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]

CITIES = ("Bilbao", "Cádiz", "Vigo")


@dataclass(frozen=True)
class Saved:
    """A model file, rows to send, and what its own library answers to them."""

    path: Path
    runtime: str
    inputs: Arrays
    expected: Arrays


@cache
def folder() -> Path:
    """The folder of this process's model files."""
    place = Path(tempfile.mkdtemp(prefix="muelle-models-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _place(name: str) -> Path:
    """A folder for each model, as a repository's version folder would be."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def bytes_column(values: Any) -> Any:
    """Strings (None = missing) as the object array of bytes that a runtime gets."""
    column = np.empty(len(values), dtype=object)
    column[:] = [None if v is None else str(v).encode() for v in values]
    return column


def label_bytes(labels: Any) -> Any:
    """String labels as a BYTES tensor."""
    return bytes_column(list(labels))


@cache
def iris() -> tuple[Any, Any]:
    """150 flowers: four measures as float64, and the species as 0, 1, 2."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return x, y


@cache
def people() -> tuple[Any, Any]:
    """60 people as a DataFrame (age, city, income, with gaps), and whether they `stay` or `go`."""
    import pandas as pd

    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, 60).astype(float)
    age[3] = np.nan
    city = rng.choice(CITIES, 60).astype(object)
    city[5] = None
    income = rng.normal(30_000, 5_000, 60).round()
    target = np.where((income > 30_000) ^ (city == "Vigo"), "stay", "go")
    return pd.DataFrame({"age": age, "city": city, "income": income}), target


def people_tensors(rows: slice = slice(0, 12)) -> Arrays:
    """Rows of `people` as tensors, one per column."""
    frame = people()[0][rows]
    city = [None if v != v else v for v in frame["city"].tolist()]
    return {
        "age": frame["age"].to_numpy(),
        "city": bytes_column(city),
        "income": frame["income"].to_numpy(),
    }


# --- ONNX ---


def _write_onnx(model: Any, name: str) -> Path:
    path = _place(name)
    path.write_bytes(model.SerializeToString())
    return path


@cache
def _iris_classifier(labels: tuple[str, ...] | None = None) -> Any:
    from sklearn.linear_model import LogisticRegression

    x, y = iris()
    return LogisticRegression(max_iter=500).fit(x, np.array(labels)[y] if labels else y)


@cache
def onnx_classifier() -> Saved:
    """Iris as ONNX with plain outputs: label and probabilities."""
    from skl2onnx import to_onnx

    estimator = _iris_classifier()
    x = iris()[0][::10].astype(np.float32)
    model = to_onnx(estimator, x[:1], options={"zipmap": False}, target_opset=17)
    return Saved(
        _write_onnx(model, "onnx-classifier/model.onnx"),
        "onnx",
        {"X": x},
        {"label": estimator.predict(x), "probabilities": estimator.predict_proba(x)},
    )


@cache
def onnx_zipmap() -> Saved:
    """Iris as ONNX as converters write it unasked: string labels, and a list of maps."""
    from skl2onnx import to_onnx

    estimator = _iris_classifier(("setosa", "versicolor", "virginica"))
    x = iris()[0][::10].astype(np.float32)
    model = to_onnx(estimator, x[:1], target_opset=17)
    return Saved(
        _write_onnx(model, "onnx-zipmap/model.onnx"),
        "onnx",
        {"X": x},
        {
            "output_label": label_bytes(estimator.predict(x)),
            "output_probability": estimator.predict_proba(x),
        },
    )


def onnx_graph(
    name: str,
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
    inputs: dict[str, tuple[str, Any]],
    outputs: dict[str, tuple[str, Any]],
    constants: dict[str, Any] | None = None,
) -> Path:
    """Write a graph given as plain values; types are names of TensorProto's (`FLOAT`)."""
    from onnx import TensorProto, helper, numpy_helper

    def info(tensors: dict[str, tuple[str, Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(n, getattr(TensorProto, kind), shape)
            for n, (kind, shape) in tensors.items()
        ]

    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "test",
        info(inputs),
        info(outputs),
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return _write_onnx(model, name)


@cache
def onnx_strings() -> Saved:
    """Text in, the same text out: BYTES both ways."""
    path = onnx_graph(
        "onnx-strings/model.onnx",
        [("Identity", ["text"], ["same"], {})],
        {"text": ("STRING", ["rows"])},
        {"same": ("STRING", ["rows"])},
    )
    words = bytes_column(["muelle", "Cádiz", ""])
    return Saved(path, "onnx", {"text": words}, {"same": words})


@cache
def onnx_halves() -> Saved:
    """FP16 and BF16 in and out: their sum as each."""
    from onnx import TensorProto

    casts = [
        ("Cast", ["half"], ["a"], {"to": TensorProto.FLOAT}),
        ("Cast", ["brain"], ["b"], {"to": TensorProto.FLOAT}),
        ("Add", ["a", "b"], ["sum"], {}),
        ("Cast", ["sum"], ["as_half"], {"to": TensorProto.FLOAT16}),
        ("Cast", ["sum"], ["as_brain"], {"to": TensorProto.BFLOAT16}),
    ]
    path = onnx_graph(
        "onnx-halves/model.onnx",
        casts,
        {"half": ("FLOAT16", ["n", 2]), "brain": ("BFLOAT16", ["n", 2])},
        {"as_half": ("FLOAT16", ["n", 2]), "as_brain": ("BFLOAT16", ["n", 2])},
    )
    half = np.array([[1.5, -2.0], [0.25, 8.0]], dtype=np.float16)
    brain = np.array([[0.5, 1.0], [2.0, -4.0]], dtype=np.float32)
    total = half.astype(np.float32) + brain
    return Saved(
        path,
        "onnx",
        {"half": half, "brain": brain},
        {"as_half": total.astype(np.float16), "as_brain": total},
    )


@cache
def onnx_free_axis() -> Saved:
    """A free axis besides rows: the sum over a sequence of any length."""
    path = onnx_graph(
        "onnx-free-axis/model.onnx",
        [("ReduceSum", ["ids", "axes"], ["total"], {"keepdims": 0})],
        {"ids": ("INT64", ["batch", "tokens"])},
        {"total": ("INT64", ["batch"])},
        {"axes": np.array([1], dtype=np.int64)},
    )
    ids = np.arange(12, dtype=np.int64).reshape(3, 4)
    return Saved(path, "onnx", {"ids": ids}, {"total": ids.sum(axis=1)})


@cache
def onnx_external() -> Saved:
    """A model whose weights lie beside it, in `weights.bin`."""
    import onnx
    from onnx import helper, numpy_helper

    weights = np.arange(1200, dtype=np.float32).reshape(4, 300)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 300])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = _place("onnx-external/model.onnx")
    onnx.save_model(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    x = np.eye(4, dtype=np.float32)
    return Saved(path, "onnx", {"x": x}, {"y": weights})


# --- scikit-learn ---


def _save_skops(estimator: Any, name: str) -> Path:
    import skops.io

    path = _place(name)
    skops.io.dump(estimator, path)
    return path


def _save_joblib(estimator: Any, name: str, compress: Any = 0) -> Path:
    import joblib

    path = _place(name)
    joblib.dump(estimator, path, compress=compress)
    return path


@cache
def sklearn_forest() -> Saved:
    """A random forest on iris, as skops: numbers without names."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = iris()
    estimator = RandomForestClassifier(10, random_state=0, n_jobs=2).fit(x, y)
    rows = x[::10]
    return Saved(
        _save_skops(estimator, "sklearn-forest/model.skops"),
        "sklearn",
        {"x": rows},
        {"label": estimator.predict(rows), "probabilities": estimator.predict_proba(rows)},
    )


@cache
def sklearn_named() -> Saved:
    """A scaled regression on a DataFrame of numbers, as joblib: one tensor with column names."""
    import pandas as pd
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, _ = iris()
    frame = pd.DataFrame(x[:, :3], columns=["sepal length", "sepal width", "petal length"])
    estimator = make_pipeline(StandardScaler(), Ridge()).fit(frame, x[:, 3])
    return Saved(
        _save_joblib(estimator, "sklearn-named/model.joblib", compress=3),
        "sklearn",
        {"x": frame[::10].to_numpy()},
        {"predictions": estimator.predict(frame[::10])},
    )


@cache
def people_pipeline() -> Any:
    """A fitted pipeline over strings and numbers with gaps in both."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame, target = people()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    cities = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )
    columns = ColumnTransformer([("n", numbers, ["age", "income"]), ("c", cities, ["city"])])
    return make_pipeline(columns, LogisticRegression()).fit(frame, target)


@cache
def _sklearn_mixed(name: str) -> Saved:
    estimator = people_pipeline()
    frame = people()[0][:12]
    save = _save_skops if name.endswith(".skops") else _save_joblib
    return Saved(
        save(estimator, name),
        "sklearn",
        people_tensors(),
        {
            "label": label_bytes(estimator.predict(frame)),
            "probabilities": estimator.predict_proba(frame),
        },
    )


def sklearn_mixed() -> Saved:
    """The pipeline over strings and numbers, as skops."""
    return _sklearn_mixed("sklearn-mixed/model.skops")


def sklearn_mixed_pickle() -> Saved:
    """The pipeline over strings and numbers, as joblib."""
    return _sklearn_mixed("sklearn-mixed-pickle/model.pkl")


@cache
def sklearn_text() -> Saved:
    """A bag of words and a linear SVM without probabilities: one text per row."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    texts = ["good fresh fish", "bad old fish", "fresh bread", "old bread"] * 3
    estimator = make_pipeline(TfidfVectorizer(), LinearSVC(random_state=0)).fit(
        texts, [True, False, True, False] * 3
    )
    return Saved(
        _save_skops(estimator, "sklearn-text/model.skops"),
        "sklearn",
        {"text": bytes_column(texts[:4])},
        {"label": estimator.predict(texts[:4])},
    )


@cache
def sklearn_clusters() -> Saved:
    """KMeans: a cluster per row."""
    from sklearn.cluster import KMeans

    x, _ = iris()
    estimator = KMeans(3, random_state=0, n_init=1).fit(x)
    return Saved(
        _save_joblib(estimator, "sklearn-clusters/model.joblib"),
        "sklearn",
        {"x": x[::10]},
        {"cluster": estimator.predict(x[::10])},
    )


@cache
def sklearn_components() -> Saved:
    """PCA: a transformer, which has no predict."""
    from sklearn.decomposition import PCA

    x, _ = iris()
    estimator = PCA(2, random_state=0).fit(x)
    return Saved(
        _save_skops(estimator, "sklearn-components/model.skops"),
        "sklearn",
        {"x": x[::10]},
        {"transformed": estimator.transform(x[::10])},
    )


@cache
def sklearn_two_targets() -> Saved:
    """Two classes per row: two label columns, two probabilities tensors."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = iris()
    targets = np.column_stack((y, y > 0))
    estimator = RandomForestClassifier(5, random_state=0).fit(x, targets)
    first, second = estimator.predict_proba(x[::10])
    return Saved(
        _save_skops(estimator, "sklearn-two-targets/model.skops"),
        "sklearn",
        {"x": x[::10]},
        {
            "label": estimator.predict(x[::10]),
            "probabilities_0": first,
            "probabilities_1": second,
        },
    )


# --- boosting ---


@cache
def xgboost_binary() -> Saved:
    """Two classes, as UBJSON saved by the scikit-learn wrapper after early stopping."""
    import xgboost

    x, y = iris()
    x32, target = x.astype(np.float32), (y == 1).astype(int)
    estimator = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=2, n_jobs=1)
    estimator.fit(x32[::2], target[::2], eval_set=[(x32[1::2], target[1::2])], verbose=False)
    path = _place("xgboost-binary/model.ubj")
    estimator.save_model(path)
    rows = x32[::10]
    return Saved(
        path,
        "xgboost",
        {"x": rows},
        {"label": estimator.predict(rows), "probabilities": estimator.predict_proba(rows)},
    )


@cache
def _xgboost(objective: str, name: str) -> Saved:
    import xgboost

    x, y = iris()
    names = ["a", "b", "c", "d"]
    matrix = xgboost.DMatrix(x, label=y, feature_names=names)
    parameters: dict[str, Any] = {"objective": objective, "nthread": 1}
    if objective.startswith("multi"):
        parameters["num_class"] = 3
    booster = xgboost.train(parameters, matrix, 5)
    path = _place(name)
    booster.save_model(path)
    rows = x[::10].astype(np.float32)
    answer = booster.predict(xgboost.DMatrix(rows, feature_names=names))
    expected = {"predictions": answer}
    if objective.startswith("multi"):
        expected = {"label": answer.argmax(axis=1), "probabilities": answer}
    return Saved(path, "xgboost", {"x": rows}, expected)


def xgboost_classes() -> Saved:
    """Three classes and column names, as JSON."""
    return _xgboost("multi:softprob", "xgboost-classes/model.json")


def xgboost_regression() -> Saved:
    """A number per row, as UBJSON."""
    return _xgboost("reg:squarederror", "xgboost-regression/model.ubj")


@cache
def lightgbm_classes() -> Saved:
    """Three classes, columns without names."""
    import lightgbm

    x, y = iris()
    estimator = lightgbm.LGBMClassifier(n_estimators=5, num_leaves=7, n_jobs=1, verbose=-1)
    estimator.fit(x, y)
    path = _place("lightgbm-classes/model.txt")
    estimator.booster_.save_model(path)
    raw = estimator.booster_.predict(x[::10])
    return Saved(
        path, "lightgbm", {"x": x[::10]}, {"label": raw.argmax(axis=1), "probabilities": raw}
    )


@cache
def lightgbm_categories() -> Saved:
    """Two classes over a DataFrame with a pandas category: one tensor per column."""
    import lightgbm
    import pandas as pd

    frame, target = people()
    frame = frame.assign(city=pd.Categorical(frame["city"], categories=list(CITIES)))
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 2}
    booster = lightgbm.train(settings, lightgbm.Dataset(frame, label=target == "go"), 10)
    path = _place("lightgbm-categories/model.txt")
    booster.save_model(path)
    raw = booster.predict(frame[:12])
    return Saved(
        path,
        "lightgbm",
        people_tensors(),
        {"label": (raw > 0.5).astype(int), "probabilities": np.column_stack((1 - raw, raw))},
    )


@cache
def catboost_mixed() -> Saved:
    """String classes over strings and numbers."""
    import catboost

    frame, target = people()
    frame = frame.assign(city=frame["city"].fillna("nan").astype(str))
    estimator = catboost.CatBoostClassifier(
        iterations=10, depth=3, verbose=0, allow_writing_files=False, random_seed=0, thread_count=1
    )
    estimator.fit(frame, target, cat_features=["city"])
    path = _place("catboost-mixed/model.cbm")
    estimator.save_model(str(path))
    return Saved(
        path,
        "catboost",
        people_tensors() | {n: people_tensors()[n].astype(np.float32) for n in ("age", "income")},
        {
            "label": label_bytes(estimator.predict(frame[:12]).reshape(-1)),
            "probabilities": estimator.predict_proba(frame[:12]),
        },
    )


@cache
def catboost_counts() -> Saved:
    """A Poisson regression: predictions are counts, not their logarithms."""
    import catboost

    x, y = iris()
    estimator = catboost.CatBoostRegressor(
        iterations=10,
        depth=3,
        verbose=0,
        allow_writing_files=False,
        loss_function="Poisson",
        thread_count=1,
    ).fit(x, y)
    path = _place("catboost-counts/model.cbm")
    estimator.save_model(str(path))
    rows = x[::10].astype(np.float32)
    return Saved(path, "catboost", {"x": rows}, {"predictions": estimator.predict(rows)})


# --- Python ---


def write_python(name: str, source: str) -> Path:
    """Write a Python file beside the other models."""
    path = _place(name)
    path.write_text(textwrap.dedent(source))
    return path


@cache
def python_doubler() -> Saved:
    """A Python model that reads a file beside it, and answers numbers and text."""
    path = write_python(
        "python-doubler/doubler.py",
        '''
        """Doubles numbers."""

        import numpy as np

        import muelle
        from muelle import TensorSpec


        class Doubler(muelle.Model):
            """Twice the number, and a greeting."""

            inputs = [
                TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
                TensorSpec(name="who", datatype="BYTES", shape=(-1,)),
            ]
            outputs = [
                TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),
                TensorSpec(name="hello", datatype="BYTES", shape=(-1,)),
            ]
            example = {"x": [1.5, 2.0], "who": "Ana"}

            def load(self, folder):
                self.factor = float((folder / "factor.txt").read_text())

            def predict(self, inputs):
                greetings = [b"hello " + who for who in inputs["who"].tolist()]
                return {
                    "y": inputs["x"] * np.float32(self.factor),
                    "hello": np.array(greetings, dtype=object),
                }
        ''',
    )
    (path.parent / "factor.txt").write_text("2")
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    return Saved(
        path,
        "python",
        {"x": x, "who": bytes_column(["Ana", "Jon", "Mª"])},
        {"y": x * 2, "hello": bytes_column(["hello Ana", "hello Jon", "hello Mª"])},
    )


ALL = (
    onnx_classifier,
    onnx_zipmap,
    onnx_strings,
    onnx_halves,
    onnx_free_axis,
    onnx_external,
    sklearn_forest,
    sklearn_named,
    sklearn_mixed,
    sklearn_mixed_pickle,
    sklearn_text,
    sklearn_clusters,
    sklearn_components,
    sklearn_two_targets,
    xgboost_binary,
    xgboost_classes,
    xgboost_regression,
    lightgbm_classes,
    lightgbm_categories,
    catboost_mixed,
    catboost_counts,
    python_doubler,
)
"""Every model that all runtimes' contract is tried on."""


def quiet(make: Any) -> Saved:
    """Make a model without the warnings of its training: they are not the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved: Saved = make()
    return saved
