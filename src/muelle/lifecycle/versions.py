"""Which versions of a server to load and which to let go: wanted and actual in, actions out. Pure.

Looks at all models at once, for they share one memory. The rules, in this order:

1. What is required and not here is loaded, at most `LOADS_AT_ONCE` side by side. Under the
   availability-preserving policy a version that has traffic counts as required too, until all
   that is required of its model is ready: also when that fails, or does not fit beside it.
2. What is not required stays warm for `keep_warm_s` after its last use (a rollback is instant
   then) and goes after that. Under the resource-preserving policy it goes at once, and while it is
   still going nothing of that model is loaded: such models fit only once.
3. Where memory is limited, loads claim room in turn, and what is claimed is nobody else's, also
   while it is still being given back. A load that does not fit takes the room of versions that
   are not required, least recently used first; with on-demand loading also of required ones that
   idle. Never of one that is loading or that somebody waits for. The same when loaded versions
   have outgrown the limit.
4. What does not fit even so is refused, with the figures. What has failed is not tried again, until
   it was unloaded (whoever asks for it again does that).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Key: TypeAlias = tuple[str, str]
"""Model and version."""

LOADS_AT_ONCE = 2
IDLE_S = 2.0
"""With on-demand loading, a required version that was not used for so long may make room."""

State = Literal["loading", "ready", "failed", "unloading"]


@dataclass(frozen=True, slots=True)
class Actual:
    """A version that is here. Moments are monotonic seconds."""

    version: Key
    state: State
    bytes: int
    """Memory of its workers; 0 when not measured yet, then the estimate counts."""
    last_used: float
    since: float
    leased: bool
    """Whether somebody waits for an answer of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that may be asked for. `required`: it should be here now."""

    version: Key
    required: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """How to choose. `memory_limit_bytes` 0: no limit."""

    kind: Literal["availability", "resource"]
    keep_warm_s: float
    memory_limit_bytes: int
    on_demand: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Start to load a version."""

    version: Key


@dataclass(frozen=True, slots=True)
class Unload:
    """Take its traffic away, let it answer what it has, end it."""

    version: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not load it: there is no room."""

    version: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Plan again at this moment, though nothing may have happened."""

    until: float


Action: TypeAlias = Load | Unload | Refuse | Wait


def plan(
    wanted: Sequence[Wanted],
    actual: Mapping[Key, Actual],
    policy: Policy,
    now: float,
    *,
    estimates: Mapping[Key, int],
    leaving: Sequence[Key] = (),
    leaving_bytes: int = 0,
    serving: Collection[Key] = (),
) -> tuple[Action, ...]:
    """Return what to do now. `estimates` guess at what a version will need; `leaving` are versions
    that still answer what they have accepted, with `leaving_bytes` of memory together; `serving`
    are those that new requests go to."""
    if policy.kind == "availability":
        kept = _not_replaced_yet(wanted, actual, serving)
        wanted = (*wanted, *(Wanted(key, required=True) for key in kept))
    return _Plan(wanted, actual, policy, now, estimates, leaving, leaving_bytes).make()


def _not_replaced_yet(
    wanted: Sequence[Wanted], actual: Mapping[Key, Actual], serving: Collection[Key]
) -> list[Key]:
    """Return what serves while something that is required of its model cannot yet."""

    def is_ready(key: Key) -> bool:
        return key in actual and actual[key].state == "ready"

    awaited = {w.version[0] for w in wanted if w.required and not is_ready(w.version)}
    return [key for key in serving if key[0] in awaited and is_ready(key)]


class _Plan:
    """One planning. Used once."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        actual: Mapping[Key, Actual],
        policy: Policy,
        now: float,
        estimates: Mapping[Key, int],
        leaving: Sequence[Key],
        leaving_bytes: int,
    ) -> None:
        self._required = {w.version for w in wanted if w.required}
        self._actual = actual
        self._policy = policy
        self._now = now
        self._estimates = estimates
        self._leaving_models = {model for model, _ in leaving}
        self._left_bytes = leaving_bytes
        self._actions: list[Action] = []
        self._gone = {key for key, one in actual.items() if one.state == "unloading"}
        self._claimed = 0
        self._until: list[float] = []
        self._used = leaving_bytes + sum(self._need(key) for key in actual)

    def make(self) -> tuple[Action, ...]:
        self._let_go()
        self._shrink()
        self._load()
        if self._until:
            self._actions.append(Wait(min(self._until)))
        return tuple(self._actions)

    def _let_go(self) -> None:
        """Unload what nobody requires and whose time is over."""
        for key, one in sorted(self._actual.items()):
            if key in self._required or one.state == "unloading":
                continue
            if one.state == "loading":
                self._unload(key, "it is not wanted any more")
            elif one.state == "failed":
                self._unload(key, "it has failed and is not wanted")
            elif self._policy.kind == "resource" and self._is_replaced(key):
                self._unload(key, "another version takes its place")
            else:
                until = max(one.last_used, one.since) + self._policy.keep_warm_s
                if self._now >= until and not one.leased:
                    self._unload(key, "it was not used any more")
                else:
                    # A version that is still used looks again when it may be over.
                    self._until.append(max(until, self._now + 1.0))

    def _is_replaced(self, key: Key) -> bool:
        """Whether another version of the model is required, and so needs its place."""
        return any(model == key[0] for model, _ in self._required)

    def _shrink(self) -> None:
        """Get back under the limit, when versions need more than they did."""
        limit = self._policy.memory_limit_bytes
        over = self._used - self._left_bytes - self._going_bytes() - limit if limit else 0
        for victim in self._candidates():
            if over <= 0:
                return
            over -= self._need(victim)
            self._unload(victim, "its memory is needed")

    def _load(self) -> None:
        running = sum(one.state == "loading" for one in self._actual.values())
        for key in sorted(self._required - self._actual.keys(), key=_newest_first):
            if running >= LOADS_AT_ONCE:
                return  # The end of a load plans again.
            if self._policy.kind == "resource" and self._must_wait(key[0]):
                continue
            if self._make_room(key):
                self._actions.append(Load(key))
                running += 1

    def _must_wait(self, model: str) -> bool:
        """Whether a version of the model is still on its way out."""
        going = {key[0] for key in self._gone}
        return model in self._leaving_models or model in going

    def _make_room(self, key: Key) -> bool:
        """Claim room for a version; return whether it is there now. Unloads what must make it."""
        limit = self._policy.memory_limit_bytes
        need = self._need(key)
        used = self._used + self._claimed
        if not limit or used + need <= limit:
            self._claimed += need
            return True
        victims = []
        free = limit - used + self._left_bytes + self._going_bytes()
        for victim in self._candidates():
            if free >= need:
                break
            victims.append(victim)
            free += self._need(victim)
        if free < need:
            self._actions.append(
                Refuse(
                    key,
                    f"it needs about {_mb(need)}, {_mb(max(limit - self._fixed(), 0))} of "
                    f"{_mb(limit)} can be had; raise --memory-limit, or load fewer versions",
                )
            )
            if self._policy.on_demand:
                self._until.append(self._now + 1.0)  # Who is busy now may idle then.
            return False
        for victim in victims:
            self._unload(victim, "its memory is needed")
        # It is loaded once the room is really there: when the last of them has ended. Until then
        # nobody smaller slips into it.
        self._claimed += need
        return False

    def _candidates(self) -> list[Key]:
        """Return what may make room, the least recently used first."""
        found = []
        for key, one in self._actual.items():
            if key in self._gone or one.state != "ready" or one.leased:
                continue
            idles = self._now - max(one.last_used, one.since) >= IDLE_S
            if key not in self._required or (self._policy.on_demand and idles):
                found.append((key in self._required, max(one.last_used, one.since), key))
        return [key for _, _, key in sorted(found)]

    def _fixed(self) -> int:
        """Memory that nobody can be made to give, and what was claimed before."""
        free = set(self._candidates()) | self._gone
        return self._claimed + sum(self._need(key) for key in self._actual if key not in free)

    def _going_bytes(self) -> int:
        return sum(self._need(key) for key in self._gone)

    def _need(self, key: Key) -> int:
        one = self._actual.get(key)
        if one is not None and one.state == "failed":
            return 0
        return (one.bytes if one is not None else 0) or self._estimates.get(key, 0)

    def _unload(self, key: Key, reason: str) -> None:
        self._actions.append(Unload(key, reason))
        self._gone.add(key)


def _newest_first(key: Key) -> tuple[str, int, str]:
    model, version = key
    return model, -int(version) if version.isdigit() else 0, version


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
