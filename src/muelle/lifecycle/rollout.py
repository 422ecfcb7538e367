"""When a rollout goes on, waits, or goes back. Pure: counts and moments in, decision out.

A step lasts at least `watch_s` and until `min_requests` were answered. A limit breaks

- error rate: as soon as the failures of the step are more than the limit allows among
  max(requests, min_requests): one early failure of three requests is not yet 33 percent, and enough
  failures break it at once, whatever comes after;
- disagreement: the same, over the answers compared;
- p99: as soon as `min_requests` were answered, and their 99th percentile is over the limit.

The last step, all traffic, is watched like the others before the rollout is finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from muelle.core.admin import StartRollout
from muelle.core.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Observed:
    """What the new version did since the step began."""

    requests: int = 0
    failures: int = 0
    p99_s: float = 0.0
    compared: int = 0
    disagreed: int = 0
    broken: str = ""
    """Why it cannot serve at all, "" while it can."""


@dataclass(frozen=True, slots=True)
class SetShare:
    """Give the version this percentage of the traffic, and count from zero."""

    percent: float


@dataclass(frozen=True, slots=True)
class Finish:
    """All is well to the end: make it permanent."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Give all traffic back, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again, at this moment at the latest. The reason says what for, once time is not it."""

    until: float
    reason: str = ""


Action: TypeAlias = SetShare | Finish | RollBack | Wait


class Rollout:
    """One rollout, from the moment at which its first share was given."""

    def __init__(self, spec: StartRollout, *, now: float) -> None:
        """Raise BadRequest when the spec contradicts itself."""
        check(spec)
        self.spec = spec
        self.step = 0
        self._began = now

    @property
    def share(self) -> float:
        """Percent of the traffic at this step."""
        return self.spec.steps[self.step]

    def left_s(self, now: float) -> float:
        """Seconds that this step is still watched, 0 when it only waits for requests."""
        return max(0.0, self._began + self.spec.watch_s - now)

    def advance(self, now: float, observed: Observed) -> Action:
        """Decide. `observed` counts from the step's begin."""
        reason = self._broken_limit(observed)
        if reason:
            return RollBack(reason)
        if self.left_s(now) > 0:
            return Wait(self._began + self.spec.watch_s)
        missing = self._missing(observed)
        if missing:
            return Wait(now, missing)
        if self.step + 1 == len(self.spec.steps):
            return Finish()
        self.step += 1
        self._began = now
        return SetShare(self.share)

    def _missing(self, observed: Observed) -> str:
        spec = self.spec
        if observed.requests < spec.min_requests:
            return f"waits for requests: {observed.requests} of {spec.min_requests}"
        compares = spec.max_disagreement is not None and self.share < 100
        if compares and observed.compared < spec.min_requests:
            return f"waits for compared answers: {observed.compared} of {spec.min_requests}"
        return ""

    def _broken_limit(self, observed: Observed) -> str:
        spec = self.spec
        if observed.broken:
            return f"the version cannot serve: {observed.broken}"
        for name, limit, bad, of, noun in (
            ("error rate", spec.max_error_rate, observed.failures, observed.requests, "requests"),
            (
                "disagreement",
                spec.max_disagreement,
                observed.disagreed,
                observed.compared,
                "compared answers",
            ),
        ):
            if limit is not None and _is_over(bad, limit * max(of, spec.min_requests)):
                rate = 100 * bad / max(of, 1)
                return (
                    f"{name} {_figure(rate)} % over {_figure(100 * limit)} % ({bad} of {of} {noun})"
                )
        limit_ms = spec.max_p99_ms
        if limit_ms is not None and observed.requests >= spec.min_requests:
            p99_ms = 1e3 * observed.p99_s
            if p99_ms > limit_ms:
                return (
                    f"p99 {_figure(p99_ms)} ms over {_figure(limit_ms)} ms "
                    f"({observed.requests} requests)"
                )
        return ""


def _is_over(count: int, limit: float) -> bool:
    """Whether a count is over a product that may have been rounded down: 0.29 * 100 < 29."""
    return count > limit and not math.isclose(count, limit, rel_tol=1e-9)


def _figure(value: float) -> str:
    """Return three digits, or all before the point: never an exponent where people read."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def check(spec: StartRollout) -> None:
    """Raise BadRequest when a rollout is asked for that cannot be meant."""
    steps = spec.steps
    if not steps or steps[-1] != 100 or any(not 0 < s <= 100 for s in steps):
        raise BadRequest("steps: percentages above 0, the last one 100", field="steps")
    if list(steps) != sorted(set(steps)):
        raise BadRequest("steps: each must be larger than the one before", field="steps")
    for name, value in (
        ("max_error_rate", spec.max_error_rate),
        ("max_disagreement", spec.max_disagreement),
    ):
        if value is not None and not 0 <= value <= 1:
            raise BadRequest(f"{name}: a share from 0 to 1", field=name)
    if not 0 <= spec.watch_s < math.inf or spec.min_requests < 0:
        raise BadRequest("watch_s and min_requests: finite, not negative", field="watch_s")
    if spec.max_p99_ms is not None and not spec.max_p99_ms > 0:
        raise BadRequest("max_p99_ms: above 0", field="max_p99_ms")
