"""Shares are kept exactly where nobody is known, and stick where somebody is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.core.errors import BadRequest
from muelle.routing.weights import Split, Spread, parse_weights, point_of

WEIGHTS = st.dictionaries(
    st.sampled_from(["1", "2", "3", "4", "5"]),
    st.floats(0.01, 100, allow_nan=False),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("stable=95,canary=5", {"stable": 95.0, "canary": 5.0}),
        (" stable = 0.95 , 4 = 0.05 ", {"stable": 0.95, "4": 0.05}),
        ("stable=95%, canary=5 %", {"stable": 95.0, "canary": 5.0}),
        ("3=1", {"3": 1.0}),
        ("stable=1,canary=0", {"stable": 1.0, "canary": 0.0}),
    ],
)
def test_weights_are_read(text: str, weights: dict[str, float]) -> None:
    """Any positive scale, spaces and percent signs."""
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'': write TARGET=SHARE"),
        ("stable", "'stable': write TARGET=SHARE"),
        ("stable=1,", "'': write TARGET=SHARE"),
        ("=5", "'=5': write TARGET=SHARE"),
        ("stable=", "stable: its share '' is not a number"),
        ("stable=x", "stable: its share 'x' is not a number"),
        ("stable=1=2", "stable: its share '1=2' is not a number"),
        ("stable=5%%", "stable: its share '5%%' is not a number"),
        ("stable=-1", "stable: its share -1.0 is not a number of at least 0"),
        ("a=nan", "a: its share nan is not a number of at least 0"),
        ("a=1,b=inf", "b: its share inf is not a number of at least 0"),
        ("a=1,a=2", "a: it has two shares"),
        ("a=0,b=0", "add up to nothing"),
        ("a=1e308,b=1e308", "add up to more than a number can hold"),
    ],
)
def test_weights_that_are_none_are_refused(text: str, told: str) -> None:
    """No form, no number, negative, twice, nothing at all, not finite: in words."""
    with pytest.raises(BadRequest) as caught:
        parse_weights(text)
    assert told in caught.value.message


@pytest.mark.parametrize("text", ["stable=0.95,canary=5%", "stable=95%,canary=5"])
def test_percent_for_some_and_not_for_others_is_refused(text: str) -> None:
    """Who writes 0.95 and 5 % means one percent scale, and would get 16 and 84 percent."""
    with pytest.raises(BadRequest, match="% behind every share"):
        parse_weights(text)


@pytest.mark.parametrize("weights", [{}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_a_split_of_no_shares_is_refused(weights: dict[str, float]) -> None:
    """Also when they come from a file, and not from a command line."""
    with pytest.raises(BadRequest):
        Split(weights)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, n=st.integers(1, 400))
def test_turns_keep_the_shares(weights: dict[str, float], n: int) -> None:
    """After any number of requests each target is within one of its share."""
    split = Split(weights)
    spread = Spread(split)
    seen: Counter[str] = Counter()
    for done in range(1, n + 1):
        seen[spread.next()] += 1
        for target, share in split.shares.items():
            assert abs(seen[target] - share * done) <= 1.0


def test_a_share_of_zero_gets_nothing() -> None:
    """Neither by turn nor by key."""
    split = Split({"1": 1, "2": 0})
    assert split.shares == {"1": 1.0}
    spread = Spread(split)
    assert {spread.next() for _ in range(50)} == {"1"}
    assert {split.choose(b"%d" % n) for n in range(50)} == {"1"}


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, more=st.floats(0.01, 100), data=st.data())
def test_a_growing_share_takes_no_caller_away_from_it(
    weights: dict[str, float], more: float, data: st.DataObject
) -> None:
    """Whoever is with a target stays there while only that target's weight grows, and nobody moves
    between the others."""
    target = data.draw(st.sampled_from(sorted(weights)))
    before, after = Split(weights), Split({**weights, target: weights[target] + more})
    for n in range(200):
        key = b"user-%d" % n
        old, new = before.choose(key, b"fraud"), after.choose(key, b"fraud")
        assert new in (old, target)


def test_keys_meet_the_shares() -> None:
    """Of 20,000 keys each target gets its share to within a hundredth of all."""
    split = Split({"1": 70, "2": 25, "3": 5})
    seen = Counter(split.choose(b"key-%d" % n, b"fraud") for n in range(20_000))
    for target, share in split.shares.items():
        assert abs(seen[target] / 20_000 - share) < 0.01


def test_growing_takes_no_more_than_it_must() -> None:
    """From 5 to 25 percent: a fifth of all keys moves, all of them to the canary."""
    before, after = Split({"1": 95, "2": 5}), Split({"1": 75, "2": 25})
    keys = [b"key-%d" % n for n in range(20_000)]
    moved = sum(before.choose(key) != after.choose(key) for key in keys)
    assert abs(moved / len(keys) - 0.2) < 0.01


def test_the_scale_of_weights_does_not_count() -> None:
    """95 and 5 deal and stick as 0.95 and 0.05 do."""
    one, other = Split({"1": 95, "2": 5}), Split({"1": 0.95, "2": 0.05})
    assert one.shares == pytest.approx(other.shares)
    keys = [b"%d" % n for n in range(500)]
    assert [one.choose(key) for key in keys] == [other.choose(key) for key in keys]


def test_the_salt_makes_another_draw() -> None:
    """A caller who is a canary for one model need not be one for every model."""
    split = Split({"1": 1, "2": 1})
    one = [split.choose(b"%d" % n, b"fraud") for n in range(100)]
    other = [split.choose(b"%d" % n, b"churn") for n in range(100)]
    assert one != other


@given(key=st.binary(max_size=100), salt=st.binary(max_size=200))
def test_a_point_lies_between_zero_and_one(key: bytes, salt: bytes) -> None:
    """Never 0, whose logarithm is none; and always the same."""
    assert 0 < point_of(key, salt) < 1
    assert point_of(key, salt) == point_of(key, salt)
