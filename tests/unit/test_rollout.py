"""A rollout that could never end is refused."""

from __future__ import annotations

import pytest

from muelle.core.admin import StartRollout
from muelle.core.errors import BadRequest
from muelle.lifecycle.rollout import check


def test_a_step_cannot_be_watched_for_ever() -> None:
    """An infinite watch_s would hold a canary's share for as long as the server lives."""
    with pytest.raises(BadRequest, match="finite"):
        check(StartRollout(version=2, watch_s=float("inf")))
