"""The discrete Gaussian N_Z(0, sigma^2) as exact integers: P(x) proportional to e^(-x^2/2sigma^2).

Rejection from a staircase. The integers within 16 sigma are cut into segments of a power-of-two
width; segment k is drawn with probability W_k / 2^64 for whole numbers W_k that add up to 2^64, and
a point of it from random bits: the proposal is exact. A point x is kept with probability
M e^(-x^2/2sigma^2) / W_k <= 1: a 64-bit coin is compared in float64, whose error here is below
2^-42; a coin closer than 2^-40 to its threshold (one in 2^39) is decided by decimal arithmetic with
as many digits and coin bits as it takes. So no decision is ever rounded. What is left out is the
tail beyond 16 sigma, of probability under 2^-170 a draw, since a discrete Gaussian is subgaussian
(Canonne, Kamath and Steinke 2020, arXiv:2004.00010, lemma 13). Nine draws of ten are kept or more,
where their algorithm 3 keeps fewer and decides in many small steps.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.randomness import KeyStream

SMALLEST_SIGMA: Final = 0.5  # below, a sum of shares is not proven to be nearly Gaussian
LARGEST_SIGMA: Final = 2.0**40
_REACH: Final = 16  # in sigma
_DOUBT: Final = 2.0**-40
_WORD: Final = 1 << 64
_AT_ONCE: Final = 1 << 16  # what fits into a processor's cache


@dataclass(frozen=True)
class _Staircase:
    """The proposal: segment number i covers the integers (i - half) * width + [0, width).

    `ends` uint64 [2 half - 1]: cumulated weights; `log_ratio` float64 [2 half]: log(M / W).
    """

    width: int
    half: int
    weights: tuple[int, ...]
    scale: int
    ends: NDArray[np.uint64]
    log_ratio: NDArray[np.float64]


def discrete_gaussian(stream: KeyStream, sigma: float, count: int) -> NDArray[np.int64]:
    """Return `count` independent draws of N_Z(0, sigma^2), int64 [count].

    `sigma` is the scale of the definition, at most the standard deviation and equal to it to ten
    digits from sigma 2 on. The draws depend on the stream's key and on `sigma` alone. Raises
    InputError on sigma outside [0.5, 2^40].
    """
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise InputError(f"sigma must lie in [0.5, 2^40], not {sigma}")
    stairs, drawn = _staircase(float(sigma)), np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        kept = _attempt(stream, stairs, sigma, min(_AT_ONCE, count - done + 16))[: count - done]
        drawn[done : done + len(kept)] = kept
        done += len(kept)
    return drawn


def _attempt(stream: KeyStream, stairs: _Staircase, sigma: float, count: int) -> NDArray[np.int64]:
    """Return those of `count` proposals that are kept."""
    words = stream.words(3 * count).reshape(3, count)
    segment = np.searchsorted(stairs.ends, words[0], side="right")
    inside = (words[1] & np.uint64(stairs.width - 1)).astype(np.int64)
    points: NDArray[np.int64] = (segment - stairs.half) * stairs.width + inside
    exponent = points.astype(np.float64)
    exponent *= exponent
    exponent *= -0.5 / (sigma * sigma)
    exponent += stairs.log_ratio[segment]
    margin = np.exp(exponent, out=exponent)
    margin -= words[2].astype(np.float64) * 2.0**-64
    keep = margin > 0.0
    for index in np.flatnonzero(np.abs(margin) < _DOUBT):
        weight = stairs.weights[int(segment[index])]
        coin, point = int(words[2, index]), int(points[index])
        keep[index] = _decide(stream, coin, point, sigma, stairs.scale, weight)
    return points[keep]


def _decide(
    stream: KeyStream, coin: int, point: int, sigma: float, scale: int, weight: int
) -> bool:
    """Say exactly whether coin / 2^64 < scale e^(-point^2/2sigma^2) / weight, with more bits."""
    bits = 64
    while True:
        with decimal.localcontext(prec=40 + bits // 2) as digits:
            exponent = -(Decimal(point) ** 2) / (2 * Decimal(sigma) ** 2)
            threshold = exponent.exp() * scale / weight * (1 << bits)
            error = threshold * Decimal(10) ** (8 - digits.prec)
            if coin + 1 <= threshold - error:
                return True
            if coin >= threshold + error:
                return False
        coin, bits = coin * _WORD + int(stream.words(1)[0]), bits + 64


@lru_cache(maxsize=16)
def _staircase(sigma: float) -> _Staircase:
    width = 1 << max(0, math.frexp(sigma)[1] - 5)  # between sigma/32 and sigma/16, at least 1
    half = math.ceil(_REACH * sigma / width) + 1
    nearest = [max(0, i, -i - 1) * width + (0 if i >= 0 else 1) for i in range(-half, half)]
    # Heights a little above the truth, so that rounding never makes a probability exceed 1.
    heights = [math.exp(-0.5 * (x / sigma) ** 2) * (1 + 2.0**-40) for x in nearest]
    scale = int((_WORD - 4 * half) / math.fsum(heights) * (1 - 2.0**-40))
    weights = [int(height * scale) + 1 for height in heights]
    weights[half] += _WORD - sum(weights)  # the rest: proposed more often, kept more rarely
    ends, total = [], 0
    for weight in weights[:-1]:
        total += weight
        ends.append(total)
    log_ratio = math.log(scale) - np.log(np.array(weights, dtype=np.float64))
    return _Staircase(
        width, half, tuple(weights), scale, np.array(ends, dtype=np.uint64), log_ratio
    )
