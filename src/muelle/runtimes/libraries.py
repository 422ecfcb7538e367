"""The libraries that runtimes need: are they there, and which command installs them.

Not for choosing versions: the extras in pyproject.toml do that.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from muelle.core.errors import MissingLibrary


def library(name: str, extra: str) -> Any:
    """Import a library. Raise MissingLibrary, which names the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        # Installed but broken (a system library is missing) is another trouble than not there.
        reason = f": {exc}" if is_installed(name) else ", which is not installed"
        raise MissingLibrary(f"this needs {name}{reason}: {install_command(extra)}") from exc


def install_command(extra: str) -> str:
    """Return the command that installs what an extra needs."""
    return f"pip install 'muelle[{extra}]'"


def is_installed(name: str) -> bool:
    """Whether a module of that name can be found, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
