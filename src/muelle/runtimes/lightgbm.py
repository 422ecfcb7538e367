"""Serve LightGBM text models. Not for its JSON dumps, which LightGBM itself cannot load.

Columns that were pandas categories in training take the categories themselves, as the file holds
their list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError
from muelle.core.signature import Signature
from muelle.runtimes.formats import is_lightgbm
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Runtime
from muelle.runtimes.libraries import library
from muelle.runtimes.tables import Array, Table, as_texts, describe_outputs, first_answer, rounded

_DEFAULT_NAME = re.compile(r"Column_\d+\Z")
_INTERVAL = re.compile(r"\[(\S+):(\S+)\]\Z")
_BINARY = frozenset({"binary", "cross_entropy"})
_MULTICLASS = frozenset({"multiclass", "multiclassova"})

Codes = Mapping[Any, float]


def load(path: Path, options: LoadOptions) -> LightgbmModel:
    """Read the model. Raise ArtifactError when the file is broken."""
    text = _text(path)
    lightgbm = library("lightgbm", RUNTIME.extra)

    try:
        booster = lightgbm.Booster(model_str=text)
    except Exception as exc:
        raise ArtifactError(f"{path.name}: LightGBM cannot read it: {str(exc)[:300]}") from exc
    return LightgbmModel(booster, _header(text), options.threads, path)


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise ArtifactError(f"{path.name}: not a LightGBM text model: {exc.reason}") from exc
    # LightGBM answers with the trees that are left of a cut file, and reads past its end where the
    # parameters are cut.
    is_cut = "\nparameters:" in text and "\nend of parameters" not in text
    if is_cut or "\nend of trees" not in text:
        raise ArtifactError(f"{path.name}: its end is missing; copy the file again")
    return text


def _header(text: str) -> dict[str, str]:
    """Return the `key=value` lines before the first tree."""
    head = text[: text.find("\nTree=")]
    return dict(line.split("=", 1) for line in head.splitlines() if "=" in line)


class LightgbmModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, booster: Any, header: Mapping[str, str], threads: int, path: Path) -> None:
        self._booster = booster
        self._threads = threads
        self._objective = header.get("objective", "").split(" ")[0]
        self._n_classes = int(header.get("num_class", "1"))
        names = tuple(booster.feature_name())
        ranges = header.get("feature_infos", "").split(" ")
        codes, notes = _category_codes(booster, ranges)
        has_names = not all(map(_DEFAULT_NAME.match, names))
        strings = frozenset(i for i, c in codes.items() if any(isinstance(v, str) for v in c))
        table = Table(names, strings, has_names=has_names)
        self._read = _reader(table, codes)
        self.example = table.row([_typical(i, ranges, codes) for i in range(len(names))])
        self.info = _info(booster, self._objective, notes)
        outputs = first_answer(path, self.run, self.example)
        self.signature = Signature(inputs=table.specs(), outputs=describe_outputs(outputs))

    def run(self, inputs: Arrays) -> Arrays:
        """Columns as in the signature, NaN = missing -> label and probabilities, or predictions."""
        raw = self._booster.predict(self._read(inputs), num_threads=self._threads)
        if self._objective in _BINARY:
            return {
                "label": (raw > 0.5).astype(np.int64),
                "probabilities": np.column_stack((1.0 - raw, raw)),
            }
        if self._objective in _MULTICLASS:
            return {"label": raw.argmax(axis=1).astype(np.int64), "probabilities": raw}
        return {"predictions": np.asarray(raw)}

    def close(self) -> None:
        """Nothing to give back."""


def _category_codes(booster: Any, ranges: list[str]) -> tuple[dict[int, Codes], list[str]]:
    """Return, per column that was a pandas category, its values' codes; and what to warn of.

    The file has the lists in column order without saying whose they are: categorical columns are
    those whose range is a list of codes, not an interval.
    """
    lists = booster.pandas_categorical or []
    columns = [i for i, r in enumerate(ranges) if r != "none" and not _INTERVAL.match(r)]
    if not lists:
        return {}, []
    if len(columns) != len(lists):
        return {}, ["category columns take codes: the file does not say whose the categories are"]
    return {
        column: {value: float(code) for code, value in enumerate(values)}
        for column, values in zip(columns, lists, strict=True)
    }, []


def _reader(table: Table, codes: Mapping[int, Codes]) -> Callable[[Arrays], Array]:
    names = table.names

    def coded(i: int, column: Array) -> Array:
        values = as_texts(column, None) if i in table.strings else column.tolist()
        # An unknown category is a missing value, as LightGBM's own DataFrame path has it.
        return np.array([codes[i].get(v, math.nan) for v in values])

    def read_matrix(inputs: Arrays) -> Array:
        rows = inputs["x"]
        if codes:
            rows = rows.copy()
            for i in codes:
                rows[:, i] = coded(i, rows[:, i])
        return rows

    def read_columns(inputs: Arrays) -> Array:
        rows = np.empty((len(inputs[names[0]]), len(names)))
        for i, name in enumerate(names):
            rows[:, i] = coded(i, inputs[name]) if i in codes else inputs[name]
        return rows

    return read_columns if table.is_mixed else read_matrix


def _typical(column: int, ranges: list[str], codes: Mapping[int, Codes]) -> float | str:
    """Return a category, or the middle of the values that training saw."""
    if column in codes:
        first = next(iter(codes[column]), 0.0)
        return first if isinstance(first, str) else float(first)
    text = ranges[column] if column < len(ranges) else "none"
    interval = _INTERVAL.match(text)
    if interval:
        return rounded((float(interval[1]) + float(interval[2])) / 2)
    seen = [float(v) for v in text.split(":") if v.lstrip("-").isdigit() and float(v) >= 0]
    return seen[0] if seen else 0.0


def _info(booster: Any, objective: str, notes: list[str]) -> dict[str, Any]:
    import lightgbm

    facts: dict[str, Any] = {
        "runtime": f"lightgbm {lightgbm.__version__}",
        "objective": objective or "custom",
        "trees": booster.num_trees(),
        "parameters": {
            k: booster.params[k]
            for k in ("boosting", "learning_rate", "num_leaves", "max_depth", "num_iterations")
            if k in booster.params
        },
    }
    return facts | ({"warnings": notes} if notes else {})


RUNTIME = Runtime(
    name="lightgbm",
    formats=(Format("LightGBM text", (".txt",), is_lightgbm),),
    load=load,
    modules=("lightgbm",),
    extra="lightgbm",
)
