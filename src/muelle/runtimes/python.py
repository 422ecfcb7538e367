"""Serve a model that is a Python file with one `muelle.Model` subclass. Loading it runs its code.

Not for apps (ASGI, WSGI), and not a sandbox: that is the worker process around it.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.core.signature import Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.runtimes.formats import is_python_model
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Model, Runtime
from muelle.runtimes.tables import Array, datatype_of, object_array

_MODULE_NAME = "muelle_served_model"
_HOW_TO_DECLARE = (
    "for example `inputs = [TensorSpec(name='x', datatype='FP32', shape=(-1, 4))]` in the class"
)


def load(path: Path, options: LoadOptions) -> PythonModel:
    """Run the file, then its model's `load`. Raise ArtifactError, naming what is wrong in it."""
    model_class = _model_class(_execute(path), path)
    for member in ("inputs", "outputs"):
        specs = getattr(model_class, member)
        is_declared = bool(specs) and all(isinstance(s, TensorSpec) for s in specs)
        if not is_declared:
            raise ArtifactError(
                f"{path.name}: {model_class.__name__} must declare its {member} as a list of "
                f"muelle.TensorSpec: {_HOW_TO_DECLARE}"
            )
    if model_class.predict is Model.predict:
        raise ArtifactError(f"{path.name}: {model_class.__name__} does not define predict")
    try:
        signature = Signature(inputs=tuple(model_class.inputs), outputs=tuple(model_class.outputs))
        model = model_class()
        model.load(path.parent)
    except ModuleNotFoundError as exc:
        raise _missing(path, exc) from exc
    except Exception as exc:
        raise _failed(path, "load", exc) from exc
    return PythonModel(model, signature, path)


class PythonModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, model: Model, signature: Signature, path: Path) -> None:
        self._model = model
        self.signature = signature
        self.info = {
            "class": type(model).__name__,
            "description": (type(model).__doc__ or "").strip()[:1_000],
            "runtime": f"Python {platform.python_version()}",
        }
        self.example = _example(model, signature, path)
        if self.example is not None:
            self._check_example(self.example, path)

    def _check_example(self, example: Arrays, path: Path) -> None:
        """Refuse a model that does not keep its own declaration."""
        try:
            outputs = self._model.predict(dict(example))
        except Exception as exc:
            raise _failed(path, "predict on its own example", exc) from exc
        for spec in self.signature.outputs:
            problem = _problem(spec, outputs.get(spec.name), self.signature.has_rows)
            if problem:
                raise ArtifactError(f"{path.name}: output {spec.name!r}: {problem}")

    def run(self, inputs: Arrays) -> Arrays:
        """Answer a batch with the model's own `predict`."""
        return self._model.predict(inputs)

    def close(self) -> None:
        """Tell the model to give back what it took."""
        self._model.close()


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ArtifactError(f"{path.name}: not a Python file; name it with .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and the like look their module up by name while it runs.
    sys.modules[_MODULE_NAME] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # Modules beside the file; behind everything that is installed.
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as exc:
        raise _missing(path, exc) from exc
    except SyntaxError as exc:
        raise ArtifactError(f"{path.name}: line {exc.lineno}: {exc.msg}") from exc
    except (Exception, SystemExit) as exc:
        raise _failed(path, "importing it", exc) from exc
    return module


def _model_class(module: ModuleType, path: Path) -> type[Model]:
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Model)
        and value.__module__ == module.__name__
    ]
    # A base class of another one in the file is a part of it, not a second model.
    found = [c for c in classes if not any(c is not d and issubclass(d, c) for d in classes)]
    if not found:
        raise ArtifactError(
            f"{path.name}: it has no subclass of muelle.Model; write `class MyModel(muelle.Model)`"
        )
    if len(found) > 1:
        names = ", ".join(c.__name__ for c in found)
        raise ArtifactError(f"{path.name}: it has more than one model ({names}); keep one per file")
    return found[0]


def _example(model: Model, signature: Signature, path: Path) -> Arrays | None:
    if model.example is None:
        return None
    rows: Arrays = {}
    for spec in signature.inputs:
        if spec.name not in model.example:
            if spec.optional:
                continue
            raise ArtifactError(f"{path.name}: its example has no tensor {spec.name!r}")
        rows[spec.name] = _example_tensor(spec, model.example[spec.name], path)
    return rows


def _example_tensor(spec: TensorSpec, value: Any, path: Path) -> Array:
    """Read one row (a list or a scalar, with or without the rows axis)."""
    try:
        if spec.datatype == "BYTES":
            flat = np.array(value, dtype=object)
            texts = [v.encode() if isinstance(v, str) else v for v in flat.reshape(-1).tolist()]
            array = object_array(texts).reshape(flat.shape)
        else:
            numpy = "<f4" if spec.datatype == "BF16" else DATATYPES[spec.datatype].numpy
            array = np.array(value, dtype=numpy)
    except (ValueError, TypeError, OverflowError) as exc:
        raise ArtifactError(f"{path.name}: its example for {spec.name!r}: {exc}") from exc
    if array.ndim == len(spec.shape) - 1 and spec.shape[0] in (-1, 1):
        array = array[np.newaxis]
    if not _fits(array.shape, spec.shape):
        raise ArtifactError(
            f"{path.name}: its example for {spec.name!r} has shape {list(array.shape)}, "
            f"declared is {spec.describe()}"
        )
    return array


def _problem(spec: TensorSpec, array: Any, has_rows: bool) -> str:
    """Say in what an output differs from its declaration; empty when it does not."""
    if array is None:
        return "predict does not return it"
    if not isinstance(array, np.ndarray):
        return f"predict returns a {type(array).__name__}, not an array"
    if has_rows and array.shape[:1] != (1,):
        return f"predict returns shape {list(array.shape)} for one row"
    if not _fits(array.shape, spec.shape):
        return f"predict returns shape {list(array.shape)}, declared is {spec.describe()}"
    is_text = datatype_of(array) == "BYTES"
    if is_text != (spec.datatype == "BYTES"):
        return f"predict returns {array.dtype} elements, declared is {spec.describe()}"
    return ""


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        d in (-1, n) for n, d in zip(shape, declared, strict=True)
    )


def _missing(path: Path, exc: ModuleNotFoundError) -> MissingLibrary:
    name = (exc.name or "a module").split(".")[0]
    return MissingLibrary(f"{path.name} imports {name}, which is not installed: pip install {name}")


def _failed(path: Path, what: str, exc: BaseException) -> ArtifactError:
    # Its text goes to whoever asks for the model's state: not the place for this machine's paths.
    text = str(exc).replace(f"{path.parent.resolve()}/", "").replace(f"{path.parent}/", "")[:500]
    return ArtifactError(f"{path.name}: {what} failed with {type(exc).__name__}: {text}")


RUNTIME = Runtime(
    name="python",
    formats=(Format("Python model", (".py",), is_python_model, runs_code=True),),
    load=load,
)
