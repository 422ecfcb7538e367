"""Serve ONNX models with onnxruntime on the CPU. Not for GPUs, and not for optional or map inputs.

A model that declares a free first axis is tried with three rows when it is loaded. If it runs with
one row only (a batch of one baked into a reshape), its signature says one row, so that requests are
never batched.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from muelle.core.errors import ArtifactError
from muelle.core.request import decode_array, encode_array
from muelle.core.signature import Role, Signature, TensorSpec
from muelle.core.tensor import DATATYPES
from muelle.runtimes import onnx_hints
from muelle.runtimes.formats import is_onnx
from muelle.runtimes.interface import Arrays, Format, LoadOptions, Runtime
from muelle.runtimes.libraries import library
from muelle.runtimes.onnx_file import check_external_data, class_labels
from muelle.runtimes.tables import Array, as_label_bytes, as_texts, object_array, output_spec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16
"""TensorProto.DataType of bfloat16, which NumPy cannot name."""
_FREE_AXIS_SIZES = (8, 64, 224, 1)
"""Sizes to try for free axes other than rows: a sequence, then images, then a lone element."""
_MAX_EXAMPLE_ELEMENTS = 1 << 24
_TRIAL_ROWS = 3
"""Not 2: that is the first axis of too many outputs that are not by row (indices, for one)."""
_MAP_PREFIX = "seq(map("
_LABELS = frozenset({"label", "output_label"})
_PROBABILITIES = frozenset({"probabilities", "output_probability"})


def load(path: Path, options: LoadOptions) -> OnnxModel:
    """Open the model. Raise ArtifactError when it is broken, or reaches outside its folder."""
    check_external_data(path)
    onnxruntime = library("onnxruntime", RUNTIME.extra)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # A spinning thread takes the core that the next request needs.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as exc:
        # onnxruntime's errors share no base but Exception.
        reason = _first_line(exc, path)
        raise ArtifactError(f"{path.name}: onnxruntime cannot load it: {reason}") from exc
    return OnnxModel(session, path)


class OnnxModel:
    """Owned by one worker: run is called by one thread at a time; close ends it."""

    signature: Signature
    info: Mapping[str, Any]
    example: Arrays | None

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._run = session.run
        metadata = session.get_modelmeta().custom_metadata_map
        declared_inputs = onnx_hints.with_columns(
            metadata, tuple(_tensor_spec(arg, path) for arg in session.get_inputs())
        )
        self._names = [arg.name for arg in session.get_outputs()]
        self._outputs = tuple(_output(arg, path) for arg in session.get_outputs())
        datatypes = [spec.datatype for spec in declared_inputs]
        self._strings = [s.name for s in declared_inputs if s.datatype == "BYTES"]
        self._halves = [s.name for s in declared_inputs if s.datatype == "BF16"]
        self._is_plain = not ({"BYTES", "BF16"} & set(datatypes)) and all(
            output.read is None for output in self._outputs
        )
        self._has_half_outputs = any(o.spec and o.spec.datatype == "BF16" for o in self._outputs)
        self.info = _info(session)
        hint = onnx_hints.example(metadata, declared_inputs)
        trial = _try(self, declared_inputs, hint)
        self.example = trial.example
        self.signature = _signature(declared_inputs, self._outputs, trial, path)

    def run(self, inputs: Arrays) -> Arrays:
        """Run the graph. Names, datatypes and shapes are those of the signature."""
        if self._is_plain:
            return dict(zip(self._names, self._run(self._names, inputs), strict=True))
        feed: dict[str, Any] = dict(inputs)
        for name in self._strings:
            column = inputs[name]
            # ONNX has no missing string; the empty one is what its converters write.
            feed[name] = object_array(as_texts(column, "")).reshape(column.shape)
        for name in self._halves:
            feed[name] = _half_value(inputs[name])
        results: Arrays = {}
        for output, value in zip(self._outputs, self._values(feed), strict=True):
            results.update(output.arrays(value))
        return results

    def _values(self, feed: dict[str, Any]) -> Sequence[Any]:
        if not self._has_half_outputs:
            values: Sequence[Any] = self._run(self._names, feed)
            return values
        from onnxruntime import OrtValue

        # `run` cannot turn bfloat16 into NumPy, so the values stay onnxruntime's own.
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                feed[name] = OrtValue.ortvalue_from_numpy(value)
        values = self._session.run_with_ort_values(self._names, feed)
        return [
            v if o.spec and o.spec.datatype == "BF16" else v.numpy()
            for o, v in zip(self._outputs, values, strict=True)
        ]

    def close(self) -> None:
        """Let go of the session."""
        del self._session, self._run


@dataclass(frozen=True, slots=True)
class _Output:
    """One declared output. `spec` is None for a sequence of maps, whose keys are not declared."""

    name: str
    spec: TensorSpec | None
    read: Callable[[Any], Array] | None = None

    def arrays(self, value: Any) -> Arrays:
        return {self.name: value if self.read is None else self.read(value)}


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a run on example rows showed. `n_rows` is 0 when no example ran."""

    example: Arrays | None
    outputs: Arrays
    n_rows: int
    takes_one_row: bool
    """Whether a free first axis turned out to be free in name only."""
    classes: Mapping[str, tuple[Any, ...]]
    """Output that is a sequence of maps -> its keys."""


def _tensor_spec(arg: Any, path: Path) -> TensorSpec:
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        raise ArtifactError(
            f"{path.name}: tensor {arg.name!r} is a {arg.type}, which no request can carry"
        )
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in arg.shape or ())
    return TensorSpec(name=arg.name, datatype=datatype, shape=shape)


def _output(arg: Any, path: Path) -> _Output:
    if arg.type.startswith(_MAP_PREFIX):
        return _Output(arg.name, None, _probabilities)
    spec = _tensor_spec(arg, path)
    if spec.datatype == "BYTES":
        return _Output(arg.name, spec, as_label_bytes)
    if spec.datatype == "BF16":
        return _Output(arg.name, spec, _half_array)
    return _Output(arg.name, spec)


def _probabilities(maps: Any) -> Array:
    """Turn a ZipMap's list of {class: probability} into [rows, classes]; key order is fixed."""
    return np.array([list(row.values()) for row in maps], dtype=np.float32)


def _half_value(array: Array) -> Any:
    """Return float32 values as an onnxruntime value of bfloat16."""
    from onnxruntime import OrtValue

    bits = np.frombuffer(encode_array("BF16", array), dtype="<u2").reshape(array.shape)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)


def _half_array(value: Any) -> Array:
    """Return a bfloat16 value of onnxruntime as float32."""
    shape = tuple(value.shape())
    n_bytes = 2 * int(np.prod(shape, dtype=np.int64))
    return decode_array("BF16", shape, ctypes.string_at(value.data_ptr(), n_bytes))


def _info(session: Any) -> dict[str, Any]:
    meta = session.get_modelmeta()
    facts = {
        "producer": meta.producer_name,
        "graph": meta.graph_name,
        "domain": meta.domain,
        "description": meta.description[:1_000],
        "model_version": meta.version,
        "metadata": {k: v[:1_000] for k, v in list(meta.custom_metadata_map.items())[:50]},
    }
    return {k: v for k, v in facts.items() if v} | {"runtime": "onnxruntime " + _version()}


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _first_line(exc: Exception, path: Path) -> str:
    text = str(exc).replace(str(path), path.name).replace(str(path.parent), "")
    return text.splitlines()[0][:300] if text else type(exc).__name__


# --- what a run on an example shows ---


def _try(model: OnnxModel, inputs: tuple[TensorSpec, ...], hint: Arrays | None) -> _Trial:
    """Run some equal rows, or one where the model takes no more; the first example that runs."""
    has_rows = bool(inputs) and all(s.shape[:1] == (-1,) for s in inputs)
    for n_rows in (_TRIAL_ROWS, 1) if has_rows else (1,):
        own = [{k: np.repeat(v, n_rows, axis=0) for k, v in hint.items()}] if hint else []
        for rows in chain(own, _examples(inputs, n_rows)):
            try:
                feed = dict(rows)
                outputs = model.run(feed)
            except Exception:
                # Which values a graph accepts is not declared: the next candidate may run.
                continue
            if n_rows > 1 and any(a.shape[:1] != (n_rows,) for a in outputs.values()):
                break
            example = {k: v[:1] if has_rows else v for k, v in rows.items()}
            one_row = has_rows and n_rows == 1
            return _Trial(example, outputs, n_rows, one_row, _map_classes(model, rows))
    return _Trial(None, {}, 0, False, {})


def _map_classes(model: OnnxModel, rows: Arrays) -> dict[str, tuple[Any, ...]]:
    """Return the keys of each output that is a sequence of maps: the classes, in order."""
    maps = [o.name for o in model._outputs if o.spec is None]
    if not maps:
        return {}
    feed: dict[str, Any] = {
        k: object_array(as_texts(v, "")).reshape(v.shape) if v.dtype == object else v
        for k, v in rows.items()
    }
    values = model._run(maps, feed)
    return {
        name: tuple(value[0]) if value else () for name, value in zip(maps, values, strict=True)
    }


def _examples(inputs: tuple[TensorSpec, ...], n_rows: int) -> Iterator[Arrays]:
    """Yield candidates: likely values first (1 is a token, a mask bit, an index), then zeros."""
    has_free = any(-1 in s.shape[1:] for s in inputs)
    for size in _FREE_AXIS_SIZES if has_free else (1,):
        if any(math.prod(_sized(s, n_rows, size)) > _MAX_EXAMPLE_ELEMENTS for s in inputs):
            continue
        for is_zero in (False, True):
            yield {s.name: _filled(s, n_rows, size, is_zero) for s in inputs}


def _sized(spec: TensorSpec, n_rows: int, free_size: int) -> list[int]:
    sizes = (n_rows, *(free_size,) * len(spec.shape))
    return [size if d == -1 else d for d, size in zip(spec.shape, sizes, strict=False)]


def _filled(spec: TensorSpec, n_rows: int, free_size: int, is_zero: bool) -> Array:
    shape = _sized(spec, n_rows, free_size)
    if spec.datatype == "BYTES":
        return np.full(shape, b"" if is_zero else b"a", dtype=object)
    datatype = DATATYPES[spec.datatype]
    dtype = np.dtype("<f4" if spec.datatype == "BF16" else datatype.numpy)
    return np.full(shape, 0 if is_zero else 0.5 if datatype.is_float else 1, dtype=dtype)


def _signature(
    inputs: tuple[TensorSpec, ...], outputs: tuple[_Output, ...], trial: _Trial, path: Path
) -> Signature:
    """Correct what the file declares by what the trial showed."""
    if trial.takes_one_row:
        inputs = tuple(msgspec.structs.replace(s, shape=(1, *s.shape[1:])) for s in inputs)
    specs = []
    for output in outputs:
        array = trial.outputs.get(output.name)
        if array is None:
            if output.spec is None:
                raise ArtifactError(
                    f"{path.name}: output {output.name!r} is a list of maps, and its classes "
                    "are unknown because no example row runs; export it without ZipMap"
                )
            specs.append(output.spec)
            continue
        specs.append(_corrected(output, array, trial, path))
    try:
        return Signature(inputs=inputs, outputs=tuple(specs))
    except ValueError as exc:
        raise ArtifactError(f"{path.name}: {exc}") from exc


def _corrected(output: _Output, array: Array, trial: _Trial, path: Path) -> TensorSpec:
    if output.spec is None:
        return output_spec(output.name, array, "probabilities", trial.classes[output.name])
    spec = output.spec
    shape = spec.shape if len(spec.shape) == array.ndim else (-1,) * array.ndim
    if trial.n_rows > 1:
        shape = (-1, *shape[1:])
    role = _role(spec, array)
    classes: tuple[Any, ...] = ()
    if role == "probabilities":
        shape = (*shape[:-1], array.shape[-1])
        classes = class_labels(path, array.shape[-1])
    return TensorSpec(
        name=spec.name, datatype=spec.datatype, shape=shape, role=role, classes=classes
    )


def _role(spec: TensorSpec, array: Array) -> Role:
    """Recognise a classifier's outputs by the names that its converters give them."""
    if spec.name in _LABELS and array.ndim == 1 and spec.datatype in ("INT64", "BYTES"):
        return "label"
    if spec.name in _PROBABILITIES and array.ndim == 2 and spec.datatype in ("FP32", "FP64"):
        return "probabilities"
    return ""


RUNTIME = Runtime(
    name="onnx",
    formats=(Format("ONNX", (".onnx",), is_onnx),),
    load=load,
    modules=("onnxruntime",),
    extra="onnx",
)
