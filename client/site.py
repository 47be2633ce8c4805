"""A site: its private persons, its budget, its ledger, and one release a round.

The order is the guarantee: reserve in the ledger (durable), then compute, then store the release,
then commit, then answer. A retry of the same request after a crash gives the same bytes: before
the release is stored the round's key is on the disk, from then on the release is (`client.outbox`).
Noise, sample and masks come from that key and from what they are for: a state that was put back and
is asked again with other data gives an independent release, never the same noise twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from client.gradients import choose_engine
from client.odometer import NOT_COUNTED, Odometer
from client.outbox import Outbox
from client.trainer import RoundKeys, train_round
from common.config import digest
from common.contract import Contract
from common.errors import Refused
from common.ledger import Ledger, Reservation
from common.parameters import layout_of
from common.persons import Persons
from common.plan import PrivacyPlan
from common.randomness import derive_key, fresh_key
from common.storage import make_private_directory
from common.update import Update, model_id_of


@dataclass(frozen=True)
class Prepared:
    """What a site holds in memory for one run: all but `persons` came from the server.

    Attributes:
        contract: the agreed constants.
        model: the trainable part, with its public buffers.
        public_inputs: the public bank as the trainable part takes it, [N, ...].
        persons: the site's private persons, frozen features already computed.
    """

    contract: Contract
    model: nn.Module
    public_inputs: Tensor
    persons: Persons


class RoundKey(Protocol):
    """Where the key of a round comes from; `private` says whether it is secret."""

    private: bool

    def __call__(self, contract: Contract, round_: int) -> bytes: ...


class SecretRoundKey:
    """The key of a round from the operating system: the only source outside a simulation."""

    private = True

    def __call__(self, contract: Contract, round_: int) -> bytes:
        return fresh_key()


@dataclass(frozen=True)
class Site:
    """One site's state directory (0700) and what it allows.

    `round_key` is replaced by simulations only, which then also set the plan's
    `allow_not_private`. `odometer` counts what other sites spent of the same data.
    """

    directory: Path
    plan: PrivacyPlan
    round_key: RoundKey
    odometer: Odometer = NOT_COUNTED

    @staticmethod
    def open(
        directory: Path,
        plan: PrivacyPlan,
        round_key: RoundKey | None = None,
        *,
        odometer: Odometer = NOT_COUNTED,
    ) -> Site:
        """Return the site, with its ledger created if it never had one."""
        Outbox(make_private_directory(directory)).settle(plan)
        return Site(directory, plan, round_key or SecretRoundKey(), odometer)

    def train(
        self,
        prepare: Callable[[], Prepared],
        contract: Contract,
        round_: int,
        parameters: Tensor,
        public_id: str,
    ) -> Update:
        """Return the update of one round; refused, it raises before any gradient is computed.

        `prepare` is called only after the budget is reserved, so a refused round reads no image.
        `public_id` is the digest of the model's state and the public bank that it will give.
        """
        if contract.masking is not None:
            raise Refused("the run was agreed with secure aggregation: no bare update leaves")
        vector: NDArray[np.float32] = parameters.numpy()
        model_id = model_id_of(contract.run_id, vector)

        def compute(key: bytes) -> bytes:
            keys = RoundKeys.derive(key, private=self.round_key.private)
            return self._compute(prepare(), contract, vector, keys).tobytes()

        released = self.release(contract, round_, f"{model_id} {public_id}", compute)
        return Update(contract.run_id, model_id, round_, np.frombuffer(released, dtype=np.float32))

    def check_room(self, contract: Contract) -> None:
        """Raise BudgetExceeded unless the budget has room for the whole of a run; spends nothing.

        A run that was begun here counts as one that is still to be paid.
        """
        with Ledger.open(self.directory) as ledger:
            Outbox(self.directory).check(ledger)
            self.plan.check_against(ledger)
            with self.odometer.locked():
                elsewhere = self.odometer.of_others(ledger)
            self.plan.check_room(ledger.reservations, contract, elsewhere)

    def release(
        self, contract: Contract, round_: int, question: str, compute: Callable[[bytes], bytes]
    ) -> bytes:
        """Return what one round releases, from a key that is drawn for it once.

        `question` is all that the server chose of what the answer depends on (parameters, state,
        bank, other sites); another question for the same round is refused. `compute` is called
        after the budget is reserved, and again only after a crash, with the same key.
        """
        if not 1 <= round_ <= contract.rounds:
            raise Refused(f"round {round_} is not one of the {contract.rounds} agreed rounds")
        request = hashlib.sha256(f"{digest(contract)} {round_} {question}".encode()).hexdigest()
        outbox = Outbox(self.directory)
        with Ledger.open(self.directory) as ledger:
            outbox.check(ledger)
            with self.odometer.locked():
                others = self.odometer.of_others(ledger)
                reservation = self.plan.reserve(
                    ledger, contract, round_, request,
                    secret=self.round_key.private, others=others,
                )  # fmt: skip
                self.odometer.add(ledger, reservation)
            released = outbox.release(reservation)
            if released is None:
                if ledger.committed(reservation) is not None:
                    raise Refused(f"round {round_} was released before and is no longer stored")
                key = self._key(outbox, contract, reservation)
                if self.round_key.private:  # a run from a seed is repeated under any name
                    key = derive_key(key, "request", request)
                released = compute(key)
                outbox.keep_release(reservation, released)
            release = hashlib.sha256(released).hexdigest()
            committed = ledger.committed(reservation)
            if committed is None:
                ledger.commit(reservation, release)
            elif committed != release:
                raise Refused(f"the stored release of round {round_} was changed")
            outbox.forget(reservation)
        return released

    @staticmethod
    def _compute(
        ready: Prepared, contract: Contract, vector: NDArray[np.float32], keys: RoundKeys
    ) -> NDArray[np.float32]:
        if layout_of(ready.model).dimension != len(vector):
            raise Refused("the parameters do not fit the agreed model")
        return train_round(
            ready.model,
            vector,
            ready.persons,
            ready.public_inputs,
            contract,
            keys,
            choose_engine(ready.model, contract.train_set),
        )

    def _key(self, outbox: Outbox, contract: Contract, reservation: Reservation) -> bytes:
        """The reservation's key; after a crash the stored one, so a retry repeats its noise."""
        key = outbox.key(reservation)
        if key is None:
            key = self.round_key(contract, reservation.round)
            outbox.keep_key(reservation, key)
        return key
