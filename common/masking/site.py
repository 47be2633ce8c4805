"""A site's side of secure aggregation: it masks once, confirms survivors, and helps to unmask."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import Refused
from common.masking.fixed_point import NoisedShare
from common.masking.keys import PairKeys, Participants, commitment, open_share, seal_share
from common.masking.masks import add_mask
from common.masking.messages import (
    SEALED_BYTES,
    SIGNATURE_BYTES,
    Confirmation,
    MaskedUpdate,
    RoundRequest,
    SurvivorsRequest,
    UnmaskRequest,
    UnmaskShares,
    cut,
)
from common.masking.promises import Promises
from common.masking.shamir import split
from common.masking.terms import Terms
from common.randomness import KeyStream, derive_key


class MaskingSite:
    """One site in one run; its methods are the stages of a round, each repeatable after a crash.

    Guarantee: with the terms' proof, whatever the server sends, it learns of this site's vectors at
    most sums over all honest survivors, at least `terms.honest` of them. `directory` holds what
    was promised (`common.masking.promises`) and belongs to this run alone.
    """

    def __init__(
        self,
        participants: Participants,
        site: str,
        run_key: bytes,
        signing_key: Ed25519PrivateKey,
        terms: Terms,
        directory: Path,
    ) -> None:
        self._participants = participants
        self._site = site
        self._pairs = PairKeys(participants, site, run_key)
        self._signing_key = signing_key
        self._terms = terms
        self._promises = Promises(directory)

    def mask(self, request: RoundRequest, noised: NoisedShare, round_key: bytes) -> MaskedUpdate:
        """Return the masked vector of a round; the same three arguments give the same bytes.

        `round_key` is 32 secret bytes, new for each round. The own mask and its shares use keys
        derived from it and from `noised`: a round key that came back with a backup masks another
        vector afresh, and only the masks that have to cancel return (docs/secagg.md).
        Raises Refused for a round on other terms than agreed, without this site, or masked before
        for another request or from other arguments: the difference of two vectors under one mask
        would show.
        """
        digest = self._check(request)
        if noised.value.shape != (request.dimension,):
            raise Refused(
                f"the update has {noised.value.size} coordinates, not {request.dimension}"
            )
        plain = np.ascontiguousarray(noised.value, dtype="<u4")
        bound = (digest.hex(), hashlib.sha256(plain.data).hexdigest())
        seed = derive_key(round_key, "own mask", *bound)
        masked = noised.value.copy()
        add_mask(masked, seed, negative=False)
        pairs = []
        for other in self._neighbours(request):
            pair_seed = self._pairs.mask_seed(other, digest)
            add_mask(masked, pair_seed, negative=self._site > other)
            pairs.append(commitment("pair", digest, pair_seed))
        polynomial = KeyStream(derive_key(round_key, "shares", *bound), private=True)
        shares = split(seed, request.minimum, len(request.sites), polynomial)
        sealed, commitments = [], []
        for holder, share in zip(request.sites, shares, strict=True):
            key = self._pairs.share_key(self._site, holder, digest)
            sealed.append(seal_share(key, share, digest))
            commitments.append(commitment("share", digest, share, self._site, holder))
        update = MaskedUpdate(
            site=self._site,
            signature=b"",
            round_digest=digest,
            vector=masked.astype("<u4", copy=False).tobytes(),
            sealed=b"".join(sealed),
            share_commitments=b"".join(commitments),
            seed_commitment=commitment("seed", digest, seed),
            pair_commitments=b"".join(pairs),
        ).signed(self._signing_key)
        self._promises.mask(request.round, digest, request.sites, update.signature)
        return update

    def confirm(self, request: RoundRequest, survivors: SurvivorsRequest) -> Confirmation:
        """Return the signature on the survivors, and the seeds shared with missing neighbours.

        Raises Refused for survivors that this site is not among, that are fewer than the minimum,
        or that are not a part of those confirmed before.
        """
        digest = self._check(request)
        self._check_survivors(request, digest, survivors.round_digest, survivors.survivors)
        self._promises.sign(request.round, digest, survivors.survivors)
        missing = [o for o in self._neighbours(request) if o not in survivors.survivors]
        seeds = [self._pairs.mask_seed(other, digest) for other in missing]
        signature = self._signing_key.sign(survivors.to_bytes())
        return Confirmation(self._site, signature, b"".join(seeds))

    def unmask(self, request: RoundRequest, unmask: UnmaskRequest) -> UnmaskShares:
        """Return this site's shares of the survivors' seeds, for one set of survivors a round.

        Raises Refused as `confirm`, unless all sites survive or the minimum of them signed these
        survivors, this site among them, and for other sealed shares than those opened before: a
        dealer whose state was put back may have dealt twice.
        """
        digest = self._check(request)
        self._check_survivors(request, digest, unmask.round_digest, unmask.survivors)
        if unmask.survivors != request.sites:
            self._check_signers(request, unmask)
        sealed = cut(unmask.sealed, SEALED_BYTES, len(unmask.survivors), "sealed shares")
        self._promises.unmask(request.round, digest, unmask.survivors, unmask.sealed)
        shares, unopened = [], []
        for dealer, box in zip(unmask.survivors, sealed, strict=True):
            try:
                key = self._pairs.share_key(dealer, self._site, digest)
                shares.append(open_share(key, box, digest))
            except InvalidTag:
                unopened.append(dealer)
        return UnmaskShares(self._site, b"", digest, b"".join(shares), tuple(unopened)).signed(
            self._signing_key
        )

    def _check(self, request: RoundRequest) -> bytes:
        if request.terms != self._terms:
            raise Refused(f"round {request.round} is on other terms than this site agreed to")
        if self._site not in request.sites:
            raise Refused(f"round {request.round} is without this site")
        return self._participants.digest(request)

    def _check_survivors(
        self, request: RoundRequest, digest: bytes, named: bytes, survivors: tuple[str, ...]
    ) -> None:
        if named != digest:
            raise Refused("survivors of another round, or of other sites or keys")
        if survivors != tuple(s for s in request.sites if s in set(survivors)):
            raise Refused("survivors that are not sites of the round, in order")
        if self._site not in survivors:
            raise Refused("the server says that this site is missing")
        if len(survivors) < request.minimum:
            raise Refused(f"{len(survivors)} survivors where {request.minimum} are the fewest")

    def _check_signers(self, request: RoundRequest, unmask: UnmaskRequest) -> None:
        signers = set(unmask.signers)
        if len(signers) != len(unmask.signers) or not signers <= set(unmask.survivors):
            raise Refused("survivors are confirmed by themselves, each once")
        if len(signers) < request.minimum:
            raise Refused(f"{len(signers)} sites confirmed the survivors, not {request.minimum}")
        statement = SurvivorsRequest(unmask.round_digest, unmask.survivors).to_bytes()
        pieces = cut(unmask.signatures, SIGNATURE_BYTES, len(unmask.signers), "signatures")
        for signer, signature in zip(unmask.signers, pieces, strict=True):
            try:
                self._participants.signing_key(signer).verify(signature, statement)
            except InvalidSignature as error:
                raise Refused(f"{signer} did not sign these survivors") from error

    def _neighbours(self, request: RoundRequest) -> list[str]:
        sites = request.sites
        numbers = request.terms.neighbours(len(sites), sites.index(self._site))
        return [sites[number] for number in numbers]
