"""The second opinion: every stated epsilon again, by the accountant that did not train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Final

from common.errors import Refused
from server.audit import accountant, renyi
from server.audit.accountant import Range, Releases
from server.audit.assess import (
    ALONE,
    SiteLedger,
    assess,
    cases_of,
    collusion_of,
    left_of,
    releases_of,
    rests_on_others,
    worst_of,
)
from server.audit.facts import Facts, Findings, Report
from server.audit.ledgers import genesis_of
from server.audit.shared import ONLOOKERS, Onlooker, releases_to

# A stated epsilon is an upper bound rounded up to six places. Below the truth it may never be.
# Above, training allows its second accountant 1% and 0.01 (PLD against PRV), so as much here.
_TIGHT: Final = (1.01, 0.01)
# Where no tight accountant resolved delta, training states the Renyi bound, at most twice the
# truth as measured there.
_LOOSE: Final = (2.0, 0.1)
# For shared noise the bound itself is stated, and both find the best order.
_PROVEN: Final = (1 + 1e-5, 2e-6)
# dp_accounting has one argument more than the bound, near epsilon 0.
_GOOGLE_BELOW: Final = 2e-3
_ROUNDING: Final = 2e-6
# Shares rounded to six places; another version of a library may round the last one otherwise.
_SHARES: Final = ("mu", "guess", "lying_guess", "missed", "typical", "unlucky", "bound")
_EPSILONS: Final = ("spent", "alone", "total", "epsilon", "lying", "second", "remaining")
_SHOWN: Final = 3
# What is stated, and the sites of which it is the worst; None where there is no bound.
Claim = tuple[str, float | None, Sequence[Sequence[Releases]] | None]


class Auditor:
    """Compares what findings state with the auditor's own epsilon of the same ledger."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._above = _allowed(findings.meaning.accountant if findings.meaning else "")

    def check_site(self, site: SiteLedger) -> str:
        """Raise Refused unless every epsilon of a site is confirmed; return how exactly."""
        stated = self._findings.of(site.site)
        if len(stated.rounds) != len(site.reservations):
            raise Refused("the report lists other rounds than the ledger")
        asked: list[Claim] = []
        for count, row in enumerate(stated.rounds, start=1):
            name = f"round {row.round}"
            asked.append((f"{name} alone", row.alone, _private(site, count - 1, count)))
            asked.append((f"{name} in total", row.total, _private(site, 0, count)))
        asked.append(("in total", stated.spent, _private(site, 0, len(stated.rounds))))
        return self._compare(asked, site.delta)

    def check_budget(self, site: SiteLedger) -> str:
        """Raise Refused if a site spent more than its budget, or its rest is not what is left."""
        stated, budget = self._findings.of(site.site), genesis_of(site.report).epsilon
        if stated.remaining != left_of(budget, stated.spent):
            raise Refused(f"{stated.remaining} is not what is left of {budget:g}")
        if stated.spent is None:
            return "NOT PRIVATE: there is no bound, and no budget that could hold"
        if stated.spent > budget * (1 + 1e-6):
            raise Refused(f"{stated.spent} of {budget:g} spent")
        return f"{stated.spent:.6f} of {budget:g} spent"

    def check_adversaries(self, ledgers: Sequence[SiteLedger]) -> str:
        """Raise Refused unless the epsilon against every adversary is that of the worst site."""
        private = all(r.private for one in ledgers for r in one.reservations)
        known = dict(cases_of(ledgers)) if private else {}
        asked = [(one.who, one.epsilon, known.get(one.who)) for one in self._findings.adversaries]
        worst = worst_of(self._findings.spending, ledgers)
        self._check_second(worst)
        return self._compare(asked, worst.delta)

    def check_shared(self, facts: Facts, ledgers: Sequence[SiteLedger]) -> str:
        """The same where noise is shared: each epsilon is that of the site that fares worst."""
        if not rests_on_others(facts, ledgers):
            raise Refused("no noise is shared in this run")
        known = {looks.who: looks for looks in ONLOOKERS}
        claims = [(one.who, one.epsilon, known[one.who]) for one in self._findings.adversaries]
        for row in self._findings.collusion:
            for stated, looks in zip(
                (row.epsilon, row.lying), collusion_of(row.sites), strict=True
            ):
                claims.append((f"{looks.who} with {row.sites} sites", stated, looks))
        for what, stated, looks in claims:
            self._check_worst(facts, ledgers, what, stated, looks)
        for own in self._findings.alone:
            sites = [one for one in ledgers if one.site == own.site]
            self._check_worst(facts, sites, f"{own.site} alone", own.epsilon, ALONE)
        self._check_second(worst_of(self._findings.spending, ledgers))
        return f"{len(claims) + len(self._findings.alone)} numbers, found to within 1e-5 of each"

    def _check_worst(
        self,
        facts: Facts,
        sites: Sequence[SiteLedger],
        what: str,
        stated: float | None,
        looks: Onlooker,
    ) -> None:
        if not all(r.private for one in sites for r in one.reservations):
            self._compare([(what, stated, None)], facts.contract.privacy.delta)
            return
        seen = {
            (releases_to(facts, one.reservations, looks, renyi.multiplier), one.delta)
            for one in sites
        }
        found = [(epsilon(some, delta), _allowed_of(some, self._above)) for some, delta in seen]
        if not found:
            raise Refused(f"{what}: no ledger is there")
        low = max(one.low for one, _ in found)
        high = max(factor * one.high + more for one, (factor, more) in found)
        if stated is None or not low - _ROUNDING <= stated <= high:
            raise Refused(f"{what}: {stated} is stated, {low:.6f} found")

    def _check_second(self, worst: SiteLedger) -> None:
        meaning = self._findings.meaning
        if meaning is None:
            return
        found = epsilon(worst.releases, worst.delta)
        above, below = _allowed(meaning.second_accountant), 0.0
        if meaning.second_accountant == "google-rdp":
            above, below = _TIGHT, _GOOGLE_BELOW
        if not _fits(meaning.second, Range(found.low - below, found.high), above):
            raise Refused(f"the second accountant's {meaning.second} is not near {found.high:.6f}")

    def _compare(self, asked: Sequence[Claim], delta: float) -> str:
        wrong, widest = [], 0.0
        for what, stated, sites in asked:
            if sites is None:
                if stated is not None:
                    wrong.append(f"{what}: {stated} is stated, but there is no bound")
                continue
            ranges = [epsilon(site, delta) for site in sites]
            found = Range(max(one.low for one in ranges), max(one.high for one in ranges))
            widest = max(widest, found.high - found.low)
            some = [one for site in sites for one in site]
            if not _fits(stated, found, _allowed_of(some, self._above)):
                between = f"{found.low:.6f} to {found.high:.6f}"
                wrong.append(f"{what}: {stated} is stated, {between} found")
        if wrong:
            more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise Refused("; ".join(wrong[:_SHOWN]) + more)
        return f"{len(asked)} numbers, found to within {widest:.1g}"


def epsilon(releases: Sequence[Releases], delta: float) -> Range:
    """Return the range of epsilon: by divergences where a release is not Gaussian."""
    if any(one.concentrated for one in releases):
        return renyi.epsilon(tuple(releases), delta)
    return accountant.epsilon(releases, delta)


def _allowed(name: str) -> tuple[float, float]:
    return _LOOSE if "rdp" in name else _TIGHT


def _allowed_of(
    releases: Sequence[Releases], otherwise: tuple[float, float]
) -> tuple[float, float]:
    if not any(one.concentrated for one in releases):
        return otherwise
    return _LOOSE if any(one.rate < 1.0 for one in releases) else _PROVEN


def _fits(stated: float | None, found: Range, above: tuple[float, float]) -> bool:
    factor, more = above
    return stated is not None and found.low - _ROUNDING <= stated <= factor * found.high + more


def _private(site: SiteLedger, first: int, end: int) -> Sequence[Sequence[Releases]] | None:
    """The releases of some reservations of one site; None if one of them was not private."""
    some = site.reservations[first:end]
    return [releases_of(some)] if all(r.private for r in some) else None


def difference(report: Report) -> None:
    """Raise Refused where anything but an epsilon differs from what the facts give.

    Epsilons are the business of the auditor's accountant: those of training may differ in their
    last digits from one version of a library to the next.
    """
    where = _first(report.findings, assess(report.facts), "findings", 0.0)
    if where:
        raise Refused(f"{where} is not what the evidence gives")


def _first(stated: object, found: object, where: str, tolerance: float) -> str:
    """Where two values first differ by more than `tolerance`; empty if nowhere."""
    if isinstance(stated, float) and isinstance(found, float):
        return "" if abs(stated - found) <= tolerance else where
    if isinstance(stated, tuple) and isinstance(found, tuple) and len(stated) == len(found):
        pairs = enumerate(zip(stated, found, strict=True))
        parts = (_first(a, b, f"{where}[{n}]", tolerance) for n, (a, b) in pairs)
        return next(filter(None, parts), "")
    if is_dataclass(stated) and type(stated) is type(found):
        return next(filter(None, _by_field(stated, found, where)), "")
    return "" if stated == found else where


def _by_field(stated: object, found: object, where: str) -> Iterator[str]:
    for field in fields(stated):  # type: ignore[arg-type]  # a dataclass, as the caller knows
        one, other = getattr(stated, field.name), getattr(found, field.name)
        if not (field.name in _EPSILONS and isinstance(one, float) and isinstance(other, float)):
            tolerance = _ROUNDING if field.name in _SHARES else 0.0
            yield _first(one, other, f"{where}.{field.name}", tolerance)
