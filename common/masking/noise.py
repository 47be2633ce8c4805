"""What a sum of discrete Gaussian shares costs, and how large each share must be.

The sum of m independent draws of N_Z(0, sigma^2) in each of d coordinates, added to integers of L2
sensitivity Delta, costs alpha / (2 z^2) at every order alpha, with noise multiplier z given by

    1 / z = Delta / (sqrt(m) sigma) + tau sqrt(d)
    tau = 10 sum_{k=1}^{m-1} e^(-2 (pi sigma)^2 k/(k+1))

for sigma >= 1/2 (Kairouz, Liu and Steinke 2021, arXiv:2102.06387, proposition 14, last bound; m = 1
is Canonne, Kamath and Steinke 2020, theorem 4). tau is how far a sum of discrete Gaussians is from
one: under 1e-37 from sigma 3 on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from common.accounting import ConcentratedEvent, cross_checked_epsilon, noise_multiplier_for
from common.discrete import LARGEST_SIGMA, SMALLEST_SIGMA
from common.errors import InputError
from common.masking.fixed_point import sensitivity_of

_DOWN: Final = 1.0 - 1e-12


@dataclass(frozen=True)
class ShareNoise:
    """The noise of one site's share: scale `sigma` and `l2_sensitivity` in units of gamma, and d.

    Raises InputError unless 0.5 <= sigma <= 2^40 and the other two are positive.
    """

    sigma: float
    l2_sensitivity: float
    dimension: int

    def __post_init__(self) -> None:
        if not SMALLEST_SIGMA <= self.sigma <= LARGEST_SIGMA:
            raise InputError(f"sigma must lie in [0.5, 2^40], not {self.sigma}")
        if not (0 < self.l2_sensitivity < math.inf and self.dimension >= 1):
            raise InputError("sensitivity and dimension must be positive")

    def noise_multiplier(self, shares: int) -> float:
        """Return z of the sum of so many shares, rounded down."""
        if shares < 1:
            raise InputError(f"a sum of {shares} shares of noise protects nobody")
        ratios = (k / (k + 1) for k in range(1, shares))
        tau = 10 * sum(math.exp(-2 * (math.pi * self.sigma) ** 2 * ratio) for ratio in ratios)
        gaussian = self.l2_sensitivity / (math.sqrt(shares) * self.sigma)
        return _DOWN / (gaussian + tau * math.sqrt(self.dimension))

    def epsilon(self, shares: Iterable[int], delta: float) -> float:
        """Return epsilon of rounds whose sums hold so many shares, checked by two accountants."""
        rounds = Counter(shares)
        events = [
            ConcentratedEvent(self.noise_multiplier(count), steps)
            for count, steps in rounds.items()
        ]
        return cross_checked_epsilon(events, delta).epsilon


@dataclass(frozen=True)
class Adversaries:
    """Epsilon of a run against each adversary, for adding or removing one person at one site.

    Attributes:
        model: anyone who sees the models, so the sums over each round's survivors.
        server: the server that follows the protocol, alone: it sees the same sums.
        colluding: that server with c = 1, 2, .. n-1 sites, which know their own shares of noise.
        hostile: a server that follows no protocol, with c = 0, 1, .. `colluders` sites.
        unmasked: if all masks fail and each site's update is seen alone.
    """

    model: float
    server: float
    colluding: tuple[float, ...]
    hostile: tuple[float, ...]
    unmasked: float


def calibrate(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    dimension: int,
    max_grad_norm: float,
    honest: int,
) -> ShareNoise:
    """Return the least noise with which `honest` shares keep `rounds` rounds within `epsilon`.

    `honest` is `Terms.honest`. Raises InputError as `noise_multiplier_for`.
    """
    wanted = noise_multiplier_for(epsilon, delta, rounds, concentrated=True)
    sensitivity = sensitivity_of(dimension, max_grad_norm)
    if honest < 1:
        raise InputError("noise is shared by at least one honest site")
    sigma = max(SMALLEST_SIGMA, wanted * sensitivity / math.sqrt(honest) * (1 + 1e-9))
    while (noise := ShareNoise(sigma, sensitivity, dimension)).noise_multiplier(honest) < wanted:
        sigma *= 1.01  # only where sigma is so small that tau counts
    return noise


def adversaries(
    noise: ShareNoise, survivors: Sequence[int], delta: float, *, minimum: int, colluders: int
) -> Adversaries:
    """Return epsilon against each adversary, after rounds with so many `survivors` each.

    A round of fewer survivors than the agreed `minimum` is an InputError: no such round ends.
    Once as many collude as there are survivors but one, the last honest site's share is alone.
    """
    if survivors and min(survivors) < minimum:
        raise InputError(f"a round of {min(survivors)} survivors is below the minimum {minimum}")

    def against(colluding: int) -> float:
        return noise.epsilon((max(1, count - colluding) for count in survivors), delta)

    return Adversaries(
        model=against(0),
        server=against(0),
        colluding=tuple(against(c) for c in range(1, max(survivors, default=1))),
        hostile=tuple(
            noise.epsilon([minimum - c] * len(survivors), delta) for c in range(colluders + 1)
        ),
        unmasked=noise.epsilon([1] * len(survivors), delta),
    )
