"""Dealing and sticking at their edges: many targets, the last point, very long runs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.routing.weights import _POINT_BITS, Split, Spread, _inside


def furthest(split: Split, turns: list[str]) -> float:
    """Return how far any target ever was from its share, in requests."""
    seen: Counter[str] = Counter()
    worst = 0.0
    for done, target in enumerate(turns, start=1):
        seen[target] += 1
        worst = max(worst, *(abs(seen[t] - s * done) for t, s in split.shares.items()))
    return worst


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(
        st.one_of(st.floats(0.01, 100), st.sampled_from([1e-9, 1.0, 1e9])), min_size=2, max_size=16
    )
)
def test_many_targets_keep_the_proven_bound(weights: list[float]) -> None:
    """No target of k is ever further from its share than 1 - 1/(2k - 2) requests."""
    split = Split({str(n): weight for n, weight in enumerate(weights)})
    spread = Spread(split)
    k = len(weights)
    assert furthest(split, [spread.next() for _ in range(200)]) <= 1 - 1 / (2 * k - 2) + 1e-6


def test_the_bound_can_be_missed() -> None:
    """Negative control: taking whoever is furthest behind is more than one request off."""
    shares = (100, 1, 1, 100, 20, 20, 1, 1, 20)
    split = Split({str(n): share for n, share in enumerate(shares)})
    credit = dict.fromkeys(split.shares, 0.0)
    turns = []
    for _ in range(300):
        for target, share in split.shares.items():
            credit[target] += share
        turns.append(max(credit, key=credit.__getitem__))
        credit[turns[-1]] -= 1.0
    assert furthest(split, turns) > 1.0


@pytest.mark.parametrize("weights", [{"1": 1.0}, {"1": 1.0, "2": 1.0}, {"1": 1e308, "2": 1e-308}])
def test_every_request_has_a_target(weights: dict[str, float]) -> None:
    """One target, two equal ones, one whose share is less than any number above 0."""
    spread = Spread(Split(weights))
    assert {spread.next() for _ in range(100)} <= set(weights)


def test_rounding_that_adds_up_stops_nobody() -> None:
    """After very many requests nobody may be due by a hair; somebody has the turn all the same."""
    spread = Spread(Split({"1": 1.0, "2": 1.0}))
    for target in spread._credit:
        spread._credit[target] -= 1e-6
    assert Counter(spread.next() for _ in range(100)) == {"1": 50, "2": 50}


def test_the_last_point_is_below_one() -> None:
    """A caller whose hash is all ones is answered like any other: its logarithm is not 0."""
    assert _inside(0) > 0.0
    assert _inside(2**_POINT_BITS - 1) < 1.0
    # Negative control: with all 64 bits of the hash the last point is 1.
    assert (2**64 - 1 + 0.5) / 2.0**64 == 1.0
