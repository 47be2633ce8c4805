"""What the sections of a page share: the report, its words, and what many of them ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from common.roster import Roster
from common.signing import fingerprint, public_key
from common.statement import Statement
from server.audit.facts import Facts, Findings, Report, RoundSpending, Spending
from server.audit.wording import Wording
from server.report.page import table


@dataclass(frozen=True)
class View:
    """A report in one language."""

    report: Report
    w: Wording

    @property
    def facts(self) -> Facts:
        return self.report.facts

    @property
    def findings(self) -> Findings:
        return self.report.findings

    @cached_property
    def roster(self) -> Roster:
        return Roster.read(self.facts.roster.encode(), public_key(self.facts.roster_key.encode()))

    @property
    def fingerprint(self) -> str:
        return fingerprint(public_key(self.facts.roster_key.encode()))

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        return tuple(Statement.unverified(one.statement) for one in self.facts.sites)

    @cached_property
    def missing(self) -> list[str]:
        """The sites on the roster that handed in no statement, by name."""
        return sorted({one.name for one in self.roster.sites} - {s.site for s in self.statements})

    @property
    def worst(self) -> Spending:
        """The site that spent most; one without a bound before all."""
        return max(
            self.findings.spending,
            key=lambda one: float("inf") if one.spent is None else one.spent,
        )

    @property
    def bounded(self) -> bool:
        """Whether every site has a bound."""
        return self.findings.meaning is not None

    @property
    def shared(self) -> bool:
        """Whether anything rests on noise that other sites add."""
        return bool(self.findings.alone)

    @property
    def known_by_bound(self) -> frozenset[str]:
        """The sites whose releases are known by a bound only, not exactly."""
        return frozenset(
            one.site
            for one in self.findings.spending
            if any(row.mechanism == "discrete-shared" for row in one.rounds)
        )

    @property
    def fewest_shares(self) -> int:
        """The fewest sites whose noise a charge in any ledger rests on."""
        rows = [row for one in self.findings.spending for row in one.rounds]
        return min((row.shares for row in rows if row.mechanism == "discrete-shared"), default=1)

    @cached_property
    def alike(self) -> tuple[tuple[str, Spending], ...]:
        """Sites that spent the same in the same rounds, their names together."""

        def what(one: Spending) -> tuple[float, float, tuple[RoundSpending, ...]]:
            return one.budget, one.delta, one.rounds

        found = []
        rows = sorted(self.findings.spending, key=lambda one: (repr(what(one)), one.site))
        for _, group in groupby(rows, key=what):
            sites = list(group)
            found.append((self.names([one.site for one in sites]), sites[0]))
        return tuple(found)

    def names(self, sites: list[str]) -> str:
        """One or two names, or how many there are with the first and the last."""
        if len(sites) <= 2:
            return ", ".join(sites)
        ends = f"{sites[0]} … {sites[-1]}"
        return self.w("number.sites", count=len(sites), names=ends)

    def section(self, name: str, *parts: str, refs: bool = True) -> str:
        """A section of the page with its heading, what it speaks to, and its parts."""
        under = f'<p class="refs">{self.w(f"{name}.refs")}</p>\n' if refs else ""
        body = "\n".join(part for part in parts if part)
        title = self.w(f"{name}.title")
        return f'<section id="{name}">\n<h2>{title}</h2>\n{under}{body}\n</section>\n'

    def plain(self, name: str, **values: object) -> str:
        return f"<p>{self.w(name, **values)}</p>"

    def quiet(self, name: str, **values: object) -> str:
        return f'<p class="quiet">{self.w(name, **values)}</p>'

    def exactly(self, *parts: str) -> str:
        """The part for those who want it exactly."""
        body = "\n".join(part for part in parts if part)
        return f'<div class="exact">\n<h3>{self.w("report.exactly")}</h3>\n{body}\n</div>'

    def table(
        self, caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str = ""
    ) -> str:
        """A table whose caption and heads are names of words."""
        return table(caption, [self.w(name) for name in heads], rows, kind)

    def raw_table(self, caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
        """A table whose heads are words already."""
        return table(caption, heads, rows)

    def terms(self, section: str, rows: Iterable[tuple[str, str]]) -> str:
        """A table of two columns: what, and its value."""
        named = [(self.w(f"{section}.{name}"), value) for name, value in rows]
        heads = (f"{section}.what", f"{section}.value")
        return self.table(self.w(f"{section}.caption"), heads, named, "wordy")
