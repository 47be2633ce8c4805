"""What sites and server say to each other in secure aggregation.

Once a run every site sends an `Advertisement`. A round is a `RoundRequest` answered by a
`MaskedUpdate`; if sites are missing, a `SurvivorsRequest` answered by a `Confirmation`; and an
`UnmaskRequest` answered by `UnmaskShares`. Digests are SHA-256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import Refused
from common.masking.shamir import SHARE_BYTES
from common.masking.terms import MOST_SITES, Terms
from common.masking.wire import Message
from common.roster import is_name

DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEED_BYTES: Final = 32
SEALED_BYTES: Final = SHARE_BYTES + 16
MOST_PARAMETERS: Final = 1 << 28


@dataclass(frozen=True)
class Signed(Message):
    """A message that its `site` signs with the Ed25519 key that the roster lists."""

    site: str
    signature: bytes

    def signed(self, key: Ed25519PrivateKey) -> Self:
        """Return the message with its signature."""
        return replace(self, signature=key.sign(self._signed_digest()))

    def check_signature(self, key: Ed25519PublicKey) -> None:
        """Raise Refused unless the site's key signed exactly this."""
        try:
            key.verify(self.signature, self._signed_digest())
        except InvalidSignature as error:
            raise Refused(f"a {self.KIND} of {self.site} is not signed by {self.site}") from error

    def _signed_digest(self) -> bytes:
        return self._header() + hashlib.sha256(self.to_bytes(without="signature")).digest()


@dataclass(frozen=True)
class Advertisement(Signed):
    """A site's X25519 public key for one run."""

    KIND: ClassVar = "advertisement"
    federation: str
    run_id: str
    key: bytes


@dataclass(frozen=True)
class RoundRequest(Message):
    """The server asks for one masked update of `dimension` coordinates from each of `sites`.

    `contract_id` and `model_id` are the digests of the run's contract and of the parameters that
    the update starts from. Raises Refused unless the sites are sorted, different and a number that
    the terms cover.
    """

    KIND: ClassVar = "round request"
    federation: str
    run_id: str
    round: int
    contract_id: str
    model_id: str
    dimension: int
    minimum: int
    colluders: int
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        ordered = self.sites == tuple(sorted(set(self.sites)))
        if not ordered or not all(is_name(site) for site in self.sites):
            raise Refused("a round's sites are not names in order, each once")
        small = max(self.minimum, self.colluders, len(self.sites)) <= MOST_SITES
        if not small or not 1 <= self.dimension <= MOST_PARAMETERS:
            raise Refused("a round of too many sites or parameters")

    @property
    def terms(self) -> Terms:
        return Terms(self.minimum, self.colluders)


@dataclass(frozen=True)
class MaskedUpdate(Signed):
    """A site's masked vector, its seed's shares, each sealed to its holder, and commitments.

    Attributes:
        round_digest: of the request and of the keys of all its sites.
        vector: uint32 little-endian [dimension].
        sealed: one sealed share for each site of the round, in order, its own included.
        share_commitments: of each of these shares; seed_commitment: of the seed itself.
        pair_commitments: of the seeds shared with each neighbour, in order.
    """

    KIND: ClassVar = "masked update"
    round_digest: bytes
    vector: bytes
    sealed: bytes
    share_commitments: bytes
    seed_commitment: bytes
    pair_commitments: bytes


@dataclass(frozen=True)
class SurvivorsRequest(Message):
    """The server says whose updates it has, where it is not all, and asks to confirm that."""

    KIND: ClassVar = "survivors request"
    round_digest: bytes
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Confirmation(Message):
    """A site's signature on the survivors, and its seeds with each missing neighbour, in order."""

    KIND: ClassVar = "confirmation"
    site: str
    signature: bytes
    seeds: bytes


@dataclass(frozen=True)
class UnmaskRequest(Message):
    """The survivors, who signed that (nobody if all survive), and their shares for this site."""

    KIND: ClassVar = "unmask request"
    round_digest: bytes
    survivors: tuple[str, ...]
    signers: tuple[str, ...]
    signatures: bytes
    sealed: bytes


@dataclass(frozen=True)
class UnmaskShares(Signed):
    """A site's shares of the survivors' seeds, in order, but of those whose did not open."""

    KIND: ClassVar = "unmask shares"
    round_digest: bytes
    shares: bytes
    unopened: tuple[str, ...]


def check_size(joined: bytes, size: int, count: int, what: str) -> None:
    """Raise Refused unless there are `count` pieces of `size` bytes."""
    if len(joined) != size * count:
        raise Refused(f"{what}: {len(joined)} bytes where {size * count} belong")


def cut(joined: bytes, size: int, count: int, what: str) -> list[bytes]:
    """Return `count` pieces of `size` bytes each; another length is Refused."""
    check_size(joined, size, count, what)
    return [joined[start : start + size] for start in range(0, len(joined), size)]
