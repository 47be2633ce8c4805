"""Epsilon against the definition of privacy itself, integrated numerically."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import GaussianAccountant
from scipy.integrate import quad
from scipy.stats import norm

from common.accounting import GaussianEvent, PoissonEvent, epsilon, noise_multiplier_for
from tests.test_accounting import DELTAS, SIGMAS, STEPS


def integrated_delta(eps: float, mu: float) -> float:
    """Return the hockey-stick divergence of N(mu, 1) from N(0, 1), integrated numerically."""
    density = lambda x: max(0.0, norm.pdf(x - mu) - math.exp(eps) * norm.pdf(x))  # noqa: E731
    start = eps / mu + mu / 2  # where the integrand begins to be positive
    return float(quad(density, start, start + 40, epsabs=0.0, epsrel=1e-9, limit=500)[0])


@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize(("sigma", "steps"), [(6.0635, 40), (1.0, 1), (30.0, 7)])
def test_the_exact_gaussian_is_what_integration_gives_and_a_wrong_noise_is_not(
    sigma: float, steps: int, delta: float
) -> None:
    found, mu = epsilon([GaussianEvent(sigma, steps)], delta), math.sqrt(steps) / sigma
    if found > 0.0:
        assert integrated_delta(found, mu) == pytest.approx(delta, rel=1e-6)
        for wrong in (0.99, 1.01):
            assert integrated_delta(found, mu / wrong) != pytest.approx(delta, rel=1e-2)
    else:
        assert integrated_delta(0.0, mu) <= delta


def test_the_noise_of_forty_full_batches_at_epsilon_4_is_known() -> None:
    assert noise_multiplier_for(4.0, 1e-4, 40) == pytest.approx(6.0635, abs=1e-4)


@given(SIGMAS, STEPS, DELTAS, st.floats(1.01, 3.0))
def test_full_batches_cost_strictly_by_steps_noise_and_delta(
    sigma: float, steps: int, delta: float, factor: float
) -> None:
    cost = epsilon([GaussianEvent(sigma, steps)], delta)
    assert epsilon([GaussianEvent(sigma * factor, steps)], delta) <= cost
    assert epsilon([GaussianEvent(sigma, steps)], min(0.9, delta * factor)) <= cost
    more = epsilon([GaussianEvent(sigma, steps + 1)], delta)
    assert more > cost or more == cost == 0.0


@pytest.mark.parametrize("last", [(10.0, 1.0, 1), (4.0, 0.01, 10)])
def test_the_gdp_accountant_of_opacus_under_reports_a_mixed_history(
    last: tuple[float, float, int],
) -> None:
    """It reads only the last entry of its history, and so is not among the accountants here."""
    history = [(1.0, 0.1, 100), last]
    with pytest.warns(UserWarning, match="underestimate"):
        gdp = GaussianAccountant()
    gdp.history = history
    truth = epsilon([PoissonEvent(*entry) for entry in history], 1e-5)
    assert gdp.get_epsilon(1e-5) < 0.1 * truth
    assert truth > epsilon([PoissonEvent(*history[0])], 1e-5)
