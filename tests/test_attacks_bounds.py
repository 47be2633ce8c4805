"""The theorems that turn right guesses into lower bounds, against closed forms and simulations.

A simulated bound may exceed the truth in a share alpha of the trials; whether it does so more often
is a binomial test at 1e-6, with a control at the wrong scale that must fail it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from common.accounting import GaussianEvent
from common.accounting import epsilon as accounted
from common.errors import InputError
from simulations.attacks.bounds import (
    accuracy_mu,
    enough_steps,
    epsilon_of_mu,
    lower_rate,
    one_run_epsilon,
    one_run_mu,
)
from simulations.attacks.membership import highest_auc
from simulations.attacks.record import highest_tpr

REPLICATES = 400


@pytest.mark.parametrize("guesses", [10, 100, 1000])
@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_all_right_gives_the_closed_form_of_randomised_response(guesses: int, alpha: float) -> None:
    """v = r = m, delta 0: P = (e^eps / (1 + e^eps))^r = alpha (Steinke et al. 2023).

    100 of 100 right refute 3.49 at 95%.
    """
    rate = alpha ** (1 / guesses)
    found = one_run_epsilon(guesses, guesses, guesses, 0.0, alpha)
    assert found == pytest.approx(max(0.0, math.log(rate / (1 - rate))), abs=1e-5)
    if (guesses, alpha) == (100, 0.05):
        assert found == pytest.approx(3.49, abs=0.01)


def test_delta_takes_away_what_the_theorem_says() -> None:
    """By the sum of Steinke et al. 2023, appendix D; nothing at a small alpha."""
    m, r, v, delta, alpha = 500, 100, 96, 1e-5, 0.05
    epsilon = one_run_epsilon(m, r, v, delta, alpha)
    rate, total, worst = expit(epsilon), 0.0, 0.0
    for i in range(1, v + 1):
        total += float(binom.pmf(v - i, r, rate))
        worst = max(worst, total / i)
    assert binom.sf(v - 1, r, rate) + 2 * m * delta * worst == pytest.approx(alpha, rel=1e-4)
    assert 0.0 < epsilon < one_run_epsilon(m, r, v, 0.0, alpha)
    assert one_run_epsilon(m, r, r, 1e-4, 1e-6) == 0.0


@pytest.mark.parametrize("accuracy", [0.75, 0.9, 0.99])
def test_one_canary_gives_the_closed_form_of_a_gaussian_test(accuracy: float) -> None:
    """With m = r = v = 1 the f-DP bound is exact: right with probability p refutes 2 Phi^-1(p)."""
    assert one_run_mu(1, 1, 1, accuracy) == pytest.approx(2 * ndtri(accuracy), abs=1e-4)


def test_all_right_gives_the_closed_form_of_the_step_audit() -> None:
    for steps in (10, 300):
        expected = 2 * float(ndtri(1e-6 ** (1 / steps)))
        assert accuracy_mu(steps, steps, 1e-6) == pytest.approx(max(0.0, expected), abs=1e-9)
    assert accuracy_mu(0, 10, 0.05) == accuracy_mu(5, 10, 0.05) == 0.0


def test_a_rate_has_clopper_and_pearsons_lower_end() -> None:
    low = lower_rate(45, 50, 0.025)
    assert low == pytest.approx(0.7819, abs=1e-4), "published: 0.7819 to 0.9667"
    assert binom.sf(44, 50, low) == pytest.approx(0.025)


def _guesses(mu: float, canaries: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """The best attack on independent Gaussians: the surest `share` of likelihood ratios."""
    coins = rng.random(canaries) < 0.5
    scores = mu * (coins - 0.5) + rng.standard_normal(canaries)
    count = round(share * canaries)
    surest = np.argsort(-np.abs(scores))[:count]
    return count, int(((scores > 0) == coins)[surest].sum())


def _step(mu: float, rng: np.random.Generator) -> float:
    return accuracy_mu(_guesses(mu, 300, 1.0, rng)[1], 300, 0.05)


def _run(mu: float, rng: np.random.Generator) -> float:
    return one_run_mu(200, *_guesses(mu, 200, 0.25, rng), 0.05)


@pytest.mark.parametrize("bound", [_step, _run])
def test_a_bound_exceeds_the_truth_no_more_often_than_it_says(
    bound: Callable[[float, np.random.Generator], float],
) -> None:
    rng = np.random.default_rng(7)
    too_high = sum(bound(1.0, rng) > 1.0 for _ in range(REPLICATES))
    limit = int(binom.ppf(1 - 1e-6, REPLICATES, 0.05))
    assert too_high <= limit
    caught = sum(bound(5.0, rng) > 1.0 for _ in range(REPLICATES // 4))
    assert caught > limit, "the same test must notice a mechanism with a fifth of the noise"


def test_randomised_response_is_bounded_and_a_weaker_one_is_caught() -> None:
    """The epsilon-DP mechanism for which Steinke's theorem is tight, m = 1,000 bits."""
    rng, truth = np.random.default_rng(8), 1.0

    def found(epsilon: float) -> float:
        return one_run_epsilon(1000, 1000, int(rng.binomial(1000, expit(epsilon))), 0.0, 0.05)

    bounds = np.array([found(truth) for _ in range(REPLICATES)])
    assert (bounds > truth).sum() <= binom.ppf(1 - 1e-6, REPLICATES, 0.05)
    assert (bounds > truth).sum() >= binom.ppf(1e-6, REPLICATES, 0.03), "tight, not only valid"
    assert bounds.mean() > 0.8
    assert all(found(1.5) > truth for _ in range(20))


def test_the_curve_is_tighter_than_the_pair_on_gaussian_noise() -> None:
    """As Mahloujifar et al. 2024 report: one epsilon throws away most of a Gaussian's curve."""
    count, right = _guesses(2.0, 1000, 0.25, np.random.default_rng(3))
    curve = epsilon_of_mu(one_run_mu(1000, count, right, 0.05), 1e-5)
    pair = one_run_epsilon(1000, count, right, 1e-5, 0.05)
    assert curve > 1.2 * pair > 0.0


def test_more_right_guesses_never_show_less() -> None:
    counts = range(51)
    for shown in (
        [one_run_mu(100, 50, right, 0.05) for right in counts],
        [one_run_epsilon(100, 50, right, 1e-5, 0.05) for right in counts],
        [accuracy_mu(right, 50, 0.05) for right in counts],
    ):
        assert shown == sorted(shown)
        assert shown[25] == 0.0 < shown[50]


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0, 4.0])
def test_enough_steps_are_enough_and_half_of_them_are_not(mu: float) -> None:
    """By simulation: at least 97% of builds with half the noise are refuted at 1e-6."""
    rng, steps = np.random.default_rng(9), enough_steps(mu)

    def caught(count: int) -> float:
        right = rng.binomial(count, ndtr(mu), 200)
        return float(np.mean([accuracy_mu(int(k), count, 1e-6) > mu for k in right]))

    assert caught(steps) > 0.97
    assert caught(steps // 2) < 0.9


def test_counts_that_cannot_be_are_refused() -> None:
    for canaries, guesses, right in ((10, 11, 5), (10, 5, 6), (10, 0, 0)):
        with pytest.raises(InputError):
            one_run_mu(canaries, guesses, right, 0.05)
        with pytest.raises(InputError):
            one_run_epsilon(canaries, guesses, right, 1e-5, 0.05)
    with pytest.raises(InputError):
        accuracy_mu(3, 2, 0.05)


def test_mu_becomes_the_accountants_epsilon() -> None:
    assert epsilon_of_mu(0.5, 1e-5) == accounted([GaussianEvent(2.0, 1)], 1e-5)
    assert epsilon_of_mu(0.0, 1e-5) == 0.0


def test_the_claims_region_is_that_of_the_best_test() -> None:
    assert float(highest_tpr(0.0, 1.0, 1e-3)) == pytest.approx(1e-3)
    assert float(highest_tpr(1.0, 1.0, 1e-3)) == 1.0
    assert float(highest_tpr(0.01, 1.0, 0.0)) == pytest.approx(math.e / 100)
    assert highest_auc(0.0, 0.0) == pytest.approx(0.5, abs=1e-6)
    assert highest_auc(50.0, 0.0) == pytest.approx(1.0, abs=1e-6)
    # The curve of pure epsilon bends once, at (1 / (1 + e), e / (1 + e)).
    assert highest_auc(1.0, 0.0) == pytest.approx(math.e / (1 + math.e), abs=1e-6)
    mu = 1.0
    assert highest_auc(epsilon_of_mu(mu, 1e-3), 1e-3) > ndtr(mu / math.sqrt(2))
