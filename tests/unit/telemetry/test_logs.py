"""Log lines: one record is one line, values are cut, and payloads do not get in."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from muelle.telemetry.logs import MESSAGE_LIMIT, VALUE_LIMIT, setup

SECRET = "patient 4711"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The root of our loggers, given back as it was."""
    ours = logging.getLogger("muelle")
    before = (ours.handlers[:], ours.level, ours.propagate)
    yield logging.getLogger("muelle.test")
    ours.handlers[:], ours.level, ours.propagate = before


def failing() -> None:
    """Raise as model code does: with the value in the text."""
    try:
        raise ValueError(f"could not convert {SECRET!r}")
    except ValueError as exc:
        raise RuntimeError(f"bad row: {SECRET}") from exc


def test_a_json_line_has_time_level_message_and_extras(log: logging.Logger) -> None:
    """Each record is one JSON object; what extras are unknown is left out."""
    stream = io.StringIO()
    setup("info", stream, True)
    extra = {"model": "iris", "request_id": "r1", "payload": SECRET}
    log.warning("worker %d died", 3, extra=extra)
    line = json.loads(stream.getvalue())
    time = line.pop("time")
    assert time.endswith("Z") and time[10] == "T"
    assert line == {
        "level": "warning",
        "logger": "muelle.test",
        "message": "worker 3 died",
        "model": "iris",
        "request_id": "r1",
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_a_record_cannot_forge_a_second_one(log: logging.Logger, as_json: bool) -> None:
    """Line ends and terminal escapes in a quoted value stay inside their line."""
    stream = io.StringIO()
    setup("info", stream, as_json)
    log.info("from %s", 'a\n{"level": "error"}\r\x1b[2J\u2028\x9b')
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert not any(sign in text for sign in "\r\x1b\u2028\x9b")
    if as_json:
        assert "\x1b[2J" in json.loads(text)["message"], "a JSON reader gets the value back"


def test_values_and_messages_are_cut(log: logging.Logger) -> None:
    """A long value does not fill the disk."""
    stream = io.StringIO()
    setup("info", stream, True)
    log.info("value %s", "x" * 10_000, extra={"model": "y" * 10_000})
    log.info("z" * 10_000)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert len(first["message"]) == len("value ") + VALUE_LIMIT
    assert len(first["model"]) == VALUE_LIMIT
    assert len(second["message"]) == MESSAGE_LIMIT


@pytest.mark.parametrize("as_json", [True, False])
def test_an_exception_shows_its_place_and_not_the_value(log: logging.Logger, as_json: bool) -> None:
    """Types and frames of the whole chain are there; texts that quote a payload are not."""
    stream = io.StringIO()
    setup("info", stream, as_json)
    try:
        failing()
    except RuntimeError:
        log.exception("request failed")
    text = stream.getvalue()
    assert SECRET not in text
    assert "RuntimeError" in text and "ValueError" in text and "in failing" in text


def test_the_system_s_own_errors_keep_their_text(log: logging.Logger) -> None:
    """A full disk is named as such."""
    stream = io.StringIO()
    setup("info", stream, True)
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        log.exception("cannot write")
    assert "No space left on device" in json.loads(stream.getvalue())["traceback"]


def test_a_wrong_format_is_logged_and_not_raised(log: logging.Logger) -> None:
    """A log line never becomes an error of its own."""
    stream = io.StringIO()
    setup("info", stream, True)
    log.info("%d rows of %s", "many")
    assert "many" in json.loads(stream.getvalue())["message"]


def test_levels_and_setting_up_twice(log: logging.Logger) -> None:
    """Below the level nothing is written, and a second setup replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    setup("info", first, False)
    setup("error", second, False)
    log.warning("quiet")
    log.error("loud")
    assert first.getvalue() == ""
    assert second.getvalue().endswith("error    loud\n")
    with pytest.raises(KeyError):
        setup("chatty", first, False)
