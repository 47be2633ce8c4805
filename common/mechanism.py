"""The one idea: clip each person's gradient, add up, add noise once, divide by a public number.

    G = sum_p g_p * min(1, C / ||g_p||) + N(0, (sigma C)^2 I);    update = G / denominator

Guarantee: if `g_p` depends on nothing private but the images of person p, adding or removing one
person with all their images moves the sum by at most C in L2 norm, so each release is the
Gaussian mechanism with noise multiplier sigma (Dwork and Roth 2014, A.1; person-level clipping
as in McMahan et al. 2018, arXiv:1710.06963). The sensitivity travels with the value, and nothing
but `add_noise` turns a `ClippedSum` into something that may leave a site.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.constants import check_clip, check_denominator
from common.errors import InputError
from common.randomness import KeyStream

# A factor computed in floating point may overshoot C by a few units in the last place; the
# margin is larger than that and costs a millionth of the signal.
_ROUNDING_MARGIN = 1.0 - 1e-6
# Noised values lie on a public grid of this fraction of the noise's standard deviation, so that
# their low bits do not tell which noise values floating point can reach (Mironov 2012).
_GRID = 2.0**-12


@dataclass(frozen=True)
class ClippedSum:
    """A sum over persons, not yet private: `value` float64 [d], within `l2_sensitivity` = C."""

    value: Tensor
    l2_sensitivity: float


@dataclass(frozen=True)
class NoisedSum:
    """A sum that may leave the site: `value` float64 [d], what noise it has and whether secret.

    `private` is False if there is no noise or if its generator was seeded for an experiment.
    """

    value: Tensor
    noise_multiplier: float
    l2_sensitivity: float
    private: bool

    def mean(self, public_denominator: float) -> Tensor:
        """Return the sum over a public constant, float64 [d]; never over a private count."""
        check_denominator(public_denominator)
        return self.value / public_denominator


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Return the factor by which each person's gradient is scaled, float64 like `norms` [P].

    1 within the clip, C / norm above it, and 0 for a norm that is NaN or infinite: such a person
    contributes nothing. The gradient itself must then be zeroed too, since 0 * NaN is NaN.
    """
    check_clip(max_grad_norm)
    exact = norms.to(torch.float64)
    factors = (max_grad_norm * _ROUNDING_MARGIN / exact).clamp(max=1.0)  # zero norm: inf -> 1
    return torch.where(torch.isfinite(exact), factors, torch.zeros_like(factors))


def clip_by_person(gradients: Iterable[Tensor], dimension: int, max_grad_norm: float) -> ClippedSum:
    """Clip each person's flat gradient [d] to L2 norm C and add up in float64.

    `gradients` is consumed one person at a time. No person gives the zero vector; a zero gradient
    adds zero; one with a NaN or an infinity adds zero. Float64 keeps the rounding of the sum, which
    differs between neighbouring data sets, below 1e-9 C for a million persons; that the gradients
    themselves do not differ is the engine's part (`PersonBatch.part`).
    """
    check_clip(max_grad_norm)
    total = torch.zeros(dimension, dtype=torch.float64)
    for gradient in gradients:
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        factor = float(clip_factors(norm, max_grad_norm))
        if factor > 0.0:
            total.add_(gradient, alpha=factor)
    return ClippedSum(total, max_grad_norm)


def add_noise(clipped: ClippedSum, noise_multiplier: float, stream: KeyStream) -> NoisedSum:
    """Add N(0, (noise_multiplier * l2_sensitivity)^2) to each coordinate, once.

    The noise is drawn from `stream` bound to the sum and its scale: the same key never noises two
    different sums alike, or their difference would be bare. The result is rounded to a public grid
    of 2^-12 standard deviations, which is post-processing.
    `noise_multiplier` 0 adds nothing and marks the result as not private. Raises InputError on a
    negative or non-finite multiplier and on a sum with non-finite values.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise InputError(f"noise_multiplier must be finite and not negative: {noise_multiplier}")
    if not torch.isfinite(clipped.value).all():
        raise InputError("a clipped sum holds a NaN or an infinity: clip by person first")
    value, scale = clipped.value, noise_multiplier * clipped.l2_sensitivity
    if scale > 0.0:
        own = stream.bound_to(_digest(value, scale))
        noise = torch.from_numpy(own.standard_normal(value.numel()))
        grid = scale * _GRID
        value = ((value + noise.mul_(scale)) / grid).round_() * grid
    private = stream.private and scale > 0.0
    return NoisedSum(value, noise_multiplier, clipped.l2_sensitivity, private)


def _digest(value: Tensor, scale: float) -> bytes:
    """What is about to be noised, as SHA-256 sees it."""
    digest = hashlib.sha256(f"{value.numel()} {scale.hex()} ".encode())
    digest.update(value.contiguous().numpy().astype("<f8", copy=False).data)
    return digest.digest()
