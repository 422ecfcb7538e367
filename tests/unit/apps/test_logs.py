"""What the log says of an application's errors: more than of a model's, and as safely."""

from __future__ import annotations

import io
import logging

from muelle.telemetry import logs


def logged(**extra: bool) -> str:
    """The log of one failure."""
    stream = io.StringIO()
    handler = logs.setup("info", stream, json=False)
    log = logging.getLogger("muelle.app")
    number = 4700 + 11
    try:
        raise ValueError(f"card {number}\nforged line")
    except ValueError:
        log.exception("failed", extra=extra)
    logging.getLogger("muelle").removeHandler(handler)
    return stream.getvalue()


def test_an_apps_own_words_are_told() -> None:
    """Its owner needs them."""
    assert "ValueError: card 4711" in logged(tell=True)


def test_a_models_words_are_not() -> None:
    """The negative control: without being asked for, no value of a request gets into the log."""
    assert "4711" not in logged()
