"""What settings exist: name, type, range, default, command-line option, variable. Not their values.

Everything here is read off `config.sections`, so that a setting is written down once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from muelle.config.sections import ServeConfig

ENV_PREFIX = "MUELLE_"

ALIASES = {
    "host": "listen.host",
    "port": "listen.port",
    "unix_socket": "listen.unix_socket",
    "grpc_port": "listen.grpc_port",
    "tls_cert": "listen.tls_cert",
    "tls_key": "listen.tls_key",
    "max_batch_size": "batching.max_batch_size",
    "max_delay_ms": "batching.max_delay_ms",
    "max_queue": "batching.max_queue",
    "workers": "worker.workers",
    "threads": "worker.threads",
    "isolation": "worker.isolation",
    "memory_limit_mb": "worker.memory_limit_mb",
    "control": "lifecycle.control",
    "poll_s": "lifecycle.poll_s",
    "update": "lifecycle.update",
    "keep_warm_s": "lifecycle.keep_warm_s",
    "memory_limit": "lifecycle.memory_limit_mb",
    "on_demand": "lifecycle.on_demand",
    "require_signature": "security.require_signature",
    "app_workers": "app.workers",
    "app_threads": "app.threads",
    "app_timeout_s": "app.timeout_s",
    "app_concurrency": "app.concurrency",
    "app_memory_limit_mb": "app.memory_limit_mb",
    "admin_socket": "admin.socket",
    "admin_listen": "admin.listen",
    "admin_token_file": "admin.token_file",
    "app_path": "app.path",
}
"""Short name of a nested setting, for the option, the variable and the top of the TOML file."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of `muelle serve`."""

    path: str
    """Where it stands in the file: `batching.max_batch_size`."""
    kind: inspect.Type
    default: Any
    alias: str
    """Its short name, "" where only the path works."""

    @property
    def option(self) -> str:
        """The command-line option, "" for a setting that has none (and for `models`)."""
        return f"--{self.alias.replace('_', '-')}" if self.alias and self.path != "models" else ""

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the preferred one first."""
        nested = ENV_PREFIX + self.path.replace(".", "__").upper()
        flat = ENV_PREFIX + self.alias.upper()
        return (flat, nested) if self.alias and flat != nested else (nested,)

    @property
    def allowed(self) -> str:
        """What it takes, in words: `an integer from 0 to 65535`."""
        return " or ".join(_words(self.kind))

    def read(self, value: Any, *, from_text: bool) -> Any:
        """Check and convert a value; `from_text` also takes numbers and booleans as text.

        Raise ValueError, without a text of its own: `allowed` says what would be right.
        """
        if from_text and isinstance(value, str):
            value = _from_text(value, self.kind)
        try:
            result = msgspec.convert(value, self._python_type(), strict=True)
        except msgspec.ValidationError as exc:
            raise ValueError(self.path) from exc
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError(self.path)
        return result

    def _python_type(self) -> Any:
        section: Any = ServeConfig
        *tables, leaf = self.path.split(".")
        for table in tables:
            section = _hints(section)[table]
        return _hints(section)[leaf]


def settings() -> tuple[Setting, ...]:
    """Return every setting, in the order of `ServeConfig`."""
    return tuple(_walk(ServeConfig, ServeConfig(), ""))


def json_schema(describe: dict[str, str]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `muelle.toml`; `describe` maps a path to its text."""
    root: dict[str, Any] = _section_schema(settings(), describe)
    for alias, path in ALIASES.items():
        table, leaf = path.split(".")
        same = root["properties"][table]["properties"][leaf]
        root["properties"].setdefault(alias, {**same, "description": f"Short for {path}."})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "muelle.toml",
        **root,
    }


def _hints(section: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(section)}


def _walk(section: type[msgspec.Struct], defaults: Any, prefix: str) -> Iterator[Setting]:
    aliases = {path: alias for alias, path in ALIASES.items()}
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        path = prefix + field.name
        default = getattr(defaults, field.name)
        if isinstance(field.type, inspect.StructType):
            yield from _walk(field.type.cls, default, f"{path}.")
        else:
            alias = aliases.get(path, "" if prefix else field.name)
            yield Setting(path, field.type, default, alias)


def _from_text(text: str, kind: inspect.Type) -> Any:
    match kind:
        case inspect.BoolType():
            word = text.strip().lower()
            if word in {"1", "true", "yes", "on"}:
                return True
            if word in {"0", "false", "no", "off"}:
                return False
        case inspect.IntType() if re.fullmatch(r"\s*[+-]?\d{1,19}\s*", text):
            return int(text)
        case inspect.FloatType():
            try:
                return float(text)
            except ValueError:
                return text
        case inspect.VarTupleType():
            return _words_of(text)
    return text


def _words_of(text: str) -> Any:
    """Split a list of models: a JSON array, or words as a shell splits them."""
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    import shlex

    return shlex.split(text)


def _words(kind: inspect.Type) -> Iterator[str]:
    match kind:
        case inspect.UnionType(types):
            for one in types:
                yield from _words(one)
        case inspect.LiteralType(values):
            yield from map(str, values)
        case inspect.BoolType():
            yield from ("true", "false")
        case inspect.IntType() | inspect.FloatType():
            yield _range("an integer" if isinstance(kind, inspect.IntType) else "a number", kind)
        case inspect.StrType():
            yield "a text"
        case inspect.VarTupleType():
            yield "a list of texts"
        case _:  # None: "not set" is not something that one writes
            return


def _range(noun: str, kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f"{noun} from {kind.ge:g} to {kind.le:g}"
    if kind.ge is not None:
        return f"{noun} of at least {kind.ge:g}"
    if kind.gt is not None:
        return f"{noun} above {kind.gt:g}"
    return noun


def _section_schema(members: tuple[Setting, ...], describe: dict[str, str]) -> dict[str, Any]:
    root: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for setting in members:
        node = root
        *tables, leaf = setting.path.split(".")
        for table in tables:
            node = node["properties"].setdefault(
                table, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        schema = msgspec.json.schema(setting._python_type())
        schema["default"] = msgspec.to_builtins(setting.default)
        if schema["default"] is None:
            # TOML has no null: to leave a setting unset, one does not write it.
            schema = {"type": "string"}
        if text := describe.get(setting.path):
            schema["description"] = text
        node["properties"][leaf] = schema
    return root
