"""Where settings are written: options, variables, `muelle.toml`. Not which of them wins (`merge`).

Each reader returns what it found as `Given`s, one per setting, every value already checked; a key
that nobody knows, a value of a wrong type or range, and a setting given twice are ConfigErrors
which name the place.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.config.schema import ALIASES, ENV_PREFIX, Setting, settings
from muelle.core.errors import ConfigError

FILE_NAME = "muelle.toml"
OTHER_VARIABLES = frozenset(
    {
        *("MUELLE_CONFIG", "MUELLE_LANG", "MUELLE_SERVER", "MUELLE_URL", "MUELLE_WHEELS"),
        *("MUELLE_SIGN_PASSWORD", "MUELLE_SIGN_PASSWORD_FILE"),
    }
)
"""Variables with our prefix that are not settings of the server."""

# Kubernetes puts these into every pod beside a Service that is called `muelle`.
_SERVICE_LINK = re.compile(r"MUELLE_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)\Z")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody wrote. `origin` is an option, a variable or `file:line`."""

    path: str
    value: Any
    origin: str


def read_flags(flags: Mapping[str, Any]) -> dict[str, Given]:
    """Check options: path or alias -> text, number or boolean. None means not given."""
    found = _Found("option")
    for key, value in flags.items():
        if value is not None and value != ():
            setting = found.setting(key, where=f"--{key.replace('_', '-')}", shown=key)
            origin = setting.option or "arguments"
            found.add(setting, value, origin, shown=origin, from_text=True)
    return found.given


def read_env(env: Mapping[str, str]) -> dict[str, Given]:
    """Check the variables that begin with `MUELLE_`, and `PORT`. An empty one counts as not set."""
    found = _Found("variable")
    by_variable = {name: s for s in settings() for name in s.variables}
    for name in sorted(env):
        text = env[name]
        if not name.startswith(ENV_PREFIX) or name in OTHER_VARIABLES or not text.strip():
            continue
        if _SERVICE_LINK.match(name) or _LINK_VALUE.match(text):
            continue
        if name not in by_variable:
            raise ConfigError(f"{name}: unknown variable{_near(name, by_variable)}")
        found.add(by_variable[name], text, name, shown=name, from_text=True)
    if "listen.port" not in found.given and env.get("PORT", "").strip():
        found.add(by_variable["MUELLE_PORT"], env["PORT"], "PORT", shown="PORT", from_text=True)
    return found.given


def find_file(folder: Path, explicit: str | None) -> Path | None:
    """Choose the file: the one asked for, else `muelle.toml`, else `[tool.muelle]` in pyproject.

    Raise ConfigError when the one asked for is not there.
    """
    if explicit:
        path = Path(explicit)
        if not path.is_file():
            raise ConfigError(f"{explicit}: no such file; check --config (or MUELLE_CONFIG)")
        return path
    # Paths stay relative to the folder where that is the current one: they are shown.
    base = Path() if folder.resolve() == Path.cwd() else folder
    if (base / FILE_NAME).is_file():
        return base / FILE_NAME
    project = base / "pyproject.toml"
    if project.is_file() and _PROJECT_TABLE.search(_text_of(project)):
        return project
    return None


_PROJECT_TABLE = re.compile(r"(?m)^\s*\[\s*tool\s*\.\s*muelle\s*[.\]]")


def read_file(path: Path) -> dict[str, Given]:
    """Check a TOML file. Model paths in it are relative to its folder."""
    text = _text_of(path)
    try:
        tables: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(_toml_trouble(path, str(exc), text)) from exc
    prefix: tuple[str, ...] = ()
    if path.name == "pyproject.toml":
        prefix = ("tool", "muelle")
        tables = tables.get("tool", {}).get("muelle", {})
    lines = key_lines(text)
    found = _Found("key")
    for key, value in _leaves(tables, ""):
        origin = f"{path}:{_line_of(lines, (*prefix, *key.split('.')))}"
        setting = found.setting(key, where=origin, shown=key)
        found.add(setting, value, origin, shown=f"{origin}: {key}", from_text=False)
    if models := found.given.get("models"):
        moved = tuple(_relative_to(path.parent, spec) for spec in models.value)
        found.given["models"] = Given("models", moved, models.origin)
    if (given := found.given.get("app.target")) and given.value.partition(":")[0].endswith(".py"):
        moved_app = str(path.parent / given.value)
        found.given["app.target"] = Given("app.target", moved_app, given.origin)
    if given := found.given.get("security.require_signature"):
        keys = tuple(str(path.parent / Path(key).expanduser()) for key in given.value)
        found.given["security.require_signature"] = Given(given.path, keys, given.origin)
    for name in ("store", "admin.token_file", "listen.tls_cert", "listen.tls_key"):
        if (given := found.given.get(name)) and given.value:
            moved_to = str(path.parent / Path(given.value).expanduser())
            found.given[name] = Given(name, moved_to, given.origin)
    return found.given


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line on which each table and key of a valid TOML text stands, counted from 1.

    `tomllib` does not tell. Keys inside an inline table are left out: they stand on its line.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    at = 0
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        line = text.count("\n", 0, at) + 1
        header = _HEADER.match(text, at)
        start = header.end() if header else at
        parts, at = _dotted(text, start)
        if header:
            table = parts
            at = _end_of_line(text, at)
        else:
            parts = (*table, *parts)
            at = _end_of_value(text, at)
        for depth in range(1, len(parts) + 1):
            lines.setdefault(parts[:depth], line)
    return lines


class _Found:
    """What one source gave so far. Used by one reader, then dropped."""

    def __init__(self, noun: str) -> None:
        self.given: dict[str, Given] = {}
        self._noun = noun
        self._settings = {s.path: s for s in settings()}

    def setting(self, key: str, *, where: str, shown: str) -> Setting:
        """Return the setting of a path or alias; raise ConfigError with the nearest one."""
        path = ALIASES.get(key, key)
        if path not in self._settings:
            tables = sorted({p.split(".")[0] for p in self._settings if "." in p})
            if key in tables:
                raise ConfigError(f"{where}: {shown} must be a table: [{shown}]")
            near = _near(key, [*self._settings, *ALIASES, *tables])
            raise ConfigError(f"{where}: unknown {self._noun} '{shown}'{near}")
        return self._settings[path]

    def add(
        self, setting: Setting, value: Any, origin: str, *, shown: str, from_text: bool
    ) -> None:
        """Check one value and keep it; raise ConfigError when it is wrong or the second one."""
        before = self.given.get(setting.path)
        if before is not None:
            raise ConfigError(
                f"{origin}: {setting.path} is already set by {before.origin}; keep one of them"
            )
        try:
            checked = setting.read(value, from_text=from_text)
        except ValueError as exc:
            given = _shorten(repr(value))
            raise ConfigError(f"{shown}: got {given}, allowed is {setting.allowed}") from exc
        self.given[setting.path] = Given(setting.path, checked, origin)


_MANY = 24  # more names than this are no help on one line


def _near(key: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?`, or the list of what is allowed at that place."""
    names = list(known)
    table, _, leaf = key.rpartition(".")
    inside = [n for n in names if n.rpartition(".")[0] == table]
    leaves = {n.rpartition(".")[2]: n for n in reversed(inside)}
    # In order: a typo of the leaf in its table, the right leaf in a wrong table, any other typo.
    candidates = [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=1)]
    candidates += [n for n in names if n.rpartition(".")[2] == leaf]
    if not (table and inside):
        candidates += difflib.get_close_matches(key, names, n=1)
    if candidates:
        return f"; did you mean '{candidates[0]}'?"
    if len(inside) > _MANY:
        return "; see 'muelle config'"
    return f"; allowed are: {', '.join(inside or names)}"


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text at byte {exc.start}; save it as UTF-8") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def _toml_trouble(path: Path, reason: str, text: str) -> str:
    """Turn `Cannot overwrite a value (at line 3, column 9)` into `muelle.toml:3: …`."""
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", reason)
    line = int(at[1]) if at and at[1] else text.count("\n") + 1
    what = reason[: at.start()] if at else reason
    if what.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")):
        key = text.splitlines()[line - 1].partition("=")[0].strip()
        what = f"duplicate key {key!r}; keep one of them"
    return f"{path}:{line}: {what}"


def _leaves(table: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    sections = {s.path.split(".")[0] for s in settings() if "." in s.path}
    if not isinstance(table, dict):
        yield prefix, table
        return
    for key, value in table.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and (value or path not in sections):
            # An unknown table is reported by its own name, not by its first key.
            if path in sections:
                yield from _leaves(value, path)
            else:
                yield path, value
        elif not isinstance(value, dict):
            yield path, value


def _line_of(lines: Mapping[tuple[str, ...], int], key: tuple[str, ...]) -> int:
    for depth in range(len(key), 0, -1):
        if key[:depth] in lines:
            return lines[key[:depth]]
    return 1


def _relative_to(folder: Path, spec: str) -> str:
    name, sign, path = spec.partition("=")
    if not sign or "/" in name:  # as `repository.layout` splits it
        name, sign, path = "", "", spec
    return spec if path.startswith("~") else f"{name}{sign}{folder / path}"


# --- the least of TOML's grammar that finds where keys stand in a text known to be valid ---
_BLANK = re.compile(r"[ \t\r\n]+|#[^\n]*")
_HEADER = re.compile(r"\[\[?")
_PART = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|.', re.DOTALL
)


def _dotted(text: str, at: int) -> tuple[tuple[str, ...], int]:
    parts = []
    while part := _PART.match(text, at):
        parts.append(part[1].strip("\"'"))
        at = part.end()
        if not part[2]:
            break
    return tuple(parts), at


def _end_of_value(text: str, at: int) -> int:
    depth = 0
    while token := _TOKEN.match(text, at):
        at = token.end()
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            break
    return at


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1
