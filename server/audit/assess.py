"""From facts to findings: what each site spent, what it means, against whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.accounting import Event, cross_checked_epsilon
from common.contract import Masking
from common.errors import InputError
from common.ledger import LedgerReport, Reservation
from common.ledger_format import Mechanism
from common.spending import event_of, spent
from common.statement import Statement
from server.audit.accountant import Releases
from server.audit.bound import attack_on
from server.audit.facts import (
    Adversary,
    Alone,
    Colluders,
    Facts,
    Findings,
    Meaning,
    RoundSpending,
    Spending,
)
from server.audit.ledgers import genesis_of, ledger_of
from server.audit.shared import (
    ONLOOKERS,
    Onlooker,
    is_shared,
    most_survivors,
    releases_to,
    shares_left,
)
from server.audit.worst import Site, guess, pairs, posteriors, trade_off, undominated

# Who sees the noised updates or what follows from them; with `local` all learn at most the same.
WATCHERS = ("server", "sites", "listener", "holder")
ALONE = Onlooker("unmasked", "alone")


@dataclass(frozen=True)
class SiteLedger:
    """A site with its checked ledger."""

    site: str
    report: LedgerReport

    @property
    def delta(self) -> float:
        return genesis_of(self.report).delta

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        return self.report.reservations

    def released(self, run_id: str) -> frozenset[int]:
        """Return the rounds of a run whose update left the site."""
        done = {commit.reservation for commit in self.report.commits}
        return frozenset(r.round for r in self.reservations if r.run_id == run_id and r.seq in done)

    @property
    def releases(self) -> tuple[Releases, ...]:
        """What was reserved, as the auditor's accountant takes it."""
        return releases_of(self.reservations)


def releases_of(reservations: Sequence[Reservation]) -> tuple[Releases, ...]:
    """Return reservations as they were charged, for the auditor."""
    return tuple(
        Releases(r.noise_multiplier, r.sample_rate, r.steps, r.mechanism == "discrete-shared")
        for r in reservations
    )


def ledgers_of(facts: Facts) -> tuple[SiteLedger, ...]:
    """Return all sites' ledgers; one that does not hold is a LedgerError."""
    found = []
    for evidence in facts.sites:
        statement = Statement.unverified(evidence.statement)
        found.append(SiteLedger(statement.site, ledger_of(evidence, statement)))
    return tuple(found)


def assess(facts: Facts) -> Findings:
    """Return everything that follows from the facts, by the accountants that train."""
    ledgers = ledgers_of(facts)
    spending = tuple(_spending(one) for one in ledgers)
    bounded = all(one.spent is not None for one in spending)
    worst = worst_of(spending, ledgers)
    privacy = facts.contract.privacy
    masked = rests_on_others(facts, ledgers)
    shared = _Shared(facts, ledgers, bounded) if masked else None
    return Findings(
        spending=spending,
        meaning=_meaning(worst, ledgers) if bounded else None,
        adversaries=shared.adversaries() if shared else adversaries(ledgers, bounded=bounded),
        collusion=shared.collusion() if shared else (),
        declared_persons=privacy.public_denominator / privacy.sample_rate,
        alone=shared.alone() if shared else (),
    )


def rests_on_others(facts: Facts, ledgers: Sequence[SiteLedger]) -> bool:
    """Say whether any site was charged for noise that others share."""
    return facts.trust == "secagg" or any(is_shared(one.reservations) for one in ledgers)


@dataclass(frozen=True)
class _Shared:
    """Epsilons where noise is shared: against each onlooker, of the site that fares worst."""

    facts: Facts
    ledgers: tuple[SiteLedger, ...]
    bounded: bool

    def adversaries(self) -> tuple[Adversary, ...]:
        sampled = any(r.sample_rate < 1.0 for one in self.ledgers for r in one.reservations)
        return tuple(
            Adversary(looks.who, *self._against(looks, self.ledgers))
            for looks in ONLOOKERS
            if not (sampled and looks.about == "replaced")
        )

    def collusion(self) -> tuple[Colluders, ...]:
        every = [r for one in self.ledgers for r in one.reservations]
        most = most_survivors(self.facts, every)
        return tuple(self._together(count, every) for count in range(most))

    def _together(self, count: int, every: Sequence[Reservation]) -> Colluders:
        honest, lying = collusion_of(count)
        masked = [r for r in every if r.mechanism == "discrete-shared"]
        return Colluders(
            count,
            min((shares_left(self.facts, r, honest) for r in masked), default=1),
            *self._against(honest, self.ledgers),
            *self._against(lying, self.ledgers),
        )

    def alone(self) -> tuple[Alone, ...]:
        return tuple(Alone(one.site, *self._against(ALONE, [one])) for one in self.ledgers)

    def _against(
        self, looks: Onlooker, ledgers: Sequence[SiteLedger]
    ) -> tuple[float | None, float]:
        if not self.bounded:
            return None, 1.0
        found = {
            (releases_to(self.facts, one.reservations, looks, _of_shares), one.delta)
            for one in ledgers
        }
        return (
            max(up(_epsilon(releases, delta)) for releases, delta in found),
            max(attack_on(releases, delta).guess() for releases, delta in found),
        )


def collusion_of(count: int) -> tuple[Onlooker, Onlooker]:
    """Return the server with so many sites, keeping to the protocol and lying."""
    return Onlooker("sums", "sums", count), Onlooker("hostile", "lied-for", count)


def _of_shares(masking: Masking, clip: float, shares: int) -> float:
    return masking.noise(clip).noise_multiplier(shares)


def _epsilon(releases: Sequence[Releases], delta: float) -> float:
    kinds: dict[bool, Mechanism] = {True: "discrete-shared", False: "gaussian"}
    events = [event_of(r.sigma, r.rate, r.steps, kinds[r.concentrated]) for r in releases]
    return cross_checked_epsilon(events, delta).epsilon


def worst_of(spending: Sequence[Spending], ledgers: Sequence[SiteLedger]) -> SiteLedger:
    """Return the ledger of the site that spent most; of none is an InputError."""
    if not ledgers or len(spending) != len(ledgers):
        raise InputError("the report does not hold one ledger a site")
    pairs = zip(spending, ledgers, strict=True)
    return max(pairs, key=lambda pair: math.inf if pair[0].spent is None else pair[0].spent)[1]


def cases_of(ledgers: Sequence[SiteLedger]) -> tuple[tuple[str, tuple[Site, ...]], ...]:
    """Return who may look at noise that each site adds alone, and what each site releases to them.

    Each site's update is noised enough by itself, so nobody, whatever else they see, learns more
    than from that update. `two-sites`: a person whose images lie at any two sites. `replaced`:
    neighbours in which one person takes another's place, which moves a sum by 2 C; stated for full
    batches only, where it is half the noise.
    """
    sites = undominated(one.releases for one in ledgers)
    found = [*((who, sites) for who in WATCHERS), ("two-sites", pairs(sites))]
    if all(one.rate == 1.0 for site in sites for one in site):
        halved = (tuple(replace(one, sigma=one.sigma / 2) for one in site) for site in sites)
        found.append(("replaced", tuple(halved)))
    return tuple(found)


def adversaries(ledgers: Sequence[SiteLedger], *, bounded: bool) -> tuple[Adversary, ...]:
    """Return epsilon against each of `cases_of`, of the site that fares worst."""
    if not bounded:
        return tuple(Adversary(who, None, 1.0) for who in WATCHERS)
    delta = ledgers[0].delta
    return tuple(
        Adversary(who, max(up(_epsilon(site, delta)) for site in sites), guess(sites, delta))
        for who, sites in cases_of(ledgers)
    )


def _meaning(worst: SiteLedger, ledgers: Sequence[SiteLedger]) -> Meaning:
    checked = cross_checked_epsilon(map(_event, worst.reservations), worst.delta)
    mu = attack_on(worst.releases, worst.delta).mu
    sites = undominated(one.releases for one in ledgers)
    return Meaning(
        site=worst.site,
        mu=None if mu is None else round(mu, 6),
        accountant=checked.accountant,
        second_accountant=checked.second_accountant,
        second=up(checked.second),
        guess=guess(sites, worst.delta),
        trade_off=trade_off(sites, worst.delta),
        posteriors=posteriors(sites, worst.delta),
    )


def _event(reservation: Reservation) -> Event:
    r = reservation
    return event_of(r.noise_multiplier, r.sample_rate, r.steps, r.mechanism)


def _spending(ledger: SiteLedger) -> Spending:
    reservations, genesis = ledger.report.reservations, genesis_of(ledger.report)
    released = {commit.reservation for commit in ledger.report.commits}
    rounds = tuple(
        RoundSpending(
            run_id=entry.run_id,
            round=entry.round,
            noise_multiplier=entry.noise_multiplier,
            sample_rate=entry.sample_rate,
            steps=entry.steps,
            max_grad_norm=entry.max_grad_norm,
            private=entry.private,
            released=entry.seq in released,
            alone=_stated([entry], genesis.delta),
            total=_stated(reservations[:count], genesis.delta),
            mechanism=entry.mechanism,
            shares=entry.shares,
        )
        for count, entry in enumerate(reservations, start=1)
    )
    total = rounds[-1].total if rounds else 0.0
    remaining = left_of(genesis.epsilon, total)
    return Spending(ledger.site, genesis.epsilon, genesis.delta, total, remaining, rounds)


def left_of(budget: float, spent: float | None) -> float:
    """Return what is left of a budget, to six places; nothing where there is no bound."""
    return 0.0 if spent is None else round(max(0.0, budget - spent), 6)


def _stated(reservations: Sequence[Reservation], delta: float) -> float | None:
    epsilon = spent(reservations, delta)
    return up(epsilon) if math.isfinite(epsilon) else None


def up(epsilon: float) -> float:
    """Return an epsilon to six places, never below what it was."""
    return math.ceil(epsilon * 1e6 - 1e-3) / 1e6
