"""Find the runtime that can load an artifact. Not for loading: no library of a model is imported.

Runtimes are found by the entry-point group `muelle.runtimes`. The built-in ones are also known by
name, so that they work from a source tree, and so that a worker need not search the environment.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.runtimes.formats import HEAD_BYTES
from muelle.runtimes.interface import Format, Runtime
from muelle.runtimes.libraries import install_command, is_installed

GROUP = "muelle.runtimes"
BUILT_IN = ("onnx", "sklearn", "xgboost", "lightgbm", "catboost", "python", "mlflow")

_COMMON_SUFFIXES = frozenset({".txt", ".json", ".bin", ".zip", ".gz", ".xz", ".bz2", ".lzma"})
"""Endings that say nothing by themselves: only the content counts there."""


class Registry:
    """The runtimes of this environment. Made once by whoever needs it; holds no open resource."""

    def __init__(self) -> None:
        self._runtimes: dict[str, Runtime] = {}
        self._searched = False
        self.problems: list[str] = []
        """Entry points that could not be used, one line each; filled by the first search."""

    def by_name(self, name: str) -> Runtime:
        """Return a runtime. Raise ArtifactError when there is none of that name.

        A built-in name always means the built-in: nothing that is installed can take its place.
        """
        if name in BUILT_IN:
            return self._built_in(name)
        self._search()
        if name not in self._runtimes:
            known = ", ".join(sorted({*BUILT_IN, *self._runtimes}))
            raise ArtifactError(f"no runtime is named {name!r}; there are: {known}")
        return self._runtimes[name]

    def runtimes(self) -> tuple[Runtime, ...]:
        """Return all runtimes, the built-in ones first."""
        built_in = [self._built_in(name) for name in BUILT_IN]
        self._search()
        return (*built_in, *(r for n, r in self._runtimes.items() if n not in BUILT_IN))

    def formats_text(self) -> str:
        """Return the known formats as one line: `ONNX (.onnx), CatBoost (.cbm)`."""
        known = [f for r in self.runtimes() for f in r.formats]
        # The formats of folders differ in what lies in them: `MLflow (ONNX)` is an MLflow folder.
        texts = (
            f"{f.name.split(' (')[0]} (a folder)"
            if f.is_folder
            else f"{f.name} ({', '.join(f.suffixes)})"
            for f in known
        )
        return ", ".join(dict.fromkeys(texts))

    def find_format(self, path: Path) -> tuple[Runtime, Format]:
        """Recognise an artifact: by content first, by name second.

        Where the content says something else than the name, the content is right: a pickle named
        `.onnx` is a pickle. The name alone decides only where no content matches (a broken file
        then gets its own runtime's error). Raise ArtifactError, which lists the known formats.
        """
        is_folder = path.is_dir()
        head = b"" if is_folder else _head(path)
        candidates = [
            (runtime, format)
            for runtime in self.runtimes()
            for format in runtime.formats
            if format.is_folder == is_folder
        ]
        suffix = path.suffix.lower()
        found = [c for c in candidates if c[1].sniff(head, path)]
        if not found and suffix not in _COMMON_SUFFIXES:
            found = [c for c in candidates if suffix in c[1].suffixes]
        if not found:
            raise ArtifactError(
                f"{path.name}: its format is not known; known are {self.formats_text()}"
            )
        return next((c for c in found if suffix in c[1].suffixes), found[0])

    def _built_in(self, name: str) -> Runtime:
        if name not in self._runtimes:
            runtime = importlib.import_module(f"muelle.runtimes.{name}").RUNTIME
            assert isinstance(runtime, Runtime)
            self._runtimes[name] = runtime
        return self._runtimes[name]

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
        from importlib.metadata import entry_points

        for point in entry_points(group=GROUP):
            if point.name in BUILT_IN:
                continue
            try:
                runtime = point.load()
            except Exception as exc:
                # A stranger's broken plugin must not keep our own formats from working.
                self.problems.append(f"runtime {point.name!r}: {type(exc).__name__}: {exc}")
                continue
            if isinstance(runtime, Runtime):
                self._runtimes[point.name] = runtime
            else:
                self.problems.append(f"runtime {point.name!r}: {point.value} is no Runtime")


def find_format(path: Path) -> tuple[Runtime, Format]:
    """Recognise an artifact with the runtimes of this environment (see Registry.find_format)."""
    return Registry().find_format(path)


def missing_libraries(runtime: Runtime, format: Format) -> list[str]:
    """Return the import names that a load would need and that are not installed."""
    needed: Iterable[str] = runtime.modules_by_format.get(format.name, runtime.modules)
    return [name for name in needed if not is_installed(name)]


def missing_message(runtime: Runtime, format: Format, missing: Iterable[str]) -> str:
    """Return the one line that says what is missing and which command installs it."""
    names = " and ".join(missing)
    extra = runtime.extras_by_format.get(format.name, runtime.extra)
    command = install_command(extra) if extra else f"pip install {' '.join(runtime.modules)}"
    return f"{format.name} needs {names}, which is not installed: {command}"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as exc:
        raise ArtifactError(f"{path.name}: cannot be read: {exc.strerror}") from exc
    if not head:
        raise ArtifactError(f"{path.name}: the file is empty")
    return head
