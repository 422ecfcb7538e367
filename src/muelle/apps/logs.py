"""Log lines of a hosted application's process. Not the application's own logging: that is its own.

Nothing is done to the root logger, so that an application's `basicConfig` works as ever.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from muelle.apps.hosted import REQUEST_ID
from muelle.telemetry import logs


def set_up_logs(level: str, *, json: bool) -> None:
    """Write our own lines as the server writes its own."""
    logs.setup(level, sys.stderr, json=json)


def tell_request_ids(app: Any, *, json: bool) -> None:
    """Let Flask's own error lines carry the id of the request, which the client has, too.

    Only the handler that Flask itself makes for want of another; one that the application has
    set up is left as it is.
    """
    logger = getattr(app, "logger", None)
    flask_logging = sys.modules.get("flask.logging")
    if flask_logging is None or not isinstance(logger, logging.Logger):
        return
    own = flask_logging.default_handler
    if own in logger.handlers:
        own.setFormatter(logs.JsonLines() if json else logs.PlainLines())
        own.addFilter(_add_request_id)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.tell = True
    if request_id := REQUEST_ID.get():
        record.request_id = request_id
    return True
