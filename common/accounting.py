"""What a list of releases costs: epsilon at delta, for adding or removing one person.

Two accountants answer every question and must agree: for full batches of persons the exact
Gaussian bound and Google's privacy loss distribution, for Poisson samples that distribution and
Opacus' privacy random variables. An event of an unknown kind is an error, never a guess. Opacus'
GDP accountant is not used: it reads only the last entry of its history and under-reports mixed
runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, assert_never

import dp_accounting
from dp_accounting import pld
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis import rdp as opacus_rdp
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import norm

from common.errors import InputError, Refused

Accountant = Literal["exact", "pld", "prv", "rdp"]
_ORDERS: Final = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(11, 256)) + (512, 1024)
# How far the second accountant may lie from the first: both discretise, upwards.
_RELATIVE_SLACK: Final = 0.02
_ABSOLUTE_SLACK: Final = 0.03
_PRV_ERROR: Final = 0.01
# Beyond this PRV needs minutes; no one is protected by such an epsilon, and RDP bounds it.
_PRV_LIMIT: Final = 50.0
_ROUND_UP: Final = 1e-6


@dataclass(frozen=True)
class GaussianEvent:
    """`steps` releases of a sum over all persons, noise `noise_multiplier` times the clip."""

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.noise_multiplier, self.steps)


@dataclass(frozen=True)
class PoissonEvent:
    """`steps` releases, each over persons drawn by independent coins of `sample_rate`."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.noise_multiplier, self.steps)
        if not (math.isfinite(self.sample_rate) and 0.0 < self.sample_rate <= 1.0):
            raise InputError(f"sample_rate must lie in (0, 1], not {self.sample_rate}")


Event = GaussianEvent | PoissonEvent


def _check(noise_multiplier: float, steps: int) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0.0):
        raise InputError(f"noise_multiplier must be finite, not negative: {noise_multiplier}")
    if steps < 0:
        raise InputError(f"steps must not be negative: {steps}")


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta must lie strictly between 0 and 1, not {delta}")


@dataclass(frozen=True)
class CheckedEpsilon:
    """An epsilon, who computed it, and what the second accountant said."""

    epsilon: float
    accountant: Accountant
    second: float
    second_accountant: Accountant


def epsilon(events: Sequence[Event], delta: float, accountant: Accountant) -> float:
    """Return epsilon at `delta` of all events composed; 0 for none, infinite without noise."""
    _check_delta(delta)
    used = [event for event in events if event.steps > 0]
    if not used:
        return 0.0
    if any(event.noise_multiplier == 0.0 for event in used):
        return math.inf
    by_name: dict[Accountant, Callable[[Sequence[Event], float], float]] = {
        "exact": _exact,
        "pld": _pld,
        "prv": _prv,
        "rdp": _rdp,
    }
    if accountant not in by_name:
        raise InputError(f"unknown accountant {accountant!r}")
    return by_name[accountant](used, delta)


def gaussian_delta(epsilon_: float, mu: float) -> float:
    """Return delta of the Gaussian mechanism with sensitivity over noise `mu` at `epsilon_`.

    Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu): Balle and Wang 2018, arXiv:1805.06530, eq. 6.
    """
    return float(
        norm.cdf(mu / 2 - epsilon_ / mu)
        - math.exp(min(700.0, epsilon_ + float(log_ndtr(-mu / 2 - epsilon_ / mu))))
    )


def _exact(events: Sequence[Event], delta: float) -> float:
    """Composed Gaussian releases are one with mu^2 = sum steps / sigma^2 (Dong et al. 2022)."""
    mu_squared = 0.0
    for event in events:
        if not isinstance(event, GaussianEvent):
            raise InputError("the exact accountant knows full batches only")
        mu_squared += event.steps / event.noise_multiplier**2
    mu = math.sqrt(mu_squared)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2.0
        if high > 1e9:
            return math.inf
    root = float(brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, high, xtol=1e-12))
    return root * (1.0 + 1e-12) + 1e-12  # never below the truth


def _composed(events: Sequence[Event]) -> dp_accounting.DpEvent:
    parts = []
    for event in events:
        inner = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        match event:
            case PoissonEvent():
                inner = dp_accounting.PoissonSampledDpEvent(event.sample_rate, inner)
            case GaussianEvent():
                pass
            case _:
                assert_never(event)
        parts.append(dp_accounting.SelfComposedDpEvent(inner, event.steps))
    return dp_accounting.ComposedDpEvent(parts)


def _pld(events: Sequence[Event], delta: float) -> float:
    """Pessimistic privacy loss distribution (Meiser and Mohammadi 2018; Google dp_accounting)."""
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(_composed(events))
    return float(accountant.get_epsilon(delta))


def _prv(events: Sequence[Event], delta: float) -> float:
    """Opacus' privacy random variable accountant (Gopi et al. 2021), its upper end."""
    accountant = PRVAccountant()
    accountant.history = [
        (e.noise_multiplier, e.sample_rate if isinstance(e, PoissonEvent) else 1.0, e.steps)
        for e in events
    ]
    return max(0.0, float(accountant.get_epsilon(delta, eps_error=_PRV_ERROR)))


def _rdp(events: Sequence[Event], delta: float) -> float:
    """Opacus' Renyi accountant (Mironov 2017; Mironov et al. 2019), an upper bound."""
    total = [0.0] * len(_ORDERS)
    for event in events:
        rate = event.sample_rate if isinstance(event, PoissonEvent) else 1.0
        added = opacus_rdp.compute_rdp(
            q=rate, noise_multiplier=event.noise_multiplier, steps=event.steps, orders=_ORDERS
        )
        total = [a + float(b) for a, b in zip(total, added, strict=True)]
    found, _ = opacus_rdp.get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
    return max(0.0, float(found))


def cross_checked_epsilon(events: Sequence[Event], delta: float) -> CheckedEpsilon:
    """Return epsilon by the tighter accountant, confirmed by the second; else refuse.

    They must agree within 2% and 0.03; above epsilon 50 a Renyi bound, which may lie anywhere
    above, is the second for Poisson samples.
    """
    return _cross_checked(tuple(event for event in events if event.steps > 0), delta)


@lru_cache(maxsize=4096)
def _cross_checked(events: tuple[Event, ...], delta: float) -> CheckedEpsilon:
    gaussian = all(isinstance(event, GaussianEvent) for event in events)
    first: Accountant = "exact" if gaussian else "pld"
    found = epsilon(events, delta, first)
    second: Accountant = "pld" if gaussian else "prv" if found <= _PRV_LIMIT else "rdp"
    if not events or math.isinf(found):
        return CheckedEpsilon(found, first, found, second)
    other = epsilon(events, delta, second)
    slack = _RELATIVE_SLACK * found + _ABSOLUTE_SLACK
    if other < found - slack or (second != "rdp" and other > found + slack):
        raise Refused(
            f"the accountants disagree: {first} says epsilon {found:.6g}, {second} {other:.6g} "
            f"(delta {delta:g})",
            hint="no epsilon is stated that only one of them supports",
        )
    return CheckedEpsilon(found, first, other, second)


def noise_multiplier_for(
    epsilon_: float, delta: float, steps: int, sample_rate: float = 1.0
) -> float:
    """Return the least noise multiplier, rounded up, whose `steps` cost at most `epsilon_`."""
    _check_delta(delta)
    if not (math.isfinite(epsilon_) and epsilon_ > 0.0):
        raise InputError(f"epsilon must be positive and finite, not {epsilon_}")
    if steps < 1:
        raise InputError(f"at least one step is needed, not {steps}")
    if not 0.0 < sample_rate <= 1.0:
        raise InputError(f"sample_rate must lie in (0, 1], not {sample_rate}")

    def cost(sigma: float) -> float:
        if sample_rate == 1.0:
            return epsilon([GaussianEvent(sigma, steps)], delta, "exact")
        return epsilon([PoissonEvent(sigma, sample_rate, steps)], delta, "pld")

    low, high = 0.0, 1.0
    while cost(high) > epsilon_:
        low, high = high, high * 2.0
        if high > 1e9:
            raise InputError(f"no noise reaches epsilon {epsilon_} at delta {delta}")
    tolerance = 1e-9 if sample_rate == 1.0 else 1e-4
    while high - low > tolerance * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if cost(middle) > epsilon_ else (low, middle)
    sigma = high * (1.0 + _ROUND_UP)
    event: Event = (
        GaussianEvent(sigma, steps)
        if sample_rate == 1.0
        else PoissonEvent(sigma, sample_rate, steps)
    )
    checked = cross_checked_epsilon([event], delta).epsilon
    if checked > epsilon_:
        raise Refused(f"the noise for epsilon {epsilon_} costs {checked} when checked again")
    return sigma
