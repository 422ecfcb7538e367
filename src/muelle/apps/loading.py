"""Import an application by its target and tell what kind it is. Runs in its own process only.

Every way to fail is one line that says what was looked for and where; nothing of it is retried.
"""

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
from typing import Any, Literal

from muelle.apps.target import AppTarget
from muelle.core.errors import ArtifactError

Kind = Literal["asgi", "wsgi"]
MAX_REASON = 500
"""Characters of an application's own error text."""

_EXTRA = "pip install 'muelle[flask]'"


def load_app(target: AppTarget, folder: Path) -> tuple[Any, Kind]:
    """Return the application and its kind. Raise ArtifactError.

    `folder` is what a module, and a relative file, are looked up in. The folder of a file is put
    first on the import path, as Python does for a script.
    """
    module = _import(target, folder)
    found = _named(module, target)
    if target.is_factory:
        try:
            found = found()
        except Exception as exc:
            raise ArtifactError(f"{target.short} failed: {told(exc)}") from exc
    return found, kind_of(found, target)


def kind_of(app: Any, target: AppTarget) -> Kind:
    """Tell what an application speaks. Raise ArtifactError when it is neither."""
    if not callable(app):
        raise ArtifactError(
            f"{target.short} is {_a(app)}, not an application: name the FastAPI, Starlette or "
            "Flask object, or any ASGI or WSGI callable"
        )
    if inspect.isclass(app):
        raise ArtifactError(f"{target.short} is a class; name an object made of it, or a factory")
    call = app if inspect.isroutine(app) else type(app).__call__
    if inspect.iscoroutinefunction(inspect.unwrap(call)):
        return "asgi"
    n_arguments = _required(app)
    if n_arguments == 0 and inspect.isroutine(app):
        raise ArtifactError(f"{target.short} takes no arguments: a factory is named with ()")
    kinds: dict[int, Kind] = {2: "wsgi", 3: "asgi"}
    if n_arguments not in kinds:
        raise ArtifactError(
            f"{target.short} is neither ASGI (scope, receive, send) nor WSGI "
            "(environ, start_response)"
        )
    return kinds[n_arguments]


def as_asgi(app: Any, kind: Kind, threads: int) -> Any:
    """Return an ASGI application: a WSGI one gets a pool of threads. Raise ArtifactError."""
    if kind == "asgi":
        return app
    try:
        from a2wsgi import WSGIMiddleware
    except ImportError as exc:
        raise ArtifactError(f"a WSGI application needs the library a2wsgi: {_EXTRA}") from exc
    middleware: Any = WSGIMiddleware(_unless_abandoned(app), workers=threads)

    async def wsgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            # In an environ `x_user` and `x-user` are one name: only one of them can be meant.
            scope["headers"] = [pair for pair in scope["headers"] if b"_" not in pair[0]]
        await middleware(scope, receive, send)

    return wsgi


def _unless_abandoned(app: Any) -> Any:
    """Do not begin what nobody waits for any more: it had no thread until its time was over."""

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        abandoned = environ["asgi.scope"]["extensions"].get("muelle.abandoned")
        return [] if abandoned is not None and abandoned() else app(environ, start_response)

    return wsgi


def told(error: BaseException) -> str:
    """Say in one line what an application's error is, and where in its own code it came up."""
    if isinstance(error, SyntaxError):
        place = f"{Path(error.filename or '?').name}:{error.lineno}"
        return f"{type(error).__name__}: {error.msg} ({place})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and Path(__file__).parent not in _parents(frame)
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:MAX_REASON]
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


def _parents(frame: traceback.FrameSummary) -> tuple[Path, ...]:
    return tuple(Path(frame.filename).parents)


def _import(target: AppTarget, folder: Path) -> ModuleType:
    try:
        if target.is_file:
            return _import_file(folder / target.module, target)
        _put_first(folder)
        return importlib.import_module(target.module)
    except ArtifactError:
        raise
    except ModuleNotFoundError as exc:
        if (
            exc.name
            and not target.is_file
            and (target.module == exc.name or target.module.startswith(f"{exc.name}."))
        ):
            raise ArtifactError(
                f"{target.short}: no module {exc.name!r} in this folder or among the installed "
                "ones; is it FILE.py:NAME?"
            ) from exc
        raise ArtifactError(
            f"{target.short} cannot be imported: {told(exc)}; install it beside muelle"
        ) from exc
    except (Exception, SystemExit) as exc:
        raise ArtifactError(f"{target.short} cannot be imported: {told(exc)}") from exc


def _import_file(path: Path, target: AppTarget) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _python_files(path.parent), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArtifactError(f"{target.module}: no such file{hint}")
    path = path.resolve()
    _put_first(path.parent)
    name = path.stem
    if name in sys.modules or not name.isidentifier():
        # A file called json.py must not become json for everybody else.
        name = f"muelle_app_{''.join(c if c.isalnum() else '_' for c in name)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered first: dataclasses and pydantic look their module up while it is being made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _put_first(folder: Path) -> None:
    where = str(folder.resolve())
    if where not in sys.path:
        sys.path.insert(0, where)


def _python_files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.glob("*.py"))
    except OSError:
        return []


def _named(module: ModuleType, target: AppTarget) -> Any:
    if hasattr(module, target.name):
        return getattr(module, target.name)
    names = [name for name in vars(module) if not name.startswith("_")]
    near = difflib.get_close_matches(target.name, names, n=3)
    apps = [name for name in names if _looks_like_an_app(vars(module)[name])]
    hint = f"did you mean {' or '.join(near or apps)}?" if near or apps else "it names no app"
    raise ArtifactError(f"{target.module}: no {target.name!r} in it; {hint}")


def _looks_like_an_app(value: Any) -> bool:
    kinds = {"FastAPI", "Starlette", "Flask", "Quart", "Litestar"}
    return any(base.__name__ in kinds for base in type(value).__mro__)


def _required(app: Callable[..., Any]) -> int:
    """Count the arguments that must be given by position; -1 where that cannot be told."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return -1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeio" else f"a {name}"
