"""Releases as frozen events, and what they compose to, whatever accountant reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

from common.errors import InputError

# A sampled step with less noise counts as a full batch, which never costs less (30 and more).
_LEAST_SAMPLED_NOISE = 0.2


@dataclass(frozen=True)
class GaussianEvent:
    """`steps` >= 0 sums over all persons: sensitivity C, noise of noise_multiplier * C.

    `noise_multiplier` 0 is no privacy. Raises InputError on a negative or non-finite value.
    """

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_event(self.noise_multiplier, self.steps)


@dataclass(frozen=True)
class PoissonEvent:
    """The same, each person taking part in a step by an independent coin: `sample_rate` in (0, 1].

    `sample_rate` 1 is the full batch. Raises InputError as `GaussianEvent` and on the rate.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_event(self.noise_multiplier, self.steps)
        if not 0.0 < self.sample_rate <= 1.0:
            raise InputError(f"sample_rate must lie in (0, 1], not {self.sample_rate}")


@dataclass(frozen=True)
class ConcentratedEvent:
    """`steps` >= 0 releases, each as private as a Gaussian one by every Renyi divergence.

    At every order alpha the divergence of one release is at most alpha / (2 noise_multiplier^2):
    concentrated differential privacy, rho = 1 / (2 noise_multiplier^2) (Bun and Steinke 2016,
    arXiv:1605.02065), as a sum of discrete Gaussians has it (`common.masking.noise`). It says no
    more than that, so the accountants that need a Gaussian itself do not read it. Raises InputError
    as `GaussianEvent`.
    """

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_event(self.noise_multiplier, self.steps)


Event = GaussianEvent | PoissonEvent | ConcentratedEvent


@dataclass(frozen=True)
class Sampled:
    """`steps` >= 1 Poisson-sampled steps, `sigma` >= 0.2, `rate` in (0, 1)."""

    sigma: float
    rate: float
    steps: int

    @property
    def spread(self) -> float:
        """Return the standard deviation of one step's privacy loss: q sqrt(e^(1/sigma^2) - 1)."""
        return self.rate * math.sqrt(math.expm1(self.sigma**-2))


@dataclass(frozen=True)
class Composition:
    """All releases of a site: full batches together, and Poisson-sampled steps of equal kind.

    Full batches compose to one Gaussian mechanism with `mu` = sqrt(sum of steps / sigma^2) (Dong,
    Roth and Su 2022, arXiv:1905.02383, corollary 3.3). Concentrated releases add up in the same
    way, as their Renyi divergences do, to alpha `concentrated`^2 / 2 at every order alpha.
    """

    mu: float
    sampled: tuple[Sampled, ...]
    concentrated: float = 0.0

    @property
    def renyi_mu(self) -> float:
        """Return m so that all but the sampled steps cost alpha m^2 / 2 at every order alpha."""
        return math.hypot(self.mu, self.concentrated)

    @property
    def sampled_steps(self) -> int:
        return sum(part.steps for part in self.sampled)


def _check_event(noise_multiplier: float, steps: int) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise InputError(f"noise_multiplier must be finite and not negative: {noise_multiplier}")
    if type(steps) is not int or not 0 <= steps <= 2**53:
        raise InputError(f"steps must be a whole number from 0 to 2^53, not {steps!r}")


def join(composed: Composition, event: Event) -> Composition:
    """Return `composed` with one more event."""
    if type(event) not in (GaussianEvent, PoissonEvent, ConcentratedEvent):
        raise InputError(f"the accountant knows no event {event!r}", hint="it never guesses")
    sigma, steps = event.noise_multiplier, event.steps
    if steps == 0:
        return composed
    mu = math.sqrt(steps) / sigma if sigma > 0 else math.inf
    if isinstance(event, ConcentratedEvent):
        return replace(composed, concentrated=math.hypot(composed.concentrated, mu))
    rate = event.sample_rate if isinstance(event, PoissonEvent) else 1.0
    if rate == 1.0 or sigma < _LEAST_SAMPLED_NOISE:
        return replace(composed, mu=math.hypot(composed.mu, mu))
    same = [part for part in composed.sampled if (part.sigma, part.rate) == (sigma, rate)]
    rest = [part for part in composed.sampled if part not in same]
    joined = Sampled(sigma, rate, steps + sum(part.steps for part in same))
    ordered = sorted([*rest, joined], key=lambda part: (part.sigma, part.rate))
    return replace(composed, sampled=tuple(ordered))


def compose(events: Iterable[Event]) -> Composition:
    """Return all `events` together; InputError on an event that is not one of the three."""
    return reduce(join, events, Composition(0.0, ()))
