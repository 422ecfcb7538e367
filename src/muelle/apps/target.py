"""The name of an application on a command line: `app.py:app`, `shop.web:create_app()`. Pure.

Not for importing it: that happens in the application's own process (`apps.loading`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from muelle.core.errors import ConfigError

_NAME = r"(?P<name>[^\W\d]\w*)(?P<call>\(\))?"
_FILE = re.compile(rf"(?P<file>.+\.py):{_NAME}\Z", re.DOTALL)
_MODULE = re.compile(rf"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):{_NAME}\Z")


@dataclass(frozen=True, slots=True)
class AppTarget:
    """Where an application is found. Exactly one of `file` and `module` is set."""

    name: str
    file: str = ""
    module: str = ""
    factory: bool = False
    """Whether the name is called, without arguments, to get the application."""

    @property
    def where(self) -> str:
        """The file or module, as it was written."""
        return self.file or self.module

    @property
    def short(self) -> str:
        """What people are shown: without folders."""
        where = PurePath(self.file).name if self.file else self.module
        return f"{where}:{self.name}{'()' if self.factory else ''}"


def parse_target(text: str) -> AppTarget | None:
    """Read `FILE.py:NAME` or `package.module:NAME`, with `()` for a factory; None: it is none."""
    for pattern in (_FILE, _MODULE):
        match = pattern.match(text)
        if match is not None:
            parts = match.groupdict()
            return AppTarget(
                parts["name"],
                file=parts.get("file") or "",
                module=parts.get("module") or "",
                factory=bool(parts["call"]),
            )
    return None


def split_targets(
    words: Sequence[str], is_path: Callable[[str], bool]
) -> tuple[str, tuple[str, ...]]:
    """Return the one application among the words of a command line ("" for none), and the rest.

    A word that is the path of something real is no application, whatever it looks like. Raise
    ConfigError when there are two.
    """
    apps = [word for word in words if parse_target(word) is not None and not is_path(word)]
    if len(apps) > 1:
        raise ConfigError(f"{apps[0]} and {apps[1]}: a server hosts one app; start another server")
    return (apps[0] if apps else ""), tuple(word for word in words if word not in apps)
