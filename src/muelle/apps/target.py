"""How an application is named: `app.py:app`, `shop.main:create_app()`. Pure; imports nothing.

Not for importing it: that happens in the application's own process (`apps.loading`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from muelle.core.errors import ConfigError

_TARGET = re.compile(
    r"(?P<module>[^=\0]+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)(?P<call>\(\))?\Z"
)


@dataclass(frozen=True, slots=True)
class AppTarget:
    """A file or a module, and the object in it."""

    module: str
    """`dir/app.py` or `shop.main`."""
    name: str
    is_factory: bool = False
    """Whether the object is called, without arguments, to make the application."""

    @classmethod
    def parse(cls, text: str) -> AppTarget:
        """Read it. Raise ConfigError with what a right one looks like."""
        match = _TARGET.match(text)
        if match is None:
            raise ConfigError(
                f"{text!r}: name an application as FILE.py:NAME or package.module:NAME, such as "
                "app.py:app or app.py:create_app()"
            )
        return cls(match["module"], match["name"], match["call"] is not None)

    @property
    def is_file(self) -> bool:
        """Whether the module is a file."""
        return self.module.endswith(".py")

    @property
    def short(self) -> str:
        """What people are shown: without folders."""
        where = PurePath(self.module).name if self.is_file else self.module
        return f"{where}:{self.name}{'()' if self.is_factory else ''}"

    def __str__(self) -> str:
        return f"{self.module}:{self.name}{'()' if self.is_factory else ''}"


def is_app(text: str) -> bool:
    """Whether an argument names an application, not a model."""
    return _TARGET.match(text) is not None


def split_app(
    arguments: Sequence[str], is_path: Callable[[str], bool] = lambda text: False
) -> tuple[str, tuple[str, ...]]:
    """Return the application among the arguments ("" for none) and the rest. Raise ConfigError.

    An argument that is the path of something real is none, whatever it looks like.
    """
    apps = [text for text in arguments if is_app(text) and not is_path(text)]
    if len(apps) > 1:
        raise ConfigError(f"{apps[0]} and {apps[1]}: one application at a time")
    return apps[0] if apps else "", tuple(text for text in arguments if text not in apps)
