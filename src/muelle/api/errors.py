"""Which protocol's form an error takes, by path. The forms themselves are the codecs'."""

from __future__ import annotations

from collections.abc import Callable

from muelle.protocols import native, v2
from muelle.protocols.http import Answer


def is_v2(path: str) -> bool:
    """Whether a path speaks the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def error_encoder(path: str) -> Callable[[Exception, str], Answer]:
    """Return what writes errors on a path: v2's form under `/v2`, RFC 9457 elsewhere."""
    return v2.encode_error if is_v2(path) else native.encode_error
