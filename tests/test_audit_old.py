"""An old report that verifies: genuine statements from the middle of a run, sealed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from client import statement_cli
from client.statement import evidence_of
from common.errors import LedgerError, Refused, VeilfaceError
from common.ledger import Ledger, verify
from common.statement import Evidence
from server.audit.assess import assess
from server.audit.cli import report as report_command
from server.audit.facts import Facts, Report
from server.audit.verify import check_text, failed
from simulations.evidence import bundle_of
from tests.audit_rig import Case, _contract, _spend, make_run, report_of, signed_again, wrong
from tests.provisioning_rig import archive, make

CASE = Case(sites=1, rounds=5)
SITE, RUN = "site-000", "run-1"
SEALED = "the federation's server signed the whole report"
P384 = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run", CASE)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


def midway(folder: Path, rounds: int = 3) -> Path:
    """A site's state when so many rounds of the run were played."""
    _spend(folder, _contract(CASE), replace(CASE, rounds=rounds, budget=CASE.spends))
    return folder


def signed(state: Path, run: Path) -> Evidence:
    bundle = bundle_of(run, RUN, SITE)
    return evidence_of(state, bundle, public=run / "public", simulated=True)


def of_the_middle(report: Report, evidence: Evidence, run: Path) -> Report:
    """What a server makes of a whole run's report and an old statement: half the epsilon."""
    facts: Facts = replace(report.facts, sites=(evidence,), rounds=report.facts.rounds[:3])
    findings = assess(facts)
    epsilon, whole = (one.spending[0].spent or 0.0 for one in (findings, report.findings))
    assert epsilon < whole
    return signed_again(report, facts, findings, run)


def test_a_whole_run_holds_and_one_that_stops_in_the_middle_does_not(
    report: Report, run: Path, tmp_path: Path
) -> None:
    assert wrong(report) == []
    old = of_the_middle(report, signed(midway(tmp_path / "state"), run), run)
    assert wrong(old) == [f"{SITE} stated the whole run"]


def test_a_site_that_ended_the_run_vouches_for_it_and_answers_no_more(
    report: Report, run: Path, tmp_path: Path
) -> None:
    state = midway(tmp_path / "state")
    with Ledger.open(state) as ledger:
        ledger.end(RUN)
        ledger.end(RUN)
    assert wrong(of_the_middle(report, signed(state, run), run)) == []
    assert verify(state).ended == (RUN,)
    with pytest.raises(Refused, match="ended here"):
        next_round(state, 4)
    assert next_round(state, 3) == 3, "a retry of what was reserved before spends nothing"


def next_round(state: Path, round_: int) -> int:
    agreed = _contract(CASE)
    with Ledger.open(state) as ledger:
        return ledger.reserve(
            run_id=RUN, round=round_, noise_multiplier=agreed.privacy.noise_multiplier,
            sample_rate=1.0, steps=1, max_grad_norm=0.5, request_digest="a" * 64, private=True,
            check=lambda reservations: None,
        ).round  # fmt: skip


def test_rounds_come_in_order_or_the_last_would_not_be_the_end(tmp_path: Path) -> None:
    state = midway(tmp_path / "state", 0)
    next_round(state, 5)
    with pytest.raises(Refused, match="after a later one"):
        next_round(state, 4)
    assert [r.round for r in verify(state).reservations] == [5]


def test_a_ledger_that_goes_on_after_an_end_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = midway(tmp_path / "state")
    with Ledger.open(state) as ledger:
        ledger.end(RUN)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "ended", ())
            ledger.reserve(
                run_id=RUN, round=4, noise_multiplier=3.0, sample_rate=1.0, steps=1,
                max_grad_norm=0.5, request_digest="a" * 64, private=True, check=lambda found: None,
            )  # fmt: skip
    assert "has ended" in verify(state).findings[0]
    with pytest.raises(LedgerError), Ledger.open(state):
        pass


def test_the_command_ends_a_run_at_the_site(tmp_path: Path) -> None:
    make(tmp_path / "fed")
    state = midway(tmp_path / "state")
    told = ["--bundle", str(archive(tmp_path / "fed", "a")), "--out", str(tmp_path / "a.json")]
    done = CliRunner().invoke(statement_cli.statement, [str(state), *told, "--end", RUN])
    assert done.exit_code == 0, done.exception
    assert verify(state).ended == (RUN,)
    assert len(Evidence.read((tmp_path / "a.json").read_bytes(), "a.json").ledger) == 1 + 3 * 2 + 1


def test_a_report_that_its_own_verify_refuses_exits_1(run: Path, tmp_path: Path) -> None:
    told = [str(run), "--out", str(tmp_path / "good"), "--no-pdf"]
    assert CliRunner().invoke(report_command, told).exit_code == 0
    old = tmp_path / "old.json"
    old.write_bytes(signed(midway(tmp_path / "state"), run).to_bytes())
    told = [str(run), "--out", str(tmp_path / "bad"), "--no-pdf", "--statement", str(old)]
    done = CliRunner().invoke(report_command, told)
    assert isinstance(done.exception, VeilfaceError) and done.exception.exit_code == 1
    assert f"FAILS {SITE} stated the whole run" in done.output


@pytest.mark.parametrize("how", ["upper case", "a space", "another s", "a longer r"])
def test_a_delegation_has_one_text(report: Report, how: str) -> None:
    text = report.seal.delegation
    r, s = decode_dss_signature(bytes.fromhex(text))
    if how == "upper case":
        text = text.upper()
    elif how == "a space":
        text = f"{text[:2]} {text[2:]}"
    elif how == "another s":
        text = encode_dss_signature(r, P384 - s).hex()
    else:
        text = encode_dss_signature(r + P384, s).hex()
    assert wrong(replace(report, seal=replace(report.seal, delegation=text))) == [SEALED]


@pytest.mark.parametrize(
    ("created", "said"),
    [("2030-01-01T00:00:00Z", "is old"), ("2020-01-01T00:00:00Z", "is later than the report")],
)
def test_a_statement_of_another_time_is_noted(
    report: Report, run: Path, created: str, said: str
) -> None:
    dated = replace(report, created=created)
    checks = check_text(signed_again(dated, report.facts, report.findings, run).to_text())[1]
    assert not failed(checks)
    assert [c.what for c in checks if c.outcome == "note" and said in c.what] == [
        f"the statement of {SITE} {said}"
    ]


@pytest.mark.parametrize("created", ["yesterday", "2026-11-24 12:00", "2026-11-24T12:00:00+00:00"])
def test_a_report_without_a_proper_date_fails(report: Report, run: Path, created: str) -> None:
    dated = replace(report, created=created)
    found = wrong(signed_again(dated, report.facts, report.findings, run))
    assert f"report and statement of {SITE} are dated" in found
