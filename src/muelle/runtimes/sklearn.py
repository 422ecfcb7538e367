"""Serve scikit-learn estimators and pipelines: skops files, and pickles, which run code on load.

Not for training, and not for estimators that read dicts or sparse matrices. Answers are those of
the estimator's own `predict` and `predict_proba`, column names and class labels included.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.core.signature import Role, Signature, TensorSpec
from muelle.runtimes.formats import HEAD_BYTES, is_pickle, is_skops
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Runtime
from muelle.runtimes.libraries import is_installed, library
from muelle.runtimes.sklearn_inputs import Findings, look_at, needs_frame, nested
from muelle.runtimes.tables import (
    Array,
    Table,
    as_label_bytes,
    as_texts,
    first_answer,
    object_array,
    output_spec,
)

_TEXT = "text"
_SKOPS = Format("scikit-learn skops", (".skops",), is_skops)
_PICKLE = Format("scikit-learn pickle", (".joblib", ".pkl", ".pickle"), is_pickle, runs_code=True)

# Types of scikit-learn that skops does not know by itself. They hold arrays and numbers; making one
# runs none of the file's code. By exact name: a module's name would admit all that it imports.
_KNOWN_TYPES = frozenset(
    {
        "builtins.object",
        "collections.OrderedDict",
        # LightGBM's wrappers, as MLflow saves them: the booster is its text model in here.
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRanker",
        "lightgbm.sklearn.LGBMRegressor",
        "numpy.dtype",
        "scipy.interpolate._bsplines.BSpline",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.gaussian_process.kernels.CompoundKernel",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.DotProduct",
        "sklearn.gaussian_process.kernels.ExpSineSquared",
        "sklearn.gaussian_process.kernels.Exponentiation",
        "sklearn.gaussian_process.kernels.Matern",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.RationalQuadratic",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.ChebyshevDistance64",
        "sklearn.metrics._dist_metrics.EuclideanDistance",
        "sklearn.metrics._dist_metrics.EuclideanDistance32",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._ball_tree.BallTree32",
        "sklearn.neighbors._ball_tree.BallTree64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neighbors._kd_tree.KDTree32",
        "sklearn.neighbors._kd_tree.KDTree64",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
    }
)

MAX_SEARCHED_BYTES = 64 * 1024 * 1024
_VERSION_IN_PICKLE = re.compile(
    rb"_sklearn_version.{0,12}?(\d+\.\d+(?:\.\d+)?(?:rc\d+)?)", re.DOTALL
)

# Classifiers whose `predict` is, in their source, the class of the largest `predict_proba`. Asking
# once instead of twice halves their time. (Logistic regression and boosting compare raw scores.)
_LABEL_IS_ARGMAX = frozenset(
    {
        "RandomForestClassifier",
        "ExtraTreesClassifier",
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "BaggingClassifier",
    }
)


def load(path: Path, options: LoadOptions) -> SklearnModel:
    """Read the estimator. Raise ArtifactError when the file holds none, or unknown types."""
    runs_code = _runs_code(path)
    if runs_code and options.format == _SKOPS.name:
        # It was skops when the server asked whether it may run code. It has been swapped since.
        raise ArtifactError(f"{path.name}: the file changed while it was being loaded")
    notes: list[str] = []
    made_with = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = _read_pickle(path) if runs_code else _read_skops(path)
    for warning in caught:
        if warning.category.__name__ == "InconsistentVersionWarning":
            made_with = str(getattr(warning.message, "original_sklearn_version", ""))
            notes.append(str(warning.message).split(". ")[0])
    if not hasattr(estimator, "get_params") or not (
        hasattr(estimator, "predict") or hasattr(estimator, "transform")
    ):
        raise ArtifactError(
            f"{path.name}: it holds a {type(estimator).__name__}, not an estimator with "
            "predict or transform"
        )
    _limit_threads(estimator, options.threads)
    return SklearnModel(estimator, path, notes, made_with)


def _runs_code(path: Path) -> bool:
    """Whether the file is to be unpickled: by the very rule that asked for trust.

    A file that was found to be skops (by name, say) must never reach the unpickler.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if is_skops(head, path):
        return False
    return is_pickle(head, path) or path.suffix.lower() in _PICKLE.suffixes


def _read_skops(path: Path) -> Any:
    library("sklearn", RUNTIME.extra)
    skops = library("skops.io", RUNTIME.extra)

    try:
        unknown = set(skops.get_untrusted_types(file=path))
        if unknown - _KNOWN_TYPES:
            raise ArtifactError(
                f"{path.name}: it holds types that are not known to be safe: "
                f"{', '.join(sorted(unknown - _KNOWN_TYPES))}; leave them out of the model, or "
                "save it with joblib and serve that with --trust"
            )
        return skops.load(path, trusted=sorted(unknown))
    except ArtifactError:
        raise
    except Exception as exc:
        # A damaged archive fails in as many ways as it has parts.
        raise _unreadable(path, exc) from exc


def _read_pickle(path: Path) -> Any:
    library("sklearn", RUNTIME.extra)
    joblib = library("joblib", RUNTIME.extra)

    try:
        return joblib.load(path)
    except ModuleNotFoundError as exc:
        name = (exc.name or "a module").split(".")[0]
        if not is_installed(name):
            raise MissingLibrary(
                f"{path.name}: it was made with {name}, which is not installed: pip install {name}"
            ) from exc
        # The library is here, but not the module that it had in the version of then.
        raise _unreadable_pickle(path, exc) from exc
    except (Exception, SystemExit) as exc:
        raise _unreadable_pickle(path, exc) from exc


def _unreadable_pickle(path: Path, exc: BaseException) -> ArtifactError:
    """Say why, by the version that it was saved with where that is another one."""
    other = _other_version(_version_in(path)).get("made_with", "")
    if not other:
        return _unreadable(path, exc)
    reason = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
    return ArtifactError(
        f"{path.name}: it was saved by {other}, which this one cannot read ({reason}); push it "
        f"with --requirements FILE, where FILE says {other.replace(' ', '==')}"
    )


def _version_in(path: Path) -> str:
    """Return the version that a pickle says its estimator was saved with, "" when none is found.

    Read off the bytes: the file could not be loaded.
    """
    with open(path, "rb") as file:
        found = _VERSION_IN_PICKLE.search(file.read(MAX_SEARCHED_BYTES))
    return found[1].decode() if found else ""


def _unreadable(path: Path, exc: BaseException) -> ArtifactError:
    reason = f"{type(exc).__name__}: {exc}".replace(str(path), path.name).splitlines()[0][:300]
    return ArtifactError(f"{path.name}: cannot be read ({reason}); save the model again")


def _limit_threads(estimator: Any, threads: int) -> None:
    """Keep one batch within its threads: both joblib's and those of native code."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(limits=threads)
    for part in nested(estimator):
        if getattr(part, "n_jobs", None) is not None:
            part.n_jobs = threads


class SklearnModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(
        self, estimator: Any, path: Path, notes: Iterable[str] = (), made_with: str = ""
    ) -> None:
        inputs = _Inputs(estimator, path)
        self._read = inputs.reader
        self._before, self._final = _split(estimator)
        self._ask, describe = _answers(estimator, self._final)
        self.example = inputs.example
        self.info = {**_info(estimator, notes), **_other_version(made_with)}
        outputs = first_answer(path, self.run, self.example)
        self.signature = Signature(inputs=inputs.specs, outputs=describe(outputs))

    def run(self, inputs: Arrays) -> Arrays:
        """Answer rows; tensors are those of the signature. The inputs are not changed or kept."""
        rows = self._read(inputs)
        return self._ask(rows if self._before is None else self._before.transform(rows))

    def close(self) -> None:
        """Nothing to give back."""


def _split(estimator: Any) -> tuple[Any, Any]:
    """Return a pipeline's steps before the last, so that two questions share one transform."""
    steps = getattr(estimator, "steps", None)
    if type(estimator).__name__ != "Pipeline" or not steps or len(steps) < 2:
        return None, estimator
    if steps[-1][1] in (None, "passthrough") or not hasattr(steps[-1][1], "predict"):
        return None, estimator
    return estimator[:-1], steps[-1][1]


# --- inputs ---


class _Inputs:
    """How tensors become what the estimator takes."""

    def __init__(self, estimator: Any, path: Path) -> None:
        names, has_names = _column_names(estimator)
        found = look_at(estimator, names, len(names))
        self.reader: Callable[[Arrays], Any]
        if found.reads_dicts:
            raise ArtifactError(
                f"{path.name}: its first step reads dicts, which no tensor can carry; "
                "fit it on columns instead"
            )
        if found.reads_text or not names:
            if not found.reads_text:
                raise ArtifactError(
                    f"{path.name}: the estimator does not say how many columns it takes; "
                    "fit it with scikit-learn 1.0 or later"
                )
            self.specs: tuple[TensorSpec, ...] = (
                TensorSpec(name=_TEXT, datatype="BYTES", shape=(-1,)),
            )
            self.example: Arrays = {_TEXT: object_array([b"some words"])}
            self.reader = _read_text
            return
        table = Table(names, frozenset(found.strings), has_names=has_names)
        self.specs = table.specs()
        self.example = table.row([found.examples.get(i, 0.0) for i in range(len(names))])
        self.reader = _reader(table, found, has_names and needs_frame(estimator))
        if has_names and not needs_frame(estimator):
            _forget_names(estimator)


def _column_names(estimator: Any) -> tuple[tuple[str, ...], bool]:
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return tuple(map(str, names)), True
    # A wrapper such as a pipeline has the count only where its first step does.
    return tuple(f"x{i}" for i in range(getattr(estimator, "n_features_in_", 0))), False


def _forget_names(estimator: Any) -> None:
    """Let plain arrays in without a warning each time: the signature keeps the names and order."""
    for part in nested(estimator):
        vars(part).pop("feature_names_in_", None)


def _read_text(inputs: Arrays) -> list[str]:
    return as_texts(inputs[_TEXT], "")


def _read_matrix(inputs: Arrays) -> Array:
    return inputs["x"]


def _reader(table: Table, found: Findings, as_frame: bool) -> Callable[[Arrays], Any]:
    missing = {i: None if i in found.missing_is_none else np.nan for i in table.strings}
    names = list(table.names)

    def columns(inputs: Arrays) -> list[Array]:
        return [
            object_array(as_texts(inputs[name], missing[i])) if i in missing else inputs[name]
            for i, name in enumerate(names)
        ]

    if not as_frame:
        if not table.is_mixed:
            return _read_matrix

        def read_objects(inputs: Arrays) -> Array:
            rows = np.empty((len(inputs[names[0]]), len(names)), dtype=object)
            for i, column in enumerate(columns(inputs)):
                rows[:, i] = column
            return rows

        return read_objects

    pandas = library("pandas", RUNTIME.extra)

    if not table.is_mixed:
        return lambda inputs: pandas.DataFrame(inputs["x"], columns=names, copy=False)

    def read_frame(inputs: Arrays) -> Any:
        # As objects: pandas would make its own string type, which is slower and no better here.
        frame = {
            name: pandas.Series(column, dtype=column.dtype, copy=False)
            for name, column in zip(names, columns(inputs), strict=True)
        }
        return pandas.DataFrame(frame, copy=False)

    return read_frame


# --- outputs ---

_Ask = Callable[[Any], Arrays]
_Describe = Callable[[Arrays], tuple[TensorSpec, ...]]


def _answers(estimator: Any, final: Any) -> tuple[_Ask, _Describe]:
    """Return what to ask the last step, and how to describe the answers to one row."""
    from sklearn.base import ClusterMixin, is_classifier

    if is_classifier(estimator):
        classes = estimator.classes_
        if isinstance(classes, list):
            return _many_classes(final, classes)
        return _one_class(final, classes)
    if hasattr(final, "predict"):
        # By its class: `is_clusterer` came with scikit-learn 1.6.
        name = "cluster" if isinstance(final, ClusterMixin) else "predictions"
        return _plain(name, final.predict)
    return _plain("transformed", final.transform)


def _plain(name: str, ask: Callable[[Any], Any]) -> tuple[_Ask, _Describe]:
    def answer(rows: Any) -> Arrays:
        return {name: as_label_bytes(_dense(ask(rows)))}

    return answer, lambda outputs: (output_spec(name, outputs[name]),)


def _one_class(final: Any, classes: Array) -> tuple[_Ask, _Describe]:
    labels = as_label_bytes(np.asarray(classes))
    is_argmax = type(final).__name__ in _LABEL_IS_ARGMAX
    has_probabilities = hasattr(final, "predict_proba")

    def answer(rows: Any) -> Arrays:
        if not has_probabilities:
            return {"label": as_label_bytes(_dense(final.predict(rows)))}
        probabilities = final.predict_proba(rows)
        if is_argmax:
            label = labels.take(probabilities.argmax(axis=1))
        else:
            label = as_label_bytes(_dense(final.predict(rows)))
        return {"label": label, "probabilities": _dense(probabilities)}

    def describe(outputs: Arrays) -> tuple[TensorSpec, ...]:
        label = outputs["label"]
        specs = [output_spec("label", label, "label" if label.ndim == 1 else "")]
        if has_probabilities:
            # Several labels per row: their probabilities do not share one row's unit.
            role: Role = "probabilities" if label.ndim == 1 else ""
            specs.append(output_spec("probabilities", outputs["probabilities"], role, classes))
        return tuple(specs)

    return answer, describe


def _many_classes(final: Any, classes: list[Array]) -> tuple[_Ask, _Describe]:
    """Several targets at once: one label column and one probabilities tensor each."""
    has_probabilities = hasattr(final, "predict_proba")

    def answer(rows: Any) -> Arrays:
        answers = {"label": as_label_bytes(_dense(final.predict(rows)))}
        if has_probabilities:
            for i, probabilities in enumerate(final.predict_proba(rows)):
                answers[f"probabilities_{i}"] = probabilities
        return answers

    def describe(outputs: Arrays) -> tuple[TensorSpec, ...]:
        return tuple(
            output_spec(name, array, classes=() if name == "label" else classes[i - 1])
            for i, (name, array) in enumerate(outputs.items())
        )

    return answer, describe


def _dense(result: Any) -> Array:
    """Return a result as an array: sparse matrices and frames are spread out."""
    if hasattr(result, "toarray"):
        result = result.toarray()
    return np.asarray(result)


def _info(estimator: Any, notes: Iterable[str]) -> dict[str, Any]:
    import sklearn

    facts: dict[str, Any] = {
        "class": type(estimator).__name__,
        "runtime": f"scikit-learn {sklearn.__version__}",
    }
    steps = getattr(estimator, "steps", None)
    if steps:
        facts["steps"] = [type(step).__name__ for _, step in steps]
    _, final = _split(estimator)
    facts["parameters"] = {
        k: v
        for k, v in final.get_params(deep=False).items()
        if isinstance(v, str | int | float | bool)
    }
    if notes := list(notes):
        facts["warnings"] = notes
    return facts


def _other_version(made_with: str) -> dict[str, str]:
    """Return what to tell of an estimator that another scikit-learn has saved."""
    import sklearn

    if not made_with or made_with == sklearn.__version__:
        return {}
    return {
        "made_with": f"scikit-learn {made_with}",
        "warning": (
            f"made with scikit-learn {made_with}, this worker has {sklearn.__version__}: answers "
            f"may differ; push it with --requirements FILE, where FILE says "
            f"scikit-learn=={made_with}"
        ),
    }


RUNTIME = Runtime(
    name="sklearn",
    formats=(_SKOPS, _PICKLE),
    load=load,
    modules=("sklearn", "joblib"),
    extra="sklearn",
    modules_by_format={_SKOPS.name: ("sklearn", "skops")},
)
