"""The auditor's accountant agrees with closed forms and with the accountants that train."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from common.accounting import PoissonEvent
from common.accounting import epsilon as trained
from common.errors import InputError
from server.audit.accountant import Releases, epsilon, losses, merged
from server.audit.meaning import Attack


def delta_of(mu: float, eps: float) -> float:
    """The Gaussian mechanism in closed form (Balle and Wang 2018, theorem 8)."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps) * ndtr(-mu / 2 - eps / mu))


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 10), (1.2, 5), (30.0, 3), (0.4, 1), (8.0, 999)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_full_batches_are_the_gaussian_closed_form(sigma: float, steps: int, delta: float) -> None:
    found = epsilon([Releases(sigma, 1.0, steps)], delta)
    mu = math.sqrt(steps) / sigma
    assert found.high - found.low < 2e-3
    assert delta_of(mu, found.high) <= delta * (1 + 1e-4)
    assert found.low == 0.0 or delta_of(mu, found.low) >= delta * (1 - 1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        [Releases(1.0, 0.01, 1000)],
        [Releases(0.7, 0.2, 20)],
        [Releases(0.5, 0.5, 1)],
        [Releases(1.0, 0.1, 3), Releases(3.0, 1.0, 5), Releases(2.0, 0.3, 40)],
    ],
)
def test_sampled_steps_agree_with_privacy_loss_distributions(parts: list[Releases]) -> None:
    events = [PoissonEvent(p.sigma, p.rate, p.steps) for p in parts]
    found, other = epsilon(parts, 1e-5), trained(events, 1e-5, "pld")
    assert found.low - 1e-3 <= other <= found.high + 2e-3
    assert found.high - found.low <= 0.01


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.03])
def test_noise_of_another_scale_is_not_confirmed(factor: float) -> None:
    for rate in (1.0, 0.1):
        stated = trained([PoissonEvent(1.5, rate, 20)], 1e-5)
        found = epsilon([Releases(1.5 * factor, rate, 20)], 1e-5)
        assert not found.low <= stated <= found.high


def test_releases_of_a_kind_compose_whatever_their_order() -> None:
    one, two = Releases(1.0, 1.0, 2), Releases(2.0, 0.1, 3)
    assert merged([one, two, one, two]) == merged([two, two, one, one])
    assert merged([one, one])[0].sigma == pytest.approx(0.5)
    assert merged([]) == () and epsilon([], 1e-5).high == 0.0


def test_what_the_accountant_cannot_resolve_is_refused() -> None:
    with pytest.raises(InputError, match="resolves no delta"):
        epsilon([Releases(1.0, 1.0, 1)], 1e-12)
    with pytest.raises(InputError, match="without noise"):
        epsilon([Releases(0.0, 1.0, 1)], 1e-5)
    for noise, rate, steps in ((1e-6, 1.0, 1), (1e-6, 1.0, 10**9), (0.01, 0.5, 1)):
        with pytest.raises(InputError, match="next to no noise"):  # not all of the memory
            epsilon([Releases(noise, rate, steps)], 1e-5)
    assert epsilon([Releases(1e-3, 1.0, 1)], 1e-5).low > 5e5


def test_the_loss_of_a_gaussian_is_normal() -> None:
    mu = 1.3
    found = losses(merged([Releases(1 / mu, 1.0, 1)]), 1e-5, False)
    assert found.mass.sum() == pytest.approx(1.0, abs=1e-9)
    for share in (0.1, 0.5, 0.99):
        expected = mu * mu / 2 + mu * float(ndtri(share))
        assert found.quantile(share) == pytest.approx(expected, abs=1e-3)


def test_the_numeric_attack_is_the_closed_one_where_nearly_all_take_part() -> None:
    """A sampling rate of almost 1 goes the numeric way, and must give the Gaussian's answers."""
    exact = Attack([Releases(2.0, 1.0, 4)], 1e-5)
    numeric = Attack([Releases(2.0, 0.999999, 4)], 1e-5)
    assert exact.mu == pytest.approx(1.0) and numeric.mu is None
    assert numeric.guess() == pytest.approx(exact.guess(), abs=1e-3)
    missed = np.array([exact.trade_off().missed, numeric.trade_off().missed])
    assert np.abs(missed[0] - missed[1]).max() < 2e-3
    for one, other in zip(exact.posteriors(), numeric.posteriors(), strict=True):
        assert other.typical == pytest.approx(one.typical, abs=2e-3)
        assert other.unlucky == pytest.approx(one.unlucky, abs=2e-3)


def test_no_attack_beats_the_stated_guess_and_the_optimal_one_reaches_it() -> None:
    """Likelihood-ratio attacks on 2,000,000 real releases; half the noise must be seen."""
    mu, trials, rng = 1.2, 1_000_000, np.random.default_rng(0)
    stated = Attack([Releases(1 / mu, 1.0, 1)], 1e-5).guess()
    margin = -float(ndtri(1e-6)) / math.sqrt(2 * trials) / 2

    def reached(scale: float) -> float:
        absent, present = rng.normal(0, 1, trials), rng.normal(mu * scale, 1, trials)
        return float((absent < mu * scale / 2).mean() + (present >= mu * scale / 2).mean()) / 2

    assert abs(reached(1.0) - stated) <= margin + 1e-6
    assert reached(2.0) > stated + margin
