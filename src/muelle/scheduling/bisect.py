"""Find the request that makes a batch fail, while its mates get their answers. Pure.

Group testing by halves: what is known to hold a bad request is halved, what is presumed good is
run together at the end. One bad request in a batch of B costs at most log2(B) + 2 more runs.
"""

from __future__ import annotations

from muelle.scheduling.jobs import Job


class Bisection:
    """The search in one failed batch. Call `group` for what to run next, then tell how it went."""

    def __init__(self, jobs: list[Job]) -> None:
        self._suspects = jobs
        self._rest: list[Job] = []
        self._trial: list[Job] = []

    def group(self) -> list[Job]:
        """Return the jobs to run next as one batch."""
        half = max(1, len(self._suspects) // 2)
        self._trial = self._suspects[:half]
        return self._trial

    def succeeded(self) -> bool:
        """The group ran: the bad one is among the others. Return whether the search goes on."""
        self._suspects = self._suspects[len(self._trial) :]
        return bool(self._suspects)

    def failed(self) -> Job | None:
        """The group failed. Return the guilty job when it ran alone, else None: search on."""
        if len(self._trial) == 1:
            self._rest += self._suspects[1:]
            self._suspects = []
            return self._trial[0]
        self._rest += self._suspects[len(self._trial) :]
        self._suspects = self._trial
        return None

    def presumed_good(self) -> list[Job]:
        """Return the jobs to run together once the guilty one is found. Forgets them."""
        rest, self._rest = self._rest, []
        return rest

    def held(self) -> list[Job]:
        """Return the jobs that wait for the search: neither on trial now nor answered."""
        return [*self._suspects[len(self._trial) :], *self._rest]
