"""Which version answers. Pure values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ModelNotFound, VersionNotFound
from muelle.routing.table import ModelRoute, RouteTable, default_version

TABLE: RouteTable[str] = RouteTable(
    {
        "iris": ModelRoute("iris", {"9": "nine", "10": "ten"}, "10"),
        "fraud": ModelRoute("fraud", {}, None),
    }
)


def test_the_default_answers_when_none_is_asked_for() -> None:
    """And each version can be asked for by number."""
    assert TABLE.version("iris", None) == "ten"
    assert TABLE.version("iris", "9") == "nine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("irys", "no model 'irys'; near: iris"),
        ("zzz", "no model 'zzz'; served: fraud, iris"),
        ("x" * 500, f"no model '{'x' * 80}'; served: fraud, iris"),
    ],
)
def test_an_unknown_name_is_told_near_names(name: str, words: str) -> None:
    """The error lists near names, else those that there are; it does not echo at length."""
    with pytest.raises(ModelNotFound) as caught:
        TABLE.version(name, None)
    assert str(caught.value) == words


def test_many_models_are_not_listed() -> None:
    """An error text stays short."""
    routes = {f"m{i}": ModelRoute(f"m{i}", {"1": "x"}, "1") for i in range(20)}
    with pytest.raises(ModelNotFound, match=r"20 models are served, see GET /models$"):
        RouteTable(routes).model("something-else")
    with pytest.raises(ModelNotFound, match="served: none"):
        RouteTable(dict[str, ModelRoute[str]]()).model("iris")


def test_an_unknown_version_is_told_which_there_are() -> None:
    """Versions are listed by number, not by letter."""
    with pytest.raises(VersionNotFound, match=r"iris: no version 3; there is: 9, 10$"):
        TABLE.version("iris", "3")
    with pytest.raises(VersionNotFound, match=r"fraud: no version is ready; there is: none$"):
        TABLE.version("fraud", None)


@given(st.lists(st.integers(0, 10**9), min_size=1, unique=True))
def test_the_newest_is_the_highest_number(numbers: list[int]) -> None:
    """Numbers are compared as numbers: 10 is newer than 9; words are older than any number."""
    versions = [str(n) for n in numbers]
    assert default_version([*versions, "beta"]) == str(max(numbers))
    assert default_version([]) is None
