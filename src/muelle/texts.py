"""Texts that people read on a terminal, in English and Spanish. Not for errors sent to a client.

A catalogue is a flat JSON object, key -> text with `{named}` places, in `muelle/locales/`. English
is complete; a key that another language lacks comes out in English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

LANGUAGES = ("en", "es")
_FOLDER = Path(__file__).parent / "locales"


class Texts:
    """One language's catalogue. Immutable; made once by the command line and passed down."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._catalogue = catalogue("en")
        if language != "en":
            self._catalogue |= catalogue(language)

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of `key` with its places filled. Raise KeyError for an unknown key."""
        text = self._catalogue[key]
        return text.format(**values) if values else text

    def get(self, key: str) -> str:
        """Return the text of `key`, or "" when there is none."""
        return self._catalogue.get(key, "")


def catalogue(language: str) -> dict[str, str]:
    """Read one language's texts, as they stand in its file."""
    texts: dict[str, str] = json.loads((_FOLDER / f"{language}.json").read_text("utf-8"))
    return texts


def language_of(env: Mapping[str, str]) -> str:
    """Choose the language: MUELLE_LANG, then LC_ALL, LC_MESSAGES, LANG, as gettext orders them.

    The first variable that is set decides, so that `LC_ALL=C` gives English whatever LANG says.
    """
    for variable in ("MUELLE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = env.get(variable, "")
        if value:
            code = value.replace("-", "_").split("_")[0].split(".")[0].lower()
            return code if code in LANGUAGES else "en"
    return "en"
