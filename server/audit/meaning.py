"""What an epsilon means for one person: the best attack's errors, and how sure it becomes.

Everything is computed for the mechanism as it was composed, not for the worst one that shares its
(epsilon, delta). Full batches are one Gaussian with parameter mu; with sampled steps the same
quantities are read off the auditor's loss distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from server.audit.accountant import Losses, Releases, losses, merged
from server.audit.facts import Posterior, TradeOff

Vector = NDArray[np.float64]
PRIORS: Final = (0.5, 0.01)
FALSE_ALARMS: Final = (
    0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1,
    0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
)  # fmt: skip
_DIGITS: Final = 6


class Attack:
    """The best possible attack on one person, given all releases of a site and all else."""

    def __init__(self, releases: Sequence[Releases], delta: float) -> None:
        self._parts, self._delta = merged(releases), delta

    @property
    def mu(self) -> float | None:
        """The Gaussian parameter; None with sampled steps."""
        if any(part.rate < 1.0 for part in self._parts):
            return None
        return 1 / self._parts[0].sigma if self._parts else 0.0

    def guess(self) -> float:
        """Return the share of right guesses about a person who is in as likely as not.

        (1 + d) / 2 with d the total variation distance, delta(0): for the Gaussian Phi(mu/2).
        """
        if self.mu is not None:
            return up(float(ndtr(self.mu / 2)))
        return up((1 + max(self._zero(added) for added in (False, True))) / 2)

    def trade_off(self) -> TradeOff:
        """Return the least miss rate at each false-alarm rate of any test for a person.

        Gaussian: Phi(Phi^-1(1 - a) - mu) (Dong, Roth and Su 2022, arXiv:1905.02383, eq. 6).
        Otherwise the envelope of all (epsilon, delta) that hold, both neighbours together: the
        largest of 0, 1 - delta - e^eps a and e^-eps (1 - delta - a) (the same, proposition 2.13).
        """
        alarms = np.array(FALSE_ALARMS)
        if self.mu is not None:
            missed = np.asarray(ndtr(ndtri(1 - alarms) - self.mu))
        else:
            grid, profile = self._profile()
            rows = alarms[:, None]
            steep = 1 - profile - np.exp(grid) * rows
            flat = np.exp(-grid) * (1 - profile - rows)
            missed = np.maximum(0.0, np.maximum(steep, flat).max(axis=1))
        # Rounded down: never less dangerous than it is.
        return TradeOff(FALSE_ALARMS, tuple(down(float(value)) for value in missed))

    def posteriors(self) -> tuple[Posterior, ...]:
        """Return how sure the attacker becomes of a person who took part, for each prior.

        Bayes: the odds of being in are multiplied by e^L, L the privacy loss, which for the
        Gaussian is normal with mean mu^2 / 2 and variance mu^2.
        """
        shares = (0.5, 0.95, 1.0 - self._delta)
        if self.mu is not None:
            found = [self.mu**2 / 2 + self.mu * float(ndtri(share)) for share in shares]
        else:
            found = [self._losses(added=False).quantile(share) for share in shares]
        return tuple(
            Posterior(prior, *(up(after(prior, loss)) for loss in found)) for prior in PRIORS
        )

    def _losses(self, *, added: bool) -> Losses:
        return losses(self._parts, self._delta, added)

    def _zero(self, added: bool) -> float:
        found = self._losses(added=added)
        return float(found.profile()[np.searchsorted(found.loss, 0.0)])

    def _profile(self) -> tuple[Vector, Vector]:
        """delta(epsilon) for 4,000 epsilons from 0 to where it is below the least mass."""
        top = max(float(self._losses(added=a).loss[-1]) for a in (False, True))
        grid = np.linspace(0.0, top, 4000)
        both = []
        for added in (False, True):
            one = self._losses(added=added)
            both.append(np.interp(grid, one.loss, one.profile()))
        return grid, np.maximum(*both)


def after(prior: float, loss: float) -> float:
    if loss > 700:
        return 1.0
    odds = prior / (1 - prior) * math.exp(loss)
    return odds / (1 + odds)


def up(value: float) -> float:
    scale = 10**_DIGITS
    return min(1.0, math.ceil(value * scale - 1e-6) / scale)


def down(value: float) -> float:
    scale = 10**_DIGITS
    return math.floor(value * scale + 1e-6) / scale
