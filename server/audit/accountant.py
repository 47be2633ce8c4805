"""The auditor's own accountant: the privacy loss by fast Fourier transform, between two bounds.

It shares no line with the accountants that train: not the closed form, not dp_accounting, not
Opacus. Every loss is rounded up to a grid of step h, which can only make it worse; rounded down it
would be h lower. So after n steps the true epsilon lies in [high - n h, high], up to the tails and
the rounding of the transform, which are added on either side. Adjacency: one person added or
removed, with a part of at most C in each sum and noise of standard deviation sigma C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from common.errors import InputError

Vector = NDArray[np.float64]
LEAST_DELTA: Final = 1e-10
_POINTS: Final = 1 << 20
_FEW_POINTS: Final = 1 << 17  # the rounding of few steps adds little
_FEW: Final = 8
_COARSE: Final = 1 << 12
_WIDEST: Final = 1 << 25  # grid points of one step; a noise multiplier of 1e-3 takes a third
_FFT_NOISE: Final = 1e-14  # on delta; measured below 1e-15 against the closed form
_DEVIATIONS: Final = 12.0


@dataclass(frozen=True)
class Releases:
    """`steps` sums with noise `sigma` (over C), each person in each with probability `rate`.

    `concentrated`: not Gaussian, only as private as one by every Renyi divergence; such releases
    are for `server.audit.renyi`.
    """

    sigma: float
    rate: float
    steps: int
    concentrated: bool = False


@dataclass(frozen=True)
class Range:
    """The truth lies between the two."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Losses:
    """The privacy loss of all releases together, rounded up to a grid.

    Attributes:
        loss, mass: grid [N] in rising order, and the probability of each value.
        width: how much rounding can have added, n h.
        slack: what tails and rounding of the transform may change in a probability.
    """

    loss: Vector
    mass: Vector
    width: float
    slack: float

    def profile(self) -> Vector:
        """Return delta(epsilon = loss_i) for every grid point [N], before slack.

        delta(e) = sum over losses l > e of (1 - exp(e - l)) mass(l) (Balle and Wang 2018, eq. 5).
        """
        above = np.cumsum(self.mass[::-1])[::-1] - self.mass
        weights = np.where(self.loss > 0, self.mass * np.exp(-np.maximum(self.loss, 0.0)), 0.0)
        discounted = np.cumsum(weights[::-1])[::-1] - weights
        return np.where(self.loss >= 0, above - np.exp(np.minimum(self.loss, 700)) * discounted, 1)

    def epsilon(self, delta: float) -> Range:
        """Return the range of the smallest epsilon at `delta`."""
        profile = self.profile()

        def at(allowed: float) -> float:
            fits = np.flatnonzero((profile <= allowed) & (self.loss >= 0))
            return float(self.loss[fits[0]]) if len(fits) else math.inf

        step = float(self.loss[1] - self.loss[0])
        low = at(delta + self.slack) - self.width - step
        return Range(max(0.0, low), at(delta - self.slack))

    def quantile(self, share: float) -> float:
        """Return the loss that is not exceeded with probability `share`, rounded up."""
        reached = int(np.searchsorted(np.cumsum(self.mass), share))
        return float(self.loss[min(reached, len(self.loss) - 1)])


def epsilon(releases: Iterable[Releases], delta: float) -> Range:
    """Return the range of epsilon at `delta` over both neighbours, a person added or removed.

    Raises InputError for delta below 1e-10, where the transform does not resolve it, and for a
    release without noise or with next to none.
    """
    parts = merged(releases)
    return _epsilon(parts, delta) if parts else Range(0.0, 0.0)


@lru_cache(maxsize=4096)
def _epsilon(parts: tuple[Releases, ...], delta: float) -> Range:
    found = [losses(parts, delta, added).epsilon(delta) for added in (False, True)]
    return Range(max(one.low for one in found), max(one.high for one in found))


def merged(releases: Iterable[Releases]) -> tuple[Releases, ...]:
    """Return the releases with full batches as one Gaussian, and equal kinds together.

    Sums over all persons compose to noise 1/mu with mu^2 = sum of steps / sigma^2, because their
    losses are normal and independent, so that their means and variances add up.
    """
    square, sampled = 0.0, dict[tuple[float, float], int]()
    for one in releases:
        if not one.sigma > 0.0:
            raise InputError("a release without noise has no epsilon")
        if one.concentrated:
            raise InputError("a concentrated release has no loss distribution that is known")
        if one.rate == 1.0:
            square += one.steps / one.sigma**2
        else:
            key = (one.sigma, one.rate)
            sampled[key] = sampled.get(key, 0) + one.steps
    full = [Releases(1 / math.sqrt(square), 1.0, 1)] if square else []
    return (*full, *(Releases(*key, steps) for key, steps in sorted(sampled.items())))


@lru_cache(maxsize=8)
def losses(parts: tuple[Releases, ...], delta: float, added: bool) -> Losses:
    """Return the composed loss of the person being there (`added` False: P has the person)."""
    if delta < LEAST_DELTA:
        raise InputError(f"the auditor's accountant resolves no delta below {LEAST_DELTA:g}")
    tail = delta * 1e-6
    low, high = _range(parts, tail, added)
    steps = sum(part.steps for part in parts)
    points = _POINTS if steps > _FEW else _FEW_POINTS
    step = (high - low) / (points - 2)
    total = np.ones(points // 2 + 1, dtype=complex)
    for part in parts:
        start, mass = _rounded_up(part, step, added)
        ring = np.zeros(points)
        np.add.at(ring, np.arange(start, start + len(mass)) % points, mass)
        total *= np.fft.rfft(ring) ** part.steps
    ring = np.maximum(np.fft.irfft(total, points), 0.0)
    grid = math.floor(low / step) + np.arange(points)
    return Losses(
        np.asarray(grid * step, dtype=np.float64),
        ring[grid % points],
        step * steps,
        2 * tail + _FFT_NOISE,
    )


def _rounded_up(part: Releases, step: float, added: bool) -> tuple[int, Vector]:
    """Return one step's losses on the grid: index of the first point, and masses."""
    low, high = _support(part, added)
    start, end = math.floor(low / step), math.ceil(high / step) + 1
    if end - start > _WIDEST:
        raise InputError("a release with next to no noise is too wide to be resolved")
    below = _probability_below(part, np.arange(start, end, dtype=np.float64) * step, added)
    return start, np.diff(below, prepend=0.0, append=1.0)[: end - start]


def _support(part: Releases, added: bool) -> tuple[float, float]:
    """Between which losses one step lies, but for 1e-32: at +-12 standard deviations."""
    ends = np.array([-_DEVIATIONS * part.sigma, 1 + _DEVIATIONS * part.sigma])
    with np.errstate(divide="ignore"):
        kept = np.log1p(-part.rate) if part.rate < 1 else -np.inf
    low, high = np.logaddexp(kept, math.log(part.rate) + (2 * ends - 1) / (2 * part.sigma**2))
    return (-high, -low) if added else (low, high)


def _probability_below(part: Releases, loss: Vector, added: bool) -> Vector:
    """Return Pr[L <= loss], L = log(P/Q), of N(0, sigma^2) against its mixture with N(1, sigma^2).

    The ratio of mixture to normal at x is 1 - q + q exp((2x - 1) / (2 sigma^2)), which rises with
    x, so each loss has one x (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, section 3).
    """
    signed = -loss if added else loss
    with np.errstate(divide="ignore", over="ignore"):
        odds = np.maximum(np.exp(signed) - (1 - part.rate), 0.0) / part.rate
        logs = signed if part.rate == 1.0 else np.log(odds)
    x = part.sigma**2 * logs + 0.5
    if added:  # P is the normal, its loss falls with x
        return np.asarray(ndtr(-x / part.sigma))
    with_person = ndtr((x - 1) / part.sigma)
    return np.asarray((1 - part.rate) * ndtr(x / part.sigma) + part.rate * with_person)


def _range(parts: tuple[Releases, ...], tail: float, added: bool) -> tuple[float, float]:
    """Return between which values all but `tail` of the total lies on either side (Chernoff)."""
    tilts = np.geomspace(1e-3, 1e4, 120)
    up, down = np.zeros(len(tilts)), np.zeros(len(tilts))
    for part in parts:
        low, high = _support(part, added)
        step = (high - low) / _COARSE
        start, mass = _rounded_up(part, step, added)
        grid = (start + np.arange(len(mass))) * step
        held = mass > 0
        logs = np.log(mass[held])
        for index, tilt in enumerate(tilts):
            up[index] += part.steps * np.logaddexp.reduce(logs + tilt * grid[held])
            down[index] += part.steps * np.logaddexp.reduce(logs - tilt * (grid[held] - step))
    log_tail = math.log(tail)
    return -float(((down - log_tail) / tilts).min()), float(((up - log_tail) / tilts).min())
