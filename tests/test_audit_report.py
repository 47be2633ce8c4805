"""A report holds as it was made, and no digit of it can be changed by anyone."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import Refused, VeilfaceError
from common.ledger import Ledger
from common.ledger_format import GENESIS_HASH, Line, Reservation, decode_line, encode_line
from common.roster import Roster
from common.signing import public_key
from common.statement import Evidence, Statement
from server.audit.collect import collect
from server.audit.facts import Findings, Report, digest_of
from server.audit.page import render
from server.audit.schema import schema_text
from server.audit.seal import check_seal
from server.audit.verify import Check, check_text, failed
from simulations.evidence import leave_evidence
from tests.audit_rig import (
    Case,
    changed,
    leaves,
    less,
    make_run,
    report_of,
    signed_again,
    sources,
    wrong,
)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run")


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


def test_a_true_report_holds_in_every_line(report: Report) -> None:
    found, checks = check_text(report.to_text())
    assert found == report
    assert {check.outcome for check in checks} == {"holds", "note", "stated"}
    assert sum("the auditor's accountant" in check.what for check in checks) == 3


@pytest.mark.parametrize(
    "case",
    [
        Case(sample_rate=0.3, rounds=2),
        Case(spends=2.0, budget=5.0, sites=1),
        Case(spends=None),
        Case(spends=0.5, rounds=1),
    ],
    ids=["sampled", "some-left", "not-private", "small"],
)
def test_reports_of_other_runs_hold_too(tmp_path: Path, case: Case) -> None:
    report = report_of(make_run(tmp_path / "run", case))
    assert wrong(report) == []
    (first, *_) = report.findings.spending
    assert (first.spent is None) == (case.spends is None)
    if case.budget is not None:
        assert first.remaining == pytest.approx(3.0, abs=1e-3)


def read_and_sealed(text: str) -> None:
    """The first two things that `check_text` does; raises where they fail."""
    report = Report.from_text(text)
    sha256 = digest_of(
        report.facts, report.findings, report.veilface, report.created, report.format
    )
    key = public_key(report.facts.roster_key.encode())
    roster = Roster.read(report.facts.roster.encode(), key)
    check_seal(report.seal, sha256, roster.federation, key)


def test_changing_a_digit_of_any_number_is_caught(report: Report) -> None:
    text = report.to_text()
    read_and_sealed(text)
    numbers = list(re.finditer(r"(?<![\w\\])\d+(\.\d+)?", text))  # all but those in hashes
    assert len(numbers) > 400
    for found in numbers:
        at = found.end() - 1
        other = f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"
        with pytest.raises(VeilfaceError):
            read_and_sealed(other)


def test_changing_a_character_of_any_word_is_caught(report: Report) -> None:
    text = report.to_text()
    for found in list(re.finditer(r"\w+|[^\w\s]", text))[::9]:
        at = found.start() + (found.end() - found.start()) // 2
        other = text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :]
        with pytest.raises(VeilfaceError):
            read_and_sealed(other)


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(place=st.floats(0, 1), removed=st.integers(0, 3), added=st.text(max_size=3))
def test_any_edit_of_the_text_is_caught(
    report: Report, place: float, removed: int, added: str
) -> None:
    text = report.to_text()
    at = int(place * (len(text) - 1))
    other = text[:at] + added + text[at + removed :]
    assert failed(check_text(other)[1]) == (other != text)


def test_a_server_that_signs_a_changed_finding_is_caught_by_the_recomputation(
    run: Path, report: Report
) -> None:
    paths = list(leaves(report.findings))
    assert len(paths) > 100
    for path in paths:
        forged = changed(report.findings, path, less)
        text = signed_again(report, report.facts, forged, run).to_text()
        checks = check_text(text)[1]
        assert failed(checks), f"findings {path} were lowered unnoticed"
        sealed = next(c for c in checks if "server signed" in c.what)
        assert sealed.outcome == "holds", "the lie is properly signed"


def test_the_auditors_accountant_alone_finds_an_understated_epsilon(
    run: Path, report: Report
) -> None:
    def lie(findings: Findings, factor: float) -> Findings:
        rows = tuple(
            replace(one, spent=(one.spent or 0.0) * factor, remaining=one.budget * (1 - factor))
            for one in findings.spending
        )
        return replace(findings, spending=rows)

    half = signed_again(report, report.facts, lie(report.findings, 0.5), run)
    found = wrong(half)
    assert sum(what.startswith("the auditor's accountant finds") for what in found) >= 2


def with_ledger(report: Report, lines: list[Line]) -> tuple[Evidence, ...]:
    text = tuple(encode_line(line).decode().rstrip("\n") for line in lines)
    first, *others = report.facts.sites
    return (replace(first, ledger=text), *others)


def lines_of(evidence: Evidence) -> list[Line]:
    lines: list[Line] = []
    for number, text in enumerate(evidence.ledger):
        previous = lines[-1].hash if lines else GENESIS_HASH
        lines.append(decode_line(f"{text}\n".encode(), number, previous))
    return lines


def chained(lines: list[Line]) -> list[Line]:
    """The same records with all hashes computed anew."""
    found: list[Line] = []
    for line in lines:
        previous = found[-1].hash if found else GENESIS_HASH
        found.append(Line(len(found), previous, line.record))
    return found


@pytest.mark.parametrize("how", ["less noise", "cut off", "one more"])
def test_a_rewritten_ledger_does_not_end_where_its_site_signed(
    run: Path, report: Report, how: str
) -> None:
    lines = lines_of(report.facts.sites[0])
    reservation = lines[1].record
    assert isinstance(reservation, Reservation)
    if how == "less noise":
        lines[1] = replace(lines[1], record=replace(reservation, noise_multiplier=99.0))
    elif how == "cut off":
        lines = lines[:-2]
    else:
        last = replace(reservation, seq=len(lines), round=9)
        lines.append(replace(lines[-1], record=last))
    facts = replace(report.facts, sites=with_ledger(report, chained(lines)))
    found = wrong(signed_again(report, facts, report.findings, run))
    assert "the ledger of site-000 is whole and ends where the site signed" in found


def test_a_statement_that_another_key_signed_is_caught(run: Path, report: Report) -> None:
    first, *others = report.facts.sites
    forged = Statement.unverified(first.statement).signed(Ed25519PrivateKey.generate())
    facts = replace(report.facts, sites=(replace(first, statement=forged), *others))
    found = wrong(signed_again(report, facts, report.findings, run))
    assert found == ["site-000 signed its statement"]


def test_a_report_of_another_federation_is_caught_by_the_fingerprint(
    tmp_path: Path, report: Report
) -> None:
    other = report_of(make_run(tmp_path / "other"))
    expected = next(c.detail for c in check_text(other.to_text())[1] if "roster key" in c.what)
    assert not failed(check_text(other.to_text())[1]), "it is whole in itself"
    key = next(c.what for c in check_text(other.to_text())[1] if c.outcome == "note")
    pinned = key.removeprefix("the roster key is ")
    assert expected and not failed(check_text(other.to_text(), pinned)[1])
    checks = check_text(report.to_text(), pinned)[1]
    assert Check("FAILS", "the roster key is the expected one", checks[2].detail) == checks[2]
    borrowed = replace(report.facts, roster_key=other.facts.roster_key, roster=other.facts.roster)
    assert failed(check_text(replace(report, facts=borrowed).to_text(), pinned)[1])


def test_a_site_that_spent_more_than_its_budget_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(spends=4.0, budget=3.0))
    found = wrong(report_of(run))
    assert found == [f"site-00{n} stayed within its budget" for n in (0, 1)]


def test_a_server_that_used_more_updates_than_sites_released_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(accepted=3))
    assert wrong(report_of(run)) == ["no more updates were used than sites released"]


def test_a_contract_with_other_noise_than_the_ledgers_is_caught(run: Path, report: Report) -> None:
    contract = report.facts.contract
    privacy = replace(contract.privacy, noise_multiplier=9.0)
    facts = replace(report.facts, contract=replace(contract, privacy=privacy))
    found = wrong(signed_again(report, facts, report.findings, run))
    assert "every round is as the contract says" in found


def test_a_run_without_privacy_cannot_be_given_an_epsilon(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(spends=None))
    report = report_of(run)
    assert report.findings.meaning is None
    rows = tuple(replace(one, spent=1.0) for one in report.findings.spending)
    forged = signed_again(report, report.facts, replace(report.findings, spending=rows), run)
    assert "the auditor's accountant finds the epsilons of site-000" in wrong(forged)


def test_collecting_refuses_evidence_that_does_not_hold(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "audit" / "statements" / "site-001.json"
    values = json.loads(path.read_text())
    values["ledger"] = values["ledger"][:-1]
    path.write_text(json.dumps(values))
    with pytest.raises(Refused, match=r"site-001\.json"):
        collect(sources(run))
    other = make_run(tmp_path / "other")
    path.write_bytes((other / "audit" / "statements" / "site-001.json").read_bytes())
    with pytest.raises(Refused, match=r"site-001\.json.*(changed|not signed)"):
        collect(sources(run))


def test_a_site_without_a_statement_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "audit" / "statements" / "site-001.json").unlink()
    checks = check_text(report_of(run).to_text())[1]
    assert not failed(checks)
    assert (
        Check("note", "no statement of site-001", "nothing here holds for their people") in checks
    )


def test_the_auditor_knows_every_field_of_a_reservation() -> None:
    """A new kind of noise must not be counted as a Gaussian because nobody looked at its field."""
    known = {
        "seq", "run_id", "round", "noise_multiplier", "sample_rate", "steps", "max_grad_norm",
        "request_digest", "private", "mechanism", "shares",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(Reservation)} == known


def test_the_published_schema_is_the_one_that_is_applied() -> None:
    shipped = (REPOSITORY / "server" / "audit" / "schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(), "regenerate it with server.audit.schema.schema_text"
    assert (REPOSITORY / "docs" / "audit-schema.json").read_text(encoding="utf-8") == shipped


def test_the_schema_itself_is_sound() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{" * 9999, '{"format": 3}'])
def test_what_is_no_report_fails_and_never_crashes(text: str) -> None:
    report, checks = check_text(text)
    assert report is None and failed(checks)


def test_an_earlier_masked_run_in_a_ledger_rests_on_others_and_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Case(rounds=1, budget=9.0))
    state = run / "sites" / "site-000"
    with Ledger.open(state) as ledger:
        ledger.reserve(
            run_id="masked",
            round=1,
            noise_multiplier=2.0,
            sample_rate=1.0,
            steps=1,
            max_grad_norm=0.5,
            request_digest="a" * 64,
            private=True,
            mechanism="discrete-shared",
            shares=2,
            check=lambda reservations: None,
        )
    leave_evidence(run, "run-1")
    report = report_of(run)
    assert wrong(report) == []
    first, other = report.findings.spending
    assert (first.spent or 0.0) > (other.spent or 0.0) + 0.5
    assert [one.epsilon for one in report.findings.alone][1] == other.spent
    assert "earlier training at these sites shared its noise" in render(report, "en")
