"""The name of an application on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.apps.target import AppTarget, parse_target, split_targets
from muelle.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app.py:app", AppTarget("app", file="app.py")),
        ("/srv/a b/app.py:web", AppTarget("web", file="/srv/a b/app.py")),
        ("shop:app", AppTarget("app", module="shop")),
        ("shop.web.main:create()", AppTarget("create", module="shop.web.main", factory=True)),
        ("a.py:b.py:make()", AppTarget("make", file="a.py:b.py", factory=True)),
        ("ñu.py:año", AppTarget("año", file="ñu.py")),
        ("model.onnx", None),
        ("fraud=app.py", None),
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
    """Only FILE.py:NAME and MODULE:NAME are applications."""
    assert parse_target(text) == expected


@given(st.text(max_size=30))
def test_any_text_is_a_target_or_is_not(text: str) -> None:
    """Nothing raises; what is a target can be shown, and has exactly one place."""
    target = parse_target(text)
    if target is not None:
        assert bool(target.file) != bool(target.module)
        assert target.short.startswith(target.where.rsplit("/", 1)[-1])


def test_the_one_app_is_taken_out() -> None:
    """The other words stay in their order; a word that is a real path is a model."""
    words = ("a.onnx", "app.py:app", "b=c.skops", "odd:name")
    assert split_targets(words, lambda w: w == "odd:name") == (
        "app.py:app",
        ("a.onnx", "b=c.skops", "odd:name"),
    )
    assert split_targets(("a.onnx",), lambda w: False) == ("", ("a.onnx",))


def test_two_apps_are_refused() -> None:
    """A server hosts one."""
    with pytest.raises(ConfigError, match="one app"):
        split_targets(("app.py:app", "shop:app"), lambda w: False)
