"""Clipped sums as integers modulo 2^32: a public scale, a proven sensitivity, and noise.

With the scale gamma = 2^e, coordinates become round(x / gamma): the division is exact, so that
nothing but the rounding is lost. Two sums x, x' of neighbours differ by at most C in L2 norm, and
each coordinate's two rounding errors by at most 1, so that the integers differ by at most

    Delta = C / gamma + sqrt(d)

in L2 norm. Then each coordinate is clamped to a public limit, which moves no two values apart, and
noise is added. gamma is so fine that the rounding costs at most 1/256 of C: a random rotation,
which is for coarse scales, would not pay. All 32 bits of a coordinate travel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.discrete import discrete_gaussian
from common.errors import InputError
from common.randomness import KeyStream

BITS: Final = 32
_FINENESS: Final = 256
_WRAP_LOG2: Final = -64
_UP: Final = 1.0 + 1e-12  # more than all rounding of the few operations that it guards


@dataclass(frozen=True)
class EncodedSum:
    """A clipped sum as integers, not yet private: `value` int64 [d], within `l2_sensitivity`."""

    value: NDArray[np.int64]
    l2_sensitivity: float


@dataclass(frozen=True)
class NoisedShare:
    """What a site masks: `value` uint32 [d], a clipped sum and noise of scale `sigma`.

    `private` says whether the noise is there and from a secret key. A share alone is less private
    than the sum: it leaves the site only under masks.
    """

    value: NDArray[np.uint32]
    sigma: float
    l2_sensitivity: float
    private: bool


@dataclass(frozen=True)
class FixedPoint:
    """The encoding of `dimension` coordinates of sums with sensitivity C = `max_grad_norm`.

    `sites` is the most that take part, `sigma` the scale of each one's noise in units of gamma.
    InputError where the sum of so much noise could leave 32 bits with probability 2^-64, or where
    one person's gradient would not fit beside it.
    """

    dimension: int
    max_grad_norm: float
    sites: int
    sigma: float

    def __post_init__(self) -> None:
        positive = self.dimension >= 1 and self.sites >= 1 and self.sigma >= 0
        if not positive or not 1e-30 < self.max_grad_norm < 1e30:
            raise InputError(f"nothing can be encoded with {self}")
        if self.limit < self.max_grad_norm / self.scale:
            raise InputError(
                f"the noise of {self.sites} sites leaves no room in {BITS} bits",
                hint="less noise: a larger epsilon, or fewer rounds",
            )

    @property
    def scale(self) -> float:
        """Return gamma, the largest power of two up to C / (256 sqrt(d))."""
        return scale_of(self.dimension, self.max_grad_norm)

    @property
    def l2_sensitivity(self) -> float:
        """Return Delta, in units of gamma."""
        return sensitivity_of(self.dimension, self.max_grad_norm)

    @property
    def limit(self) -> int:
        """Return to how many units of gamma each site's coordinates are clamped; negative if none.

        The sum of all sites' noise is subgaussian with variance n sigma^2 (Canonne, Kamath and
        Steinke 2020, lemma 13): with probability 1 - 2^-64 all its coordinates stay within
        sqrt(2 n sigma^2 log(2 d 2^64)), and what remains of 2^31 is divided among the sites.
        """
        spread = 2 * (math.log(2 * self.dimension) - _WRAP_LOG2 * math.log(2))
        noise = math.ceil(self.sigma * math.sqrt(self.sites * spread) * _UP)
        return ((1 << (BITS - 1)) - 1 - noise) // self.sites

    def encode(self, value: NDArray[np.float64]) -> EncodedSum:
        """Return a clipped sum [d] as clamped integers; a NaN or an infinity is an InputError."""
        if value.shape != (self.dimension,) or value.dtype != np.float64:
            raise InputError(f"a sum of {value.dtype}{list(value.shape)} where float64 belongs")
        if not np.isfinite(value).all():
            raise InputError("a clipped sum holds a NaN or an infinity: clip by person first")
        with np.errstate(over="ignore"):  # an infinity is clamped as any large number
            scaled = value / self.scale
        np.clip(np.rint(scaled, out=scaled), -self.limit, self.limit, out=scaled)
        return EncodedSum(scaled.astype(np.int64), self.l2_sensitivity)

    def add_noise(self, encoded: EncodedSum, stream: KeyStream) -> NoisedShare:
        """Add N_Z(0, sigma^2) to each coordinate, once, and reduce modulo 2^32; no noise if 0.

        The noise is drawn from `stream` bound to these integers and their encoding, as in
        `common.mechanism.add_noise`.
        """
        value = encoded.value
        if self.sigma > 0.0:
            digest = hashlib.sha256(f"{self} ".encode())
            digest.update(np.ascontiguousarray(value, dtype="<i8").data)
            own = stream.bound_to(digest.digest())
            value = value + discrete_gaussian(own, self.sigma, self.dimension)
        private = stream.private and self.sigma > 0.0
        return NoisedShare(value.astype(np.uint32), self.sigma, encoded.l2_sensitivity, private)

    def decode(self, total: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Return the sum over sites that these integers modulo 2^32 stand for, float64 [d]."""
        if total.shape != (self.dimension,) or total.dtype != np.uint32:
            raise InputError(f"a total of {total.dtype}{list(total.shape)} where uint32 belongs")
        return total.view(np.int32).astype(np.float64) * self.scale


def scale_of(dimension: int, max_grad_norm: float) -> float:
    """Return the largest power of two up to C / (256 sqrt(d))."""
    _, exponent = math.frexp(max_grad_norm / (_FINENESS * math.sqrt(dimension)))
    return math.ldexp(1.0, exponent - 1)


def sensitivity_of(dimension: int, max_grad_norm: float) -> float:
    """Return Delta = C / gamma + sqrt(d) in units of gamma, rounded up."""
    return (max_grad_norm / scale_of(dimension, max_grad_norm) + math.sqrt(dimension)) * _UP
