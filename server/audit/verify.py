"""Is everything in a report so? One line for each thing checked, by the evidence in the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final, Literal

import jsonschema  # type: ignore[import-untyped]

from common.config import digest
from common.errors import InputError, Refused, VeilfaceError
from common.metrics import RATES
from common.roster import Roster
from common.signing import fingerprint, public_key
from common.statement import Evidence, Statement
from common.vault_facts import VaultFacts
from common.wording import plural
from server.audit.assess import SiteLedger, ledgers_of, rests_on_others
from server.audit.facts import Facts, Report, digest_of
from server.audit.ledgers import check_statement, ledger_of
from server.audit.recompute import Auditor, difference
from server.audit.renyi import multiplier
from server.audit.seal import check_seal
from server.report.utility import Utility, mean_tmr
from server.report.verdict import HEADS

Outcome = Literal["holds", "FAILS", "stated", "note"]
SCHEMA: Final = "schema.json"
_ROUNDING: Final = 1e-9
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_OLD: Final = timedelta(days=7)
_CLOCKS: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Check:
    """One line of the verdict: `stated` is what a report can only say, `note` what to know."""

    outcome: Outcome
    what: str
    detail: str = ""


def check_text(text: str, expected: str | None = None) -> tuple[Report | None, tuple[Check, ...]]:
    """Check the text of a `report.json`; `expected` is the roster key's fingerprint, to pin.

    The report is None where the text is none; then the checks say why.
    """
    checks = [holds("the text is JSON and fits the published schema", partial(_fits_schema, text))]
    form = "the text is the canonical form of a report"
    try:
        report = Report.from_text(text)
    except VeilfaceError as error:
        return None, (*checks, Check("FAILS", form, str(error)))
    checks.append(Check("holds", form))
    return report, (*checks, *_signatures(report, expected), *_content(report))


def failed(checks: Iterable[Check]) -> bool:
    """Say whether anything fails."""
    return any(check.outcome == "FAILS" for check in checks)


def holds(what: str, check: Callable[[], str | None]) -> Check:
    """Run one check: what it raises fails it, what it returns is its detail."""
    try:
        return Check("holds", what, check() or "")
    except (VeilfaceError, ValueError, RecursionError) as error:
        return Check("FAILS", what, str(error))


@cache
def _schema() -> Any:
    text = (files("server.audit") / SCHEMA).read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _fits_schema(text: str) -> None:
    for error in _schema().iter_errors(json.loads(text)):
        raise InputError(f"{error.json_path}: {error.message[:200]}")


def _roster(facts: Facts) -> Roster:
    return Roster.read(facts.roster.encode(), public_key(facts.roster_key.encode()))


def _signatures(report: Report, expected: str | None) -> Iterator[Check]:
    facts = report.facts

    def pinned() -> str:
        found = fingerprint(public_key(facts.roster_key.encode()))
        if expected is not None and found != expected:
            raise Refused(f"it is {found}, not {expected}")
        return found

    if expected is None:
        key = holds("roster key", pinned)
        hint = "compare it with what the operator told you, or give --fingerprint"
        yield key if failed([key]) else Check("note", f"the roster key is {key.detail}", hint)
    else:
        yield holds("the roster key is the expected one", pinned)
    yield holds("the roster is signed by the roster key", partial(_signed_roster, facts))
    yield holds("the federation's server signed the whole report", partial(_sealed, report))
    for number, evidence in enumerate(facts.sites, start=1):
        name = _name(evidence, number)
        yield holds(f"{name} signed its statement", partial(_signed, facts, evidence))
        what = f"the ledger of {name} is whole and ends where the site signed"
        yield holds(what, partial(_chained, evidence))
    for number, document in enumerate(facts.vaults, start=1):
        yield holds(f"vault {number} signed its facts", partial(_vault, document))


def _name(evidence: Evidence, number: int) -> str:
    try:
        return Statement.unverified(evidence.statement).site
    except VeilfaceError:
        return f"site {number}"


def _signed_roster(facts: Facts) -> str:
    found = _roster(facts)
    return f"federation {found.federation}, serial {found.serial}, of {found.issued}"


def _sealed(report: Report) -> None:
    facts = report.facts
    sha256 = digest_of(facts, report.findings, report.veilface, report.created, report.format)
    key = public_key(facts.roster_key.encode())
    either = report.format == 1
    check_seal(report.seal, sha256, _roster(facts).federation, key, either_s=either)


def _signed(facts: Facts, evidence: Evidence) -> str:
    statement = check_statement(evidence, _roster(facts))
    return f"on {statement.issued}{', in a simulation' if statement.simulated else ''}"


def _chained(evidence: Evidence) -> str:
    found = ledger_of(evidence, Statement.unverified(evidence.statement))
    return f"{plural(len(found.reservations), 'round')} reserved, {len(found.commits)} released"


def _vault(document: str) -> str:
    return VaultFacts.read(document).vault


def _content(report: Report) -> Iterator[Check]:
    """What follows from the evidence; without readable ledgers nothing does."""
    facts, findings = report.facts, report.findings
    try:
        ledgers, roster = ledgers_of(facts), _roster(facts)
        known = {one.site for one in ledgers}
        missing = sorted({one.name for one in roster.sites} - known)
        unseen = len({one.name for one in (*roster.sites, *roster.revoked)} - known)
    except VeilfaceError as error:
        yield Check("FAILS", "every number follows from the ledgers", str(error))
        return
    yield holds("every round is as the contract says", partial(_constants, facts, ledgers))
    for site in ledgers:
        yield holds(f"{site.site} stated the whole run", partial(_whole, facts, site))
    what = "no more updates were used than sites released"
    yield holds(what, partial(_accepted, facts, ledgers, unseen))
    auditor = Auditor(findings)
    for site in ledgers:
        what = f"the auditor's accountant finds the epsilons of {site.site}"
        yield holds(what, partial(auditor.check_site, site))
        yield holds(f"{site.site} stayed within its budget", partial(auditor.check_budget, site))
    what = "the auditor's accountant finds the epsilons against each adversary"
    if rests_on_others(facts, ledgers):
        yield holds("each share of noise is as large as was agreed", partial(_noise, facts))
        yield holds("no sum is over fewer sites than was agreed", partial(_survivors, facts))
        yield holds(what, partial(auditor.check_shared, facts, ledgers))
    else:
        yield holds(what, partial(auditor.check_adversaries, ledgers))
    if facts.utility is not None and facts.utility.difference is not None:
        what = "the difference that training made is that of the stated rates"
        yield holds(what, partial(_difference, facts.utility))
    yield holds("all else that was computed follows from the evidence", partial(difference, report))
    yield from _open_points(facts, missing, report.created)


def _constants(facts: Facts, ledgers: tuple[SiteLedger, ...]) -> str:
    contract, privacy = facts.contract, facts.contract.privacy
    if facts.run_id != contract.run_id:
        raise InputError("the report names another run than its contract")
    if facts.trust != contract.trust:
        raise InputError("the report names another trust model than its contract")
    if len({one.site for one in ledgers}) < len(ledgers):
        raise InputError("a site's ledger is there twice")
    wanted = (
        privacy.noise_multiplier,
        privacy.sample_rate,
        contract.local_steps,
        privacy.max_grad_norm,
        contract.mechanism,
        1 if contract.masking is None else contract.masking.terms.honest,
    )
    others: set[str] = set()
    for site, evidence in zip(ledgers, facts.sites, strict=True):
        if site.delta != privacy.delta:
            raise InputError(f"{site.site} counts at another delta than the contract")
        if digest(contract) not in Statement.unverified(evidence.statement).contracts:
            raise InputError(f"{site.site} does not state that it was given this contract")
        for entry in site.reservations:
            found = (
                entry.noise_multiplier,
                entry.sample_rate,
                entry.steps,
                entry.max_grad_norm,
                entry.mechanism,
                entry.shares,
            )
            if entry.run_id != contract.run_id:
                others.add(entry.run_id)
            elif found != wanted or entry.round > contract.rounds:
                raise InputError(f"round {entry.round} of {site.site} is not")
    return f"{len(others)} other runs are in the ledgers and counted" if others else ""


def _whole(facts: Facts, site: SiteLedger) -> str:
    """Rounds are reserved in order: what ends with the last one, or was ended, is complete."""
    found = [r.round for r in site.reservations if r.run_id == facts.run_id]
    if facts.run_id in site.report.ended:
        return f"ended by the site after {len(found)} rounds"
    if facts.contract.rounds not in found:
        raise InputError(
            f"its statement is of {len(found)} of {facts.contract.rounds} rounds: more may follow",
            hint=f"veilface audit statement --end {facts.run_id}, at the site",
        )
    return "up to the last round"


def _noise(facts: Facts) -> str:
    """The multiplier in every ledger is that of the honest shares, found from the constants."""
    masking, privacy = facts.contract.masking, facts.contract.privacy
    if masking is None:
        return "in this run each site adds all of it"
    if privacy.epsilon is None:
        return "NOT PRIVATE: there is none"
    found = multiplier(masking, privacy.max_grad_norm, masking.terms.honest)
    if found < privacy.noise_multiplier * (1 - 1e-9):
        raise InputError(f"{masking.terms.honest} shares make {found:.6g}, less than was charged")
    return f"{masking.terms.honest} shares make {found:.6g}, {privacy.noise_multiplier:g} charged"


def _survivors(facts: Facts) -> str:
    masking = facts.contract.masking
    if masking is None:
        return "in this run nothing is summed"
    for one in facts.rounds:
        if one.accepted and not masking.minimum <= one.accepted <= masking.most_sites:
            agreed = f"agreed {masking.minimum} to {masking.most_sites}"
            raise InputError(f"round {one.round} is over {one.accepted}, {agreed}")
    lost = sum(one.accepted == 0 for one in facts.rounds)
    return f"{plural(len(facts.rounds) - lost, 'sum')}, {plural(lost, 'round')} lost"


def _accepted(facts: Facts, ledgers: tuple[SiteLedger, ...], unseen: int) -> str:
    """Compare with the ledgers; `unseen` sites without a statement may have released, too."""
    released = [site.released(facts.run_id) for site in ledgers]
    if len({one.round for one in facts.rounds}) < len(facts.rounds):
        raise InputError("a round is there twice")
    for one in facts.rounds:
        known = sum(one.round in rounds for rounds in released)
        if one.accepted > known + unseen:
            raise InputError(f"round {one.round}: {one.accepted} used, {known} released")
    return (
        f"{plural(unseen, 'site')} handed in nothing and may have released as well"
        if unseen
        else ""
    )


def _difference(utility: Utility) -> str:
    """The verdict follows from the interval alone; the interval rests on the server's word."""
    found = utility.difference
    assert found is not None
    after, start = utility.after, utility.start
    changes = {name: getattr(after, name) - getattr(start, name) for name in RATES}
    changes["tmr_mean"] = mean_tmr(after) - mean_tmr(start)
    for name, value in changes.items():
        stated = getattr(found, name)
        if abs(stated.value - value) > _ROUNDING:
            raise InputError(f"{name} changed by {value:+.6f}, not {stated.value:+.6f}")
        if not -1 <= stated.low <= stated.high <= 1:
            raise InputError(f"{stated.low:g} to {stated.high:g} is no interval of {name}")
    return HEADS[found.verdict]


def _age(statement: Statement, created: str) -> Iterator[Check]:
    """Warn of a statement that is of another time than the report."""
    try:
        issued, made = (datetime.strptime(one, _TIME) for one in (statement.issued, created))
    except ValueError as error:
        yield Check("FAILS", f"report and statement of {statement.site} are dated", str(error))
        return
    if made - issued > _OLD:
        detail = f"{statement.issued}, the report is of {created}: later runs are not in it"
        yield Check("note", f"the statement of {statement.site} is old", detail)
    if issued - made > _CLOCKS:
        detail = f"{statement.issued}, the report is of {created}: a clock is wrong, or a date"
        yield Check("note", f"the statement of {statement.site} is later than the report", detail)


def _open_points(facts: Facts, missing: list[str], created: str) -> Iterator[Check]:
    """What to know, and what nobody can recompute from the report."""
    if missing:
        names = ", ".join(missing)
        yield Check("note", f"no statement of {names}", "nothing here holds for their people")
    for one in facts.sites:
        statement = Statement.unverified(one.statement)
        yield from _age(statement, created)
    if any(Statement.unverified(one.statement).simulated for one in facts.sites):
        detail = "one machine held all keys: the signatures prove no independence of the sites"
        yield Check("note", "this is a simulation", detail)
    if facts.trust == "secagg":
        detail = "as the server counted; charges in ledgers do not depend on it"
        yield Check("stated", "how many sites survived each round", detail)
        detail = "no report can show that sites do not help the server"
        yield Check("note", "the charged epsilons rest on an assumption", detail)
    if facts.utility or facts.groups or facts.scores:
        yield Check("stated", "error rates", "measured on public data, signed by the server")
    if facts.refusals:
        yield Check("stated", "answers that were not used", "as recorded and signed by the server")
    yield Check("stated", "software versions", "as each party found and signed them")
