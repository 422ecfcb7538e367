"""When a client tries again. Pure: what happened in, seconds out; chance is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Trouble: TypeAlias = Literal["unreachable", "busy", "broken"]
"""`unreachable`: no connection was made, so nothing was done. `busy`: 429 or 503. `broken`: the
connection ended after the request was sent; what was done is not known."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with full jitter."""

    retries: int = 3
    base_s: float = 0.1
    most_s: float = 5.0

    def delay_s(
        self,
        attempt: int,
        trouble: Trouble,
        *,
        repeatable: bool,
        chance: float,
        retry_after_s: float | None = None,
    ) -> float | None:
        """Return how long to wait before attempt number `attempt + 1`, None to give up.

        `attempt` counts from 1; `chance` is from 0 to 1; `repeatable` says that doing it twice does
        no harm (a prediction). The server's own wish (Retry-After) is the least wait, as long as it
        is not unreasonable.
        """
        if attempt > self.retries or (trouble != "unreachable" and not repeatable):
            return None
        # The exponent is bounded before it is a float.
        wait: float = min(self.base_s * 2.0 ** min(attempt - 1, 30), self.most_s) * chance
        if retry_after_s is not None and math.isfinite(retry_after_s):
            wait += min(max(retry_after_s, 0.0), self.most_s)
        return wait
