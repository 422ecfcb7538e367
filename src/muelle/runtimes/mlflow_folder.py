"""Read what an MLflow model folder says of itself: its file `MLmodel`, and its input example.

Not for loading models: nothing of MLflow is imported, nothing in the folder is run. The server
reads folders of strangers with this, so a hostile file must cost little and do nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.core.errors import ArtifactError
from muelle.runtimes.libraries import library

FILE = "MLmodel"
EXTRA = "mlflow"
PYFUNC = "python_function"
"""The flavour that MLflow's own library loads; it stands beside nearly every other one."""

_FILE_KEYS = {
    "onnx": ("data",),
    "xgboost": ("data",),
    "lightgbm": ("data",),
    "catboost": ("data",),
    "sklearn": ("pickled_model",),
}
"""Flavour -> the keys under which it names its file; the first flavour that is there wins."""

_MAX_FILE_BYTES = 1024 * 1024
_MAX_EXAMPLE_BYTES = 16 * 1024 * 1024
_MAX_DEPTH = 32
_MAX_TEXT = 200

_BROKEN_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""How PyYAML's constructors, and ours, fail on values that are not of the form that they claim."""

_FACTS = ("mlflow_version", "run_id", "model_id", "model_uuid", "utc_time_created")
_DATATYPES = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}
"""Column types of an MLflow signature. A datetime travels as its ISO 8601 text."""

_TENSOR_TYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{
        f"{sign}int{bits}": f"{sign.upper()}INT{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    **dict.fromkeys(("str", "object", "bytes"), "BYTES"),
}
"""NumPy's names for the elements of a tensor in an MLflow signature."""


@dataclass(frozen=True, slots=True)
class Field:
    """One column or tensor of an MLflow signature."""

    name: str
    """"" when MLflow gives it none."""
    kind: str
    """MLflow's own word: `double`, `string`, …, or `tensor`."""
    datatype: str
    """"" for what no tensor can carry: arrays, objects and maps in a column."""
    shape: tuple[int, ...] = (-1,)
    is_column: bool = True
    required: bool = True


@dataclass(frozen=True, slots=True)
class MlflowFolder:
    """What the folder says. Paths are checked: each lies inside the folder."""

    path: Path
    flavour: str
    """The native flavour, or `python_function` where there is none that Muelle loads."""
    artifact: Path | None
    """The native flavour's file."""
    code: Path | None
    """A folder of Python modules that the model's pickle may import."""
    inputs: tuple[Field, ...] | None
    """None without a signature."""
    outputs: tuple[Field, ...] | None
    example: Path | None
    facts: Mapping[str, str]


def read_folder(path: Path) -> MlflowFolder:
    """Read `MLmodel`. Raise ArtifactError (broken, unknown flavours, a path that leads out) or
    MissingLibrary (PyYAML)."""
    content = _mapping(_load_yaml(path / FILE), f"{path.name}/{FILE}")
    flavours = _mapping(content.get("flavors"), f"{path.name}/{FILE}: flavors")
    flavour = next((name for name in (*_FILE_KEYS, PYFUNC) if name in flavours), "")
    if not flavour:
        found = ", ".join(sorted(map(str, flavours))) or "none"
        raise ArtifactError(
            f"{path.name}: none of its flavours can be served: {found}; known are "
            f"{', '.join(_FILE_KEYS)} and {PYFUNC}"
        )
    entry = _mapping(flavours[flavour], f"{path.name}/{FILE}: flavors: {flavour}")
    code = entry.get("code")
    signature = content.get("signature")
    described = signature if isinstance(signature, dict) else {}
    return MlflowFolder(
        path=path,
        flavour=flavour,
        artifact=_named_file(path, flavour, entry),
        code=inside(path, code, "code") if code else None,
        inputs=_fields(path, described, "inputs"),
        outputs=_fields(path, described, "outputs"),
        example=_example_file(path, content.get("saved_input_example_info")),
        facts=_facts(content, flavour, entry),
    )


def inside(folder: Path, relative: Any, what: str) -> Path:
    """Return a path that MLmodel names. Raise ArtifactError when it leads out of the folder, also
    by a link, or when nothing is there."""
    where = f"{folder.name}/{FILE}: {what}"
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise ArtifactError(f"{where}: it must name a file of the folder, not {relative!r}")
    path = folder / relative
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
        is_there = path.exists()
    except (OSError, RuntimeError) as exc:
        raise ArtifactError(f"{where}: {relative[:_MAX_TEXT]!r} cannot be looked at") from exc
    if not is_inside:
        raise ArtifactError(f"{where}: {relative[:_MAX_TEXT]!r} leads out of the folder")
    if not is_there:
        raise ArtifactError(f"{where}: {relative[:_MAX_TEXT]!r} is not there; copy it again")
    return path


def read_example(folder: MlflowFolder) -> Any:
    """Return the first row of the input example: by name, or by position as a list, or one value;
    None without an example. Raise ArtifactError when it is broken."""
    if folder.example is None:
        return None
    name = folder.example.name
    try:
        if folder.example.stat().st_size > _MAX_EXAMPLE_BYTES:
            raise ArtifactError(f"{name}: too large for an example")
        return _first_row(json.loads(folder.example.read_bytes()))
    except (OSError, *_BROKEN_VALUES) as exc:
        raise ArtifactError(f"{name}: the input example cannot be read: {exc}") from exc


# --- MLmodel ---


def _load_yaml(file: Path) -> Any:
    where = f"{file.parent.name}/{file.name}"
    yaml = library("yaml", EXTRA)
    try:
        with open(file, "rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ArtifactError(f"{where}: cannot be read: {exc.strerror}") from exc
    if len(raw) > _MAX_FILE_BYTES:
        raise ArtifactError(f"{where}: larger than {_MAX_FILE_BYTES} bytes")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_form(yaml, loader, raw, where)
        return yaml.load(raw, Loader=loader)
    except yaml.YAMLError as exc:
        raise ArtifactError(f"{where}: not plain YAML: {_in_one_line(exc)}") from exc
    except _BROKEN_VALUES as exc:
        raise ArtifactError(f"{where}: not plain YAML: {_in_one_line(exc)}") from exc


def _check_form(yaml: Any, loader: Any, raw: bytes, where: str) -> None:
    """Refuse what makes a small text large or deep, before anything is built of it.

    libyaml builds by recursion in C, whose end is a crash; merge keys copy what they name.
    """
    depth = 0
    for event in yaml.parse(raw, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ArtifactError(f"{where}: nested deeper than {_MAX_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            raise ArtifactError(f"{where}: merge keys (<<) are not read")


def _in_one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:_MAX_TEXT]


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: a mapping is expected, not {type(value).__name__}")
    return value


def _named_file(path: Path, flavour: str, entry: Mapping[Any, Any]) -> Path | None:
    for key in _FILE_KEYS.get(flavour, ()):
        file = inside(path, entry.get(key), f"{flavour}: {key}")
        if not file.is_file():
            raise ArtifactError(f"{path.name}/{FILE}: {flavour}: {key}: not a file")
        return file
    return None


def _example_file(path: Path, info: Any) -> Path | None:
    """Return the file of the input example, if it is there: a model answers without it too."""
    name = info.get("artifact_path") if isinstance(info, dict) else None
    if not isinstance(name, str):
        return None
    try:
        file = inside(path, name, "saved_input_example_info")
    except ArtifactError:
        return None
    return file if file.is_file() else None


def _facts(content: Mapping[Any, Any], flavour: str, entry: Mapping[Any, Any]) -> dict[str, str]:
    facts = {"flavour": flavour}
    facts |= {key: str(content[key])[:_MAX_TEXT] for key in _FACTS if content.get(key)}
    for key, value in entry.items():
        if isinstance(key, str) and key.endswith("_version") and isinstance(value, str):
            facts[key] = value[:_MAX_TEXT]
    return facts


# --- signature ---


def _fields(path: Path, signature: Mapping[Any, Any], side: str) -> tuple[Field, ...] | None:
    """Read one side of the signature: JSON in YAML, a list of columns or of tensors."""
    text = signature.get(side)
    if not text:
        return None
    where = f"{path.name}/{FILE}: signature: {side}"
    try:
        entries = json.loads(text) if isinstance(text, str) else text
        return tuple(_field(entry) for entry in entries)
    except _BROKEN_VALUES as exc:
        raise ArtifactError(f"{where}: cannot be read ({_in_one_line(exc)})") from exc


def _field(entry: Mapping[str, Any]) -> Field:
    name = str(entry.get("name") or "") if entry.get("name") != 0 else "0"
    kind = str(entry["type"])
    required = bool(entry.get("required", True)) and not entry.get("optional", False)
    if kind != "tensor":
        return Field(name, kind, _DATATYPES.get(kind, ""), required=required)
    spec = entry["tensor-spec"]
    shape = tuple(int(d) for d in spec["shape"])
    datatype = _TENSOR_TYPES.get(str(spec["dtype"]), "")
    return Field(name, kind, datatype, shape, is_column=False, required=required)


# --- example ---

_WRAPPINGS = ("dataframe_split", "dataframe_records", "inputs", "instances")


def _first_row(content: Any) -> Any:
    if isinstance(content, dict):
        for key in _WRAPPINGS:
            if len(content) == 1 and key in content:
                return _first_row(content[key])
        if isinstance(content.get("data"), list) and set(content) <= {"columns", "index", "data"}:
            row, columns = content["data"][0], content.get("columns")
            return dict(zip(map(str, columns), row, strict=True)) if columns else row
        return {
            str(name): values[0] if isinstance(values, list) else values
            for name, values in content.items()
        }
    return content[0] if isinstance(content, list) else content
