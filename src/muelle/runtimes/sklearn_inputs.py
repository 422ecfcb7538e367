"""Learn from a fitted estimator what its columns are: names, strings or numbers, plausible values.

Nothing is fitted or predicted here; only attributes that `fit` left behind are read. scikit-learn
itself is not imported: what a class is, its name and module say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muelle.runtimes.tables import rounded

Columns = tuple[int, ...]
"""Positions, in the model's input, of the columns that a step receives."""

_MAX_TREES = 20
_TEXT_VECTORIZERS = frozenset({"CountVectorizer", "TfidfVectorizer", "HashingVectorizer"})
_DICT_READERS = frozenset({"DictVectorizer", "FeatureHasher"})
_ENCODERS = frozenset({"OneHotEncoder", "OrdinalEncoder", "TargetEncoder"})
_NEEDS_FRAME = frozenset({"ColumnTransformer", "FunctionTransformer", "make_column_selector"})


@dataclass(slots=True)
class Findings:
    """What is known about the input columns, by position."""

    strings: set[int] = field(default_factory=set)
    examples: dict[int, float | str] = field(default_factory=dict)
    missing_is_none: set[int] = field(default_factory=set)
    """String columns where a missing value was None, not NaN, when the model was fitted."""
    reads_text: bool = False
    """Whether the model takes one list of texts instead of columns."""
    reads_dicts: bool = False

    def suggest(self, column: int, value: Any) -> None:
        """Keep the first plausible value of a column; a string when it is a string column."""
        if isinstance(value, str):
            self.examples.setdefault(column, value)
        elif isinstance(value, int | float) and np.isfinite(value):
            self.examples.setdefault(column, rounded(value))


def look_at(estimator: Any, names: Sequence[str], n_columns: int) -> Findings:
    """Walk a fitted estimator from its input on, as far as columns stay what they are."""
    found = Findings()
    _visit(estimator, tuple(range(n_columns)), tuple(names), found)
    for column in found.strings:
        # A number here would come from a step that counts, such as an imputer beside an encoder.
        if not isinstance(found.examples.get(column), str):
            found.examples[column] = "a"
    return found


def nested(estimator: Any) -> Iterator[Any]:
    """Yield an estimator and all fitted ones inside it, each once, the outer before the inner."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(_inside(part))


def _inside(part: Any) -> Iterator[Any]:
    """Yield the estimators that another one holds, not those which they hold in turn."""
    waiting = list(vars(part).values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                waiting.extend(value.reshape(-1).tolist())
        elif hasattr(value, "get_params") and not isinstance(value, type):
            yield value
        elif type(value).__name__ == "_CalibratedClassifier":
            waiting.extend(vars(value).values())


def needs_frame(estimator: Any) -> bool:
    """Whether a DataFrame is needed: a step picks columns by name, or is not scikit-learn's own."""
    return any(
        type(part).__name__ in _NEEDS_FRAME
        or not type(part).__module__.startswith("sklearn.")
        or hasattr(part, "_sklearn_output_config")
        for part in nested(estimator)
    )


def _visit(part: Any, columns: Columns, names: tuple[str, ...], found: Findings) -> bool:
    """Note what a step tells of its columns. Return whether they go on to the next step as such."""
    if part is None or isinstance(part, str):
        return part == "passthrough"
    kind = type(part).__name__
    if kind in _VISITORS:
        return _VISITORS[kind](part, columns, names, found)
    if kind in _TEXT_VECTORIZERS:
        found.strings.update(columns)
        found.reads_text = True
        return False
    if kind in _DICT_READERS:
        found.reads_dicts = True
        return False
    if kind in _ENCODERS:
        return _visit_encoder(part, columns, found)
    before = getattr(part, "_preprocessor", None)
    if before is not None:  # HistGradientBoosting with categorical features
        _visit(before, columns, names, found)
        return False
    for position, value in _typical(part, len(columns)):
        found.suggest(columns[position], value)
    for child in _inside(part):
        # Whatever a wrapper is called (search, stacking, calibration): a fitted estimator inside
        # that takes as many columns sees the same ones. A tree tells nothing new about them.
        if getattr(child, "n_features_in_", None) == len(columns) and not hasattr(child, "tree_"):
            _visit(child, columns, names, found)
    return kind in _KEEPS_COLUMNS


_KEEPS_COLUMNS = frozenset(
    {"StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "PowerTransformer"}
)


def _visit_pipeline(part: Any, columns: Columns, names: tuple[str, ...], found: Findings) -> bool:
    # All: the columns go on only while every step keeps them.
    return all(_visit(step, columns, names, found) for _, step in part.steps)


def _visit_union(part: Any, columns: Columns, names: tuple[str, ...], found: Findings) -> bool:
    for _, step in part.transformer_list:
        _visit(step, columns, names, found)
    return False


def _visit_column_transformer(
    part: Any, columns: Columns, names: tuple[str, ...], found: Findings
) -> bool:
    own_names = tuple(map(str, getattr(part, "feature_names_in_", ())))
    own_names = own_names or tuple(names[c] for c in columns)
    for _, step, wanted in part.transformers_:
        positions = _positions(wanted, own_names)
        _visit(step, tuple(columns[p] for p in positions), names, found)
    # Inside a wider table a vectorizer reads one column, not the whole input.
    found.reads_text = False
    return False


def _visit_imputer(part: Any, columns: Columns, names: tuple[str, ...], found: Findings) -> bool:
    for column, value in zip(columns, part.statistics_.tolist(), strict=True):
        if isinstance(value, str):
            found.strings.add(column)
            if part.missing_values is None:
                found.missing_is_none.add(column)
        found.suggest(column, value)
    return not part.add_indicator


_Visitor = Callable[[Any, Columns, tuple[str, ...], Findings], bool]
_VISITORS: Mapping[str, _Visitor] = {
    "Pipeline": _visit_pipeline,
    "FeatureUnion": _visit_union,
    "ColumnTransformer": _visit_column_transformer,
    "SimpleImputer": _visit_imputer,
}


def _visit_encoder(part: Any, columns: Columns, found: Findings) -> bool:
    for column, categories in zip(columns, part.categories_, strict=True):
        values = categories.tolist()
        texts = [v for v in values if isinstance(v, str)]
        if texts:
            found.strings.add(column)
            if None in values:
                found.missing_is_none.add(column)
        if values:
            found.suggest(column, texts[0] if texts else values[0])
    return False


def _positions(wanted: Any, names: tuple[str, ...]) -> list[int]:
    """Resolve a ColumnTransformer's column choice: names, positions, a slice or a mask."""
    if isinstance(wanted, str):
        return [names.index(wanted)]
    if isinstance(wanted, int | np.integer):
        return [int(wanted)]
    if isinstance(wanted, slice):
        start, stop = (
            names.index(end) if isinstance(end, str) else end for end in (wanted.start, wanted.stop)
        )
        # A slice of names includes its end, as in pandas.
        stop = stop + 1 if isinstance(wanted.stop, str) else stop
        return list(range(len(names)))[start : stop : wanted.step]
    chosen = np.asarray(wanted)
    if chosen.dtype == bool:
        return np.flatnonzero(chosen).tolist()
    return [names.index(c) if isinstance(c, str) else int(c) for c in chosen.tolist()]


def _typical(part: Any, n_columns: int) -> list[tuple[int, float]]:
    """Return values that fitting saw: means or centres, else what a tree compares with."""
    attributes = vars(part)
    for name in ("mean_", "center_", "cluster_centers_", "theta_", "_fit_X"):
        value = attributes.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            row = value if value.ndim == 1 else value[0] if len(value) else value
            if row.shape == (n_columns,):
                return list(enumerate(row.tolist()))
    low, high = attributes.get("data_min_"), attributes.get("data_max_")
    if isinstance(low, np.ndarray) and isinstance(high, np.ndarray):
        return list(enumerate(((low + high) / 2).tolist()))
    mapper = attributes.get("_bin_mapper")
    if mapper is not None:
        bins = mapper.bin_thresholds_
        return [(i, float(np.median(b))) for i, b in enumerate(bins) if len(b)]
    return _thresholds(part, n_columns)


def _thresholds(part: Any, n_columns: int) -> list[tuple[int, float]]:
    trees = [tree for tree in (getattr(p, "tree_", None) for p in nested(part)) if tree is not None]
    trees = [t for t in trees if t.n_features == n_columns][:_MAX_TREES]
    if not trees:
        return []
    features = np.concatenate([t.feature for t in trees])
    values = np.concatenate([t.threshold for t in trees])
    return [
        (i, float(np.median(values[features == i])))
        for i in range(n_columns)
        if (features == i).any()
    ]
