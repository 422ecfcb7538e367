"""Share a model's requests among versions: by exact turns, or by a key that sticks. Pure.

Not for what a target is (labels and numbers are resolved before), nor for when shares change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from muelle.core.errors import BadRequest

_POINT_BITS = 52
"""As many as leave room for the half in a double: with more, the last point would round to 1."""


def parse_weights(text: str) -> dict[str, float]:
    """Read `stable=95,canary=5`. Raise BadRequest, which says what is wrong."""
    weights: dict[str, float] = {}
    n_percent = 0
    for part in text.split(","):
        target, sign, number = (piece.strip() for piece in part.partition("="))
        if not target or not sign:
            raise BadRequest(
                f"{part.strip()!r}: write TARGET=SHARE, for example stable=95,canary=5"
            )
        if target in weights:
            raise BadRequest(f"{target}: it has two shares; keep one")
        n_percent += number.endswith("%")
        try:
            weights[target] = float(number.removesuffix("%"))
        except ValueError:
            raise BadRequest(f"{target}: its share {number!r} is not a number") from None
    if 0 < n_percent < len(weights):
        # stable=0.95,canary=5% would give the canary 84 percent.
        raise BadRequest(f"{text!r}: write % behind every share, or behind none")
    check_weights(weights)
    return weights


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise BadRequest when weights cannot be shares."""
    for target, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise BadRequest(f"{target}: its share {weight} is not a number of at least 0")
    total = sum(weights.values())
    if not math.isfinite(total):
        raise BadRequest("the shares add up to more than a number can hold; write smaller ones")
    if not total > 0:
        raise BadRequest("the shares add up to nothing; one of them must be above 0")


class Split:
    """Targets with shares that add up to 1. Immutable."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Raise BadRequest for weights that cannot be shares."""
        check_weights(weights)
        total = sum(weights.values())
        self.shares: dict[str, float] = {t: w / total for t, w in weights.items() if w > 0}

    def choose(self, key: bytes, salt: bytes = b"") -> str:
        """Return the target of a key: always the same one.

        Weighted rendezvous hashing: each target draws a number from key and name, and the best one
        for its share wins. So a target whose share grows keeps every key that it had, and takes
        from the others no more than it must.
        """
        best, best_score = "", -math.inf
        for target, share in self.shares.items():
            score = share / -math.log(point_of(key, salt + b"\0" + target.encode()))
            if score > best_score:
                best, best_score = target, score
        return best


def point_of(key: bytes, salt: bytes) -> float:
    """Return a number above 0 and below 1 that depends on nothing but key and salt."""
    state = hashlib.blake2b(key, digest_size=8, key=hashlib.blake2b(salt, digest_size=32).digest())
    return _inside(int.from_bytes(state.digest(), "big") >> (64 - _POINT_BITS))


def _inside(number: int) -> float:
    """Return the middle of one of 2**52 equal parts of the line from 0 to 1."""
    return (number + 0.5) / 2.0**_POINT_BITS


class Spread:
    """Deals requests that have no key: after any number of them each target had its share to within
    one request, however many targets there are. Owned by whoever deals.

    Tijdeman's rule for the chairman assignment problem: of those who may have a turn already, the
    one who must have it soonest. Taking whoever is furthest behind does not keep the bound for
    more than four targets.
    """

    __slots__ = ("_credit", "_least", "_most", "_shares")

    def __init__(self, split: Split) -> None:
        # A share can be too small for a double after all; its turn would never come.
        self._shares = [(t, share, 1.0 / share) for t, share in split.shares.items() if share > 0]
        self._credit = dict.fromkeys((t for t, _, _ in self._shares), 0.0)
        others = len(self._shares) - 1
        margin = 0.5 / others if others else 0.0
        self._least = margin - 1e-9
        self._most = 1.0 - margin

    def next(self) -> str:
        """Return who answers the next request."""
        credit, least, most = self._credit, self._least, self._most
        best, soonest = "", math.inf
        for target, share, requests_a_turn in self._shares:
            mine = credit[target] = credit[target] + share
            if mine >= least:
                left = (most - mine) * requests_a_turn
                if left < soonest:
                    best, soonest = target, left
        if not best:  # Rounding, added up over very many requests.
            best = max(credit, key=credit.__getitem__)
        credit[best] -= 1.0
        return best
