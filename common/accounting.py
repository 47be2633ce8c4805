"""What a sequence of releases costs: (epsilon, delta) for adding or removing one person.

Guarantee: epsilon is never reported below the truth. It is exact for full batches and an upper
bound otherwise, and `cross_checked_epsilon` refuses unless a second, independent accountant
confirms it. Opacus' GDP accountant is never used: it reports less than the truth.

    accountant  what it is (`common.accountants`)             role
    exact       Gaussian mechanism                            full batches
    pld         privacy loss distributions, dp_accounting     Poisson sampling; confirms exact
    prv         privacy random variables, Opacus, to 1%       confirms pld
    rdp         Renyi, additive, 5 to 20% loose               live odometer; delta too small for pld
    opacus-rdp  Renyi, Opacus, fractional orders too          confirms where pld, prv do not reach
    zcdp        Renyi at all orders, no sampling              concentrated releases
    google-rdp  Renyi, dp_accounting                          confirms concentrated releases
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from functools import lru_cache
from typing import Literal, get_args

from scipy.optimize import brentq

from common import accountants
from common.composition import (
    Composition,
    ConcentratedEvent,
    Event,
    GaussianEvent,
    PoissonEvent,
    compose,
    join,
)
from common.errors import InputError, Refused

__all__ = [
    "MOST_EPSILON",
    "Accountant",
    "CheckedEpsilon",
    "ConcentratedEvent",
    "Event",
    "GaussianEvent",
    "PoissonEvent",
    "RdpOdometer",
    "cross_checked_epsilon",
    "epsilon",
    "filtered_epsilon",
    "noise_multiplier_for",
]

Accountant = Literal["exact", "pld", "prv", "rdp", "opacus-rdp", "zcdp", "google-rdp"]
MOST_EPSILON = 1e6  # beyond, no noise is looked for: odds of e^1000000 hide nobody
_GAUSSIAN_ONLY = ("exact", "pld", "prv")


@dataclass(frozen=True)
class CheckedEpsilon:
    """`epsilon` >= 0, an upper bound, by `accountant`; `second_accountant` gave `second`."""

    epsilon: float
    accountant: Accountant
    second: float
    second_accountant: Accountant


def epsilon(events: Iterable[Event], delta: float, accountant: Accountant | None = None) -> float:
    """Return epsilon >= 0 of all events together, by the tightest accountant unless one is named.

    No event or no step gives 0, a step without noise infinity. Raises InputError on `delta`
    outside (0, 1), an unknown event or accountant, or one that cannot account for the events.
    """
    if accountant is not None and accountant not in get_args(Accountant):
        raise InputError(f"there is no accountant {accountant!r}", hint="it never guesses")
    composed = _checked(events, delta)
    if not _accountable(composed):
        return composed.renyi_mu
    name = accountant or _tightest(composed, delta)
    if name in _GAUSSIAN_ONLY and composed.concentrated > 0:
        raise InputError(f"{name} cannot account for concentrated releases", hint="use zcdp")
    if name in ("exact", "zcdp") and composed.sampled:
        raise InputError(f"the {name} accountant knows full batches only", hint="use pld or rdp")
    if name == "pld" and not accountants.pld_resolves(composed, delta):
        raise InputError("pld cannot resolve so small a delta or so many steps", hint="use rdp")
    return _by(name, composed, delta)


def cross_checked_epsilon(events: Iterable[Event], delta: float) -> CheckedEpsilon:
    """Return epsilon by the tightest accountant, once an independent one has confirmed it.

    Raises Refused if the two contradict each other beyond the second one's known error, and
    InputError as `epsilon`.
    """
    composed = _checked(events, delta)
    if not _accountable(composed):
        return CheckedEpsilon(composed.renyi_mu, "exact", composed.renyi_mu, "exact")
    return _cross_check(composed, delta)


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    steps: int,
    sample_rate: float = 1.0,
    *,
    concentrated: bool = False,
) -> float:
    """Return the smallest noise_multiplier, rounded up to 5 digits, that keeps within `epsilon`.

    Verified by `cross_checked_epsilon`. With `concentrated` it is that of concentrated releases.
    Raises InputError unless `epsilon` is positive and at most `MOST_EPSILON`, `steps` >= 1, `delta`
    in (0, 1) and `sample_rate` in (0, 1], and 1 for concentrated releases.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon must be positive and finite, not {epsilon}")
    if epsilon > MOST_EPSILON:
        raise InputError(f"epsilon {epsilon:g} promises nothing", hint="10 and less is usual")
    if PoissonEvent(1.0, sample_rate, steps).steps == 0:
        raise InputError("steps must be at least 1", hint="without a step nothing is spent")
    if concentrated and sample_rate < 1.0:
        raise InputError("concentrated releases are of full batches", hint="use sample_rate 1")

    def spend(sigma: float, rate: float) -> Composition:
        if concentrated:
            return _checked([ConcentratedEvent(sigma, steps)], delta)
        return _checked([PoissonEvent(sigma, rate, steps)], delta)

    def search(rate: float, start: float) -> float:
        def spent(sigma: float) -> float:
            composed = spend(sigma, rate)
            return _by(_tightest(composed, delta), composed, delta)

        return _smallest(spent, epsilon, start)

    sigma = search(1.0, math.sqrt(steps))
    if sample_rate < 1.0:
        sigma = search(sample_rate, sample_rate * sigma)  # the least that many steps may need
    for _ in range(1000):
        sigma = _round_up(sigma)
        if _cross_check(spend(sigma, sample_rate), delta).epsilon <= epsilon:
            return sigma
        sigma = math.nextafter(sigma, math.inf)
    raise Refused(f"no noise_multiplier near {sigma} was confirmed for epsilon {epsilon}")


def filtered_epsilon(events: Iterable[Event], delta: float, first: Event, budget: float) -> float:
    """Return epsilon of all events, at the one Renyi order that suits a `budget` spent on `first`.

    While this stays within `budget`, what later events are may depend on what earlier ones released
    (a Renyi filter, Feldman and Zrnic 2021, arXiv:2008.11193): the smallest over orders may not be
    taken then, since each outcome could choose its own. Infinite after a step without noise.
    """
    composed = _checked(events, delta)
    if not _accountable(composed):
        return composed.renyi_mu
    return accountants.rdp_at_one_order(composed, delta, _checked([first], delta), budget)


class RdpOdometer:
    """A running total quick enough for every round: exact for full batches, RDP after sampling.

    RDP is an upper bound: 5 to 20% loose for many steps, up to twice the truth for a few sampled
    steps with little noise, never above the full batch.
    """

    def __init__(self, delta: float) -> None:
        self._delta = delta
        self._composed = _checked((), delta)

    def spend(self, event: Event) -> float:
        """Add one event and return epsilon so far; infinite after a step without noise."""
        self._composed = join(self._composed, event)
        return self.epsilon

    @property
    def epsilon(self) -> float:
        """Epsilon >= 0 of all that was spent."""
        if not _accountable(self._composed):
            return self._composed.renyi_mu
        name = "rdp" if self._composed.sampled else _tightest(self._composed, self._delta)
        return _by(name, self._composed, self._delta)


def _checked(events: Iterable[Event], delta: float) -> Composition:
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta must lie in (0, 1), not {delta}")
    return compose(events)


def _accountable(composed: Composition) -> bool:
    """Whether there is something to compute; if not, mu (0 or infinite) is epsilon itself."""
    mu = composed.renyi_mu
    return math.isfinite(mu) and (mu > 0 or composed.sampled != ())


def _tightest(composed: Composition, delta: float) -> Accountant:
    if not composed.sampled:
        return "zcdp" if composed.concentrated > 0 else "exact"
    return "pld" if accountants.pld_resolves(composed, delta) else "rdp"


def _by(name: Accountant, composed: Composition, delta: float) -> float:
    match name:
        case "exact":
            return accountants.exact(composed, delta)
        case "pld":
            return accountants.pld(composed, delta)
        case "rdp":
            return accountants.rdp(composed, delta)
        case "prv":
            error = accountants.prv_error(accountants.rdp(composed, delta))
            value = accountants.prv(composed, delta, error)
            if value is None:
                raise InputError("prv cannot account for these events", hint="use pld or rdp")
            return value
        case "opacus-rdp":
            return accountants.opacus_rdp(composed, delta)
        case "zcdp":
            return accountants.zcdp(composed, delta)
        case "google-rdp":
            return accountants.google_rdp(composed, delta)


@lru_cache(maxsize=512)
def _cross_check(composed: Composition, delta: float) -> CheckedEpsilon:
    first = _tightest(composed, delta)
    value = _by(first, composed, delta)
    second = _second(first, value, composed, delta)
    if not second.low <= value <= second.high:
        raise Refused(
            f"two accountants contradict each other: {first} says epsilon {value:.6g}, "
            f"{second.accountant} says {second.value:.6g}",
            hint="nothing may be released on this; please report it with the run's settings",
        )
    return CheckedEpsilon(value, first, second.value, second.accountant)


@dataclass(frozen=True)
class _Second:
    """What a second accountant gave, and the range in which it lets the first one lie."""

    accountant: Accountant
    value: float
    low: float
    high: float


def _second(first: Accountant, value: float, composed: Composition, delta: float) -> _Second:
    if first == "exact" and accountants.pld_resolves(composed, delta):
        second = accountants.pld(composed, delta)
        return _Second("pld", second, (second - 1e-3) / 1.005, second * 1.0001)
    if composed.concentrated > 0:
        second = accountants.google_rdp(composed, delta)
        # It has fewer orders than zcdp and more than rdp; near epsilon 0 it has one argument more.
        high = math.inf if composed.sampled else second * 1.0001 + 1e-3
        return _Second("google-rdp", second, (second - 1e-3) / 1.01, high)
    error = accountants.prv_error(value)
    if first == "pld" and accountants.prv_fits(composed, delta, error, value):
        found = accountants.prv(composed, delta, error)
        if found is not None:
            # It rounds delta by a thousandth, which tells where delta is large.
            low = found - (2.2 + 2.0 * delta) * error
            return _Second("prv", found, low, found * 1.005)
    second = accountants.opacus_rdp(composed, delta)
    high = second * 1.0001 if first != "rdp" else math.inf  # rdp has fewer orders, so is higher
    return _Second("opacus-rdp", second, (second - 0.1) / 2, high)


def _smallest(spent: Callable[[float], float], target: float, start: float) -> float:
    """Return, to 1e-6, the noise at which the falling function `spent` meets `target`."""
    high = start
    while spent(high) > target:
        high *= 1.25
        if high > 1e9 * start:
            raise InputError(f"no noise gives epsilon {target} at this delta", hint="raise either")
    low = high / 1.25
    while spent(low) <= target:
        low, high = low / 1.25, low

    def excess(log_sigma: float) -> float:
        return min(spent(math.exp(log_sigma)), 1e9) - target

    return math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-6))


def _round_up(sigma: float) -> float:
    return float(Context(prec=5, rounding=ROUND_CEILING).plus(Decimal(sigma)))
