"""The auditor's second accountant: Renyi divergences at all orders, for sums of discrete Gaussians.

A sum of shares is not a Gaussian, so no loss distribution is known of it. Known is a bound on its
Renyi divergence at every order: alpha / (2 z^2) a release (Kairouz, Liu and Steinke 2021,
arXiv:2102.06387, proposition 14). Everything here follows from such bounds. It shares no line with
the accountants that train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from common.contract import Masking
from server.audit.accountant import Range, Releases

Vector = NDArray[np.float64]
_ORDERS: Final = 1 + np.geomspace(1e-5, 1e9, 600)
_SAMPLED_ORDERS: Final = 1 + np.geomspace(1e-3, 1e3, 300)
_FINER: Final = 400
_ACCURACY: Final = 1e-7


def orders_of(parts: Sequence[Releases]) -> Vector:
    """Return orders [n] among which the best one lies; sampled steps are computed up to 1,000."""
    return _SAMPLED_ORDERS if any(part.rate < 1.0 for part in parts) else _ORDERS


def divergence(parts: Sequence[Releases], orders: Vector) -> Vector:
    """Return a bound on the Renyi divergence of all releases at each of `orders` > 1 [n].

    Gaussian and concentrated releases: alpha / (2 sigma^2). Divergences add up.
    """
    total = np.zeros(len(orders))
    for part in parts:
        if part.rate == 1.0:
            total += part.steps * orders / (2 * part.sigma**2)
        else:
            one = [_sampled(part.sigma, part.rate, float(order)) for order in orders]
            total += part.steps * np.array(one)
    return total


@lru_cache(maxsize=8192)
def _sampled(sigma: float, rate: float, order: float) -> float:
    """One sampled step: log E_x[(1 - q + q e^((2x-1)/2s^2))^a] / (a - 1), x of N(0, s^2).

    The other direction is never larger (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, section
    3). The integral is a sum over an even grid, which converges faster than any power of its step.
    """
    step = min(sigma, sigma**2) / 20
    x = np.arange(-12 * sigma, order + 12 * sigma, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    density = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    return max(0.0, float(logsumexp(density + order * ratio) + math.log(step)) / (order - 1))


@lru_cache(maxsize=4096)
def epsilon(parts: tuple[Releases, ...], delta: float) -> Range:
    """Return the least epsilon at `delta` that the divergences prove, to within 1e-7.

    Every order proves one: Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12.
    Below `low` nothing is proven, whatever the truth is.
    """
    if not parts:
        return Range(0.0, 0.0)
    orders = orders_of(parts)
    best = int(np.argmin(_bounds(parts, orders, delta)))
    around = orders[max(0, best - 1)], orders[min(len(orders) - 1, best + 1)]
    finer = 1 + np.geomspace(around[0] - 1, around[1] - 1, _FINER)
    found = max(0.0, float(_bounds(parts, finer, delta).min()))
    return Range(max(0.0, found * (1 - _ACCURACY) - _ACCURACY), found)


def _bounds(parts: Sequence[Releases], orders: Vector, delta: float) -> Vector:
    spare = np.log(delta) + np.log(orders)
    return np.asarray(divergence(parts, orders) + np.log1p(-1 / orders) - spare / (orders - 1))


def multiplier(masking: Masking, clip: float, shares: int) -> float:
    """Return z of a sum of so many shares, from the run's public constants alone.

    Clipped sums are divided by gamma, the largest power of two up to C / (256 sqrt d), and rounded:
    neighbours differ by at most Delta = C / gamma + sqrt d. Then 1 / z = Delta / (sqrt(m) sigma) +
    tau sqrt d, with tau = 10 sum_k<m e^(-2 pi^2 sigma^2 k/(k+1)) for how far a sum of discrete
    Gaussians is from one (Kairouz, Liu and Steinke 2021, proposition 14).
    """
    root, sigma = math.sqrt(masking.dimension), masking.sigma
    gamma = 2.0 ** math.floor(math.log2(clip / (256 * root)))
    terms = (math.exp(-2 * (math.pi * sigma) ** 2 * (1 - 1 / k)) for k in range(2, shares + 1))
    gaussian = (clip / gamma + root) / (math.sqrt(shares) * sigma)
    return 1 / (gaussian + 10 * math.fsum(terms) * root)
