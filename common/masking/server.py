"""The server's side of secure aggregation: it collects, recovers, and names who misbehaved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidSignature
from numpy.typing import NDArray

from common.errors import Refused, UpdateRejected
from common.masking.keys import Participants, commitment
from common.masking.masks import add_mask
from common.masking.messages import (
    DIGEST_BYTES,
    SEALED_BYTES,
    SEED_BYTES,
    Confirmation,
    MaskedUpdate,
    RoundRequest,
    SurvivorsRequest,
    UnmaskRequest,
    UnmaskShares,
    check_size,
    cut,
)
from common.masking.shamir import SHARE_BYTES, Recombiner


class SiteFault(UpdateRejected):
    """A message of `site` is not what the protocol allows; it counts as missing."""

    def __init__(self, site: str, what: str, *, hint: str = "") -> None:
        super().__init__(f"{site}: {what}", hint=hint)
        self.site = site


@dataclass(frozen=True)
class SumOverSites:
    """The sum: `total` uint32 [d] modulo 2^32, over exactly `survivors`.

    `complaints` are pairs (holder, dealer) where the holder says that the dealer's share does not
    open: one of the two is wrong, and the sum was found without it.
    """

    total: NDArray[np.uint32]
    survivors: tuple[str, ...]
    complaints: tuple[tuple[str, str], ...]


class MaskedRound:
    """One round at the server, from the masked updates to their sum.

    Stages: `add_update` for each answer; while `needs_confirmation`, `survivors_request` to all
    survivors, `add_confirmation` for each answer, and `settle`; then `unmask_request(site)` and
    `add_shares` for each; then `total`. A SiteFault names whose message was rejected, and the round
    goes on without it; Refused ends the round. What ends well is the sum of the vectors that the
    survivors masked.
    """

    def __init__(self, participants: Participants, request: RoundRequest) -> None:
        self._participants = participants
        self._request = request
        self._digest = participants.digest(request)
        sites, terms = request.sites, request.terms
        self._numbers = {site: number for number, site in enumerate(sites)}
        self._neighbours = {
            site: [sites[other] for other in terms.neighbours(len(sites), number)]
            for site, number in self._numbers.items()
        }
        self._updates: dict[str, MaskedUpdate] = {}
        self._confirmations: dict[str, Confirmation] = {}
        self._shares: dict[str, dict[str, bytes]] = {}
        self._complaints: list[tuple[str, str]] = []

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return whose updates make the sum, in order."""
        return tuple(site for site in self._request.sites if site in self._updates)

    @property
    def needs_confirmation(self) -> bool:
        """Whether sites are missing and not all survivors have confirmed that."""
        missing = self.survivors != self._request.sites
        return missing and set(self._confirmations) != set(self.survivors)

    def add_update(self, site: str, data: bytes) -> None:
        """Take one site's masked update; what is wrong with it is a SiteFault."""
        if self._confirmations or self._shares:
            raise Refused(f"an update of {site} is too late: the survivors are settled")
        try:
            update = MaskedUpdate.from_bytes(data)
            self._check_sender(site, update.site, site in self._updates)
            update.check_signature(self._participants.signing_key(site))
            self._check_round(update.round_digest)
            count = len(self._request.sites)
            check_size(update.vector, 4, self._request.dimension, "the vector")
            check_size(update.sealed, SEALED_BYTES, count, "sealed shares")
            check_size(update.share_commitments, DIGEST_BYTES, count, "commitments")
            check_size(update.seed_commitment, DIGEST_BYTES, 1, "commitment")
            check_size(
                update.pair_commitments, DIGEST_BYTES, len(self._neighbours[site]), "commitments"
            )
        except Refused as error:
            raise SiteFault(site[:40], error.message) from error
        for other in self._neighbours[site]:
            known = self._updates.get(other)
            if known and self._pair(known, site) != self._pair(update, other):
                raise SiteFault(site, f"it or {other} used a wrong seed for their common mask")
        self._updates[site] = update

    def survivors_request(self) -> SurvivorsRequest:
        """Return what all survivors are asked to confirm; too few of them are Refused."""
        self._check_enough()
        return SurvivorsRequest(self._digest, self.survivors)

    def add_confirmation(self, site: str, data: bytes) -> None:
        """Take one survivor's confirmation; what is wrong with it is a SiteFault."""
        try:
            answer = Confirmation.from_bytes(data)
            self._check_sender(site, answer.site, site in self._confirmations)
            if site not in self._updates:
                raise Refused("confirms without being a survivor")
            statement = SurvivorsRequest(self._digest, self.survivors).to_bytes()
            self._participants.signing_key(site).verify(answer.signature, statement)
            missing = self._missing(site)
            seeds = cut(answer.seeds, SEED_BYTES, len(missing), "seeds")
        except InvalidSignature as error:
            raise SiteFault(site[:40], "it did not sign these survivors") from error
        except Refused as error:
            raise SiteFault(site[:40], error.message) from error
        for other, seed in zip(missing, seeds, strict=True):
            if commitment("pair", self._digest, seed) != self._pair(self._updates[site], other):
                raise SiteFault(site, f"it gave another seed for {other} than it committed to")
        self._confirmations[site] = answer

    def settle(self) -> None:
        """Drop survivors that did not confirm; if any, the others are to be asked once more."""
        lost = [site for site in self.survivors if site not in self._confirmations]
        for site in lost:
            del self._updates[site]
        if lost:
            self._confirmations.clear()
        self._check_enough()

    def unmask_request(self, site: str) -> UnmaskRequest:
        """Return what one survivor is asked for, once the survivors are confirmed."""
        self._check_enough()
        if self.needs_confirmation:
            raise Refused("the survivors have not confirmed that others are missing")
        signers = tuple(self._confirmations)
        return UnmaskRequest(
            round_digest=self._digest,
            survivors=self.survivors,
            signers=signers,
            signatures=b"".join(self._confirmations[signer].signature for signer in signers),
            sealed=b"".join(
                self._piece(self._updates[dealer].sealed, SEALED_BYTES, site)
                for dealer in self.survivors
            ),
        )

    def add_shares(self, site: str, data: bytes) -> None:
        """Take one survivor's shares; a share that is not what its dealer sent is a SiteFault."""
        try:
            answer = UnmaskShares.from_bytes(data)
            self._check_sender(site, answer.site, site in self._shares)
            if site not in self._updates:
                raise Refused("unmasks without being a survivor")
            answer.check_signature(self._participants.signing_key(site))
            self._check_round(answer.round_digest)
            unopened = set(answer.unopened)
            dealers = [dealer for dealer in self.survivors if dealer not in unopened]
            if not unopened <= set(self.survivors):
                raise Refused("complains of a site that is no survivor")
            shares = cut(answer.shares, SHARE_BYTES, len(dealers), "shares")
        except Refused as error:
            raise SiteFault(site[:40], error.message) from error
        for dealer, share in zip(dealers, shares, strict=True):
            dealt = self._piece(self._updates[dealer].share_commitments, DIGEST_BYTES, site)
            if commitment("share", self._digest, share, dealer, site) != dealt:
                raise SiteFault(site, f"its share of {dealer} is not the one that {dealer} sealed")
        self._shares[site] = dict(zip(dealers, shares, strict=True))
        self._complaints += [(site, dealer) for dealer in answer.unopened]

    def total(self) -> SumOverSites:
        """Return the sum over the survivors; with too few shares or false ones it is Refused."""
        total = np.zeros(self._request.dimension, dtype=np.uint32)
        recombiners: dict[tuple[int, ...], Recombiner] = {}
        for site in self.survivors:
            seed = self._seed(site, recombiners)
            total += np.frombuffer(self._updates[site].vector, dtype="<u4")
            add_mask(total, seed, negative=True)
            missing = self._missing(site)
            given = self._confirmations[site].seeds if missing else b""
            seeds = cut(given, SEED_BYTES, len(missing), "seeds")
            for other, pair_seed in zip(missing, seeds, strict=True):
                add_mask(total, pair_seed, negative=site < other)
        return SumOverSites(total, self.survivors, tuple(self._complaints))

    def _seed(self, dealer: str, recombiners: dict[tuple[int, ...], Recombiner]) -> bytes:
        """Return one survivor's own seed, or name who keeps it from being found."""
        holders = [site for site in self._shares if dealer in self._shares[site]]
        holders = holders[: self._request.minimum]
        if len(holders) < self._request.minimum:
            raise Refused(
                f"{len(holders)} of {self._request.minimum} shares of {dealer} came back",
                hint="the round is lost: ask for the next one",
            )
        numbers = tuple(self._numbers[holder] for holder in holders)
        if numbers not in recombiners:
            recombiners[numbers] = Recombiner(numbers)
        seed = recombiners[numbers]([self._shares[holder][dealer] for holder in holders])
        committed = self._updates[dealer].seed_commitment
        if seed is None or commitment("seed", self._digest, seed) != committed:
            raise SiteFault(
                dealer, "it dealt shares of another seed than it used", hint="the round is lost"
            )
        return seed

    def _check_sender(self, site: str, named: str, again: bool) -> None:
        if site not in self._numbers:
            raise Refused("is not asked in this round")
        if named != site:
            raise Refused("answers in the name of another site")
        if again:
            raise Refused("answers twice")

    def _check_round(self, digest: bytes) -> None:
        if digest != self._digest:
            raise Refused("answers for another round, or other sites or keys")

    def _check_enough(self) -> None:
        if len(self.survivors) < self._request.minimum:
            raise Refused(
                f"{len(self.survivors)} sites survive round {self._request.round}, "
                f"{self._request.minimum} are the fewest that have enough noise",
                hint="nothing was unmasked; ask for the next round",
            )

    def _missing(self, site: str) -> list[str]:
        return [other for other in self._neighbours[site] if other not in self._updates]

    def _pair(self, update: MaskedUpdate, other: str) -> bytes:
        at = self._neighbours[update.site].index(other) * DIGEST_BYTES
        return update.pair_commitments[at : at + DIGEST_BYTES]

    def _piece(self, joined: bytes, size: int, site: str) -> bytes:
        start = self._numbers[site] * size
        return joined[start : start + size]
