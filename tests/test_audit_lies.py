"""A server that signs a false report with its own keys: what the evidence contradicts fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.audit.assess import assess
from server.audit.facts import Facts, Report, Round
from server.audit.verify import check_text
from tests.audit_rig import Case, make_run, report_of, signed_again, wrong

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
