"""The name of an application on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.apps.target import AppTarget, is_app, split_app
from muelle.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app.py:app", AppTarget("app.py", "app")),
        ("/srv/a b/app.py:web", AppTarget("/srv/a b/app.py", "web")),
        ("shop:app", AppTarget("shop", "app")),
        ("shop.web.main:create()", AppTarget("shop.web.main", "create", is_factory=True)),
        ("a.py:b.py:make()", AppTarget("a.py:b.py", "make", is_factory=True)),
        ("ñu.py:año", AppTarget("ñu.py", "año")),
        ("model.onnx", None),
        ("fraud=app.py:app", None),
        ("fraud:3", None),
        ("fraud:3a", None),
        ("models/:app", None),
        ("app.py:", None),
        (":app", None),
        (".py:app", None),
        ("app.py:app(1)", None),
        ("app.py:app()()", None),
        ("app.py:a.b", None),
        ("shop..web:app", None),
        ("app.py:app\n", None),
        ("http://host:app", None),
    ],
)
def test_a_target_is_told_from_a_model(text: str, expected: AppTarget | None) -> None:
    """Only FILE.py:NAME and MODULE:NAME are applications, and they are written as they are read."""
    assert is_app(text) == (expected is not None)
    if expected is None:
        with pytest.raises(ConfigError, match="FILE.py:NAME"):
            AppTarget.parse(text)
    else:
        assert AppTarget.parse(text) == expected
        assert str(expected) == text


@given(st.text(max_size=30))
def test_any_text_is_a_target_or_is_not(text: str) -> None:
    """Nothing raises; what is a target can be shown, and is read again from what is shown."""
    if is_app(text):
        target = AppTarget.parse(text)
        assert AppTarget.parse(str(target)) == target
        assert target.short.endswith(f":{target.name}{'()' if target.is_factory else ''}")


def test_the_one_app_is_taken_out() -> None:
    """The other words stay in their order; a word that is a real path is a model."""
    words = ("a.onnx", "app.py:app", "b=c.skops", "odd:name")
    assert split_app(words, lambda w: w == "odd:name") == (
        "app.py:app",
        ("a.onnx", "b=c.skops", "odd:name"),
    )
    assert split_app(("a.onnx",)) == ("", ("a.onnx",))


def test_two_apps_are_refused() -> None:
    """A server hosts one."""
    with pytest.raises(ConfigError, match="one application"):
        split_app(("app.py:app", "shop:app"))
