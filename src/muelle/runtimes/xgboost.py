"""Serve XGBoost boosters saved as UBJSON or JSON. Not for its old binary files, which it dropped.

Categories are the codes that training used: the server takes them as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError
from muelle.core.signature import Signature
from muelle.runtimes.formats import is_xgboost_json, is_xgboost_ubj
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Runtime
from muelle.runtimes.libraries import library
from muelle.runtimes.tables import Array, Table, describe_outputs, first_answer, rounded

_SPLIT = re.compile(r"\[([^\[\]<>]+)<([-+.\deE]+)\]")
_TREES_FOR_EXAMPLE = 10
_END_BYTES = 512
"""The key `version` is the last one of a model file."""


def load(path: Path, options: LoadOptions) -> XgboostModel:
    """Read the booster. Raise ArtifactError when the file is broken."""
    xgboost = library("xgboost", RUNTIME.extra)
    xgboost.set_config(verbosity=0)
    booster = xgboost.Booster({"nthread": options.threads})
    # Bytes, not the path: from a path, the ending would decide how to read it.
    content = bytearray(path.read_bytes())
    _check_end(content, path)
    try:
        booster.load_model(content)
    except Exception as exc:
        # What XGBoost's own parser says is a stack of source lines; the first has the reason.
        reason = str(exc).strip().splitlines()[0][:300] if str(exc) else type(exc).__name__
        raise ArtifactError(
            f"{path.name}: XGBoost cannot read it: {_without_place(reason)}"
        ) from exc
    return XgboostModel(booster, path)


def _check_end(content: bytearray, path: Path) -> None:
    """Refuse a cut file: XGBoost's UBJSON reader runs past its end and takes the process along."""
    if b"version" not in content[-_END_BYTES:] or not content.rstrip().endswith(b"}"):
        raise ArtifactError(f"{path.name}: its end is missing; copy the file again")


def _without_place(reason: str) -> str:
    return re.sub(r"^\[[\d:]+\] \S+: ", "", reason)


class XgboostModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, booster: Any, path: Path) -> None:
        import json

        self._booster = booster
        config = json.loads(booster.save_config())["learner"]
        self._objective = str(config["objective"]["name"])
        self._kind = config["gradient_booster"]["name"]
        self._range = _best_range(booster)
        names = booster.feature_names
        n_columns = booster.num_features()
        table = Table(
            tuple(names or [f"f{i}" for i in range(n_columns)]),
            datatype="FP32",
            has_names=bool(names),
        )
        self._types = booster.feature_types
        self.example = table.row(_typical_row(booster, table.names))
        self.info = _info(booster, config, self._objective)
        outputs = first_answer(path, self.run, self.example)
        self.signature = Signature(inputs=table.specs(), outputs=describe_outputs(outputs))

    def run(self, inputs: Arrays) -> Arrays:
        """x: float32 [rows, columns], NaN = missing -> label and probabilities, or predictions."""
        raw = self._predict(inputs["x"])
        if self._objective == "binary:logistic" and raw.ndim == 1:
            return {
                "label": (raw > 0.5).astype(np.int64),
                "probabilities": np.column_stack((1.0 - raw, raw)),
            }
        if self._objective == "multi:softprob":
            return {"label": raw.argmax(axis=1).astype(np.int64), "probabilities": raw}
        if self._objective in ("multi:softmax", "binary:hinge") and raw.ndim == 1:
            return {"label": raw.astype(np.int64)}
        return {"predictions": raw}

    def _predict(self, rows: Array) -> Array:
        if self._kind == "gblinear":
            # Linear boosters have no in-place prediction.
            import xgboost

            matrix = xgboost.DMatrix(rows, feature_types=self._types)
            raw = self._booster.predict(matrix, validate_features=False)
        else:
            raw = self._booster.inplace_predict(
                rows, iteration_range=self._range, validate_features=False
            )
        return np.asarray(raw)

    def close(self) -> None:
        """Nothing to give back."""


def _best_range(booster: Any) -> tuple[int, int]:
    """Return the rounds to use: up to the best one where scikit-learn's wrapper saved the model.

    That is what the wrapper itself predicts with; a plain booster uses all rounds.
    """
    attributes = booster.attributes()
    if "scikit_learn" in attributes and "best_iteration" in attributes:
        return (0, int(attributes["best_iteration"]) + 1)
    return (0, 0)


def _typical_row(booster: Any, names: tuple[str, ...]) -> list[float]:
    """Return the middle of the thresholds that the first trees compare each column with."""
    seen: dict[str, list[float]] = {}
    try:
        trees = booster[: min(_TREES_FOR_EXAMPLE, booster.num_boosted_rounds())].get_dump()
    except Exception:
        # A linear booster has no trees to slice; its example is zeros.
        trees = []
    for tree in trees:
        for column, threshold in _SPLIT.findall(tree):
            seen.setdefault(column, []).append(float(threshold))
    return [rounded(float(np.median(seen[name]))) if name in seen else 0.0 for name in names]


def _info(booster: Any, config: Mapping[str, Any], objective: str) -> dict[str, Any]:
    import xgboost

    facts: dict[str, Any] = {
        "runtime": f"xgboost {xgboost.__version__}",
        "objective": objective,
        "booster": config["gradient_booster"]["name"],
        "rounds": booster.num_boosted_rounds(),
    }
    types = zip(booster.feature_names or (), booster.feature_types or (), strict=False)
    coded = [name for name, kind in types if kind == "c"]
    if coded:
        facts["category_codes"] = coded
        facts["warnings"] = [f"columns {', '.join(coded)} take category codes, not strings"]
    attributes = {k: v[:200] for k, v in booster.attributes().items() if k != "scikit_learn"}
    return facts | ({"attributes": attributes} if attributes else {})


RUNTIME = Runtime(
    name="xgboost",
    formats=(
        Format("XGBoost UBJSON", (".ubj",), is_xgboost_ubj),
        Format("XGBoost JSON", (".json",), is_xgboost_json),
    ),
    load=load,
    modules=("xgboost",),
    extra="xgboost",
)
