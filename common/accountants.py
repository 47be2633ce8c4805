"""Seven ways to turn composed mechanisms into epsilon, each an upper bound on the truth.

Adjacency: one person added or removed, whose part in each sum is at most C in L2 norm; noise has
standard deviation sigma * C. Every function takes a `Composition` that is neither empty nor
without noise, and delta in (0, 1), and returns epsilon >= 0. `exact`,
`pld` and `prv` read Gaussian mechanisms only, never concentrated releases.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, gammaln, logsumexp, ndtr

from common.composition import Composition

_ORDERS = np.array([*range(2, 65), 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024], dtype=float)
# Between the whole ones, too, where a tenth matters.
_BETWEEN = np.concatenate([np.arange(2.0, 11.0, 0.1), _ORDERS[9:]])
_DENSE = 1 + np.geomspace(1e-4, 1e10, 32_000)
# Composing by FFT leaves rounding noise in delta, at most 5e-17 a step as measured against the
# exact Gaussian up to 10^7 steps. Without this allowance PLD reports too little at tiny deltas.
_FFT_NOISE_PER_STEP = 2.0**-50


def exact(composed: Composition, delta: float) -> float:
    """Return the epsilon of full batches, exact to 1e-8 (mu >= 0.001) and never below.

    Solves delta = Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu) (Balle and Wang 2018,
    arXiv:1805.06530, theorem 8), the second term written with erfcx so that nothing overflows.
    """
    mu = composed.mu

    def delta_at(e: float) -> float:
        a, b = mu / 2 - e / mu, mu / 2 + e / mu
        first = float(ndtr(a))
        if first == 0.0:
            return 0.0
        rounding = 2**-44 * (1 + a * a) * first  # an upper bound, so that no digit is in favour
        return first - math.exp(-a * a / 2) * float(erfcx(b / math.sqrt(2))) / 2 + rounding

    if delta_at(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_at(high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high and math.isfinite(high):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@lru_cache(maxsize=4096)
def _sampled_rdp(sigma: float, rate: float) -> NDArray[np.float64]:
    # E_k~Binomial(alpha, q) [exp((k^2 - k) / (2 sigma^2))], in logarithms, one row an order.
    alpha, k = _ORDERS[:, None], np.arange(_ORDERS[-1] + 1)[None, :]
    drawn = np.minimum(k, alpha)
    log_binomial = gammaln(alpha + 1) - gammaln(drawn + 1) - gammaln(alpha - drawn + 1)
    log_weight = log_binomial + drawn * math.log(rate) + (alpha - drawn) * math.log1p(-rate)
    terms = np.where(k <= alpha, log_weight + (drawn**2 - drawn) / (2 * sigma * sigma), -np.inf)
    return np.asarray(logsumexp(terms, axis=1) / (_ORDERS - 1))


def rdp(composed: Composition, delta: float) -> float:
    """Return epsilon by Renyi differential privacy at whole orders from 2 to 1024.

    One step: Mironov, Talwar and Zhang 2019 (arXiv:1908.10530), section 3.3; steps add up; to
    (epsilon, delta): Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12. Between
    whole orders log E[L^alpha] is convex, so a chord lies above it. Without concentrated releases
    it is capped by the epsilon of full batches, since sampling never costs more.
    """
    bounds = _divergence(composed) + _to_epsilon(delta)
    if composed.concentrated > 0:
        return max(0.0, float(bounds.min()))
    steps = (math.sqrt(part.steps) / part.sigma for part in composed.sampled)
    unsampled = Composition(math.hypot(composed.mu, *steps), ())
    return min(max(0.0, float(bounds.min())), exact(unsampled, delta))


def rdp_at_one_order(
    composed: Composition, delta: float, first: Composition, budget: float
) -> float:
    """Return epsilon as `rdp`, at that order alone at which `budget` has room for most of `first`.

    The order depends on nothing that was released, so that the bound holds as a filter.
    """
    allowed = budget - _to_epsilon(delta)
    best = int((allowed / _divergence(first)).argmax())
    return max(0.0, float(_divergence(composed)[best] + _to_epsilon(delta)[best]))


def _divergence(composed: Composition) -> NDArray[np.float64]:
    total = _ORDERS * composed.renyi_mu**2 / 2
    for part in composed.sampled:
        total = total + part.steps * _sampled_rdp(part.sigma, part.rate)
    return np.asarray(np.interp(_BETWEEN, _ORDERS, (_ORDERS - 1) * total) / (_BETWEEN - 1))


def _to_epsilon(delta: float) -> NDArray[np.float64]:
    """What each order adds to its divergence, to hold at `delta`."""
    return np.asarray(np.log1p(-1 / _BETWEEN) - np.log(delta * _BETWEEN) / (_BETWEEN - 1))


def zcdp(composed: Composition, delta: float) -> float:
    """Return epsilon of Gaussian and concentrated releases, Renyi divergences at all orders.

    Canonne, Kamath and Steinke 2020, proposition 12, at alpha * mu^2 / 2; orders lie so dense that
    the best one loses under 1e-6. Each order gives a bound, so none is lost by missing it.
    """
    bounds = _DENSE * (composed.renyi_mu**2 / 2) + np.log1p(-1 / _DENSE)
    bounds -= np.log(delta * _DENSE) / (_DENSE - 1)
    return max(0.0, float(bounds.min()))


def google_rdp(composed: Composition, delta: float) -> float:
    """Return epsilon by dp_accounting's own Renyi accounting, whole and fractional orders."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    best = 1 + math.sqrt(2 * math.log(1 / delta)) / max(composed.renyi_mu, 1e-9)
    around = (1 + (best - 1) * 1.05**step for step in range(-40, 41))
    accountant = RdpAccountant(orders=sorted({*_ORDERS.tolist(), *around}))
    if composed.renyi_mu > 0:
        accountant.compose(dp_accounting.ZCDpEvent(composed.renyi_mu**2 / 2))
    for part in composed.sampled:
        step = dp_accounting.PoissonSampledDpEvent(
            part.rate, dp_accounting.GaussianDpEvent(part.sigma)
        )
        accountant.compose(step, part.steps)
    return float(accountant.get_epsilon(delta))


def pld_resolves(composed: Composition, delta: float) -> bool:
    """Whether `pld` is trustworthy: its rounding noise stays below a hundredth of delta."""
    if composed.concentrated > 0:
        return False
    steps = composed.sampled_steps
    noise = max(steps, 1000) * _FFT_NOISE_PER_STEP
    return steps <= 10**6 and noise <= delta / 100 and rdp(composed, delta) < 1e5


@lru_cache(maxsize=512)
def pld(composed: Composition, delta: float) -> float:
    """Return epsilon by privacy loss distributions (dp_accounting), tight to about 1e-3.

    The grid is a twentieth of the finest step's spread: wider loses epsilon, finer only time. It
    is widened to at most 200,000 points a step and a million for the whole range.
    """
    from dp_accounting.pld import privacy_loss_distribution as losses

    spreads = [part.spread for part in composed.sampled]
    spreads += [composed.mu] if composed.mu > 0 else []
    widest = max((0.5 / part.sigma**2 + 8 / part.sigma for part in composed.sampled), default=0.0)
    grid = max(min(1e-3, min(spreads) / 20), 1e-6, widest / 2e5, rdp(composed, delta) / 1e6)
    total = losses.identity(value_discretization_interval=grid)
    if composed.mu > 0:
        one = losses.from_gaussian_mechanism(1 / composed.mu, value_discretization_interval=grid)
        total = total.compose(one)
    for part in composed.sampled:
        step = losses.from_gaussian_mechanism(
            part.sigma, value_discretization_interval=grid, sampling_prob=part.rate
        )
        total = total.compose(step.self_compose(part.steps))
    noise = max(composed.sampled_steps, 1000) * _FFT_NOISE_PER_STEP
    return float(total.get_epsilon_for_delta(delta - noise))


def prv_error(expected: float) -> float:
    """Return the error of `prv` that suits an epsilon near `expected`: 1%, from 0.001 to 0.1."""
    return min(max(0.01 * expected, 1e-3), 0.1)


def prv_fits(composed: Composition, delta: float, error: float, expected: float) -> bool:
    """Whether `prv` to within `error` takes seconds and under about 100 MB near `expected`."""
    steps = composed.sampled_steps + 1
    points = 2 * max(3.0, 2 * expected) * math.sqrt(steps * math.log(12e3 / delta) / 2) / error
    return points < 4e6 and delta >= 1e-9


def prv(composed: Composition, delta: float, error: float) -> float | None:
    """Return epsilon by privacy random variables (Opacus; Gopi et al. 2021, arXiv:2106.02848).

    An upper bound, the truth at most 2 * `error` below; None where its grid fails. Imports torch.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(part.sigma, part.rate, part.steps) for part in composed.sampled]
    if composed.mu > 0:
        accountant.history.append((1 / composed.mu, 1.0, 1))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # log(1 - q) of a full batch; overflow far in the tails
        try:
            found = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError):  # its own checks of grid and floating point
            return None
    # Below 0 where delta alone covers all; e^700 overflows its tables.
    return max(0.0, found) if math.isfinite(found) else None


def opacus_rdp(composed: Composition, delta: float) -> float:
    """Return epsilon by Opacus' own Renyi accounting, fractional orders included. Imports torch."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = sorted({*RDPAccountant.DEFAULT_ALPHAS, *_ORDERS.tolist()})
    parts = [(part.sigma, part.rate, part.steps) for part in composed.sampled]
    parts += [(1 / composed.renyi_mu, 1.0, 1)] if composed.renyi_mu > 0 else []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # "consider expanding the range of alphas"
        total = np.zeros(len(orders))
        for sigma, rate, steps in parts:
            total += compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
        return max(0.0, float(get_privacy_spent(orders=orders, rdp=total, delta=delta)[0]))
