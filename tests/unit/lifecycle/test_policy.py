"""When a dead worker comes back, in virtual time."""

from __future__ import annotations

from muelle.lifecycle.policy import QUARANTINE_S, RestartPolicy


def test_the_back_off_doubles_up_to_its_limit() -> None:
    """Deaths that are far apart wait 0.1 s, 0.2 s, ... and never longer than 30 s."""
    policy = RestartPolicy()
    waits = [policy.died(now=at * 1_000.0, served=False).after_s for at in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits == sorted(waits)
    assert waits[-1] == 30.0


def test_a_worker_that_served_starts_over() -> None:
    """One that had answered is restarted at once, whatever was before."""
    policy = RestartPolicy()
    for at in range(4):
        policy.died(at * 100.0, served=False)
    assert policy.died(500.0, served=True).after_s == 0.1


def test_the_sixth_death_in_a_minute_is_quarantine() -> None:
    """More than five deaths in a minute: refused for five minutes; five are not enough."""
    policy = RestartPolicy()
    assert not any(policy.died(float(at), served=False).quarantined for at in range(5))
    restart = policy.died(59.0, served=False)
    assert restart.quarantined and restart.after_s == QUARANTINE_S


def test_old_deaths_do_not_count() -> None:
    """Six deaths over more than a minute are no crash loop."""
    policy = RestartPolicy()
    assert not any(policy.died(at * 12.5, served=False).quarantined for at in range(40))


def test_after_quarantine_the_count_begins_again() -> None:
    """The new try is not refused for the deaths before it."""
    policy = RestartPolicy()
    for _ in range(6):
        last = policy.died(0.0, served=False)
    assert last.quarantined
    assert not policy.died(1.0, served=False).quarantined


def test_a_worker_may_die_for_years() -> None:
    """The thousands-th death in a row is decided like any other: no number overflows."""
    policy = RestartPolicy()
    assert {policy.died(at * 30.0, served=False).after_s for at in range(1_000, 5_000)} >= {30.0}
