"""The catalogues: the same keys and places in each language, and the right language chosen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from muelle.texts import LANGUAGES, Texts, catalogue, language_of

SOURCES = Path(__file__).parents[3] / "src" / "muelle"
_PLACE = re.compile(r"\{(\w+)\}")


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_catalogues_have_the_same_keys_and_places(language: str) -> None:
    """A translation lacks nothing, adds nothing, and fills the same places."""
    english, other = catalogue("en"), catalogue(language)
    assert other.keys() == english.keys()
    for key, text in english.items():
        if not key.endswith(".examples"):
            assert sorted(_PLACE.findall(other[key])) == sorted(_PLACE.findall(text)), key


def test_every_key_that_the_code_asks_for_exists() -> None:
    """A literal key in the command line's code has its text."""
    keys = {
        node.value
        for file in (SOURCES / "cli").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"(help|error|serve|inspect|demo|version|table)\.[a-z_.]+", node.value)
    }
    keys = {k for k in keys if not k.endswith(".")}  # the head of a key that is put together
    assert len(keys) > 40
    assert keys - catalogue("en").keys() == set()


def test_examples_keep_their_braces() -> None:
    """A text without places is shown as it is: JSON in an example stays JSON."""
    assert '{"instances": [[5.1, 3.5]]}' in Texts("en")("help.predict.examples")


@pytest.mark.parametrize(
    ("env", "language"),
    [
        ({}, "en"),
        ({"LANG": "es_ES.UTF-8"}, "es"),
        ({"LANG": "es"}, "es"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "es_ES.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "es_MX.UTF-8"}, "es"),
        ({"LC_ALL": "en_GB.UTF-8", "MUELLE_LANG": "es"}, "es"),
        ({"LC_ALL": "", "LANG": "es-AR"}, "es"),
    ],
)
def test_the_language_comes_from_the_environment(env: dict[str, str], language: str) -> None:
    """MUELLE_LANG, LC_ALL, LC_MESSAGES, LANG: the first that is set decides."""
    assert language_of(env) == language
