"""Which versions come and go: tables and invariants of one plan. Not over time: see
test_versions_world.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.lifecycle.versions import (
    LOADS_AT_ONCE,
    Action,
    Actual,
    Key,
    Load,
    Policy,
    Refuse,
    State,
    Unload,
    Wait,
    Wanted,
    plan,
)

OLD, NEW, OTHER = ("m", "1"), ("m", "2"), ("n", "1")
MB = 1_000_000


def policy(**more: object) -> Policy:
    """Return the default policy, or another."""
    settings = {
        "kind": "availability",
        "keep_warm_s": 60.0,
        "memory_limit_bytes": 0,
        "on_demand": False,
    }
    return Policy(**(settings | more))  # type: ignore[arg-type]


def here(
    key: Key,
    state: State = "ready",
    *,
    size: int = 100,
    used: float = 0.0,
    leased: bool = False,
) -> Actual:
    """Return a version that is loaded, with its size in MB."""
    return Actual(key, state, size * MB, last_used=used, since=0.0, leased=leased)


def decide(
    required: list[Key],
    actual: list[Actual],
    rules: Policy,
    now: float = 0.0,
    *,
    optional: tuple[Key, ...] = (),
    leaving: tuple[Key, ...] = (),
    leaving_bytes: int = 0,
    sizes: dict[Key, int] | None = None,
) -> list[Action]:
    """Plan, with every version guessed at 100 MB, or at what `sizes` says (MB)."""
    wanted = [Wanted(key, True) for key in required] + [Wanted(key, False) for key in optional]
    keys = {*required, *optional, *(one.version for one in actual)}
    return list(
        plan(
            wanted,
            {one.version: one for one in actual},
            rules,
            now,
            estimates={key: (sizes or {}).get(key, 100) * MB for key in keys},
            leaving=leaving,
            leaving_bytes=leaving_bytes,
        )
    )


def kinds(actions: list[Action]) -> list[tuple[str, Key] | tuple[str]]:
    """Return what is done to whom."""
    return [("Wait",) if isinstance(a, Wait) else (type(a).__name__, a.version) for a in actions]


def test_what_is_wanted_is_loaded() -> None:
    """Nothing is here: the required one is loaded, the optional one is not."""
    assert decide([OLD], [], policy(), optional=(NEW,)) == [Load(OLD)]


def test_what_is_here_is_left_alone() -> None:
    """Ready, loading or failed: nothing to do."""
    for state in ("ready", "loading", "failed"):
        assert decide([OLD], [here(OLD, state)], policy()) == []


def test_the_old_version_stays_warm_and_goes_after_its_time() -> None:
    """While its time runs there is a moment to look again; after it the version goes."""
    actual = [here(NEW), here(OLD, used=10.0)]
    assert decide([NEW], actual, policy(), now=30.0) == [Wait(70.0)]
    assert kinds(decide([NEW], actual, policy(), now=70.0)) == [("Unload", OLD)]


def test_a_version_that_somebody_waits_for_does_not_go() -> None:
    """Its time is over, but a request runs on it."""
    actual = [here(NEW), here(OLD, leased=True)]
    assert kinds(decide([NEW], actual, policy(), now=1_000.0)) == [("Wait",)]


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_what_nobody_wants_any_more_goes_at_once(state: State) -> None:
    """A load that is not wanted any more is stopped; a failed one is put away."""
    assert kinds(decide([NEW], [here(NEW), here(OLD, state)], policy())) == [("Unload", OLD)]


def test_availability_loads_first() -> None:
    """The new version loads while the old one is still there."""
    assert kinds(decide([NEW], [here(OLD)], policy())) == [("Load", NEW), ("Wait",)]


def test_resource_unloads_first() -> None:
    """The old one goes; the new one waits until it has really gone."""
    rules = policy(kind="resource")
    assert kinds(decide([NEW], [here(OLD)], rules)) == [("Unload", OLD)]
    assert decide([NEW], [], rules, leaving=(OLD,)) == []
    assert decide([NEW], [], rules) == [Load(NEW)]
    assert decide([NEW], [], rules, leaving=(OTHER,)) == [Load(NEW)]


def test_only_so_many_load_at_once() -> None:
    """Loading uses every core; the rest waits for its turn, newest version first."""
    keys: list[Key] = [("m", str(n)) for n in range(1, 6)]
    assert decide(keys, [], policy()) == [Load(("m", "5")), Load(("m", "4"))]
    assert decide(keys, [here(("m", "5"), "loading")], policy()) == [Load(("m", "4"))]
    assert LOADS_AT_ONCE == 2


def test_idle_versions_make_room_the_least_recently_used_first() -> None:
    """Room for three: of two that only stay warm, the one used longer ago goes."""
    rules = policy(memory_limit_bytes=300 * MB)
    actual = [here(OLD), here(("n", "1"), used=5.0), here(("n", "2"), used=4.0)]
    assert kinds(decide([OLD, NEW], actual, rules, now=6.0))[-2:] == [
        ("Unload", ("n", "2")),
        ("Wait",),
    ]


def test_a_required_version_makes_no_room() -> None:
    """Without on-demand loading, what is required stays, and the new one is refused in figures."""
    rules = policy(memory_limit_bytes=150 * MB)
    (refused,) = decide([OLD, NEW], [here(OLD)], rules, now=100.0)
    assert isinstance(refused, Refuse)
    assert refused.version == NEW
    assert "100 MB" in refused.reason
    assert "--memory-limit" in refused.reason


def test_on_demand_required_ones_that_idle_make_room() -> None:
    """One that was used just now does not."""
    rules = policy(memory_limit_bytes=150 * MB, on_demand=True)
    assert kinds(decide([OLD, NEW], [here(OLD)], rules, now=100.0)) == [("Unload", OLD)]
    busy = decide([OLD, NEW], [here(OLD, used=99.5)], rules, now=100.0)
    assert kinds(busy) == [("Refuse", NEW), ("Wait",)]
    leased = decide([OLD, NEW], [here(OLD, leased=True)], rules, now=100.0)
    assert kinds(leased) == [("Refuse", NEW), ("Wait",)]


def test_memory_that_is_still_being_given_back_counts() -> None:
    """A load waits until what leaves has really gone."""
    rules = policy(memory_limit_bytes=150 * MB)
    assert decide([NEW], [], rules, leaving=(OLD,), leaving_bytes=100 * MB) == []
    assert decide([NEW], [], rules) == [Load(NEW)]


def test_what_has_outgrown_the_limit_shrinks() -> None:
    """A leak in a warm version must not push the server over its limit."""
    rules = policy(memory_limit_bytes=300 * MB)
    actual = [here(OLD, size=250), here(OTHER, size=100)]
    assert ("Unload", OTHER) in kinds(decide([OLD], actual, rules, now=1.0))


def test_a_failed_version_holds_no_memory() -> None:
    """Its workers are gone: what else is required has the room."""
    rules = policy(memory_limit_bytes=150 * MB)
    assert decide([OLD, NEW], [here(OLD, "failed")], rules) == [Load(NEW)]


def test_a_version_that_loads_makes_no_room() -> None:
    """It counts with what it is guessed at, and is not stopped for another that is required too."""
    rules = policy(memory_limit_bytes=150 * MB)
    assert kinds(decide([OLD, NEW], [here(OLD, "loading", size=0)], rules)) == [("Refuse", NEW)]


def test_what_goes_is_waited_for() -> None:
    """A version on its way out holds its memory, and under the resource-preserving policy its
    model's place, whether it stands among those that are here or those that leave."""
    going = [here(OLD, "unloading")]
    assert decide([NEW], going, policy(memory_limit_bytes=150 * MB)) == []
    assert decide([NEW], going, policy(kind="resource")) == []
    assert decide([OTHER], going, policy(kind="resource")) == [Load(OTHER)]


def test_what_is_planned_counts_in_the_figures() -> None:
    """Of two that do not fit together one is loaded, and the other one's reason says what is left
    beside it."""
    loaded, refused = decide([OLD, OTHER], [], policy(memory_limit_bytes=150 * MB))
    assert loaded == Load(OLD)
    assert isinstance(refused, Refuse)
    assert "needs about 100 MB, 50 MB of 150 MB can be had" in refused.reason


def test_cleared_room_is_for_whom_it_was_cleared() -> None:
    """A smaller version does not slip into room that a larger one has been promised; otherwise the
    warm version would have gone for nothing."""
    rules = policy(memory_limit_bytes=300 * MB)
    warm, busy, large, small = ("a", "1"), ("b", "1"), ("x", "1"), ("y", "1")
    actual = [here(warm, size=100), here(busy, size=150)]
    sizes = {large: 150, small: 50}
    assert kinds(decide([busy, large, small], actual, rules, now=1.0, sizes=sizes)) == [
        ("Unload", warm),
        ("Refuse", small),
        ("Wait",),
    ]
    # Negative control: where both fit, both come.
    roomy = policy(memory_limit_bytes=500 * MB)
    assert kinds(decide([busy, large, small], actual, roomy, now=1.0, sizes=sizes)) == [
        ("Load", large),
        ("Load", small),
        ("Wait",),
    ]


def test_what_can_never_fit_makes_nobody_go() -> None:
    """It is refused at once, and the warm version stays warm."""
    rules = policy(memory_limit_bytes=300 * MB)
    assert kinds(decide([NEW], [here(OLD)], rules, now=1.0, sizes={NEW: 400})) == [
        ("Refuse", NEW),
        ("Wait",),
    ]


KEYS = [(model, version) for model in "abc" for version in "123"]
STATES: list[State] = ["loading", "ready", "failed", "unloading"]


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """Return arguments for plan(): any, also such as no server should come to."""
    here_now = draw(st.sets(st.sampled_from(KEYS), max_size=6))
    actual = {
        key: Actual(
            key,
            draw(st.sampled_from(STATES)),
            draw(st.integers(0, 200)) * MB,
            last_used=draw(st.integers(0, 100)),
            since=draw(st.integers(0, 100)),
            leased=draw(st.booleans()),
        )
        for key in sorted(here_now)
    }
    leaving = draw(st.lists(st.sampled_from(KEYS), max_size=2))
    return {
        "wanted": [
            Wanted(key, draw(st.booleans()))
            for key in sorted(draw(st.sets(st.sampled_from(KEYS), max_size=6)))
        ],
        "actual": actual,
        "policy": policy(
            kind=draw(st.sampled_from(["availability", "resource"])),
            memory_limit_bytes=draw(st.sampled_from([0, 1, 250 * MB, 600 * MB])),
            keep_warm_s=draw(st.sampled_from([0.0, 30.0])),
            on_demand=draw(st.booleans()),
        ),
        "now": 100.0,
        "estimates": {key: draw(st.integers(1, 200)) * MB for key in KEYS},
        "leaving": leaving,
        "leaving_bytes": draw(st.integers(0, 100)) * MB if leaving else 0,
        "serving": draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True)),
    }


@settings(max_examples=250, deadline=None)
@given(case=situations())
def test_no_plan_breaks_a_promise(case: dict[str, Any]) -> None:
    """Whatever the situation: one action a version; nothing required and ready goes unless on
    demand, nothing that is waited for makes room, nothing beyond the limit is loaded."""
    actual: dict[Key, Actual] = case["actual"]
    rules: Policy = case["policy"]
    required = {w.version for w in case["wanted"] if w.required}
    actions = plan(**case)
    named = [a.version for a in actions if not isinstance(a, Wait)]
    assert len(named) == len(set(named))
    assert all(a.until > case["now"] for a in actions if isinstance(a, Wait))
    assert sum(isinstance(a, Wait) for a in actions) <= 1
    gone = {a.version for a in actions if isinstance(a, Unload)}
    loads = [a.version for a in actions if isinstance(a, Load)]
    assert len(loads) <= max(0, LOADS_AT_ONCE - sum(o.state == "loading" for o in actual.values()))
    for key in gone:
        one = actual[key]
        assert one.state != "unloading"
        assert key not in required or (rules.on_demand and one.state == "ready" and not one.leased)
        if rules.kind == "availability" and one.state == "ready":
            assert not one.leased
    for key in loads:
        assert key in required
        assert key not in actual
        if rules.kind == "resource":
            beside = {k for k, o in actual.items() if k[0] == key[0] and o.state != "failed"}
            assert beside <= required
            assert not beside & gone
            assert key[0] not in {model for model, _ in case["leaving"]}
    if rules.memory_limit_bytes and loads:
        held = sum(need(one, case["estimates"]) for one in actual.values())
        coming = sum(case["estimates"][key] for key in loads)
        assert held + case["leaving_bytes"] + coming <= rules.memory_limit_bytes
    if not rules.memory_limit_bytes:
        assert not any(isinstance(a, Refuse) for a in actions)


@settings(max_examples=100, deadline=None)
@given(case=situations())
def test_the_order_of_what_is_told_does_not_count(case: dict[str, Any]) -> None:
    """The same situation gives the same plan."""
    turned = {
        **case,
        "wanted": case["wanted"][::-1],
        "actual": dict(reversed(case["actual"].items())),
        "serving": case["serving"][::-1],
    }
    assert plan(**turned) == plan(**case)


def need(one: Actual, estimates: dict[Key, int]) -> int:
    """Return what a version counts with: measured, else guessed; nothing once it has failed."""
    return 0 if one.state == "failed" else one.bytes or estimates[one.version]
