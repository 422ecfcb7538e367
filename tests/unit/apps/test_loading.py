"""What kind of application something is, and every way in which it is none."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask

from muelle.apps.loading import kind_of, load_app
from muelle.apps.target import AppTarget
from muelle.core.errors import ArtifactError


async def coroutine(scope: Any, receive: Any, send: Any) -> None:
    """ASGI."""


def wrapped(scope: Any, receive: Any, send: Any) -> Any:
    """ASGI, behind a decorator that is no coroutine."""
    return coroutine(scope, receive, send)


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    """WSGI."""
    return []


class Callable:
    """WSGI as an object."""

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        """Answer."""
        return []


def factory() -> None:
    """No application, but something that makes one."""


def one(scope: Any) -> None:
    """ASGI 2, which is no more."""


TARGET = AppTarget.parse("app.py:app")


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (FastAPI(), "asgi"),
        (coroutine, "asgi"),
        (wrapped, "asgi"),
        (functools.partial(coroutine), "asgi"),
        (Flask("x"), "wsgi"),
        (Flask("x").wsgi_app, "wsgi"),
        (wsgi, "wsgi"),
        (Callable(), "wsgi"),
    ],
)
def test_kinds_are_told_apart(app: Any, kind: str) -> None:
    """Frameworks' objects, functions, objects, partials."""
    assert kind_of(app, TARGET) == kind


@pytest.mark.parametrize(
    ("app", "says"),
    [
        (3, "is an int"),
        (None, "is a NoneType"),
        (FastAPI, "is a class"),
        (factory, "named with ()"),
        (one, "neither ASGI"),
    ],
)
def test_what_is_no_application_is_told(app: Any, says: str) -> None:
    """Each with what to do instead."""
    with pytest.raises(ArtifactError, match=says.replace("(", r"\(").replace(")", r"\)")):
        kind_of(app, TARGET)


def test_a_file_finds_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the file is on the import path, as Python does it for a script."""
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "neighbour_of_app.py").write_text("ANSWER = 42\n")
    (tmp_path / "my-app.py").write_text(
        "from neighbour_of_app import ANSWER\ndef app(environ, start_response): return [ANSWER]\n"
    )
    target = AppTarget.parse("my-app.py:app")
    app, kind = load_app(target, tmp_path)
    assert (app(None, None), kind) == ([42], "wsgi")


def test_a_file_does_not_take_a_modules_name(tmp_path: Path) -> None:
    """`json.py:app` leaves the real json to everybody else."""
    import json

    (tmp_path / "json.py").write_text("def app(environ, start_response): return []\n")
    target = AppTarget.parse("json.py:app")
    load_app(target, tmp_path)
    assert __import__("json") is json
    assert json.loads("1") == 1


def test_the_nearest_file_is_proposed(tmp_path: Path) -> None:
    """A typo in the file's name."""
    (tmp_path / "server.py").write_text("")
    target = AppTarget.parse("servr.py:app")
    with pytest.raises(ArtifactError, match=r"did you mean server\.py"):
        load_app(target, tmp_path)
