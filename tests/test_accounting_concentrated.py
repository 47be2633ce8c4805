"""Concentrated releases: what sums of discrete Gaussians cost, by two accountants."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import accountants
from common.accounting import (
    Accountant,
    ConcentratedEvent,
    Event,
    GaussianEvent,
    PoissonEvent,
    RdpOdometer,
    cross_checked_epsilon,
    epsilon,
    noise_multiplier_for,
)
from common.errors import InputError, Refused
from tests.test_accounting import DELTAS, SIGMAS, STEPS


def test_a_concentrated_release_costs_what_the_published_conversion_says() -> None:
    # rho = 1/2, order alpha: alpha/2 + log(1 - 1/alpha) - log(delta alpha) / (alpha - 1).
    orders = [1 + 0.001 * step for step in range(1, 50_000)]
    by_hand = min(a / 2 + math.log(1 - 1 / a) - math.log(1e-5 * a) / (a - 1) for a in orders)
    assert epsilon([ConcentratedEvent(1.0, 1)], 1e-5) == pytest.approx(by_hand, rel=1e-6)


@given(SIGMAS, STEPS, DELTAS)
def test_it_never_costs_less_than_the_gaussian_it_is_as_concentrated_as(
    sigma: float, steps: int, delta: float
) -> None:
    concentrated = epsilon([ConcentratedEvent(sigma, steps)], delta)
    gaussian = epsilon([GaussianEvent(sigma, steps)], delta)
    assert gaussian <= concentrated * (1 + 1e-12)
    assert concentrated <= 1.25 * gaussian + math.sqrt(steps) / sigma


@given(st.floats(0.2, 1e5), st.integers(1, 10_000), DELTAS)
@settings(max_examples=60, deadline=None)
def test_a_second_accountant_confirms_it(sigma: float, steps: int, delta: float) -> None:
    checked = cross_checked_epsilon([ConcentratedEvent(sigma, steps)], delta)
    assert (checked.accountant, checked.second_accountant) == ("zcdp", "google-rdp")
    assert checked.epsilon <= checked.second * 1.0001 + 1e-3


def test_concentrated_gaussian_and_sampled_releases_add_up() -> None:
    discrete, full = ConcentratedEvent(8.0, 20), GaussianEvent(5.0, 4)
    sampled = PoissonEvent(1.0, 0.05, 60)
    both: list[Event] = [discrete, full]
    three = [*both, sampled]
    together = cross_checked_epsilon(both, 1e-5)
    assert together.accountant == "zcdp"
    alone = [cross_checked_epsilon([event], 1e-5).epsilon for event in three]
    assert max(alone[:2]) < together.epsilon < sum(alone[:2])
    everything = cross_checked_epsilon(three, 1e-5)
    assert (everything.accountant, everything.second_accountant) == ("rdp", "google-rdp")
    assert together.epsilon < everything.epsilon < sum(alone)
    halves: list[Event] = [ConcentratedEvent(8.0, 10)] * 2
    assert epsilon(halves, 1e-5) == pytest.approx(epsilon([discrete], 1e-5))
    by_opacus = epsilon(three, 1e-5, "opacus-rdp")
    assert by_opacus <= everything.epsilon * 1.0001


@pytest.mark.parametrize("accountant", ["exact", "pld", "prv"])
def test_accountants_of_gaussian_mechanisms_do_not_read_it(accountant: Accountant) -> None:
    with pytest.raises(InputError, match="concentrated"):
        epsilon([GaussianEvent(5.0, 1), ConcentratedEvent(5.0, 1)], 1e-5, accountant)


def test_the_odometer_and_the_edges_hold() -> None:
    odometer = RdpOdometer(1e-5)
    assert odometer.spend(ConcentratedEvent(5.0, 4)) == epsilon([ConcentratedEvent(5.0, 4)], 1e-5)
    assert odometer.spend(GaussianEvent(5.0, 4)) > epsilon([ConcentratedEvent(5.0, 4)], 1e-5)
    assert odometer.spend(ConcentratedEvent(0.0, 1)) == math.inf
    assert epsilon([ConcentratedEvent(1.0, 0)], 1e-5) == 0.0
    bare: list[Event] = [ConcentratedEvent(0.0, 1), PoissonEvent(1.0, 0.1, 5)]
    assert cross_checked_epsilon(bare, 1e-5).epsilon == math.inf
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError):
            ConcentratedEvent(bad, 1)


@pytest.mark.parametrize(("target", "delta", "steps"), [(4, 1e-4, 40), (0.1, 1e-6, 500)])
def test_the_noise_found_keeps_within_epsilon_and_a_thousandth_less_does_not(
    target: float, delta: float, steps: int
) -> None:
    found = noise_multiplier_for(target, delta, steps, concentrated=True)
    assert cross_checked_epsilon([ConcentratedEvent(found, steps)], delta).epsilon <= target
    assert epsilon([ConcentratedEvent(found * 0.999, steps)], delta) > target
    assert found > noise_multiplier_for(target, delta, steps)
    with pytest.raises(InputError, match="full batches"):
        noise_multiplier_for(target, delta, steps, 0.5, concentrated=True)


def test_an_accountant_that_reports_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = accountants.zcdp
    monkeypatch.setattr(accountants, "zcdp", lambda composed, delta: 0.9 * honest(composed, delta))
    with pytest.raises(Refused, match="contradict"):
        cross_checked_epsilon([ConcentratedEvent(1.234567, 7)], 1e-5)


def test_its_accounting_needs_no_torch() -> None:
    code = (
        "import sys; from common.accounting import *;"
        "cross_checked_epsilon([ConcentratedEvent(2.0, 9)], 1e-5);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
