"""Shared noise against each who may look: how many sites' shares are left in what they see.

A reservation of secure aggregation charges what holds under the terms of its run: m - c shares. Who
colludes knows their own shares; who gets behind the masks sees a site's share alone. Of other runs
than the report's nothing is known but what the ledger charged, so the least is taken for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from common.contract import Masking
from common.ledger_format import Reservation
from server.audit.accountant import Releases
from server.audit.facts import Facts

OfShares = Callable[[Masking, float, int], float]
_DOWN = 1.0 - 1e-12


@dataclass(frozen=True)
class Onlooker:
    """One who looks.

    Attributes:
        who: a key of the wording.
        sees: the sums over each round's survivors; or what the terms leave to a server that lies
            to sites; or whatever was charged; or each site's update alone.
        colluding: how many sites tell what they know of their own noise.
        about: an ordinary person; one with pictures at two sites; or neighbours in which one person
            takes another's place.
    """

    who: str
    sees: Literal["sums", "lied-for", "charged", "alone"]
    colluding: int = 0
    about: Literal["one", "two-sites", "replaced"] = "one"


ONLOOKERS = (
    Onlooker("models", "sums"),
    Onlooker("sums", "sums"),
    Onlooker("hostile", "charged"),
    Onlooker("wire", "charged"),
    Onlooker("two-sites", "charged", about="two-sites"),
    Onlooker("replaced", "charged", about="replaced"),
    Onlooker("curious", "sums", 1),
    Onlooker("unmasked", "alone"),
)


def is_shared(reservations: Sequence[Reservation]) -> bool:
    """Say whether any release rests on other sites' noise."""
    return any(r.mechanism == "discrete-shared" for r in reservations)


def survivors_of(facts: Facts, round_: int) -> int:
    """Return how many updates a round of this run summed up; the agreed fewest if it has no sum."""
    least = facts.contract.masking.minimum if facts.contract.masking else 1
    return next((one.accepted for one in facts.rounds if one.round == round_), 0) or least


def most_survivors(facts: Facts, reservations: Sequence[Reservation]) -> int:
    """Return how many sites were in any sum, of this run or as far as ledgers tell."""
    if facts.contract.masking is None:
        return max((r.shares for r in reservations), default=1)
    found = [survivors_of(facts, one.round) for one in facts.rounds]
    return max(found, default=facts.contract.masking.minimum)


def shares_left(facts: Facts, r: Reservation, looks: Onlooker) -> int:
    """Return how many shares of noise, at least, are in what somebody sees of a reservation."""
    masking = facts.contract.masking
    if r.mechanism == "gaussian" or looks.sees == "alone":
        return 1
    if looks.sees == "charged":
        return r.shares
    if masking is None or r.run_id != facts.run_id:
        lost = looks.sees == "lied-for" and looks.colluding > 0
        return 1 if lost else max(1, r.shares - looks.colluding)
    if looks.sees == "sums":
        return max(1, survivors_of(facts, r.round) - looks.colluding)
    covered = looks.colluding <= masking.colluders
    return masking.minimum - looks.colluding if covered else 1


def releases_to(
    facts: Facts, reservations: Sequence[Reservation], looks: Onlooker, of_shares: OfShares
) -> tuple[Releases, ...]:
    """Return what a site's reservations release to somebody.

    A person at two sites moves one masked sum by up to 2 C, and two noised updates by C each. One
    person in another's place moves any sum by up to 2 C. With less than all shares z falls by the
    root of their number or less, since the sum of fewer is nearer to a Gaussian.
    """
    found: list[Releases] = []
    for r in reservations:
        shared = r.mechanism == "discrete-shared"
        shares = shares_left(facts, r, looks)
        sigma = r.noise_multiplier
        if shared and shares != r.shares:
            masking = facts.contract.masking if r.run_id == facts.run_id else None
            if masking is not None:
                sigma = of_shares(masking, r.max_grad_norm, shares)
            else:
                sigma *= math.sqrt(shares / r.shares) * _DOWN
        moved = looks.about == "replaced" or (shared and looks.about == "two-sites")
        one = Releases(sigma / 2 if moved else sigma, r.sample_rate, r.steps, shared)
        found += [one, one] if looks.about == "two-sites" and not shared else [one]
    return tuple(found)
