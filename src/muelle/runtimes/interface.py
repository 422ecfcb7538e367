"""The one interface of a runtime plugin, and `Model`, the base class of a model written in Python.

A runtime knows nothing of protocols, batching or processes. It is found by entry point
(`muelle.runtimes`), whose object is a `Runtime`. Importing the module that holds it must be cheap:
heavy libraries are imported inside `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec
import numpy as np

from muelle.core.settings import ModelSettings
from muelle.core.signature import Signature, TensorSpec

Arrays: TypeAlias = dict[str, "np.ndarray[Any, Any]"]
"""Tensor name -> array. BYTES are object arrays of bytes (None = missing), BF16 is float32."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the server decides for a load. A runtime takes what it knows and leaves the rest."""

    threads: int = 1
    """Threads that one batch may use inside the library."""
    max_batch_size: int = 32
    format: str = ""
    """The format that the server found, and decided about (trust!). Empty: not known."""
    name: str = ""
    """The served model's name, for messages only."""
    version: str = ""
    settings: ModelSettings | None = None
    """The model's own configuration, when there is one."""


class LoadedModel(Protocol):
    """A model in memory. Owned by one worker: one thread at a time calls it; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    """Facts worth showing (producer, versions, training parameters); JSON-able, may be empty."""
    example: Arrays | None
    """One row of plausible input per tensor, when the artifact tells; else None."""

    def run(self, inputs: Arrays) -> Arrays:
        """Map the inputs of a batch to outputs. The input views die when this returns.

        Raise any exception to fail the batch; the server finds the row at fault.
        """

    def close(self) -> None:
        """Give back what is not memory."""


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of artifact, recognised without its library."""

    name: str
    """As shown to people: `ONNX`, `XGBoost UBJSON`."""
    suffixes: tuple[str, ...]
    """File name endings, with the dot, lower case."""
    sniff: Callable[[bytes, Path], bool]
    """Given the file's first 64 KiB and its path (read on, if a sure answer needs it), say whether
    the content is of this format. Must never run or import anything of the file."""
    runs_code: bool = False
    """Whether loading executes code from the artifact, so that it needs `--trust`."""
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Runtime:
    """The entry-point object of a runtime plugin."""

    name: str
    formats: tuple[Format, ...]
    load: Callable[[Path, LoadOptions], LoadedModel]
    """Raise ArtifactError (what is wrong with the file) or MissingLibrary."""
    modules: tuple[str, ...] = ()
    """Import names that `load` needs: `("sklearn", "skops")`. Looked up, not imported."""
    extra: str = ""
    """The extra to install when one is missing: `sklearn` -> `pip install 'muelle[sklearn]'`."""
    modules_by_format: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where a format needs more or others than `modules`: format name -> import names."""
    extras_by_format: Mapping[str, str] = field(default_factory=dict)
    """Where those come with another extra than `extra`: format name -> `mlflow,sklearn`."""


class Model:
    """Base class of a model that is a Python file. Subclass it once per file.

    Declare `inputs` and `outputs`; fill the object in `load`; answer batches in `predict`. Class
    attribute `example` (tensor name -> one row as a list or scalar) makes docs and checks real.
    """

    inputs: ClassVar[Sequence[TensorSpec]] = ()
    outputs: ClassVar[Sequence[TensorSpec]] = ()
    example: ClassVar[Mapping[str, Any] | None] = None

    def load(self, folder: Path) -> None:
        """Read what the model needs; `folder` is where its file lies."""

    def predict(self, inputs: Arrays) -> Arrays:
        """Map a batch of arrays (axis 0 = rows) to a batch of arrays."""
        raise TypeError(f"{type(self).__name__} does not define predict")

    def close(self) -> None:
        """Give back what load took."""
