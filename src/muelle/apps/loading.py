"""Find an application by its name and tell what it is. Runs the user's code: only in a worker."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from muelle.apps.target import AppTarget
from muelle.core.errors import ArtifactError
from muelle.runtimes.libraries import library


def load_app(target: AppTarget) -> Any:
    """Import the module and return its application. Raise ArtifactError with file and line."""
    module = _imported(target)
    if not hasattr(module, target.name):
        names = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches(target.name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArtifactError(f"{target.module} has no {target.name!r}{hint}")
    app = getattr(module, target.name)
    if target.is_factory:
        try:
            app = app()
        except Exception as exc:
            raise ArtifactError(f"{target}: {_where(exc)}") from exc
    if not callable(app):
        raise ArtifactError(f"{target}: a {type(app).__name__} is no ASGI or WSGI application")
    return app


def as_asgi(app: Any, threads: int) -> tuple[str, Callable[..., Any]]:
    """Return (`ASGI` or `WSGI`, an ASGI application). Raise ArtifactError when it is neither."""
    if _is_asgi(app):
        return "ASGI", app
    if _is_wsgi(app):
        middleware = library("a2wsgi", "flask").WSGIMiddleware
        return "WSGI", middleware(app, workers=threads)
    raise ArtifactError(
        f"{type(app).__name__}: neither an ASGI application (async, three arguments: FastAPI, "
        "Starlette) nor a WSGI one (two arguments: Flask)"
    )


def _is_asgi(app: Any) -> bool:
    call = app if inspect.isfunction(app) or inspect.ismethod(app) else type(app).__call__
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(app)


def _is_wsgi(app: Any) -> bool:
    if hasattr(app, "wsgi_app"):
        return True
    try:
        wanted = [
            p
            for p in inspect.signature(app).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return False
    return len(wanted) == 2


def _imported(target: AppTarget) -> ModuleType:
    path = Path(target.module)
    if target.is_file and not path.is_file():
        raise ArtifactError(f"{target.module}: no such file")
    folder = str(path.absolute().parent) if target.is_file else str(Path.cwd())
    # What lies beside the application is what it imports; the interpreter is isolated otherwise.
    sys.path.insert(0, folder)
    try:
        if not target.is_file:
            return importlib.import_module(target.module)
        name = path.stem if path.stem.isidentifier() else "app"
        spec = importlib.util.spec_from_file_location(name, path.absolute())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except Exception as exc:
        raise ArtifactError(f"{target.module}: {_where(exc)}") from exc
    return module


def _where(exc: BaseException) -> str:
    """Return `ValueError: no such file (app.py, line 12)`: the innermost line of the user's."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    if isinstance(exc, SyntaxError):
        return text
    frames = traceback.extract_tb(exc.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "<frozen" not in f.filename]
    own = [f for f in own if Path(f.filename).parent.name != "apps"] or own
    return f"{text} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else text
