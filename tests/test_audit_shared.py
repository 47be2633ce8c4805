"""What a report says of shared noise is proven, and no number of it can be changed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from common.accounting import ConcentratedEvent, PoissonEvent
from common.accounting import epsilon as trained
from common.contract import Masking
from common.masking import ShareNoise, adversaries
from server.audit import cli, renyi
from server.audit.accountant import Releases
from server.audit.bound import BoundedAttack
from server.audit.facts import Report
from server.audit.page import render, split
from server.audit.verify import check_text
from server.audit.wording import LANGUAGES, Language, Wording
from tests.audit_rig import (
    DELTA,
    Case,
    changed,
    leaves,
    less,
    make_run,
    report_of,
    signed_again,
    wrong,
)

OLDER = Path(__file__).parent / "vectors" / "audit-format-1.json"
CASE = Case(sites=5, rounds=4, minimum=4, colluders=1, survivors=(5, 4, 0, 5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run", CASE)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


@pytest.mark.parametrize(("z", "steps"), [(1.3, 5), (0.3, 1), (20.0, 3), (500.0, 1), (0.05, 9)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_both_accountants_prove_the_same_epsilon(z: float, steps: int, delta: float) -> None:
    found = renyi.epsilon((Releases(z, 1.0, steps, True),), delta)
    stated = trained([ConcentratedEvent(z, steps)], delta)
    assert found.low <= stated <= found.high * (1 + 1e-6) + 1e-6
    other = trained([ConcentratedEvent(z * 1.01, steps)], delta)
    assert other < found.low, "one part in a hundred more noise is told apart"


def test_a_sampled_step_costs_what_the_binomial_formula_says() -> None:
    q, sigma, orders = 0.1, 1.2, np.array([2.0, 8.0, 33.0])
    expected = [
        math.log(
            sum(
                math.comb(int(a), k)
                * q**k
                * (1 - q) ** (a - k)
                * math.exp((k * k - k) / 2 / sigma**2)
                for k in range(int(a) + 1)
            )
        )
        / (a - 1)
        for a in orders
    ]
    found = renyi.divergence([Releases(sigma, q, 3)], orders)
    assert found == pytest.approx(3 * np.array(expected), rel=1e-9)
    mixed = (Releases(1.2, 0.1, 20), Releases(2.0, 1.0, 5, True))
    stated = trained([PoissonEvent(1.2, 0.1, 20), ConcentratedEvent(2.0, 5)], 1e-5)
    assert renyi.epsilon(mixed, 1e-5).low <= stated


@pytest.mark.parametrize("sigma", [0.5, 0.8, 3.0, 1e4])
@pytest.mark.parametrize("shares", [1, 2, 7])
def test_the_auditor_s_own_formula_gives_the_noise_of_shares(sigma: float, shares: int) -> None:
    masking = Masking(8, 1, 40_000, sigma)
    encoding = masking.encoding(0.5)
    expected = ShareNoise(sigma, encoding.l2_sensitivity, 40_000).noise_multiplier(shares)
    assert renyi.multiplier(masking, 0.5, shares) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
def test_no_gaussian_attack_beats_the_bounds_and_half_the_noise_does(mu: float) -> None:
    """A Gaussian is one of the mechanisms that the bound holds for."""
    bound = BoundedAttack([Releases(1 / mu, 1.0, 1, True)], DELTA)
    assert ndtr(mu / 2) <= bound.guess() < ndtr(mu / 2) + 0.12
    curve = bound.trade_off()
    assert all(
        missed <= ndtr(ndtri(1 - alarm) - mu) + 1e-9
        for alarm, missed in zip(curve.false_alarm, curve.missed, strict=True)
    )
    assert all(after <= before + 1e-6 for before, after in pairwise(curve.missed))
    assert ndtr(mu) > bound.guess(), "twice the signal is not allowed"
    for prior, found in zip((0.5, 0.01), bound.posteriors(), strict=True):
        odds = prior / (1 - prior) * math.exp(mu**2 / 2 + mu * ndtri(0.95))
        assert odds / (1 + odds) <= found.unlucky
        assert found.typical <= found.unlucky <= found.bound


@pytest.mark.parametrize(
    "case",
    [CASE, Case(sites=3, minimum=3), Case(sites=3, minimum=3, spends=None),
     Case(sites=3, minimum=3, spends=0.2, rounds=1), Case(sites=3, minimum=3, survivors=(0, 3, 0))],
    ids=["dropouts", "all", "not-private", "small", "lost"],
)  # fmt: skip
def test_a_true_report_of_a_masked_run_holds_in_every_line(tmp_path: Path, case: Case) -> None:
    report = report_of(make_run(tmp_path / "run", case))
    assert wrong(report) == []
    assert report.facts.trust == "secagg"
    for language in LANGUAGES:
        assert split(render(report, language))[0] == report.to_text()


def test_epsilon_against_each_adversary_is_that_of_the_survivors(report: Report) -> None:
    contract, findings = report.facts.contract, report.findings
    assert contract.masking is not None
    noise = contract.masking.noise(contract.privacy.max_grad_norm)
    expected = adversaries(noise, (5, 4, 4, 5), DELTA, minimum=4, colluders=1)
    found = {one.who: one.epsilon for one in findings.adversaries}
    assert found["models"] == found["sums"] == pytest.approx(expected.server, abs=1e-5)
    assert found["curious"] == pytest.approx(expected.colluding[0], abs=1e-4)
    assert found["hostile"] == pytest.approx(expected.hostile[1], abs=1e-3)
    assert found["unmasked"] == pytest.approx(expected.unmasked, abs=1e-5)
    rows = findings.collusion
    assert [one.sites for one in rows] == [0, 1, 2, 3, 4]
    assert [one.shares for one in rows] == [4, 3, 2, 1, 1]
    together = [one.epsilon for one in rows[1:]]
    assert together == pytest.approx(list(expected.colluding), abs=1e-3)
    assert [one.lying for one in rows[:2]] == pytest.approx(list(expected.hostile), abs=1e-3)
    assert {one.lying for one in rows[2:]} == {found["unmasked"]}
    assert {one.epsilon for one in findings.alone} == {found["unmasked"]}


def test_a_server_that_signs_any_changed_finding_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(sites=3, rounds=2, minimum=3, colluders=1))
    report = report_of(run)
    paths = list(leaves(report.findings))
    assert sum(path[0] in ("collusion", "alone", "adversaries") for path in paths) > 30
    for path in paths:
        forged = changed(report.findings, path, less)
        assert wrong(signed_again(report, report.facts, forged, run)), f"{path} was lowered"


@pytest.mark.parametrize("who", ["accepted", "minimum", "colluders", "sigma", "shares"])
def test_constants_that_do_not_make_the_noise_are_caught(
    run: Path, report: Report, who: str
) -> None:
    facts, contract, masking = report.facts, report.facts.contract, report.facts.contract.masking
    assert masking is not None
    if who == "accepted":
        facts = replace(facts, rounds=(replace(facts.rounds[0], accepted=3), *facts.rounds[1:]))
        expected = "no sum is over fewer sites than was agreed"
    elif who == "shares":
        rows = tuple(
            replace(one, rounds=tuple(replace(row, shares=4) for row in one.rounds))
            for one in report.findings.spending
        )
        report = replace(report, findings=replace(report.findings, spending=rows))
        expected = "all else that was computed follows from the evidence"
    else:
        others = {
            "minimum": replace(masking, minimum=5),
            "colluders": replace(masking, colluders=0),
            "sigma": replace(masking, sigma=masking.sigma * 1.5),
        }
        masked = replace(contract, masking=others[who])
        facts, expected = replace(facts, contract=masked), "every round is as the contract says"
    assert expected in wrong(signed_again(report, facts, report.findings, run))


def test_a_report_of_too_little_noise_for_its_shares_is_caught(
    run: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The auditor computes noise from the constants, whatever the training's code lets pass."""
    monkeypatch.setattr(Masking, "check", lambda self, privacy: None)
    contract, masking = report.facts.contract, report.facts.contract.masking
    assert masking is not None
    thin = replace(contract, masking=replace(masking, sigma=masking.sigma * 0.9))
    found = wrong(signed_again(report, replace(report.facts, contract=thin), report.findings, run))
    assert "each share of noise is as large as was agreed" in found


def test_a_masked_run_is_not_passed_off_as_one_that_trusts_nobody(
    run: Path, report: Report
) -> None:
    local = replace(report.facts, trust="local")
    found = wrong(signed_again(report, local, report.findings, run))
    assert "every round is as the contract says" in found


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_assumption_stands_under_against_whom_before_any_table(
    report: Report, language: Language
) -> None:
    page, w = render(report, language), Wording(language)
    said = w("sharing.some", minimum=4, colluders=1, honest=3)
    assert page.index(w("short.against")) < page.index(said) < page.index("<table")
    assert w("short.everyone") not in page
    assert w("sharing.lost") in page and w("sharing.were_lost", count=1) in page


def test_a_visible_number_of_a_masked_page_cannot_be_changed(
    run: Path, report: Report, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    page = render(report, "en")
    for row in report.findings.collusion:
        shown = f"{math.ceil(100 * (row.epsilon or 0) - 1e-6) / 100:.2f}<"
        assert shown in page
        file = tmp_path / "report.html"
        file.write_text(page.replace(shown, "1.00<", 1), encoding="utf-8")
        result = CliRunner().invoke(cli.verify, [str(file)])
        assert "FAILS  the page shows what the report says" in result.output


def test_a_deployed_run_shows_its_first_and_last_scores(tmp_path: Path) -> None:
    report = report_of(make_run(tmp_path / "run", Case(sites=3, minimum=3, scored=True)))
    assert [one.round for one in report.facts.scores] == [1, 3] and report.facts.utility is None
    page = render(report, "en")
    for text in (">57.0%<", ">71.0%<", ">37.0%<", ">51.0%<", "own public test faces"):
        assert text in page
    assert wrong(report) == []
    stated = [c.what for c in check_text(report.to_text())[1] if c.outcome == "stated"]
    assert "error rates" in stated


def test_a_report_of_format_1_still_verifies_and_no_digit_of_it_can_be_changed() -> None:
    text = OLDER.read_text(encoding="utf-8")
    report, checks = check_text(text)
    assert report is not None and report.format == 1
    assert not [check for check in checks if check.outcome == "FAILS"]
    assert render(report, "en")
    spent = f"{report.findings.spending[0].spent}"
    assert [c for c in check_text(text.replace(spent, "3.5"))[1] if c.outcome == "FAILS"]
    newer = text.replace('"format": 1', '"format": 2')
    assert [c for c in check_text(newer)[1] if c.outcome == "FAILS"]
