"""A rollout goes on, waits or goes back: tables in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.admin import StartRollout
from muelle.core.errors import BadRequest
from muelle.lifecycle.rollout import Finish, Observed, RollBack, Rollout, SetShare, Wait


def rollout(**more: Any) -> Rollout:
    """Return a rollout of 5, 25 and 100 percent, each watched for 10 s, begun at 0."""
    spec: dict[str, Any] = {
        "version": 2,
        "steps": (5.0, 25.0, 100.0),
        "watch_s": 10.0,
        "min_requests": 20,
    }
    return Rollout(StartRollout(**(spec | more)), now=0.0)


GOOD = Observed(requests=100, p99_s=0.01)


def test_a_good_rollout_takes_its_steps_and_finishes() -> None:
    """Each step lasts its time, the last one too."""
    one = rollout()
    assert one.share == 5
    assert one.advance(9.9, GOOD) == Wait(10.0)
    assert one.advance(10.0, GOOD) == SetShare(25)
    assert one.advance(10.1, Observed()) == Wait(20.0)
    assert one.advance(20.0, GOOD) == SetShare(100)
    assert one.advance(29.9, GOOD) == Wait(30.0)
    assert one.advance(30.0, GOOD) == Finish()


def test_a_step_waits_for_enough_requests() -> None:
    """Nobody asked: that proves nothing, and the reason says what is waited for."""
    one = rollout()
    assert one.advance(50.0, Observed(requests=19)) == Wait(50.0, "waits for requests: 19 of 20")
    assert one.advance(51.0, Observed(requests=20)) == SetShare(25)


@pytest.mark.parametrize(
    ("limits", "observed", "told"),
    [
        ({}, Observed(requests=387, failures=12), "error rate 3.1 % over 0.5 % (12 of 387"),
        ({"max_error_rate": 0.1}, Observed(requests=3, failures=3), "error rate 100 % over 10 %"),
        (
            {"max_p99_ms": 50.0},
            Observed(requests=20, p99_s=0.0512),
            "p99 51.2 ms over 50 ms (20 requests)",
        ),
        (
            {"max_p99_ms": 2000.0},
            Observed(requests=100, p99_s=12.3456),
            "p99 12346 ms over 2000 ms (100 requests)",
        ),
        (
            {"max_disagreement": 0.02},
            Observed(requests=100, compared=100, disagreed=3),
            "disagreement 3 % over 2 % (3 of 100 compared answers)",
        ),
        ({}, Observed(broken="quarantined"), "the version cannot serve: quarantined"),
    ],
)
def test_a_broken_limit_rolls_back_at_once(
    limits: dict[str, Any], observed: Observed, told: str
) -> None:
    """In the middle of a step, with limit and figure in the reason."""
    action = rollout(**limits).advance(1.0, observed)
    assert isinstance(action, RollBack)
    assert action.reason.startswith(told)


@pytest.mark.parametrize(
    ("limits", "observed"),
    [
        ({"max_error_rate": 0.1}, Observed(requests=3, failures=1)),
        ({"max_error_rate": 0.1}, Observed(requests=1000, failures=100)),
        ({"max_error_rate": None}, Observed(requests=100, failures=100)),
        ({"max_p99_ms": 50.0}, Observed(requests=19, p99_s=9.0)),
        ({"max_disagreement": 0.5}, Observed(requests=100, compared=10, disagreed=5)),
    ],
)
def test_a_limit_that_is_not_broken_holds_nothing_up(
    limits: dict[str, Any], observed: Observed
) -> None:
    """Too few to tell, exactly at the limit, or no such limit."""
    assert rollout(**limits).advance(1.0, observed) == Wait(10.0)


@pytest.mark.parametrize("percent", range(1, 100))
def test_exactly_at_a_limit_is_within_it(percent: int) -> None:
    """Whatever the product of limit and requests is rounded to: 0.29 * 100 is less than 29."""
    at, over = (Observed(requests=100, failures=n, compared=100) for n in (percent, percent + 1))
    assert rollout(max_error_rate=percent / 100).advance(1.0, at) == Wait(10.0)
    assert isinstance(rollout(max_error_rate=percent / 100).advance(1.0, over), RollBack)


def test_it_counts_from_the_begin_of_the_step() -> None:
    """What went well at 5 percent excuses nothing at 25; the figures told are the step's."""
    one = rollout()
    assert one.advance(10.0, Observed(requests=10_000)) == SetShare(25)
    action = one.advance(10.1, Observed(requests=20, failures=1))
    assert action == RollBack("error rate 5 % over 0.5 % (1 of 20 requests)")


def test_the_last_step_is_watched_too() -> None:
    """With all traffic, a limit that breaks still takes it back."""
    one = rollout(steps=(100.0,))
    assert one.share == 100
    assert one.advance(9.0, GOOD) == Wait(10.0)
    assert isinstance(one.advance(10.0, Observed(requests=100, failures=50)), RollBack)


def test_what_is_left_of_a_step() -> None:
    """Seconds, and 0 when only requests are waited for."""
    one = rollout()
    assert [one.left_s(now) for now in (0.0, 4.0, 10.0, 99.0)] == [10.0, 6.0, 0.0, 0.0]


def test_a_rollout_that_waits_for_nothing_still_takes_every_step() -> None:
    """No time and no requests: one step at a look."""
    one = rollout(watch_s=0.0, min_requests=0)
    actions = [one.advance(0.0, Observed()) for _ in range(3)]
    assert actions == [SetShare(25), SetShare(100), Finish()]


def test_one_failure_breaks_a_limit_of_zero() -> None:
    """Whoever allows none gets none."""
    action = rollout(max_error_rate=0.0).advance(1.0, Observed(requests=1, failures=1))
    assert isinstance(action, RollBack)


def test_disagreement_needs_compared_answers() -> None:
    """A step with that limit waits for comparisons, but not when all traffic has moved."""
    one = rollout(max_disagreement=0.1, steps=(50.0, 100.0))
    assert one.advance(10.0, Observed(requests=50, compared=3)).reason == (  # type: ignore[union-attr]
        "waits for compared answers: 3 of 20"
    )
    assert one.advance(11.0, Observed(requests=50, compared=20)) == SetShare(100)
    assert one.advance(21.0, Observed(requests=50)) == Finish()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": ()},
        {"steps": (5.0, 25.0)},
        {"steps": (25.0, 5.0, 100.0)},
        {"steps": (5.0, 5.0, 100.0)},
        {"steps": (0.0, 100.0)},
        {"steps": (50.0, 101.0)},
        {"max_error_rate": 1.5},
        {"max_disagreement": -0.1},
        {"max_p99_ms": 0.0},
        {"max_p99_ms": float("nan")},
        {"max_error_rate": float("nan")},
        {"steps": (float("nan"), 100.0)},
        {"watch_s": -1.0},
        {"watch_s": float("nan")},
        {"min_requests": -1},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """Before anything is loaded."""
    with pytest.raises(BadRequest):
        rollout(**wrong)


@given(data=st.data())
def test_it_ends_and_never_well_with_a_broken_limit(data: st.DataObject) -> None:
    """Requests keep coming: shares only rise, the end comes, and a limit that was broken at the end
    of a step never led to a finish."""
    one = rollout(max_p99_ms=50.0, max_disagreement=0.1)
    now, share = 0.0, one.share
    for _ in range(200):
        requests = data.draw(st.integers(20, 1_000))
        failures = data.draw(st.integers(0, 8))
        observed = Observed(
            requests=requests,
            failures=failures,
            p99_s=data.draw(st.floats(0, 0.06)),
            compared=requests,
            disagreed=data.draw(st.integers(0, requests // 8)),
        )
        bad = (
            200 * failures > requests
            or 1e3 * observed.p99_s > 50.0
            or 10 * observed.disagreed > observed.compared
        )
        action = one.advance(now, observed)
        assert isinstance(action, RollBack) == bad
        if isinstance(action, SetShare):
            assert action.percent > share
            share = action.percent
        if isinstance(action, RollBack | Finish):
            return
        now += data.draw(st.floats(0.5, 20))
    raise AssertionError("it never ends")


STEPS = st.lists(st.integers(1, 99), max_size=5, unique=True).map(lambda s: (*sorted(s), 100))


@given(
    steps=STEPS,
    watch_s=st.floats(0, 100),
    min_requests=st.integers(0, 100),
    waits=st.lists(st.tuples(st.floats(0.5, 20), st.integers(1, 50)), min_size=1, max_size=20),
)
def test_a_good_version_gets_there(
    steps: tuple[int, ...],
    watch_s: float,
    min_requests: int,
    waits: list[tuple[float, int]],
) -> None:
    """Requests keep coming and no limit breaks: every share is given once, in turn, none before its
    step was watched and had its requests, and then it is finished."""
    one = rollout(steps=steps, watch_s=watch_s, min_requests=min_requests)
    now, began, requests = 0.0, 0.0, 0
    given_shares = [one.share]
    for look in range(2_000):
        waited, more = waits[look % len(waits)]
        now, requests = now + waited, requests + more
        action = one.advance(now, Observed(requests=requests))
        if isinstance(action, Wait):
            continue
        assert now - began >= watch_s - 1e-9
        assert requests >= min_requests
        if isinstance(action, Finish):
            assert given_shares == list(steps)
            return
        assert isinstance(action, SetShare)
        given_shares.append(action.percent)
        began, requests = now, 0
    raise AssertionError("it never ends")
