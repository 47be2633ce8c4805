"""A server that signs a false report with its own keys: what the evidence contradicts fails."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.special import ndtr, ndtri

from common.accounting import Event, GaussianEvent, PoissonEvent, cross_checked_epsilon
from common.ledger import Ledger
from common.paired import Change
from server.audit.assess import assess
from server.audit.facts import Facts, Report, Round
from server.audit.page import render
from server.audit.verify import check_text
from simulations.evidence import leave_evidence
from tests.audit_rig import DELTA, Case, make_run, report_of, signed_again, wrong

MASKED = Case(sites=5, rounds=2, minimum=4, colluders=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run", MASKED)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


def _lie(report: Report, facts: Facts, run: Path) -> list[str]:
    """What fails of a report in which everything follows from facts that the server changed."""
    return wrong(signed_again(report, facts, assess(facts), run))


def _counted(facts: Facts, sites: int) -> tuple[Round, ...]:
    return tuple(replace(one, accepted=sites) for one in facts.rounds)


def test_a_site_without_a_statement_hides_one_update_and_no_more(report: Report, run: Path) -> None:
    """More survivors than there are would be more noise than there is."""
    fewer = replace(report.facts, sites=report.facts.sites[:-1])
    assert _lie(report, fewer, run) == []
    assert _lie(report, replace(fewer, rounds=_counted(fewer, 6)), run) == [
        "no more updates were used than sites released",
    ]
    assert "no sum is over fewer sites than was agreed" in _lie(
        report, replace(fewer, rounds=_counted(fewer, 7)), run
    )


def test_a_ledger_or_a_round_is_not_counted_twice(report: Report, run: Path) -> None:
    facts = report.facts
    twice = replace(facts, sites=(*facts.sites, facts.sites[-1]), rounds=_counted(facts, 6))
    assert _lie(report, twice, run) == ["every round is as the contract says"]
    again = replace(facts, rounds=(*facts.rounds, facts.rounds[0]))
    assert _lie(report, again, run) == ["no more updates were used than sites released"]


def _spend(run: Path, site: str, sigma: float, rate: float, shares: int = 1) -> None:
    """One round of another run in a site's ledger."""
    with Ledger.open(run / "sites" / site) as ledger:
        ledger.reserve(
            run_id="earlier", round=1, noise_multiplier=sigma, sample_rate=rate, steps=1,
            max_grad_norm=0.5, request_digest="c" * 64, private=True, check=lambda found: None,
            mechanism="gaussian" if shares == 1 else "discrete-shared", shares=shares,
        )  # fmt: skip


def test_the_guess_is_of_the_site_where_it_is_surest_not_of_the_largest_epsilon(
    tmp_path: Path,
) -> None:
    """A full batch of noise 1 betrays 69 in 100; a rare step of little noise costs more epsilon."""
    run = make_run(tmp_path / "run", Case(spends=0.1, budget=30.0))
    _spend(run, "site-000", 1.0, 1.0)
    _spend(run, "site-001", 0.35, 0.02)
    shutil.rmtree(run / "audit" / "statements")
    leave_evidence(run, "run-1")
    report = report_of(run)
    assert wrong(report) == []
    first, second = report.findings.spending
    assert first.spent is not None and second.spent is not None and first.spent < second.spent
    meaning = report.findings.meaning
    assert meaning is not None and meaning.site == "site-001"
    assert meaning.guess >= ndtr(0.5)
    assert all(one.guess >= ndtr(0.5) for one in report.findings.adversaries)
    missed = dict(zip(meaning.trade_off.false_alarm, meaning.trade_off.missed, strict=True))
    assert missed[0.1] <= ndtr(-ndtri(0.1) - 1.0)
    pair: list[Event] = [GaussianEvent(1.0, 1), PoissonEvent(0.35, 0.02, 1)]
    epsilons = {one.who: one.epsilon or 0.0 for one in report.findings.adversaries}
    assert epsilons["two-sites"] >= cross_checked_epsilon(pair, DELTA).epsilon
    assert "replaced" not in epsilons
    less = tuple(
        replace(one, epsilon=7.6) if one.who == "two-sites" else one
        for one in report.findings.adversaries
    )
    lie = signed_again(report, report.facts, replace(report.findings, adversaries=less), run)
    assert wrong(lie) == ["the auditor's accountant finds the epsilons against each adversary"]


def test_next_to_no_noise_at_one_site_fails_and_takes_no_memory(tmp_path: Path) -> None:
    """A ledger is its site's own word: it must not stop whoever reads it."""
    run = make_run(tmp_path / "run", Case(budget=1e15))
    _spend(run, "site-001", 1e-6, 1.0)
    shutil.rmtree(run / "audit" / "statements")
    leave_evidence(run, "run-1")
    assert wrong(report_of(run)) == [
        "the auditor's accountant finds the epsilons of site-001",
        "the auditor's accountant finds the epsilons against each adversary",
    ]


def test_what_is_known_by_a_bound_only_at_any_site_is_called_a_bound(tmp_path: Path) -> None:
    """The largest epsilon may be of a site whose noise is its own; the numbers are not only its."""
    run = make_run(tmp_path / "run", Case(spends=0.1, budget=30.0))
    _spend(run, "site-000", 1.0, 1.0, shares=3)
    _spend(run, "site-001", 0.35, 0.02)
    shutil.rmtree(run / "audit" / "statements")
    leave_evidence(run, "run-1")
    report = report_of(run)
    assert wrong(report) == []
    assert report.findings.meaning is not None and report.findings.meaning.site == "site-001"
    page = render(report, "en")
    assert "no attack gets below this line" in page and "best attack there can be" not in page


def test_nothing_is_left_of_a_budget_that_bounds_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(spends=None))
    report = report_of(run)
    more = tuple(replace(one, remaining=7.5) for one in report.findings.spending)
    lie = signed_again(report, report.facts, replace(report.findings, spending=more), run)
    assert wrong(lie) == [f"site-00{n} stayed within its budget" for n in (0, 1)]


def test_a_report_cannot_pass_for_one_of_another_format_or_time(tmp_path: Path) -> None:
    """Format 2 is signed as one line more than format 1: that line must not hide in another."""
    report = report_of(make_run(tmp_path / "run"))
    other = replace(report, format=1, created=f"{report.created}\n2")
    found, checks = check_text(other.to_text())
    assert found is None
    assert checks[-1].outcome == "FAILS"


def test_a_difference_that_is_not_that_of_the_rates_is_found(report: Report, run: Path) -> None:
    facts = report.facts
    assert facts.utility is not None and facts.utility.difference is not None
    mean = facts.utility.difference.tmr_mean
    what = "the difference that training made is that of the stated rates"
    for lie in (
        Change(mean.value + 0.05, mean.low + 0.05, mean.high + 0.05),
        Change(mean.value, mean.high, mean.low),
        Change(mean.value, mean.low, 1.5),
    ):
        said = replace(facts.utility.difference, tmr_mean=lie)
        false = replace(facts, utility=replace(facts.utility, difference=said))
        assert _lie(report, false, run) == [what]
