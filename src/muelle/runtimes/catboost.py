"""Serve CatBoost models. Not for embedding columns, which no request form here carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError
from muelle.core.signature import Signature
from muelle.runtimes.formats import is_catboost
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Runtime
from muelle.runtimes.libraries import library
from muelle.runtimes.tables import (
    Table,
    as_label_bytes,
    as_texts,
    describe_outputs,
    first_answer,
    rounded,
)

_MISSING_CATEGORY = "nan"
"""CatBoost knows no missing category; this is the text that its users write for one."""
_MANY_LABELS = frozenset({"MultiLogloss", "MultiCrossEntropy"})


def load(path: Path, options: LoadOptions) -> CatboostModel:
    """Read the model. Raise ArtifactError when the file is broken."""
    catboost = library("catboost", RUNTIME.extra)
    model = catboost.CatBoost()
    try:
        # As bytes: CatBoost's native reader takes any path apart by its own rules.
        model.load_model(blob=path.read_bytes())
    except Exception as exc:
        reason = str(exc).strip().splitlines()[-1][:300] if str(exc) else type(exc).__name__
        raise ArtifactError(
            f"{path.name}: CatBoost cannot read it: {reason.replace(str(path), path.name)}"
        ) from exc
    if model.get_embedding_feature_indices():
        raise ArtifactError(f"{path.name}: it has embedding columns, which cannot be served")
    return CatboostModel(model, options.threads, path)


class CatboostModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, model: Any, threads: int, path: Path) -> None:
        self._model = model
        self._threads = threads
        parameters = model.get_all_params()
        self._loss = str(parameters.get("loss_function", ""))
        self._classes = np.asarray(model.classes_)
        self._labels = as_label_bytes(self._classes)
        categories = model.get_cat_feature_indices()
        texts = model.get_text_feature_indices()
        names = tuple(model.feature_names_)
        table = Table(
            names,
            frozenset(categories) | frozenset(texts),
            datatype="FP32",
            has_names=names != tuple(map(str, range(len(names)))),
        )
        self._pool = _pool_reader(table, categories, texts, threads)
        self._prediction_type = _prediction_type(self._loss, len(self._classes))
        self.example = table.row(_typical_row(model, table))
        self.info = _info(model, parameters)
        outputs = first_answer(path, self.run, self.example)
        self.signature = Signature(
            inputs=table.specs(), outputs=describe_outputs(outputs, self._classes)
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Columns as in the signature -> label and probabilities, or predictions."""
        raw = self._model.predict(
            self._pool(inputs),
            prediction_type=self._prediction_type,
            thread_count=self._threads,
        )
        raw = np.asarray(raw)
        if self._prediction_type == "Probability" and self._loss not in _MANY_LABELS:
            return {"label": self._labels.take(raw.argmax(axis=1)), "probabilities": raw}
        return {"predictions": raw}

    def close(self) -> None:
        """Nothing to give back."""


def _prediction_type(loss: str, n_classes: int) -> str:
    if n_classes:
        return "Probability"
    # As CatBoostRegressor answers for losses that are fitted on a logarithm.
    return "Exponent" if loss.startswith(("Poisson", "Tweedie")) else "RawFormulaVal"


def _pool_reader(
    table: Table, categories: list[int], texts: list[int], threads: int
) -> Callable[[Arrays], Any]:
    from catboost import Pool

    if not table.is_mixed:
        return lambda inputs: Pool(inputs["x"], thread_count=threads)

    def read(inputs: Arrays) -> Any:
        rows = np.empty((len(inputs[table.names[0]]), len(table.names)), dtype=object)
        for i, name in enumerate(table.names):
            column: Any = inputs[name]
            rows[:, i] = as_texts(column, _missing(i)) if i in table.strings else column
        return Pool(rows, cat_features=categories, text_features=texts, thread_count=threads)

    def _missing(column: int) -> str:
        return _MISSING_CATEGORY if column in categories else ""

    return read


def _typical_row(model: Any, table: Table) -> list[float | str]:
    """Return the middle of each column's borders; a category's values are not in the file."""
    borders = model.get_borders()
    return [
        "a"
        if i in table.strings
        else rounded(float(np.median(borders[i])))
        if borders.get(i)
        else 0.0
        for i in range(len(table.names))
    ]


def _info(model: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    import catboost

    shown = ("loss_function", "iterations", "learning_rate", "depth", "l2_leaf_reg")
    return {
        "runtime": f"catboost {catboost.__version__}",
        "trees": int(model.tree_count_),
        "parameters": {k: parameters[k] for k in shown if k in parameters},
    }


RUNTIME = Runtime(
    name="catboost",
    formats=(Format("CatBoost", (".cbm",), is_catboost),),
    load=load,
    modules=("catboost",),
    extra="catboost",
)
