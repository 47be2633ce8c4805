"""What a site says in its own log while all is well: one line a round, of what it cost."""

from __future__ import annotations

import math

from client.ledger_cli import epsilon_in_words
from client.site import Site
from common.contract import Contract
from common.errors import VeilfaceError
from common.ledger import Ledger
from common.spending import spent
from common.supervision import listened_to, tell


def tell_round(site: Site, contract: Contract, round_: int) -> None:
    """Say that a round was answered, what the site has spent by then, and what is left."""
    if not listened_to():
        return
    try:
        with Ledger.open(site.directory) as ledger, site.odometer.locked():
            elsewhere = site.odometer.of_others(ledger)
            reserved, made_for = ledger.reservations, ledger.genesis.epsilon
    except VeilfaceError:  # whoever opens it next refuses, and says why
        return
    budget = min(site.plan.epsilon, made_for)
    total = site.plan.elsewhere + spent((*elsewhere, *reserved), site.plan.delta)
    left = math.floor(1e4 * max(0.0, budget - total) + 1e-6) / 1e4
    tell(
        f"run {contract.run_id}, round {round_} of {contract.rounds}: "
        f"epsilon {epsilon_in_words(total)} of {budget:g} spent, {left:.4f} left "
        f"(delta {site.plan.delta:g})"
    )
