"""Epsilon is never below the truth, and two independent accountants stand behind it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from typing import Any, cast

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr

from common import accountants
from common.accounting import (
    MOST_EPSILON,
    Accountant,
    Event,
    GaussianEvent,
    PoissonEvent,
    RdpOdometer,
    cross_checked_epsilon,
    epsilon,
    noise_multiplier_for,
)
from common.errors import InputError, Refused

SIGMAS = st.floats(0.3, 200.0)
STEPS = st.integers(1, 5000)
DELTAS = st.floats(-14.0, -0.5).map(lambda exponent: 10.0**exponent)


def gaussian_delta(eps: float, mu: float) -> float:
    """Return the delta of Balle and Wang 2018, theorem 8, as it is printed."""
    first, second = log_ndtr(mu / 2 - eps / mu), log_ndtr(-mu / 2 - eps / mu)
    return float(math.exp(first) * -math.expm1(eps + second - first))


def test_published_values_of_the_gaussian_mechanism_are_met() -> None:
    # mu = 1: delta(1) = Phi(-1/2) - e Phi(-3/2) (Dong, Roth and Su 2022, equation 6).
    assert epsilon([GaussianEvent(1.0, 1)], 0.12693673750664397) == pytest.approx(1.0, rel=1e-9)
    assert epsilon([GaussianEvent(1.0, 1)], 1e-5) == pytest.approx(4.377176, abs=1e-5)
    assert epsilon([GaussianEvent(10.0, 40)], 1e-5) == pytest.approx(2.594380, abs=1e-5)


def test_the_moments_accountant_of_abadi_et_al_is_met_and_beaten() -> None:
    # Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5: epsilon 1.26.
    events = [PoissonEvent(4.0, 0.01, 10_000)]
    renyi, tight = epsilon(events, 1e-5, "rdp"), epsilon(events, 1e-5)
    assert 0.9 < tight < renyi < 1.26
    assert renyi < 1.2 * tight


@given(SIGMAS, STEPS, DELTAS)
def test_the_exact_gaussian_solves_its_equation_from_above(
    sigma: float, steps: int, delta: float
) -> None:
    found, mu = epsilon([GaussianEvent(sigma, steps)], delta), math.sqrt(steps) / sigma
    if found == 0.0:
        assert gaussian_delta(0.0, mu) <= delta * (1 + 1e-9)
    else:
        assert gaussian_delta(found, mu) <= delta * (1 + 1e-9)
        assert gaussian_delta(found * (1 - 1e-6), mu) > delta


@given(st.floats(2.0, 200.0), st.integers(1, 50), DELTAS.filter(lambda delta: delta > 1e-10))
@settings(max_examples=15, deadline=None)
def test_exact_pld_and_both_renyi_accountants_agree_on_full_batches(
    sigma: float, steps: int, delta: float
) -> None:
    events = [GaussianEvent(sigma, steps)]
    exact = epsilon(events, delta)
    assert exact == pytest.approx(
        dp_accounting.get_epsilon_gaussian(sigma / math.sqrt(steps), delta), rel=1e-3, abs=1e-5
    )
    assert exact <= epsilon(events, delta, "pld") * (1 + 1e-6) <= exact * 1.005 + 2e-3
    assert exact <= epsilon(events, delta, "opacus-rdp")
    assert exact <= epsilon(events, delta, "rdp") * (1 + 1e-12)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [(1.0, 0.01, 1000), (2.0, 0.1, 100), (5.0, 0.5, 100), (0.6, 0.1, 10), (20.0, 0.2, 1000)],
)
def test_pld_prv_and_renyi_agree_within_their_slack_under_sampling(
    sigma: float, rate: float, steps: int
) -> None:
    events = [PoissonEvent(sigma, rate, steps)]
    pld, prv = epsilon(events, 1e-5, "pld"), epsilon(events, 1e-5, "prv")
    rdp, opacus = epsilon(events, 1e-5, "rdp"), epsilon(events, 1e-5, "opacus-rdp")
    assert pld * 0.999 < prv < pld * 1.03
    assert pld < opacus < 1.25 * pld
    assert opacus * (1 - 1e-9) < rdp < 1.25 * opacus  # fewer orders
    checked = cross_checked_epsilon(events, 1e-5)
    assert (checked.epsilon, checked.accountant, checked.second_accountant) == (pld, "pld", "prv")


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-8])
def test_pld_never_reports_less_than_the_truth_over_many_steps(delta: float) -> None:
    # At rate 1 - 1e-7 the truth is the full batch's to seven digits, and known exactly.
    truth = epsilon([GaussianEvent(600.0, 100_000)], delta)
    found = epsilon([PoissonEvent(600.0, 1 - 1e-7, 100_000)], delta, "pld")
    assert truth * (1 - 1e-5) <= found <= truth * 1.005


@pytest.mark.parametrize("rate", [0.001, 0.3, 1.0])
def test_more_steps_less_noise_and_smaller_delta_never_cost_less(rate: float) -> None:
    def cost(sigma: float, steps: int, delta: float) -> float:
        return epsilon([PoissonEvent(sigma, rate, steps)], delta)

    by_steps = [cost(1.5, steps, 1e-5) for steps in (1, 30, 1000)]
    by_sigma = [cost(sigma, 50, 1e-5) for sigma in (50.0, 1.0, 0.4, 0.1)]
    by_delta = [cost(1.5, 50, delta) for delta in (0.5, 1e-3, 1e-8, 1e-18)]
    assert by_steps == sorted(by_steps)
    assert by_sigma == sorted(by_sigma)
    assert by_delta == sorted(by_delta)


@given(SIGMAS, st.floats(0.001, 1.0), STEPS, DELTAS)
@settings(max_examples=40, deadline=None)
def test_sampling_never_costs_more_than_the_full_batch_by_renyi(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    sampled = epsilon([PoissonEvent(sigma, rate, steps)], delta, "rdp")
    assert sampled <= epsilon([GaussianEvent(sigma, steps)], delta) * (1 + 1e-9)


@pytest.mark.parametrize("accountant", ["exact", "pld", "rdp", "opacus-rdp", "prv"])
def test_events_compose_to_the_event_of_their_sum(accountant: Accountant) -> None:
    one: list[Event] = [GaussianEvent(3.0, 30)]
    many: list[Event] = [GaussianEvent(3.0, 10), PoissonEvent(3.0, 1.0, 15), GaussianEvent(3.0, 5)]
    if accountant != "exact":
        one += [PoissonEvent(1.0, 0.05, 60)]
        many = [PoissonEvent(1.0, 0.05, 20), *many, PoissonEvent(1.0, 0.05, 40)]
    assert epsilon(many, 1e-5, accountant) == pytest.approx(epsilon(one, 1e-5, accountant))


def test_different_events_cost_more_than_each_and_less_than_their_sum() -> None:
    events: list[Event] = [
        PoissonEvent(1.0, 0.02, 50),
        PoissonEvent(2.0, 0.1, 50),
        GaussianEvent(9.0, 3),
    ]
    together = cross_checked_epsilon(events, 1e-5)
    assert together.second_accountant == "prv"
    assert max(epsilon([event], 1e-5) for event in events) < together.epsilon
    assert together.epsilon < sum(epsilon([event], 1e-5 / 3) for event in events)


def test_nothing_spent_is_zero_and_no_noise_is_infinite() -> None:
    spent_nothing: list[list[Event]] = [[], [GaussianEvent(1.0, 0)], [PoissonEvent(0.0, 0.5, 0)]]
    for nothing in spent_nothing:
        assert epsilon(nothing, 1e-5) == 0.0
        assert cross_checked_epsilon(nothing, 1e-5).epsilon == 0.0
    no_noise: list[list[Event]] = [
        [GaussianEvent(0.0, 1)],
        [GaussianEvent(5.0, 9), PoissonEvent(0.0, 0.01, 1)],
    ]
    for bare in no_noise:
        assert epsilon(bare, 1e-5) == math.inf
        assert cross_checked_epsilon(bare, 1e-5).epsilon == math.inf
    assert epsilon([GaussianEvent(5e-324, 2**53)], 1e-5) == math.inf
    assert epsilon([GaussianEvent(1e300, 2**53)], 1e-300) < 1e-200


@pytest.mark.parametrize("delta", [1e-2, 0.1, 0.5])
@pytest.mark.parametrize(
    ("sigma", "rate"), [(500.0, 0.5), (50.0, 0.1), (1.0, 0.01), (0.3, 0.001), (500.0, 1.0)]
)
def test_where_delta_covers_all_epsilon_is_0_and_no_contradiction(
    delta: float, sigma: float, rate: float
) -> None:
    found = cross_checked_epsilon([PoissonEvent(sigma, rate, 1)], delta)
    assert found.epsilon == 0.0 <= found.second


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_a_large_delta_is_no_contradiction(sigma: float, rate: float) -> None:
    for delta in (0.05, 0.1, 0.5):
        found = cross_checked_epsilon([PoissonEvent(sigma, rate, 10)], delta)
        assert 0.0 <= found.epsilon < epsilon([PoissonEvent(sigma, rate, 10)], 1e-3)


def test_an_extreme_delta_or_step_count_is_answered_from_above() -> None:
    for delta in (1e-300, 1e-13):
        sampled = cross_checked_epsilon([PoissonEvent(2.0, 0.1, 100)], delta)
        assert (sampled.accountant, sampled.second_accountant) == ("rdp", "opacus-rdp")
        assert epsilon([PoissonEvent(2.0, 0.1, 100)], 1e-9) < sampled.epsilon < math.inf
    huge = cross_checked_epsilon([PoissonEvent(1e5, 0.01, 10**9)], 1e-5)
    assert huge.accountant == "rdp"
    assert epsilon([PoissonEvent(1e5, 0.01, 10**6)], 1e-5) < huge.epsilon < 0.1


@pytest.mark.parametrize(
    ("target", "delta", "steps", "rate"),
    [
        (4.0, 1e-4, 40, 1.0),
        (8.0, 1e-4, 40, 0.5),
        (1.0, 1e-5, 2000, 0.02),
        (0.01, 1e-5, 10, 1.0),
        (20.0, 1e-5, 10, 0.3),
        (1.0, 1e-13, 100, 0.1),
    ],
)
def test_the_noise_found_keeps_within_epsilon_and_a_tenth_of_a_percent_less_does_not(
    target: float, delta: float, steps: int, rate: float
) -> None:
    sigma = noise_multiplier_for(target, delta, steps, rate)
    assert cross_checked_epsilon([PoissonEvent(sigma, rate, steps)], delta).epsilon <= target
    assert epsilon([PoissonEvent(sigma * 0.999, rate, steps)], delta) > target
    assert len(repr(sigma).replace(".", "").strip("0")) <= 5


@given(st.floats(0.05, 20.0), DELTAS.filter(lambda delta: delta < 1e-2), st.integers(1, 10**6))
@settings(max_examples=30, deadline=None)
def test_rounding_the_noise_never_lowers_it(target: float, delta: float, steps: int) -> None:
    sigma = noise_multiplier_for(target, delta, steps)
    assert gaussian_delta(target, math.sqrt(steps) / sigma) <= delta * (1 + 1e-9)


def test_two_accountants_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A fault as it would look: PLD reports half (and twice) the truth.
    honest = accountants.pld
    for factor, sigma in ((0.5, 1.2345), (2.0, 1.2346)):
        wrong = lambda composed, delta, factor=factor: factor * honest(composed, delta)  # noqa: E731
        monkeypatch.setattr(accountants, "pld", wrong)
        with pytest.raises(Refused, match="contradict"):
            cross_checked_epsilon([PoissonEvent(sigma, 0.1, 100)], 1e-5)
        with pytest.raises(Refused, match="contradict"):
            cross_checked_epsilon([GaussianEvent(sigma, 3)], 1e-5)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_bad_number_is_an_input_error(bad: float) -> None:
    with pytest.raises(InputError):
        GaussianEvent(bad, 1)
    with pytest.raises(InputError):
        PoissonEvent(bad, 0.5, 1)
    with pytest.raises(InputError):
        PoissonEvent(1.0, bad, 1)
    for target in (bad, 0.0):
        with pytest.raises(InputError):
            noise_multiplier_for(target, 1e-5, 10)
    for delta in (bad, 0.0, 1.0):
        with pytest.raises(InputError):
            epsilon([], delta)
        with pytest.raises(InputError):
            noise_multiplier_for(1.0, delta, 10)
        with pytest.raises(InputError):
            RdpOdometer(delta)


@pytest.mark.parametrize("target", [1.01 * MOST_EPSILON, 1e300])
@pytest.mark.parametrize("concentrated", [False, True])
def test_an_epsilon_that_promises_nothing_is_an_input_error(
    target: float, concentrated: bool
) -> None:
    with pytest.raises(InputError, match="promises nothing"):
        noise_multiplier_for(target, 1e-5, 10, concentrated=concentrated)
    largest = noise_multiplier_for(MOST_EPSILON, 1e-5, 10, concentrated=concentrated)
    assert 0 < largest < noise_multiplier_for(10.0, 1e-5, 10, concentrated=concentrated)


def test_a_bad_count_rate_event_or_accountant_is_an_input_error() -> None:
    for steps in (-1, 1.5, True, 2**54):
        with pytest.raises(InputError):
            GaussianEvent(1.0, cast(Any, steps))
    for rate in (0.0, 1.0000001):
        with pytest.raises(InputError):
            PoissonEvent(1.0, rate, 1)
    with pytest.raises(InputError):
        noise_multiplier_for(1.0, 1e-5, 0)
    with pytest.raises(InputError, match="knows no event"):
        epsilon([cast(Any, ("laplace", 1.0))], 1e-5)
    for unknown in ("gdp", "PLD", ""):
        for events in ([], [GaussianEvent(1.0, 1)]):
            with pytest.raises(InputError, match="no accountant"):
                epsilon(events, 1e-5, cast(Any, unknown))
    with pytest.raises(InputError, match="full batches only"):
        epsilon([PoissonEvent(1.0, 0.1, 1)], 1e-5, "exact")
    with pytest.raises(InputError, match="resolve"):
        epsilon([PoissonEvent(1.0, 0.1, 1)], 1e-14, "pld")


def test_an_event_cannot_be_changed_after_it_was_counted() -> None:
    with pytest.raises(FrozenInstanceError):
        cast(Any, GaussianEvent(1.0, 1)).steps = 0


def test_the_odometer_never_forgets_an_earlier_round() -> None:
    odometer, events = RdpOdometer(1e-5), [PoissonEvent(1.0, 0.02, 100)] * 3
    reports = [odometer.spend(event) for event in events]
    for rounds, report in enumerate(reports, start=1):
        tight = epsilon(events[:rounds], 1e-5)
        assert tight < report < 1.35 * tight
    assert odometer.epsilon == reports[-1]
    assert odometer.spend(GaussianEvent(0.0, 1)) == math.inf
    full = RdpOdometer(1e-5)
    assert full.spend(GaussianEvent(5.0, 4)) == epsilon([GaussianEvent(5.0, 4)], 1e-5)


def test_fifty_distinct_rounds_take_the_odometer_under_three_seconds() -> None:
    odometer, start = RdpOdometer(1e-5), time.perf_counter()
    for index in range(50):
        odometer.spend(PoissonEvent(1.0 + 0.02 * index, 0.031, 40))
    assert time.perf_counter() - start < 3.0  # 0.3 s on an idle core
    assert 5.0 < odometer.epsilon < 7.0


def test_accounting_needs_no_torch_until_opacus_is_asked() -> None:
    code = (
        "import sys; from common.accounting import *;"
        "epsilon([PoissonEvent(1.0, 0.1, 9)], 1e-5);"
        "RdpOdometer(1e-5).spend(GaussianEvent(1.0, 1));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
