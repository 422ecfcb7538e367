"""What serves goes on serving until its replacement can: the plan alone, and inside the fleet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.config.sections import LifecycleConfig, ServeConfig
from muelle.lifecycle.versions import (
    Action,
    Actual,
    Key,
    Load,
    Policy,
    Refuse,
    State,
    Unload,
    Wanted,
    plan,
)
from tests.unit.control.puppets import Harbour, ListedSource, Puppet

OLD, NEW, WARM = ("m", "1"), ("m", "2"), ("m", "3")
MB = 1_000_000
LATE = 1_000.0
"""Long after the old version's keep_warm_s has passed."""


def rules(**more: Any) -> Policy:
    """Return the availability-preserving policy, or another."""
    return Policy(
        **{  # type: ignore[arg-type]
            "kind": "availability",
            "keep_warm_s": 60.0,
            "memory_limit_bytes": 0,
            "on_demand": False,
        }
        | more
    )


def here(key: Key, state: State = "ready", used: float = 0.0) -> Actual:
    """Return a version of 100 MB."""
    return Actual(key, state, 100 * MB, last_used=used, since=0.0, leased=False)


def decide(
    required: list[Key], actual: list[Actual], policy: Policy, serving: list[Key]
) -> tuple[Action, ...]:
    """Plan at a late moment."""
    return plan(
        [Wanted(key, True) for key in required],
        {one.version: one for one in actual},
        policy,
        LATE,
        estimates=dict.fromkeys(required, 100 * MB),
        serving=serving,
    )


def gone(actions: tuple[Action, ...]) -> list[Key]:
    """Return who has to go."""
    return [a.version for a in actions if isinstance(a, Unload)]


@pytest.mark.parametrize("keep_warm_s", [0.0, 60.0])
@pytest.mark.parametrize("new", [[], [here(NEW, "loading")], [here(NEW, "failed")]])
def test_what_serves_stays_until_the_new_version_is_ready(
    new: list[Actual], keep_warm_s: float
) -> None:
    """Not here yet, loading, or failed: the old version stays, however long it was not used."""
    policy = rules(keep_warm_s=keep_warm_s)
    assert gone(decide([NEW], [here(OLD), *new], policy, [OLD])) == []


def test_it_goes_once_the_new_version_is_ready() -> None:
    """Negative control: nothing is kept for ever, nor without traffic, nor of a model that went."""
    assert gone(decide([NEW], [here(OLD), here(NEW)], rules(), [OLD])) == [OLD]
    assert gone(decide([NEW], [here(OLD)], rules(), [])) == [OLD]
    assert gone(decide([], [here(OLD)], rules(), [OLD])) == [OLD]


def test_another_models_load_keeps_nothing() -> None:
    """Only what is awaited of the same model counts."""
    assert gone(decide([("n", "1")], [here(OLD)], rules(), [OLD])) == [OLD]


def test_what_serves_makes_no_room_for_its_replacement() -> None:
    """Memory for one: the new version is refused in figures, instead of taking the old one's place
    before it can answer. A version that is only warm does make room."""
    small = rules(memory_limit_bytes=150 * MB)
    (refused,) = decide([NEW], [here(OLD, used=LATE)], small, [OLD])
    assert isinstance(refused, Refuse)
    assert refused.version == NEW
    assert "100 MB" in refused.reason
    larger = rules(memory_limit_bytes=250 * MB)
    actual = [here(OLD, used=LATE), here(WARM, used=LATE)]
    assert gone(decide([NEW], actual, larger, [OLD])) == [WARM]


def test_resource_preserving_ends_what_serves_first() -> None:
    """That is what this policy is for."""
    assert gone(decide([NEW], [here(OLD, used=LATE)], rules(kind="resource"), [OLD])) == [OLD]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_model_that_serves_never_stops(data: st.DataObject) -> None:
    """Labels move at will, loads take time and may fail, memory is short: a model that answers goes
    on answering, for as long as some version of it is required."""
    limit = data.draw(st.sampled_from([0, 150 * MB, 250 * MB]))
    policy = rules(memory_limit_bytes=limit, keep_warm_s=data.draw(st.sampled_from([0.0, 5.0])))
    actual: dict[Key, Actual] = {}
    serving: dict[str, Key] = {}
    required: dict[str, Key] = {}
    for now in range(data.draw(st.integers(5, 40))):
        if data.draw(st.booleans()):
            model = data.draw(st.sampled_from("ab"))
            required[model] = (model, data.draw(st.sampled_from("123")))
        actions = plan(
            [Wanted(key, True) for key in required.values()],
            actual,
            policy,
            float(now),
            estimates=dict.fromkeys(required.values(), 100 * MB),
            serving=list(serving.values()),
        )
        for action in actions:
            if isinstance(action, Unload):
                del actual[action.version]
            elif isinstance(action, Load):
                actual[action.version] = here(action.version, "loading", float(now))
        # A failed version has no workers any more.
        held = sum(one.state != "failed" for one in actual.values())
        assert not limit or held * 100 * MB <= limit
        for key, one in actual.items():
            if one.state == "loading":
                state: State = data.draw(st.sampled_from(["loading", "ready", "failed"]))
                actual[key] = here(key, state, float(now))
        for model, key in required.items():
            if key in actual and actual[key].state == "ready":
                serving[model] = key
        for key in serving.values():
            assert key in actual
            assert actual[key].state == "ready"


@pytest.mark.parametrize("outcome", ["wait", "its answers differ"])
@pytest.mark.parametrize(
    "lifecycle", [{"keep_warm_s": 0}, {"keep_warm_s": 60}, {"memory_limit_mb": 150}], ids=str
)
async def test_a_label_moved_elsewhere_leaves_no_gap(
    outcome: str, lifecycle: dict[str, Any]
) -> None:
    """A server that only follows its source (two servers of one store) keeps the old version, idle
    since long ago, while the new one loads, and when that fails or does not fit."""
    source = ListedSource()
    source.want("m", "1")
    now = 0.0
    config = ServeConfig(lifecycle=LifecycleConfig(**lifecycle))
    harbour = Harbour(source, config, now=lambda: now)
    await harbour.fleet.start()
    (old,) = Puppet.made
    old.since = old.last_used = 0.0
    old.memory = harbour.fleet._bytes[OLD] = 100 * 1024 * 1024
    now = LATE
    Puppet.script = {NEW: outcome}
    source.want("m", "2")
    await harbour.fleet.refresh()
    await asyncio.sleep(0)
    try:
        assert harbour.split("m") == {"1": 1.0}
        assert not old.unloaded
    finally:
        await harbour.fleet.stop(0)


async def test_a_label_moved_elsewhere_takes_effect() -> None:
    """Negative control: with nothing kept warm, traffic moves and the old version goes."""
    source = ListedSource()
    source.want("m", "1")
    now = 0.0
    config = ServeConfig(lifecycle=LifecycleConfig(keep_warm_s=0))
    harbour = Harbour(source, config, now=lambda: now)
    await harbour.fleet.start()
    (old,) = Puppet.made
    old.since = old.last_used = 0.0
    now = LATE
    source.want("m", "2")
    await harbour.fleet.follow()
    await asyncio.sleep(0)
    assert harbour.split("m") == {"2": 1.0}
    assert old.unloaded
    await harbour.fleet.stop(0)
