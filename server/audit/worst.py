"""Where sites spent differently: what no site's people exceed, number by number.

The site with the largest epsilon need not fare worst otherwise: a few sampled steps with little
noise have a large epsilon, and still seldom betray anyone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement

from server.audit.accountant import Releases
from server.audit.bound import attack_on
from server.audit.facts import Posterior, TradeOff

Site = tuple[Releases, ...]


def undominated(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Return what sites released, without those all of whose steps another took as well."""
    costs = {frozenset(_costs(site).items()): site for site in sites}
    return tuple(
        site
        for cost, site in costs.items()
        if not any(other != cost and _within(dict(cost), dict(other)) for other in costs)
    )


def pairs(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Return what any two of the sites released together, a site with its like included."""
    return tuple((*one, *other) for one, other in combinations_with_replacement(sites, 2))


def guess(sites: Sequence[Site], delta: float) -> float:
    """Return the share of right guesses about a person at the site where it is largest."""
    return max(attack_on(site, delta).guess() for site in sites)


def trade_off(sites: Sequence[Site], delta: float) -> TradeOff:
    """Return at each false-alarm rate the least miss rate at any site."""
    curves = [attack_on(site, delta).trade_off() for site in sites]
    missed = zip(*(curve.missed for curve in curves), strict=True)
    return TradeOff(curves[0].false_alarm, tuple(map(min, missed)))


def posteriors(sites: Sequence[Site], delta: float) -> tuple[Posterior, ...]:
    """Return for each prior how sure an attacker becomes at the site where it is surest."""
    found = zip(*(attack_on(site, delta).posteriors() for site in sites), strict=True)
    return tuple(
        Posterior(
            row[0].prior,
            max(one.typical for one in row),
            max(one.unlucky for one in row),
            max(one.bound for one in row),
        )
        for row in found
    )


def _costs(site: Site) -> dict[tuple[bool, float, float], float]:
    """steps / sigma^2 by kind: full batches of any noise are one kind, since these add up."""
    found: dict[tuple[bool, float, float], float] = defaultdict(float)
    for one in site:
        kind = (one.concentrated, one.rate, 0.0 if one.rate == 1.0 else one.sigma)
        found[kind] += one.steps / one.sigma**2
    return found


def _within(
    less: dict[tuple[bool, float, float], float], more: dict[tuple[bool, float, float], float]
) -> bool:
    return all(cost <= more.get(kind, 0.0) for kind, cost in less.items())
