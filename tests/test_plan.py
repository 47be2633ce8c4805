"""The plan: a run fits its budget exactly, one more round is refused, restarts forget nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from common import constants
from common.accounting import PoissonEvent, epsilon
from common.errors import BudgetExceeded, InputError
from common.ledger import Genesis, Ledger, verify
from common.plan import PrivacyPlan, calibrate, epsilon_after
from common.spending import reserved, spent
from server.audit import accountant
from tests.test_consent import contract, masked
from tests.test_site import CONTRACT

PLAN = PrivacyPlan(epsilon=2.0, delta=1e-4)


def ask(directory: Path, round_: int, run_id: str = "run", plan: PrivacyPlan = PLAN) -> None:
    contract = dataclasses.replace(CONTRACT, run_id=run_id)
    with Ledger.open(directory) as ledger:
        plan.reserve(ledger, contract, round_, f"{run_id}-{round_}", secret=True)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "s", Genesis(delta=1e-4, epsilon=2.0))
    return tmp_path / "s"


def test_the_agreed_rounds_fit_and_one_more_is_refused_and_leaves_no_trace(site: Path) -> None:
    for round_ in range(1, CONTRACT.rounds + 1):
        ask(site, round_)  # each opens the ledger anew, as a restarted site does
        total = spent(verify(site).reservations, 1e-4)
        assert total == pytest.approx(epsilon_after(CONTRACT, round_), rel=1e-6)
    assert 1.999 < total <= 2.0
    before = (site / Ledger.FILE_NAME).read_bytes()
    with pytest.raises(BudgetExceeded, match=r"of 2\.0000 allowed"):
        ask(site, CONTRACT.rounds + 1)
    with pytest.raises(BudgetExceeded):
        ask(site, 1, run_id="second")
    assert (site / Ledger.FILE_NAME).read_bytes() == before


def test_two_runs_on_one_ledger_add_up(tmp_path: Path) -> None:
    site, wide = tmp_path / "wide", dataclasses.replace(PLAN, epsilon=10.0)
    Ledger.create(site, Genesis(delta=1e-4, epsilon=10.0))
    for run_id in ("first", "second"):
        for round_ in range(1, CONTRACT.rounds + 1):
            ask(site, round_, run_id, wide)
    total = spent(verify(site).reservations, 1e-4)
    assert 2.0 < total < 4.0, "composition is more than one run and less than the sum"
    assert total == pytest.approx(epsilon_after(CONTRACT, 2 * CONTRACT.rounds), rel=1e-6)
    tight = dataclasses.replace(PLAN, epsilon=total)
    with pytest.raises(BudgetExceeded, match=r"would bring epsilon to [0-9.]+ of"):
        ask(site, 1, "third", tight)


def test_without_noise_or_secret_epsilon_is_infinite_and_refused(site: Path) -> None:
    with Ledger.open(site) as ledger, pytest.raises(BudgetExceeded, match="infinite"):
        PLAN.reserve(ledger, CONTRACT, 1, "d", secret=False)
    allowed = dataclasses.replace(PLAN, allow_not_private=True)
    with Ledger.open(site) as ledger:
        allowed.reserve(ledger, CONTRACT, 1, "d", secret=False)
    assert math.isinf(spent(verify(site).reservations, 1e-4))
    with pytest.raises(BudgetExceeded):
        ask(site, 2)


def test_a_contract_without_noise_is_refused_before_anything_is_written(site: Path) -> None:
    bare = dataclasses.replace(CONTRACT.privacy, epsilon=None, noise_multiplier=0.0)
    contract = dataclasses.replace(CONTRACT, privacy=bare)
    before = (site / Ledger.FILE_NAME).read_bytes()
    with Ledger.open(site) as ledger:
        with pytest.raises(BudgetExceeded, match="infinite"):
            PLAN.reserve(ledger, contract, 1, "d", secret=True)
        assert (site / Ledger.FILE_NAME).read_bytes() == before
        allowed = dataclasses.replace(PLAN, allow_not_private=True)
        assert not allowed.reserve(ledger, contract, 1, "d", secret=True).private
    assert epsilon_after(contract, 1) == math.inf == spent(verify(site).reservations, 1e-4)


def test_a_retried_round_is_free_even_when_the_budget_is_spent(site: Path) -> None:
    for round_ in range(1, CONTRACT.rounds + 1):
        ask(site, round_)
    before = (site / Ledger.FILE_NAME).read_bytes()
    ask(site, CONTRACT.rounds)
    assert (site / Ledger.FILE_NAME).read_bytes() == before


def test_a_sampled_run_fits_its_budget_and_not_one_round_more(site: Path) -> None:
    privacy = calibrate(
        epsilon=2.0, delta=1e-4, rounds=4, local_steps=5, max_grad_norm=0.5,
        sample_rate=0.2, public_denominator=5.0,
    )  # fmt: skip
    contract = dataclasses.replace(CONTRACT, privacy=privacy, local_steps=5)
    with Ledger.open(site) as ledger:
        for round_ in range(1, contract.rounds + 1):
            PLAN.reserve(ledger, contract, round_, f"{round_}", secret=True)
        total = spent(ledger.reservations, 1e-4)
        assert total == pytest.approx(epsilon_after(contract, contract.rounds), rel=1e-6)
        assert 1.99 < total <= 2.0
        with pytest.raises(BudgetExceeded):
            PLAN.reserve(ledger, contract, contract.rounds + 1, "more", secret=True)
        assert len(ledger.reservations) == contract.rounds
    assert len(verify(site).reservations) == contract.rounds


def test_nothing_reserved_costs_nothing() -> None:
    assert spent((), 1e-4) == 0.0
    assert epsilon_after(CONTRACT, 0) == 0.0


@pytest.mark.parametrize(
    "epsilon, delta", [(0.0, 1e-4), (-1.0, 1e-4), (math.nan, 1e-4), (1.0, 1.0)]
)
def test_a_budget_that_promises_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(InputError):
        calibrate(
            epsilon=epsilon, delta=delta, rounds=1, local_steps=1, max_grad_norm=1.0,
            sample_rate=1.0, public_denominator=1.0,
        )  # fmt: skip


def test_rounds_of_shared_noise_are_spent_as_concentrated_releases(tmp_path: Path) -> None:
    agreed = contract(masked(), masking=masked().masking(500))
    site = tmp_path / "s"
    Ledger.create(site, Genesis(delta=1e-4, epsilon=2.0))
    with Ledger.open(site) as ledger:
        for round_ in range(1, agreed.rounds + 1):
            PLAN.reserve(ledger, agreed, round_, f"{round_}", secret=True)
        with pytest.raises(BudgetExceeded):
            PLAN.reserve(ledger, agreed, agreed.rounds + 1, "more", secret=True)
    found = verify(site).reservations
    assert {(r.mechanism, r.shares) for r in found} == {("discrete-shared", 3)}
    total = spent(found, 1e-4)
    assert 1.999 < total <= 2.0
    assert total == pytest.approx(epsilon_after(agreed, agreed.rounds), rel=1e-6)
    gaussian = [dataclasses.replace(r, mechanism="gaussian", shares=1) for r in found]
    assert spent(gaussian, 1e-4) < 0.97 * total, "a Gaussian account would say too little"


@pytest.mark.parametrize(("delta", "rate"), [(1e-20, 1.0), (9e-11, 0.5), (0.2, 0.2), (0.3, 0.2)])
def test_a_delta_that_nobody_can_check_or_that_promises_nothing_is_refused(
    delta: float, rate: float
) -> None:
    with pytest.raises(InputError):
        calibrate(
            epsilon=2.0, delta=delta, rounds=1, local_steps=1, max_grad_norm=1.0,
            sample_rate=rate, public_denominator=1.0,
        )  # fmt: skip
    with pytest.raises(InputError):
        dataclasses.replace(CONTRACT.privacy, delta=delta, sample_rate=rate)
    if rate == 1.0:
        with pytest.raises(InputError):
            PrivacyPlan(2.0, delta)


def test_the_auditor_resolves_every_delta_that_may_be_chosen() -> None:
    assert constants.LEAST_DELTA == accountant.LEAST_DELTA
    found = accountant.epsilon([accountant.Releases(4.0, 0.5, 10)], constants.LEAST_DELTA)
    assert found.low <= epsilon([PoissonEvent(4.0, 0.5, 10)], constants.LEAST_DELTA) < math.inf


# Few persons with little noise (low orders are best), or many with much (high ones).
KINDS = ((0.7, 0.01), (1.0, 0.05), (1.5, 0.2), (3.0, 0.5), (8.0, 1.0))


def filled(site: Path, kinds: Sequence[tuple[float, float]]) -> list[PoissonEvent]:
    """What a ledger lets through: the first kind once, then the second till the budget ends."""
    Ledger.create(site, Genesis(delta=1e-4, epsilon=4.0))
    let: list[PoissonEvent] = []
    for (noise, rate), most in zip(kinds, (1, 512), strict=True):
        privacy = dataclasses.replace(CONTRACT.privacy, noise_multiplier=noise, sample_rate=rate)
        steps = most
        while steps and len(let) < most:
            asked = dataclasses.replace(
                CONTRACT, run_id=f"{len(let)}", privacy=privacy, local_steps=steps
            )
            try:
                with Ledger.open(site) as ledger:
                    PrivacyPlan(4.0, 1e-4).reserve(ledger, asked, 1, asked.run_id, secret=True)
                let.append(PoissonEvent(noise, rate, steps))
            except BudgetExceeded:
                steps //= 2
    return let


def test_all_that_a_ledger_lets_through_fits_at_one_renyi_order(tmp_path: Path) -> None:
    """Else each outcome could choose its own order, and delta would be spent once for each."""
    orders = np.arange(2, 41)
    fit = np.ones(len(orders), dtype=bool)
    for number, second in enumerate(KINDS[1:]):
        let = filled(tmp_path / f"{number}", (KINDS[0], second))
        assert len(let) > 1, "a ledger that lets nothing through proves nothing"
        divergence = sum(
            np.array([renyi_step(event, int(order)) for order in orders]) * event.steps
            for event in let
        )
        bound = divergence + np.log1p(-1 / orders) - np.log(1e-4 * orders) / (orders - 1)
        fit &= bound <= 4.0 * (1 + 1e-6)
    assert fit.any()


def renyi_step(event: PoissonEvent, order: int) -> float:
    """One step's divergence (Mironov, Talwar and Zhang 2019, section 3.3), term by term."""
    q, sigma = event.sample_rate, event.noise_multiplier
    k = np.arange(order + 1)
    drawn = np.array([math.comb(order, int(one)) for one in k]) * q**k * (1 - q) ** (order - k)
    return float(logsumexp((k * k - k) / 2 / sigma**2, b=drawn)) / (order - 1)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_sampled_runs_beside_runs_of_other_noise_are_decided_by_the_renyi_bound(
    tmp_path: Path, rate: float
) -> None:
    """A server that picks the noise of the next run knowing the last gains nothing by it."""
    site = tmp_path / "site"
    Ledger.create(site, Genesis(delta=1e-4, epsilon=50.0))
    for run_id, noise, sampled in (("first", 1.5, 0.2), ("second", 2.0, rate)):
        privacy = dataclasses.replace(CONTRACT.privacy, noise_multiplier=noise, sample_rate=sampled)
        contract = dataclasses.replace(CONTRACT, run_id=run_id, privacy=privacy)
        with Ledger.open(site) as ledger:
            PrivacyPlan(50.0, 1e-4).reserve(ledger, contract, 1, run_id, secret=True)
        found = verify(site).reservations
        tight = spent(found, 1e-4)
        safe = reserved(found, 1e-4, first=found[0], budget=50.0)
        assert (safe > tight) == (run_id == "second")
