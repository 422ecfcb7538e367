"""Rollouts under way: the shell around the pure `lifecycle.rollout`. Not for when to go back.

Loads the new version, shares the traffic as the decider says, reads the counters for it, and moves
the label at the good end. Shares live here only (docs/adr/0007): whatever ends a rollout otherwise,
the server's own death too, leaves the store as it was. Used on the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from muelle.control.fleet import Fleet
from muelle.control.tables import Traffic
from muelle.control.wanted import Artifact
from muelle.core.admin import RolloutState, RolloutStatus, StartRollout
from muelle.core.errors import Conflict, MuelleError, VersionNotFound
from muelle.core.records import STABLE
from muelle.lifecycle import rollout as steps
from muelle.telemetry.metrics import FINE_SECONDS, Histogram, VersionMetrics

log = logging.getLogger("muelle.rollout")

LOOK_S = 0.25
"""How often the counters are looked at: a limit that breaks takes the traffic back that fast."""

Tell = Callable[[RolloutStatus], None]
"""Told how a rollout ended."""

Promote = Callable[[str, int, str, str], Awaitable[None]]
"""(model, version, label, note): let the label name the version, now that it has all traffic."""


class Rollouts:
    """The newest rollout of each model."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        loop: asyncio.AbstractEventLoop,
        promote: Promote,
        tell: Tell,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._fleet = fleet
        self._loop = loop
        self._promote = promote
        self._now = now
        self._running: dict[str, _Running] = {}

    def start(self, model: str, artifact: Artifact, spec: StartRollout, who: str) -> RolloutStatus:
        """Begin. Raise BadRequest for steps or limits that cannot be meant, Conflict while another
        one runs or when there is nothing to shift."""
        steps.check(spec)
        before = self._running.get(model)
        if before is not None and not before.status().ended:
            raise Conflict(
                f"{model}: a rollout of version {before.spec.version} is under way; "
                f"abort it first: muelle rollout {model} --abort"
            )
        traffic = self._fleet.traffic(model)
        if traffic is None or traffic.default is None:
            raise Conflict(f"{model}: no version answers that traffic could be taken from")
        if traffic.default == artifact.version:
            raise Conflict(f"{model}: version {artifact.version} has the traffic already")
        running = _Running(
            self._fleet, artifact, spec, traffic.default, self._now, self._promote, self._tell
        )
        self._running[model] = running
        running.task = self._loop.create_task(running.run())
        log.info("%s: rollout of version %d begun by %s", model, spec.version, who)
        return running.status()

    def status(self, model: str) -> RolloutStatus:
        """Return the newest rollout. Raise VersionNotFound when there was none."""
        running = self._running.get(model)
        if running is None:
            raise VersionNotFound(f"{model}: no rollout since this server started")
        return running.status()

    def abort(self, model: str, reason: str) -> RolloutStatus:
        """End it and give the traffic back. Raise VersionNotFound, or Conflict: it has ended."""
        status = self.status(model)
        if status.ended:
            raise Conflict(f"{model}: its rollout has ended ({status.state}); nothing to abort")
        self._running[model].end("aborted", reason)
        return self.status(model)

    def supersede(self, model: str, reason: str) -> None:
        """Somebody changes the model by hand: a rollout of it ends."""
        running = self._running.get(model)
        if running is not None and not running.status().ended and not running.promoting:
            running.end("aborted", reason)

    def stop(self) -> None:
        """The server ends."""
        for running in self._running.values():
            if running.task is not None:
                running.task.cancel()


class _Running:
    """One rollout, from its start to its end and after."""

    def __init__(
        self,
        fleet: Fleet,
        artifact: Artifact,
        spec: StartRollout,
        old: str,
        now: Callable[[], float],
        promote: Promote,
        tell: Tell,
    ) -> None:
        self._tell = tell
        self.spec = spec
        self.task: asyncio.Task[None] | None = None
        self.promoting = False
        self._fleet = fleet
        self._artifact = artifact
        self._old = old
        self._now = now
        self._promote = promote
        self._state: RolloutState = "loading"
        self._reason = ""
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._decider: steps.Rollout | None = None
        self._metrics: VersionMetrics | None = None
        self._latency = Histogram(FINE_SECONDS)
        self._base = (0, 0, 0, 0)
        self._held = False

    async def run(self) -> None:
        """Load, step by step shift, promote. Never raises."""
        model = self._artifact.model
        try:
            live = await self._fleet.ensure(self._artifact)
        except MuelleError as exc:
            self.end("failed", exc.message)
            return
        self._held = True
        self._metrics = live.metrics
        if self.has_ended():  # somebody aborted it while the version loaded
            self._release()
            return
        try:
            self._decider = decider = steps.Rollout(self.spec, now=self._now())
            self._state = "watching"
            self._begin_step(decider.share)
            while True:
                await asyncio.sleep(LOOK_S)
                if self.has_ended():
                    return
                match decider.advance(self._now(), self._observed()):
                    case steps.SetShare(percent):
                        self._begin_step(percent)
                    case steps.RollBack(reason):
                        self.end("rolled_back", reason)
                    case steps.Finish():
                        await self._finish()
                    case steps.Wait(_, reason):
                        self._reason = reason
        except Exception as exc:
            log.exception("%s: the rollout failed", model)
            self.end("failed", str(exc))

    def has_ended(self) -> bool:
        """Whether somebody or something has ended it."""
        return self._state not in ("loading", "watching")

    def end(self, state: RolloutState, reason: str) -> None:
        """Give all traffic back to the old version, at once."""
        self._state, self._reason = state, reason
        model = self._artifact.model
        log.warning("%s: rollout of %d: %s: %s", model, self.spec.version, state, reason)
        self._tell(self.status())
        self._fleet.override(self._artifact.model, None)
        self._release()

    def status(self) -> RolloutStatus:
        """Return where it stands."""
        observed = self._observed()
        decider = self._decider
        return RolloutStatus(
            model=self._artifact.model,
            version=self.spec.version,
            from_version=int(self._old),
            state=self._state,
            reason=self._reason,
            step=decider.step if decider is not None else 0,
            steps=self.spec.steps,
            step_left_s=decider.left_s(self._now()) if decider and self._state == "watching" else 0,
            requests=observed.requests,
            error_rate=observed.failures / observed.requests if observed.requests else 0.0,
            p99_ms=1e3 * observed.p99_s,
            disagreement=observed.disagreed / observed.compared if observed.compared else None,
            started=self._started,
        )

    async def _finish(self) -> None:
        model = self._artifact.model
        self.promoting = True
        try:
            await self._promote(model, self.spec.version, STABLE, self.spec.note)
        finally:
            self.promoting = False
        self._state, self._reason = "done", ""
        self._tell(self.status())
        self._fleet.override(model, None)
        self._release()

    def _begin_step(self, percent: float) -> None:
        """Share the traffic, and count from zero."""
        old, new = self._old, self._artifact.version
        split = {new: percent} if percent >= 100 else {old: 100 - percent, new: percent}
        compared = self.spec.max_disagreement is not None and percent < 100
        self._fleet.override(self._artifact.model, Traffic(split, shadow=new if compared else ""))
        self._reason = ""
        metrics = self._metrics
        assert metrics is not None
        self._latency = Histogram(FINE_SECONDS)
        metrics.total.set_tap(self._latency)
        self._base = _counts(metrics)

    def _observed(self) -> steps.Observed:
        metrics = self._metrics
        if metrics is None or self._decider is None:
            return steps.Observed()
        metrics.total.fold()
        requests, failures, compared, disagreed = (
            now - base for now, base in zip(_counts(metrics), self._base, strict=True)
        )
        live = self._fleet.live(self._artifact.model, self._artifact.version)
        dead = live is None or (self._state == "watching" and not live.serving)
        return steps.Observed(
            requests=requests,
            failures=failures,
            p99_s=self._latency.quantile(0.99),
            compared=compared,
            disagreed=disagreed,
            broken=live.why_not() if dead and live is not None else "",
        )

    def _release(self) -> None:
        if self._metrics is not None:
            self._metrics.total.set_tap(None)
        if self._held:
            self._held = False
            self._fleet.release(self._artifact)


def _counts(metrics: VersionMetrics) -> tuple[int, int, int, int]:
    shadow = metrics.shadow
    compared = shadow["agreed"].value + shadow["differed"].value
    return metrics.answered(), metrics.failures(), compared, shadow["differed"].value
