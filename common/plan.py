"""The only composer of mechanism, sampling, accounting and ledger.

From a budget it finds the noise; before each round it asks the ledger for a reservation, and
refuses when what is reserved so far and the round together would exceed the site's budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.accounting import cross_checked_epsilon, noise_multiplier_for
from common.constants import check_delta
from common.contract import Contract, Privacy
from common.errors import BudgetExceeded, InputError, Refused
from common.ledger import Genesis, Ledger, Reservation
from common.spending import event_of, reserved

# An epsilon recomputed elsewhere may differ in its last digits from the one the noise was found
# for; the noise multiplier is rounded up by more than this.
_RELATIVE_SLACK = 1e-9


def calibrate(
    *,
    epsilon: float | None,
    delta: float,
    rounds: int,
    local_steps: int,
    max_grad_norm: float,
    sample_rate: float,
    public_denominator: float,
    concentrated: bool = False,
) -> Privacy:
    """Return the mechanism that spends at most `epsilon` at `delta` over all rounds of a site.

    `concentrated` is for the shared discrete noise of secure aggregation.
    `epsilon` None is a run without privacy: no noise, and nothing calls it private.
    """
    if epsilon is not None and not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(
            f"epsilon must be positive and finite, not {epsilon}",
            hint="use --no-privacy to train without a guarantee",
        )
    check_delta(delta, sample_rate)
    noise = (
        0.0
        if epsilon is None
        else noise_multiplier_for(
            epsilon, delta, rounds * local_steps, sample_rate, concentrated=concentrated
        )
    )
    return Privacy(epsilon, delta, noise, max_grad_norm, sample_rate, public_denominator)


# A search over compositions; a site is asked for the same again and again.
_noise_for = lru_cache(maxsize=16)(noise_multiplier_for)


@dataclass(frozen=True)
class PrivacyPlan:
    """What one site allows: a total `epsilon` at `delta` over the life of its ledger.

    `epsilon_per_run`, at the same delta, also bounds what the rounds of one run spend together.
    `elsewhere` is the epsilon, at the same delta, that is stated to be spent where no ledger of
    this machine counts it; it is added to what is counted.
    `allow_not_private` lets a simulation without a guarantee write its rounds into a ledger, marked
    as such; a deployment never sets it.
    """

    epsilon: float
    delta: float
    allow_not_private: bool = False
    epsilon_per_run: float | None = None
    elsewhere: float = 0.0

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(
                f"a budget of epsilon {self.epsilon} bounds nothing",
                hint="epsilon is finite and not negative",
            )

    def settle_ledger(self, directory: Path) -> None:
        """Make a site's ledger if it has none; raise Refused if it was made for less than this."""
        if not (directory / Ledger.FILE_NAME).exists():
            Ledger.create(directory, Genesis(delta=self.delta, epsilon=self.epsilon))
        with Ledger.open(directory) as ledger:
            self.check_against(ledger)

    def check_against(self, ledger: Ledger) -> None:
        """Raise Refused where the plan allows more than the ledger was made for."""
        genesis = ledger.genesis
        if self.delta != genesis.delta or self.epsilon > genesis.epsilon:
            raise Refused(
                f"the plan allows epsilon {self.epsilon:g} at delta {self.delta:g}, the ledger "
                f"{genesis.epsilon:g} at {genesis.delta:g}",
                hint="a ledger's budget is for good: lower the plan, never the ledger",
            )

    def reserve(
        self,
        ledger: Ledger,
        contract: Contract,
        round_: int,
        request_digest: str,
        *,
        secret: bool,
        others: Sequence[Reservation] = (),
    ) -> Reservation:
        """Return a durable reservation for one round, or raise BudgetExceeded before any work.

        `secret` says that the round's noise comes from a key that nobody can recompute; `others` is
        what other ledgers reserved on the same data, which counts against the same budget. The same
        request again returns its first reservation and spends nothing; another request for the
        same run and round is refused by the ledger.
        """
        self.check_against(ledger)
        privacy = contract.privacy
        private = secret and privacy.noise_multiplier > 0.0
        if not private and not self.allow_not_private:
            raise BudgetExceeded(
                f"round {round_} has no secret noise, so its epsilon is infinite",
                hint="only a simulation may run without a guarantee",
            )
        return ledger.reserve(
            run_id=contract.run_id,
            round=round_,
            noise_multiplier=privacy.noise_multiplier,
            sample_rate=privacy.sample_rate,
            steps=contract.local_steps,
            max_grad_norm=privacy.max_grad_norm,
            request_digest=request_digest,
            private=private,
            mechanism=contract.mechanism,
            shares=1 if contract.masking is None else contract.masking.terms.honest,
            check=lambda reservations: self._check(reservations, others, ledger.genesis.epsilon),
        )

    def check_room(
        self,
        reservations: Sequence[Reservation],
        contract: Contract,
        elsewhere: Sequence[Reservation] = (),
    ) -> None:
        """Raise BudgetExceeded unless a whole run has room beside what other runs reserved, and
        `elsewhere`, on the same data, other ledgers.

        Nothing is spent by asking, so whoever asks again and again, for runs of all sizes, could
        find what is left by halving. Therefore the run counts as the largest that the site allows:
        the answer is the same for every run, and changes once in the life of a budget.
        """
        others = [*elsewhere, *(one for one in reservations if one.run_id != contract.run_id)]
        if (others or self.elsewhere) and not self.allow_not_private:
            run = self._largest(contract)
            total = reserved(
                (*others, run), self.delta, first=(*reservations, run)[0], budget=self.epsilon
            )
            self._within(total, self.epsilon - self.elsewhere, "the site's budget")

    def _largest(self, contract: Contract) -> Reservation:
        """The run that spends what the site allows a run, as one release of the same mechanism."""
        privacy, masking = contract.privacy, contract.masking
        steps = contract.rounds * contract.local_steps if privacy.sample_rate < 1.0 else 1
        noise = _noise_for(
            self.epsilon_per_run or privacy.epsilon or self.epsilon,
            self.delta,
            steps,
            privacy.sample_rate,
            concentrated=masking is not None,
        )
        return Reservation(
            seq=0,
            run_id=contract.run_id,
            round=1,
            noise_multiplier=noise,
            sample_rate=privacy.sample_rate,
            steps=steps,
            max_grad_norm=privacy.max_grad_norm,
            request_digest="",
            private=True,
            mechanism=contract.mechanism,
            shares=1 if masking is None else masking.terms.honest,
        )

    def _check(
        self, reservations: Sequence[Reservation], others: Sequence[Reservation], for_life: float
    ) -> None:
        """Check all reservations, the last of which is the new one."""
        if self.allow_not_private and not all(r.private for r in reservations):
            return
        whose = "the budget of these data, in all federations together," if others else ""
        allowed = self.epsilon - self.elsewhere
        first, whose = reservations[0], whose or "the site's budget"
        total = reserved((*others, *reservations), self.delta, first=first, budget=for_life)
        self._within(total, allowed, whose)
        if self.epsilon_per_run is not None:
            run = [r for r in reservations if r.run_id == reservations[-1].run_id]
            limit = self.epsilon_per_run
            total = reserved(run, self.delta, first=run[0], budget=limit)
            self._within(total, limit, "what the site allows a run")

    def _within(self, total: float, allowed: float, what: str) -> None:
        if total > allowed * (1.0 + _RELATIVE_SLACK):
            raise BudgetExceeded(
                f"the round would bring epsilon to {total:.4f} of {allowed:.4f} allowed "
                f"(delta {self.delta:g}, a person added or removed)",
                hint=f"{what} is spent: nothing was computed or released",
            )


def epsilon_after(contract: Contract, rounds: int) -> float:
    """Return what a site that took part in `rounds` rounds has spent; infinite without noise."""
    privacy = contract.privacy
    if privacy.noise_multiplier == 0.0:
        return math.inf if rounds else 0.0
    steps = rounds * contract.local_steps
    event = event_of(privacy.noise_multiplier, privacy.sample_rate, steps, contract.mechanism)
    return cross_checked_epsilon([event], privacy.delta).epsilon
