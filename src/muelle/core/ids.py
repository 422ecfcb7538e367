"""Names and identifiers: what a model may be called. Not for digests (`repository.digest`)."""

from __future__ import annotations

import re
import secrets

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_UNWANTED = re.compile(r"[^a-z0-9._-]+")


def is_model_name(name: str) -> bool:
    """Whether `name` is a token that may stand in paths, labels and file names."""
    return _NAME.match(name) is not None and ".." not in name


def to_model_name(text: str) -> str:
    """Turn a file stem or a foreign name into a model name: `My Model (2)` -> `my-model-2`."""
    name = _UNWANTED.sub("-", text.lower()).strip("-._")
    while ".." in name:
        name = name.replace("..", ".")
    return name[:63] or "model"


def new_request_id() -> str:
    """Return a fresh request id: 16 hex digits."""
    return secrets.token_hex(8)


def is_request_id(text: str) -> bool:
    """Whether a caller's own request id may be echoed and logged: short, printable ASCII."""
    return 0 < len(text) <= 128 and text.isascii() and text.isprintable()
