"""What an attack's successes prove: lower bounds on epsilon that hold with a stated confidence.

Each function takes counts of an experiment whose secret bits were fair coins and returns the
largest claim that the counts refute: a mechanism that keeps a smaller epsilon (or mu) gives such
counts with probability at most `alpha`. mu is that of Gaussian differential privacy (Dong, Roth
and Su 2022, arXiv:1905.02383).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, expit, ndtr, ndtri
from scipy.stats import binom

from common.accounting import GaussianEvent
from common.accounting import epsilon as accounted_epsilon
from common.errors import InputError

# One attack alarms on a right build with at most this probability: 20 audits of five attacks each
# then raise a false alarm with probability 1e-4.
ALARM: Final = 1e-6
READING: Final = 0.05
_HIGHEST: Final = 200.0


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return the epsilon at `delta` of mu-Gaussian differential privacy; 0 for mu <= 0."""
    if mu <= 0.0:
        return 0.0
    return accounted_epsilon([GaussianEvent(1.0 / mu, 1)], delta)


def lower_rate(successes: int, trials: int, alpha: float) -> float:
    """Return the lower end of Clopper and Pearson's one-sided interval of a rate (1934)."""
    if not 0 <= successes <= trials or trials < 1:
        raise InputError(f"{successes} of {trials} trials is not a rate")
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, alpha))


def accuracy_mu(correct: int, guesses: int, alpha: float) -> float:
    """Return the mu that `correct` of `guesses` refute, a fresh fair coin and run each; >= 0.

    Under mu-GDP no test of one coin is right more often than Phi(mu / 2) (Dong et al. 2022,
    eq. 6, at equal errors), whatever happened before, so the count is dominated by a binomial.
    """
    rate = lower_rate(correct, guesses, alpha)
    return max(0.0, 2.0 * float(ndtri(rate)))


def enough_steps(mu: float) -> int:
    """Return how many steps refute a claimed `mu` at `ALARM` if the truth is 2 mu, 99.9% surely."""
    claimed, true = float(ndtr(mu / 2)), float(ndtr(mu))
    spread = [math.sqrt(rate * (1.0 - rate)) for rate in (claimed, true)]
    distance = -float(ndtri(ALARM)) * spread[0] - float(ndtri(1e-3)) * spread[1]
    normal = (distance / (true - claimed)) ** 2
    # Near certainty the normal approximation fails: all right must be able to refute the claim.
    return math.ceil(max(normal, 1.5 * math.log(ALARM) / math.log(claimed)))


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """Return the epsilon refuted by one run (Steinke, Nasr and Jagielski 2023).

    arXiv:2305.08846, the theorem for approximate DP, as computed in its appendix D.

    Of `canaries` m, each in the run by a fair coin, the attacker guessed r and was right on v. For
    (epsilon, delta)-DP, P[>= v right] <= beta + 2 m delta max_i (1/i) P[v > W >= v - i] with
    W ~ Binomial(r, e^epsilon / (1 + e^epsilon)) and beta = P[W >= v]. 0 if nothing is refuted;
    with alpha below about 2 delta m / r nothing ever is.
    """
    _check(canaries, guesses, correct)

    def refuted(epsilon: float) -> float:
        rate = float(expit(epsilon))
        beta = float(binom.sf(correct - 1, guesses, rate))
        steps = np.arange(1, correct + 1)
        between = binom.sf(correct - steps - 1, guesses, rate) - beta
        worst = float(np.max(between / steps, initial=0.0))
        return alpha - (beta + 2.0 * canaries * delta * worst)

    return _largest(refuted)


def one_run_mu(canaries: int, guesses: int, correct: int, alpha: float) -> float:
    """Return the mu refuted by one run (Mahloujifar, Melis and Chaudhuri 2024).

    arXiv:2410.22235, the recursion of its algorithm 3, with abstentions.

    The same experiment, against a whole trade-off curve. r and h bound the parts of the guesses
    that are right and wrong when at least i are right; they start at `alpha` of the observed ones,
    and a curve f whose recursion overshoots r + h = guesses / canaries is refuted.
    """
    _check(canaries, guesses, correct)

    def refuted(mu: float) -> float:
        right = alpha * correct / canaries
        wrong = alpha * (guesses - correct) / canaries
        for i in range(correct - 1, -1, -1):
            raised = max(wrong, float(ndtr(ndtri(right) - mu)))
            if raised == wrong:
                break  # then nothing changes any more
            if i < guesses:
                right = min(1.0, right + i / (guesses - i) * (raised - wrong))
            wrong = raised
        return right + wrong - guesses / canaries

    return _largest(refuted)


def _check(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise InputError(f"{correct} right of {guesses} guesses on {canaries} canaries")


def _largest(refuted: Callable[[float], float]) -> float:
    """Return where the falling function `refuted` crosses zero; 0 if it is never above."""
    if refuted(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while refuted(high) > 0.0:
        high *= 2.0
        if high > _HIGHEST:
            return math.inf
    return float(brentq(refuted, 0.0, high, xtol=1e-6))
