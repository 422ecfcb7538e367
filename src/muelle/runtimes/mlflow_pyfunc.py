"""Run an MLflow model by MLflow's own library: custom Python models, and libraries unknown here.

It runs code from the folder. Not for flavours that a runtime of Muelle loads: see `mlflow`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.core.signature import Signature, TensorSpec, made_up_example
from muelle.runtimes.interface import Arrays
from muelle.runtimes.libraries import library
from muelle.runtimes.mlflow_folder import EXTRA, Field, MlflowFolder, read_example
from muelle.runtimes.mlflow_signature import example_arrays, specs_of
from muelle.runtimes.tables import Array, as_label_bytes, as_texts, first_answer, output_spec

_PREDICTIONS = "predictions"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""MLflow reports its use to its makers unless it is told not to: nothing leaves this machine."""


def load_pyfunc(folder: MlflowFolder) -> PyfuncModel:
    """Load by `mlflow.pyfunc`. Raise ArtifactError, or MissingLibrary where it is not installed."""
    name = folder.path.name
    if not folder.inputs:
        raise ArtifactError(
            f"{name}: its MLmodel has no signature, so nobody knows what it takes; save it with "
            "signature=mlflow.models.infer_signature(inputs, outputs)"
        )
    try:
        specs = specs_of(folder.inputs)
    except ValueError as exc:
        raise ArtifactError(f"{name}: signature: {exc}") from exc
    os.environ.update(_QUIET)
    try:
        pyfunc = importlib.import_module("mlflow.pyfunc")
    except ImportError as exc:
        raise MissingLibrary(
            f"{name}: a {folder.flavour} model needs MLflow itself ({exc}): pip install "
            "mlflow-skinny, or push it with --requirements, so that it gets an environment"
        ) from exc
    try:
        model = pyfunc.load_model(str(folder.path.resolve()))
    except ModuleNotFoundError as exc:
        module = (exc.name or "a module").split(".")[0]
        raise MissingLibrary(
            f"{name}: it needs {module}, which is not installed: pip install {module}"
        ) from exc
    except (Exception, SystemExit) as exc:
        reason = str(exc).replace(f"{folder.path.resolve()}", name)[:300]
        raise ArtifactError(
            f"{name}: MLflow cannot load it: {type(exc).__name__}: {reason}"
        ) from exc
    return PyfuncModel(model, folder, specs)


class PyfuncModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, model: Any, folder: MlflowFolder, specs: tuple[TensorSpec, ...]) -> None:
        import mlflow

        assert folder.inputs
        self._model = model
        self._read = _reader(specs, folder.inputs)
        outputs = folder.outputs or ()
        self._answer_name = outputs[0].name if len(outputs) == 1 else ""
        notes: list[str] = []
        self.example = _example(folder, specs, notes)
        described = self._describe(folder, specs)
        self.signature = Signature(inputs=specs, outputs=described)
        runtime = {"runtime": f"mlflow {mlflow.__version__}"}
        self.info = {**runtime, "warnings": notes} if notes else runtime

    def run(self, inputs: Arrays) -> Arrays:
        """Answer rows by the model's own `predict`; tensors are those of the signature."""
        answer = self._model.predict(self._read(inputs))
        return _arrays(answer, self._answer_name or _PREDICTIONS)

    def close(self) -> None:
        """Nothing to give back."""

    def _describe(
        self, folder: MlflowFolder, specs: Sequence[TensorSpec]
    ) -> tuple[TensorSpec, ...]:
        """Describe the outputs by an answer; by MLflow's words where only made-up values fail."""
        if self.example is not None:
            answer = first_answer(folder.path, self.run, self.example)
            return tuple(output_spec(name, array) for name, array in answer.items())
        row = made_up_example(Signature(inputs=tuple(specs), outputs=()))
        rows = {spec.name: _made_up(spec, row[spec.name]) for spec in specs}
        try:
            answer = first_answer(folder.path, self.run, rows)
        except ArtifactError:
            if not folder.outputs:
                raise
            return _declared(folder.outputs)
        return tuple(output_spec(name, array) for name, array in answer.items())


def _made_up(spec: TensorSpec, value: Any) -> Array:
    row = value[0] if spec.shape[:1] == (-1,) else value
    if spec.shape[:1] != (-1,):
        return np.array(value)
    return example_arrays((spec,), row, None)[spec.name]


def _declared(fields: Sequence[Field]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=one.name or (_PREDICTIONS if len(fields) == 1 else f"{_PREDICTIONS}_{i}"),
            datatype=one.datatype or "BYTES",
            shape=one.shape,
        )
        for i, one in enumerate(fields)
    )


def _example(folder: MlflowFolder, specs: Sequence[TensorSpec], notes: list[str]) -> Arrays | None:
    try:
        row = read_example(folder)
        return None if row is None else example_arrays(specs, row, folder.inputs)
    except (ArtifactError, ValueError, TypeError, LookupError, OverflowError) as exc:
        notes.append(f"its input example cannot be used: {exc}")
        return None


# --- what the model's predict takes and gives ---


def _reader(specs: Sequence[TensorSpec], fields: Sequence[Field]) -> Callable[[Arrays], Any]:
    """Return how tensors become what the signature promises to `predict`."""
    if not fields[0].is_column:
        if len(fields) == 1 and not fields[0].name:
            only = specs[0].name
            return lambda inputs: _plain(inputs[only])
        return lambda inputs: {name: _plain(array) for name, array in inputs.items()}
    pandas = library("pandas", EXTRA)
    if len(specs) == 1 and len(specs[0].shape) == 2:
        columns = list(specs[0].columns) or None
        return lambda inputs: pandas.DataFrame(inputs[specs[0].name], columns=columns)
    kinds = {spec.name: one.kind for spec, one in zip(specs, fields, strict=True)}

    def read(inputs: Arrays) -> Any:
        return pandas.DataFrame(
            {
                name: _column(pandas, inputs[name], kind)
                for name, kind in kinds.items()
                if name in inputs
            }
        )

    return read


def _column(pandas: Any, values: Array, kind: str) -> Any:
    if kind == "string":
        return pandas.Series(as_texts(values, None), dtype=object)
    if kind == "datetime":
        return pandas.to_datetime(pandas.Series(as_texts(values, None)), format="ISO8601")
    return pandas.Series(values, dtype=values.dtype)


def _plain(array: Array) -> Array:
    if array.dtype != object:
        return array
    return np.array(as_texts(array, None), dtype=object).reshape(array.shape)


def _arrays(answer: Any, name: str) -> Arrays:
    """Return what `predict` gave by name: a frame's columns, a mapping's entries, or one array."""
    if isinstance(answer, Mapping):
        return {str(key): _array(values) for key, values in answer.items()}
    if hasattr(answer, "columns") and hasattr(answer, "iloc"):
        return {str(key): _array(answer[key]) for key in answer.columns}
    return {name: _array(answer)}


def _array(values: Any) -> Array:
    array = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if array.dtype == object and not any(isinstance(v, str | bytes) for v in array.flat):
        array = np.array(array.tolist())  # Numbers, or lists of equal length, kept as objects.
    return as_label_bytes(array)
