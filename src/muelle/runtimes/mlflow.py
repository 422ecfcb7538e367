"""Serve MLflow model folders: a flavour that Muelle knows by its own runtime, others by MLflow.

Not for tracking servers or registries: a folder with its `MLmodel` is all that is read. MLflow's
column names, datatypes and input example are kept; answers are those of the flavour's runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.core.signature import Signature
from muelle.runtimes import catboost, lightgbm, onnx, sklearn, xgboost
from muelle.runtimes.formats import HEAD_BYTES
from muelle.runtimes.interface import Arrays, Format, LoadedModel, LoadOptions, Runtime
from muelle.runtimes.mlflow_folder import (
    EXTRA,
    FILE,
    PYFUNC,
    MlflowFolder,
    read_example,
    read_folder,
)
from muelle.runtimes.mlflow_signature import adapt, example_arrays

_DELEGATES: Mapping[str, tuple[Runtime, ...]] = {
    "onnx": (onnx.RUNTIME,),
    "sklearn": (sklearn.RUNTIME,),
    "catboost": (catboost.RUNTIME,),
    # Their scikit-learn wrappers are saved as scikit-learn's estimators are.
    "xgboost": (xgboost.RUNTIME, sklearn.RUNTIME),
    "lightgbm": (lightgbm.RUNTIME, sklearn.RUNTIME),
}
_UNUSABLE = "MLflow"
"""The format of a folder that cannot be loaded; loading it says why."""


def load(path: Path, options: LoadOptions) -> LoadedModel:
    """Load the folder's model. Raise ArtifactError (broken, cannot be served) or MissingLibrary."""
    folder = read_folder(path)
    delegate = _delegate(folder)
    if options.format and options.format != _format_name(delegate):
        # Whether it may run code was decided for what it was then.
        raise ArtifactError(
            f"{path.name}: it was {options.format}, now it is {_format_name(delegate)}: the folder "
            "changed while it was being loaded"
        )
    if delegate is None:
        from muelle.runtimes.mlflow_pyfunc import load_pyfunc

        return MlflowModel(load_pyfunc(folder), folder)
    runtime, form = delegate
    assert folder.artifact is not None
    if form.runs_code and folder.code is not None:
        sys.path.append(str(folder.code.resolve()))  # Behind everything that is installed.
    inner = runtime.load(folder.artifact, _for_delegate(options, form))
    return NativeModel(inner, folder, keep_types=runtime.name == "onnx")


def _for_delegate(options: LoadOptions, form: Format) -> LoadOptions:
    return LoadOptions(
        threads=options.threads,
        max_batch_size=options.max_batch_size,
        format=form.name,
        name=options.name,
    )


class MlflowModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, inner: LoadedModel, folder: MlflowFolder) -> None:
        self._inner = inner
        self.signature, self.example = inner.signature, inner.example
        self.info = {**inner.info, "mlflow": dict(folder.facts)}

    def run(self, inputs: Arrays) -> Arrays:
        """Answer rows; tensors are those of the signature. The inputs are not changed or kept."""
        return self._inner.run(inputs)

    def close(self) -> None:
        """Give back what the model took."""
        self._inner.close()


class NativeModel(MlflowModel):
    """A model of another runtime, described as MLflow does."""

    def __init__(self, inner: LoadedModel, folder: MlflowFolder, *, keep_types: bool) -> None:
        super().__init__(inner, folder)
        self._adapted = adapt(inner.signature, folder.inputs, keep_types=keep_types)
        self.signature = Signature(inputs=self._adapted.inputs, outputs=inner.signature.outputs)
        self.example = self._example(folder)
        notes = [*inner.info.get("warnings", ()), *self._adapted.notes]
        if notes:
            self.info = {**self.info, "warnings": notes}

    def run(self, inputs: Arrays) -> Arrays:
        """Answer rows; tensors are those of the signature. The inputs are not changed or kept."""
        return self._inner.run(self._adapted.to_native(inputs))

    def _example(self, folder: MlflowFolder) -> Arrays | None:
        """Return MLflow's input example where the model answers it, else the runtime's own."""
        try:
            row = read_example(folder)
            if row is not None:
                arrays = example_arrays(self.signature.inputs, row, folder.inputs)
                self.run(arrays)
                return arrays
        except Exception as exc:
            # Whatever is wrong with the example, the model itself has answered a row already.
            text = str(exc).replace(str(folder.path), folder.path.name)[:300]
            self._adapted.notes.append(f"its input example cannot be used: {text}")
        own = self._inner.example
        return None if own is None else self._adapted.from_native(own)


# --- which format a folder is ---


def _delegate(folder: MlflowFolder) -> tuple[Runtime, Format] | None:
    """Return who loads the flavour's file, by its content; None for MLflow itself.

    Raise ArtifactError when the file is none that the flavour's runtime reads.
    """
    if folder.flavour == PYFUNC or folder.artifact is None:
        return None
    file = folder.artifact
    try:
        with open(file, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as exc:
        raise ArtifactError(f"{file.name}: cannot be read: {exc.strerror}") from exc
    for runtime in _DELEGATES[folder.flavour]:
        for form in runtime.formats:
            if form.sniff(head, file):
                return runtime, form
    known = ", ".join(f.name for r in _DELEGATES[folder.flavour] for f in r.formats)
    raise ArtifactError(
        f"{folder.path.name}: {file.name} is no file of flavour {folder.flavour} that can be "
        f"served; known are {known}"
    )


def _format_name(delegate: tuple[Runtime, Format] | None) -> str:
    return f"MLflow ({delegate[1].name if delegate else PYFUNC})"


def _format_of(path: Path) -> str:
    """Return the format of a folder, "" when it is none of MLflow's. Runs nothing of it."""
    if not (path / FILE).is_file():
        return ""
    try:
        return _format_name(_delegate(read_folder(path)))
    except (ArtifactError, MissingLibrary):
        return _UNUSABLE


def _sniffer(name: str) -> Callable[[bytes, Path], bool]:
    return lambda head, path: _format_of(path) == name


def _all_formats() -> dict[str, tuple[bool, Runtime | None, tuple[str, ...]]]:
    """Return format -> (runs code, who loads it, import names that this needs)."""
    found: dict[str, tuple[bool, Runtime | None, tuple[str, ...]]] = {
        _UNUSABLE: (False, None, ("yaml",)),
        _format_name(None): (True, None, ("yaml", "mlflow")),
    }
    for runtimes in _DELEGATES.values():
        for runtime in runtimes:
            for form in runtime.formats:
                modules = runtime.modules_by_format.get(form.name, runtime.modules)
                name = _format_name((runtime, form))
                found[name] = (form.runs_code, runtime, ("yaml", *modules))
    return found


_FORMATS = _all_formats()

RUNTIME = Runtime(
    name="mlflow",
    formats=tuple(
        Format(name, (), _sniffer(name), runs_code=runs_code, is_folder=True)
        for name, (runs_code, _, _) in _FORMATS.items()
    ),
    load=load,
    modules=("yaml",),
    extra=EXTRA,
    modules_by_format={name: modules for name, (_, _, modules) in _FORMATS.items()},
    extras_by_format={
        name: (f"{EXTRA},{runtime.extra}" if runtime else EXTRA)
        for name, (_, runtime, _) in _FORMATS.items()
    },
)
