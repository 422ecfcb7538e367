"""What a record says of where a version was pushed: library versions, who, on which machine."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from muelle.runtimes.interface import Format, Runtime

_NOT_PARAMS = frozenset({"runtime", "warning", "warnings"})
_MAX_TEXT = 2_000


def describe_local() -> tuple[str, str]:
    """Return (user, host): the account of this process, not what a variable says."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())  # containers often run under a number without a name
    return user, socket.gethostname()


def versions_here(runtime: Runtime, form: Format) -> dict[str, str]:
    """Return distribution -> version of what a runtime uses, numpy included. Imports nothing."""
    modules = runtime.modules_by_format.get(form.name, runtime.modules)
    return _versions(dict.fromkeys((*runtime.modules, *modules, "numpy")))


def _versions(modules: Iterable[str]) -> dict[str, str]:
    holders: Mapping[str, list[str]] = {}
    found = {}
    for module in modules:
        try:
            found[metadata.distribution(module).name] = metadata.version(module)
            continue
        except metadata.PackageNotFoundError:
            # `sklearn` comes in `scikit-learn`: the search for it is slow, so it comes second.
            holders = holders or metadata.packages_distributions()
        for name in dict.fromkeys(holders.get(module, ())):
            found[name] = metadata.version(name)
    return dict(sorted(found.items()))


def params_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the artifact tells of itself, without what depends on this machine."""
    return {key: _short(value) for key, value in info.items() if key not in _NOT_PARAMS}


def remarks_of(info: Mapping[str, Any]) -> list[str]:
    """Return the worker's warnings about the artifact."""
    one, more = info.get("warning"), info.get("warnings")
    texts = [str(text) for text in (more if isinstance(more, list) else [])]
    return [*([str(one)] if one else []), *(text for text in texts if text != one)]


def _short(value: Any) -> Any:
    return value[:_MAX_TEXT] if isinstance(value, str) else value
