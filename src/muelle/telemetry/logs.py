"""Log lines: JSON for machines, plain text on a terminal. Not for payloads, which are never logged.

What a log line quotes may come from a stranger: control characters are escaped, so that one record
stays one line, values are cut, and an exception is shown by type and place. Its text is left out
unless the system wrote it: model code likes to quote the value that it could not use. A line with
`extra={"tell": True}` has it: an application's owner needs what its own code says.
"""

from __future__ import annotations

import datetime
import json as json_module
import logging
import re
import traceback
from typing import Any, TextIO

VALUE_LIMIT = 256
MESSAGE_LIMIT = 2048
TRACEBACK_LIMIT = 8192
"""All in characters."""

FIELDS = ("request_id", "model", "version", "worker")
"""What `extra=` may add to a line; anything else is ignored."""

_FROM_THE_SYSTEM = (OSError, ImportError, MemoryError)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def setup(level: str, stream: TextIO, json: bool) -> logging.Handler:
    """Send the `muelle` loggers to a stream; return the new handler, which replaces an older one.

    `level` is debug, info, warning or error. Raise KeyError for another.
    """
    logger = logging.getLogger("muelle")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if json else PlainLines())
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[level])
    logger.propagate = False
    return handler


class JsonLines(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message, known extras, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= _extras(record)
        if record.exc_info:
            line["traceback"] = _trace(record)
        return _escaped(json_module.dumps(line, ensure_ascii=False))


class PlainLines(logging.Formatter):
    """`03:14:15 warning  message (model=iris)`, then the traceback, indented."""

    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{k}={v}" for k, v in _extras(record).items())
        level = record.levelname.lower()
        line = f"{_time(record)[11:19]} {level:<8} {_message(record)}"
        lines = [f"{line} ({extras})" if extras else line]
        if record.exc_info:
            lines += ("  " + text for text in _trace(record).splitlines())
        return "\n".join(map(_escaped, lines))


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    args: Any = record.args
    if isinstance(args, tuple):
        args = tuple(map(_cut_value, args))
    elif isinstance(args, dict):
        args = {key: _cut_value(value) for key, value in args.items()}
    text = str(record.msg)
    try:
        text = text % args if args else text
    except (TypeError, ValueError, KeyError):
        # A log line must never become an error of its own.
        text = f"{text} {args!r}"
    return _cut(text, MESSAGE_LIMIT)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: _cut_value(record.__dict__[key]) for key in FIELDS if key in record.__dict__}


def _trace(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    parts: list[str] = []
    error: BaseException | None = record.exc_info[1]
    while error is not None and len(parts) < 8:
        frames = "".join(traceback.format_tb(error.__traceback__))
        told = isinstance(error, _FROM_THE_SYSTEM) or "tell" in record.__dict__
        text = f": {_cut(str(error), VALUE_LIMIT)}" if told else ""
        parts.append(f"{frames}{type(error).__qualname__}{text}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    whole = "\nwhile handling:\n".join(parts)
    return whole if len(whole) <= TRACEBACK_LIMIT else "…" + whole[-TRACEBACK_LIMIT:]


def _cut_value(value: Any) -> Any:
    if isinstance(value, int | float | None):
        return value
    return _cut(str(value), VALUE_LIMIT)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
