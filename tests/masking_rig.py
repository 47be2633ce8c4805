"""A federation in one process for the tests of secure aggregation: keys, sites, and a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from common.errors import Refused, UpdateRejected
from common.masking import (
    MaskedRound,
    MaskingSite,
    NoisedShare,
    Participants,
    RoundRequest,
    SumOverSites,
    SurvivorsRequest,
    Terms,
    UnmaskRequest,
    advertise,
)
from common.randomness import derive_key, experiment_key
from common.roster import Roster, SiteKeys

RUN = "run-1"
DIMENSION = 21
STAGES = ("update", "confirm", "unmask")


def key(label: str) -> bytes:
    return derive_key(experiment_key(11), label)


def signing_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key(f"signing {name}"))


@lru_cache(maxsize=64)
def roster(names: tuple[str, ...]) -> Roster:
    entries = []
    for index, name in enumerate(names):
        node = ec.derive_private_key(index + 2, ec.SECP384R1()).public_key()
        lines = [
            public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            for public in (node, signing_key(name).public_key())
        ]
        entries.append(SiteKeys(name, *lines))
    return Roster("fed", 1, "2026-11-24T12:00:00Z", tuple(entries))


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"s{number:03}" for number in range(count))


@lru_cache(maxsize=64)
def participants(names: tuple[str, ...]) -> Participants:
    book = roster(names)
    adverts = [advertise(book, RUN, name, key(name), signing_key(name)) for name in names]
    return Participants.verified(book, RUN, adverts)


def request_of(names: tuple[str, ...], terms: Terms, round_: int = 1) -> RoundRequest:
    return RoundRequest(
        federation="fed",
        run_id=RUN,
        round=round_,
        contract_id="c" * 64,
        model_id="a" * 64,
        dimension=DIMENSION,
        minimum=terms.minimum,
        colluders=terms.colluders,
        sites=names,
    )


def vector_of(name: str, dimension: int = DIMENSION) -> NDArray[np.uint32]:
    raw = np.frombuffer(key(f"vector {name}"), dtype="<u4")
    return np.resize(raw, dimension) + np.arange(dimension, dtype=np.uint32)


def share_of(value: NDArray[np.uint32]) -> NoisedShare:
    """Return plain numbers as what is masked, so that sums can be compared exactly."""
    return NoisedShare(value, 0.0, 1.0, private=False)


@dataclass(frozen=True)
class Federation:
    """All sites of one round; `alive(site, stage)` says who answers, `tamper` changes answers."""

    folder: Path
    names: tuple[str, ...]
    terms: Terms

    @property
    def request(self) -> RoundRequest:
        return request_of(self.names, self.terms)

    def site(self, name: str) -> MaskingSite:
        """Return a site as it is after a restart: nothing but its disk and its keys."""
        return MaskingSite(
            participants(self.names),
            name,
            key(name),
            signing_key(name),
            self.terms,
            self.folder / name,
        )

    def update(self, name: str) -> bytes:
        share = share_of(vector_of(name))
        return self.site(name).mask(self.request, share, key(f"round {name}")).to_bytes()

    def confirmation(self, name: str, asked: SurvivorsRequest) -> bytes:
        asked = SurvivorsRequest.from_bytes(asked.to_bytes())
        return self.site(name).confirm(self.request, asked).to_bytes()

    def shares(self, name: str, asked: UnmaskRequest) -> bytes:
        asked = UnmaskRequest.from_bytes(asked.to_bytes())
        return self.site(name).unmask(self.request, asked).to_bytes()

    def run(
        self,
        alive: Callable[[str, str], bool] = lambda site, stage: True,
        tamper: Callable[[str, str, bytes], bytes] = lambda site, stage, data: data,
    ) -> tuple[SumOverSites, list[str]]:
        """Return the sum of one round and what was rejected; a round without a sum is Refused."""
        rejected: list[str] = []
        server = MaskedRound(participants(self.names), self.request)

        def deliver(name: str, stage: str, data: bytes, take: Callable[[str, bytes], None]) -> None:
            try:
                take(name, tamper(name, stage, data))
            except UpdateRejected as error:
                rejected.append(error.message)

        for name in self.names:
            if alive(name, "update"):
                deliver(name, "update", self.update(name), server.add_update)
        while server.needs_confirmation:
            asked = server.survivors_request()
            for name in asked.survivors:
                if alive(name, "confirm"):
                    answer = self.confirmation(name, asked)
                    deliver(name, "confirm", answer, server.add_confirmation)
            server.settle()
        for name in server.survivors:
            if alive(name, "unmask"):
                answer = self.shares(name, server.unmask_request(name))
                deliver(name, "unmask", answer, server.add_shares)
        try:
            return server.total(), rejected
        except UpdateRejected as error:
            raise Refused(error.message) from error


def plain_sum(names: Sequence[str]) -> NDArray[np.uint32]:
    total = np.zeros(DIMENSION, dtype=np.uint32)
    for name in names:
        total += vector_of(name)
    return total
