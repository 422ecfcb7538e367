"""Which files and libraries an application needs: its folder, less what must not travel.

Nothing of the application is imported or run.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from muelle.apps.target import AppTarget
from muelle.core.errors import ArtifactError, ConfigError
from muelle.packaging.environments import read_requirements
from muelle.runtimes.libraries import library

IGNORE = ".dockerignore"
NEVER = (
    "**/.*", "**/__pycache__", "**/*.pyc", "**/node_modules", "**/venv", "**/*.key", "**/*.pem",
    "**/*.p12", "**/*.pfx", "**/id_rsa*", "**/id_ed25519*", "**/*.egg-info",
)  # fmt: skip
"""Never in an image: hidden files (.git, .env, .venv), caches, and what looks like a key."""
_SERVED_BY_US = {"muelle"}


@dataclass(frozen=True, slots=True)
class AppFiles:
    """An application to take along."""

    target: str
    """As it is served in the image, where its folder is the working folder."""
    files: dict[str, Path]
    requirements: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Where the requirements come from."""


def app_files(text: str) -> AppFiles:
    """Gather an application. Raise ConfigError or ArtifactError."""
    target = AppTarget.parse(text)
    if not target.is_file:
        raise ConfigError(f"{text!r}: name the application's file, such as app.py:app")
    path = Path(target.module)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    folder = path.absolute().parent
    files = _files(folder)
    if path.name not in files:
        raise ArtifactError(f"{path}: {IGNORE} leaves it out")
    lines, note = _requirements(folder, files)
    inside = AppTarget(path.name, target.name, target.is_factory)
    return AppFiles(str(inside), files, lines, (note,) if note else ())


def _files(folder: Path) -> dict[str, Path]:
    exclude = library("docker.utils", "build").exclude_paths
    ignored = folder / IGNORE
    lines = ignored.read_text("utf-8").splitlines() if ignored.is_file() else []
    own = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    found = {}
    # Ours come last: no line of a file brings a key back in. Nor does a store of models travel.
    stores = [path.parent.relative_to(folder) for path in folder.rglob("store.db")]
    for name in sorted(exclude(str(folder), [*own, *NEVER, *(s.as_posix() for s in stores)])):
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{path}: a link out of the folder; put the file itself there")
        # The library always keeps the ignore file itself.
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            found[Path(name).as_posix()] = path
    return found


def _requirements(folder: Path, files: dict[str, Path]) -> tuple[tuple[str, ...], str]:
    """Return what it needs: its `requirements.txt`, else what its files import."""
    listed = folder / "requirements.txt"
    if listed.is_file():
        lines = tuple(line.partition(" --hash")[0] for line in read_requirements(listed))
        return _with_server(tuple(line for line in lines if not _is_ours(line)), files), ""
    names = sorted(_imported(files))
    text = ", ".join(names)
    note = f"no requirements.txt: taken from its imports: {text}" if names else ""
    return _with_server(tuple(names), files), note


def _is_ours(line: str) -> bool:
    return re.match(r"muelle\b(?!-)", line) is not None


def _with_server(lines: tuple[str, ...], files: dict[str, Path]) -> tuple[str, ...]:
    """Add what hosts a WSGI application, where Flask is used."""
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in lines}
    return (*lines, "muelle[flask]") if "flask" in names else lines


def _imported(files: dict[str, Path]) -> set[str]:
    """Return the distributions behind the top-level imports of all Python files."""
    holders = metadata.packages_distributions()
    own = {Path(name).parts[0].removesuffix(".py") for name in files}
    found: set[str] = set()
    for name, path in files.items():
        if not name.endswith(".py") or Path(name).parts[0] == "tests":
            continue
        for module in _modules(path):
            if module in own or module in sys.stdlib_module_names or module in _SERVED_BY_US:
                continue
            found |= set(holders.get(module, ())[:1])
    return found


def _modules(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, OSError, RecursionError) as exc:
        raise ArtifactError(f"{path}: cannot be read as Python: {exc}") from exc
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
