"""What an epsilon of shared noise means for one person: bounds, because no more is proven.

Any attack is a test with some false-alarm rate a and miss rate b. By the data processing
inequality the two coins (1 - b, b) and (a, 1 - a) differ by no more, at any order and in either
direction, than the releases themselves: what no test can reach follows from the divergences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from server.audit.accountant import Releases
from server.audit.facts import Posterior, TradeOff
from server.audit.meaning import FALSE_ALARMS, PRIORS, Attack, after, down, up
from server.audit.renyi import divergence, orders_of

Vector = NDArray[np.float64]
_Point = Callable[[Vector], tuple[Vector, Vector]]
_HALVINGS = 48


class BoundedAttack:
    """No attack on one person is better than this, given all releases of a site and all else."""

    mu: float | None = None

    def __init__(self, releases: Sequence[Releases], delta: float) -> None:
        parts = tuple(releases)
        self._delta, self._orders = delta, orders_of(parts)
        self._limit = divergence(parts, self._orders)

    def guess(self) -> float:
        """Return the share of right guesses, at most, about a person as likely in as out."""
        return self._guess

    @cached_property
    def _guess(self) -> float:
        # The possible (a, b) are convex and symmetric, so a + b is least where a = b.
        least = self._least(lambda half: (half, half), np.array([0.5]))
        return up(1.0 - float(least[0]))

    def trade_off(self) -> TradeOff:
        """Return a miss rate at each false-alarm rate that no test for a person gets below."""
        alarms = np.array(FALSE_ALARMS[:-1])
        missed = self._least(lambda missed: (alarms, missed), 1 - alarms)
        return TradeOff(FALSE_ALARMS, (*(down(float(one)) for one in missed), 0.0))

    def posteriors(self) -> tuple[Posterior, ...]:
        """Return how sure the attacker becomes, at most, of a person who took part.

        Chernoff: Pr[L >= t] <= e^((alpha - 1) (D_alpha - t)) for the privacy loss L.
        """
        found = [self._loss(share) for share in (0.5, 0.05, self._delta)]
        return tuple(
            Posterior(prior, *(up(after(prior, loss)) for loss in found)) for prior in PRIORS
        )

    def _loss(self, share: float) -> float:
        """What the privacy loss exceeds with probability `share` at most."""
        return float((self._limit - math.log(share) / (self._orders - 1)).min())

    def _least(self, point: _Point, high: Vector) -> Vector:
        """Bisect [n] for the least possible value below `high`, and return it rounded down."""
        low = np.zeros(len(high))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            possible = self._possible(*point(middle))
            low, high = np.where(possible, low, middle), np.where(possible, middle, high)
        return low

    def _possible(self, alarm: Vector, missed: Vector) -> NDArray[np.bool_]:
        """Say which tests [n] no divergence rules out."""
        p, q = np.log([1 - missed, missed]), np.log([alarm, 1 - alarm])
        a, limit = self._orders[:, None], ((self._orders - 1) * self._limit)[:, None]
        both = [
            np.logaddexp(a * x[0] + (1 - a) * y[0], a * x[1] + (1 - a) * y[1]) <= limit
            for x, y in ((p, q), (q, p))
        ]
        return np.asarray((both[0] & both[1]).all(axis=0))


@lru_cache(maxsize=256)
def attack_on(releases: tuple[Releases, ...], delta: float) -> Attack | BoundedAttack:
    """Return the best attack where it is known; for shared noise, what bounds it."""
    shared = any(one.concentrated for one in releases)
    return BoundedAttack(releases, delta) if shared else Attack(releases, delta)
