"""Which versions come and go: tables, and a small world that must settle. In virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

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
) -> list[Action]:
    """Plan, with every version guessed at 100 MB."""
    wanted = [Wanted(key, True) for key in required] + [Wanted(key, False) for key in optional]
    keys = {*required, *optional, *(one.version for one in actual)}
    return list(
        plan(
            wanted,
            {one.version: one for one in actual},
            rules,
            now,
            estimates=dict.fromkeys(keys, 100 * MB),
            leaving=leaving,
            leaving_bytes=leaving_bytes,
        )
    )


def kinds(actions: list[Action]) -> list[tuple[str, Key] | tuple[str]]:
    """Return what is done to whom."""
    return [
        ("Wait",) if isinstance(a, Wait) else (type(a).__name__, a.version)  # type: ignore[misc]
        for a in actions
    ]


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


@dataclass
class World:
    """Versions that take time to load and to go, under one policy."""

    rules: Policy
    required: set[Key]
    now: float = 0.0
    actual: dict[Key, Actual] = field(default_factory=dict)
    leaving: list[Key] = field(default_factory=list)
    loads: int = 0
    refused: set[Key] = field(default_factory=set)

    def step(self, data: st.DataObject) -> None:
        """Plan, do it, and let some of what is under way end."""
        actions = plan(
            [Wanted(key, True) for key in sorted(self.required)],
            self.actual,
            self.rules,
            self.now,
            estimates=dict.fromkeys({*self.required, *self.actual}, 100 * MB),
            leaving=self.leaving,
            leaving_bytes=100 * MB * len(self.leaving),
        )
        self.refused = set()
        for action in actions:
            match action:
                case Load(key):
                    assert key in self.required
                    assert key not in self.actual
                    self.actual[key] = here(key, "loading", used=self.now)
                    self.loads += 1
                case Unload(key, _):
                    one = self.actual.pop(key)
                    assert not one.leased
                    if self.rules.kind == "availability" and not self.rules.on_demand:
                        assert key not in self.required or one.state != "ready"
                    self.leaving.append(key)
                case Refuse(key, _):
                    self.refused.add(key)
                case Wait(until):
                    assert until >= self.now
        self.check()
        for key, one in self.actual.items():
            # Nothing takes for ever: a world whose loads never end cannot settle.
            over = self.now - one.last_used >= 3
            if one.state == "loading" and (over or data.draw(st.booleans())):
                self.actual[key] = Actual(key, "ready", 100 * MB, self.now, self.now, leased=False)
        if self.leaving and (self.now % 3 == 0 or data.draw(st.booleans())):
            self.leaving.pop()
        self.now += 1.0

    def check(self) -> None:
        """What must hold at every moment."""
        limit = self.rules.memory_limit_bytes
        if limit:
            assert 100 * MB * (len(self.actual) + len(self.leaving)) <= limit
        assert sum(one.state == "loading" for one in self.actual.values()) <= LOADS_AT_ONCE
        if self.rules.kind == "resource":
            models = [m for m, _ in (*self.actual, *self.leaving)]
            assert len(models) == len(set(models)) or self.rules.keep_warm_s < 0


KEYS = st.sampled_from([(m, v) for m in "abc" for v in "12"])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_world_settles_with_what_fits_and_stays_still(data: st.DataObject) -> None:
    """Whatever was wanted before: with new wishes everything that fits is ready in bounded time,
    memory is never over its limit, and after that nothing is loaded any more."""
    rules = policy(
        kind=data.draw(st.sampled_from(["availability", "resource"])),
        memory_limit_bytes=data.draw(st.sampled_from([0, 250 * MB, 450 * MB])),
        keep_warm_s=data.draw(st.sampled_from([0.0, 5.0])),
    )
    world = World(rules, set())
    for _ in range(data.draw(st.integers(1, 3))):
        # One version of a model at a time, where they fit only once.
        wanted = data.draw(st.sets(KEYS, max_size=5))
        if rules.kind == "resource":
            wanted = set(dict(sorted(wanted)).items())
        world.required = wanted
        for _ in range(data.draw(st.integers(0, 6))):
            world.step(data)
    for _ in range(200):
        world.step(data)
        ready = {k for k, one in world.actual.items() if one.state == "ready"}
        if not world.leaving and world.required <= ready | world.refused:
            break
    else:
        raise AssertionError(f"it does not settle: {world}")
    fits = (
        len(world.required) * 100 * MB <= rules.memory_limit_bytes or not rules.memory_limit_bytes
    )
    if fits:
        assert not world.refused
    before = world.loads
    for _ in range(20):
        world.step(data)
    assert world.loads == before
