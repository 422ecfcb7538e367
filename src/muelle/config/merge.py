"""Which value wins: option, then variable, then file, then default. Not how values are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from muelle.config.schema import settings
from muelle.config.sections import ServeConfig
from muelle.config.sources import Given, read_env, read_file, read_flags
from muelle.core.errors import ConfigError

DEFAULT = "default"


def resolve(
    flags: Mapping[str, Any], env: Mapping[str, str], file: Path | None
) -> tuple[ServeConfig, dict[str, str]]:
    """Return the settings, and for each of them (by its path) where its value came from.

    `flags` maps a setting's path or short name to what the option said, None where it was not
    given. An origin is `--port`, `MUELLE_PORT`, `muelle.toml:3` or `default`. Raise ConfigError
    when any source is wrong, also in a value that another source would have overridden, and when
    values contradict each other.
    """
    lowest_first = (read_file(file) if file else {}, read_env(env), read_flags(flags))
    given: dict[str, Given] = {}
    for source in lowest_first:
        given |= source
    origins = {s.path: given[s.path].origin if s.path in given else DEFAULT for s in settings()}
    return _build(ServeConfig, "", given), origins


def _build(section: Any, prefix: str, given: Mapping[str, Given]) -> Any:
    values: dict[str, Any] = {}
    written: list[str] = []
    for field in msgspec.structs.fields(section):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            values[field.name] = _build(field.type, f"{path}.", given)
        elif path in given:
            values[field.name] = given[path].value
            written.append(f"{field.name} from {given[path].origin}")
    try:
        return section(**values)
    except ValueError as exc:
        # Each value is right, but they contradict each other: say where each one stands.
        raise ConfigError(f"{prefix or 'settings.'}*: {exc} ({', '.join(written)})") from exc
