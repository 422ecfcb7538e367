"""Plans carried out over time: a small world that must settle, and then stay still."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.lifecycle.versions import (
    LOADS_AT_ONCE,
    Actual,
    Key,
    Load,
    Policy,
    Refuse,
    Unload,
    Wait,
    Wanted,
    plan,
)

MB = 1_000_000
SLOWEST_S = 3.0
"""Nothing takes for ever: a world whose loads never end cannot settle."""
KEYS = [(model, version) for model in "abc" for version in "12"]


@dataclass
class World:
    """Versions that take time to load and to go, under one policy. One step is one second."""

    rules: Policy
    sizes: dict[Key, int]
    one_a_model: bool = False
    """Whether no two versions of a model may ever be there, not even one that is still going."""
    required: set[Key] = field(default_factory=set)
    now: float = 0.0
    actual: dict[Key, Actual] = field(default_factory=dict)
    leaving: dict[Key, tuple[float, int]] = field(default_factory=dict)
    """Since when, and with how much memory."""
    refused: set[Key] = field(default_factory=set)
    loads: int = 0

    def step(self, data: st.DataObject, *, failures: bool = False) -> None:
        """Plan, do it, and let some of what is under way end."""
        self.refused = set()
        for action in plan(
            [Wanted(key, True) for key in sorted(self.required)],
            self.actual,
            self.rules,
            self.now,
            estimates=self.sizes,
            leaving=list(self.leaving),
            leaving_bytes=sum(size for _, size in self.leaving.values()),
        ):
            match action:
                case Load(key):
                    assert key in self.required
                    assert key not in self.actual
                    self.actual[key] = Actual(key, "loading", 0, self.now, self.now, leased=False)
                    self.loads += 1
                case Unload(key, _):
                    self._unload(key)
                case Refuse(key, _):
                    self.refused.add(key)
                    if self.rules.on_demand:
                        self.required.discard(key)
                case Wait(until):
                    assert until > self.now
        self.check()
        self._go_on(data, failures)
        self.now += 1.0

    def use(self, key: Key, *, leased: bool) -> None:
        """Ask for a version: it is required from now on, and used if it is here."""
        self.required.add(key)
        one = self.actual.get(key)
        if one is not None and one.state == "ready":
            self.actual[key] = replace(one, last_used=self.now, leased=leased)

    def check(self) -> None:
        """What must hold at every moment."""
        limit = self.rules.memory_limit_bytes
        assert not limit or self.held() <= limit
        assert sum(one.state == "loading" for one in self.actual.values()) <= LOADS_AT_ONCE
        if self.one_a_model:
            models = [model for model, _ in (*self.actual, *self.leaving)]
            assert len(models) == len(set(models))

    def held(self) -> int:
        """Return the memory that is taken."""
        kept = sum(self.sizes[k] for k, one in self.actual.items() if one.state != "failed")
        return kept + sum(size for _, size in self.leaving.values())

    def is_settled(self) -> bool:
        """Whether everything required has loaded, failed or been refused, and nothing is going."""
        ended = {k for k, one in self.actual.items() if one.state != "loading"}
        return not self.leaving and self.required <= ended | self.refused

    def _unload(self, key: Key) -> None:
        one = self.actual.pop(key)
        if one.state == "ready" and self.rules.kind == "availability":
            assert not one.leased
            assert key not in self.required or self.rules.on_demand
        if self.rules.on_demand:
            self.required.discard(key)  # It comes back when somebody asks, not by itself.
        _, before = self.leaving.get(key, (0.0, 0))
        size = 0 if one.state == "failed" else self.sizes[key]
        self.leaving[key] = (self.now, before + size)

    def _go_on(self, data: st.DataObject, failures: bool) -> None:
        for key, one in self.actual.items():
            over = self.now - one.since >= SLOWEST_S
            if one.state == "loading" and (over or data.draw(st.booleans())):
                fails = failures and data.draw(st.booleans())
                self.actual[key] = Actual(
                    key,
                    "failed" if fails else "ready",
                    self.sizes[key],
                    last_used=self.now,
                    since=self.now,
                    leased=False,
                )
        for key, (since, _) in list(self.leaving.items()):
            if self.now - since >= SLOWEST_S or data.draw(st.booleans()):
                del self.leaving[key]


def settle(world: World, data: st.DataObject) -> None:
    """Step until nothing is under way. Fail when that does not come."""
    for _ in range(100):
        world.step(data)
        if world.is_settled():
            return
    raise AssertionError(f"it does not settle: {world}")


def stays_still(world: World, data: st.DataObject, asked: frozenset[Key] = frozenset()) -> bool:
    """Whether nothing is loaded any more, for longer than anything is kept warm. Somebody goes on
    asking for `asked`."""
    before = world.loads
    for _ in range(20):
        world.required |= asked
        world.step(data)
    return world.loads == before


SIZES = st.fixed_dictionaries({key: st.sampled_from([50 * MB, 100 * MB, 150 * MB]) for key in KEYS})


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sizes=SIZES)
def test_a_world_settles_with_what_fits_and_stays_still(
    data: st.DataObject, sizes: dict[Key, int]
) -> None:
    """Wishes change at will, loads may fail: then everything that fits is ready in bounded time,
    memory is never over its limit, and after that nothing is loaded any more. Resource-preserving,
    two versions of a model are never there at once, unless both are required."""
    rules = Policy(
        kind=data.draw(st.sampled_from(["availability", "resource"])),
        keep_warm_s=data.draw(st.sampled_from([0.0, 5.0])),
        memory_limit_bytes=data.draw(st.sampled_from([0, 250 * MB, 450 * MB])),
        on_demand=False,
    )
    # Under the resource-preserving policy two versions stand side by side only when both are
    # required, as for a canary.
    single = rules.kind == "resource" and data.draw(st.booleans())
    world = World(rules, sizes, one_a_model=single)
    for _ in range(data.draw(st.integers(1, 3))):
        wishes = data.draw(st.sets(st.sampled_from(KEYS), max_size=5))
        world.required = set(dict(sorted(wishes)).items()) if single else wishes
        for _ in range(data.draw(st.integers(0, 6))):
            world.step(data, failures=True)
    settle(world, data)
    limit = rules.memory_limit_bytes
    if not limit or sum(sizes[key] for key in world.required) <= limit:
        assert not world.refused
    assert stays_still(world, data)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=SIZES)
def test_on_demand_the_world_stays_still_when_nobody_asks(
    data: st.DataObject, sizes: dict[Key, int]
) -> None:
    """Requests come and go, for more versions than fit: memory is never over its limit, whoever is
    waited for stays, and without new requests nothing is loaded and unloaded in turns."""
    rules = Policy("availability", 5.0, data.draw(st.sampled_from([150 * MB, 300 * MB])), True)
    world = World(rules, sizes)
    for _ in range(data.draw(st.integers(5, 30))):
        for key in data.draw(st.sets(st.sampled_from(KEYS), max_size=2)):
            world.use(key, leased=data.draw(st.booleans()))
        world.step(data)
    for key, one in world.actual.items():
        world.actual[key] = replace(one, leased=False)  # Everybody has the answer.
    settle(world, data)
    assert stays_still(world, data)


@pytest.mark.parametrize("state", ["ready", "loading"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_version_asked_for_on_demand_comes(state: str, data: st.DataObject) -> None:
    """Memory for one: whoever is asked for takes the place of one that idles, in bounded time."""
    first, second = KEYS[0], KEYS[2]
    rules = Policy("availability", 600.0, 150 * MB, True)
    world = World(rules, dict.fromkeys(KEYS, 100 * MB))
    world.use(first, leased=False)
    while state == "ready" and not world.is_settled():
        world.step(data)
    for _ in range(20):
        world.use(second, leased=False)  # The caller tries again until it is here.
        world.step(data)
    assert world.actual[second].state == "ready"
    assert first not in world.actual


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_thrashing_is_seen(data: st.DataObject) -> None:
    """Negative control: two that do not fit together, each asked for as soon as it has gone, take
    turns, and `stays_still` says so."""
    world = World(Policy("availability", 600.0, 150 * MB, True), dict.fromkeys(KEYS, 100 * MB))
    assert not stays_still(world, data, frozenset({KEYS[0], KEYS[2]}))
    # Again: it was not only the first load of all that it saw.
    assert not stays_still(world, data, frozenset({KEYS[0], KEYS[2]}))
