"""Keys of secure aggregation: one X25519 key a site and run, and all that is derived from it.

Every derived key is bound to the federation, the run, the round, all its sites and their keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import InputError, Refused
from common.masking.messages import DIGEST_BYTES, Advertisement, RoundRequest
from common.randomness import KEY_BYTES, derive_key
from common.roster import Roster
from common.signing import public_key

_NONCE: Final = bytes(12)  # each key seals one share, and AES-GCM-SIV bears a repetition


def advertise(
    roster: Roster, run_id: str, site: str, run_key: bytes, signing_key: Ed25519PrivateKey
) -> Advertisement:
    """Return a site's signed public key for a run, from its 32 secret bytes `run_key`."""
    key = X25519PrivateKey.from_private_bytes(run_key).public_key().public_bytes_raw()
    return Advertisement(site, b"", roster.federation, run_id, key).signed(signing_key)


@dataclass(frozen=True)
class Participants:
    """The sites of a run with their keys, each verified against the roster."""

    federation: str
    run_id: str
    advertisements: tuple[Advertisement, ...]
    signing_keys: tuple[Ed25519PublicKey, ...]

    @classmethod
    def verified(
        cls, roster: Roster, run_id: str, advertisements: Sequence[Advertisement]
    ) -> Participants:
        """Return the participants in order of name.

        Refused, and named: a site that is not on the roster, appears twice, advertises for another
        federation or run, or whose signature is not by the key that the roster lists.
        """
        listed = {site.name: site.signing_key for site in roster.sites}
        ordered = sorted(advertisements, key=lambda advertisement: advertisement.site)
        keys: list[Ed25519PublicKey] = []
        for index, one in enumerate(ordered):
            if one.site not in listed:
                raise Refused(f"{one.site[:40]} advertises a key but is not on the roster")
            if index and ordered[index - 1].site == one.site:
                raise Refused(f"{one.site} advertises twice")
            if (one.federation, one.run_id) != (roster.federation, run_id):
                raise Refused(f"{one.site} advertises a key for another federation or run")
            if len(one.key) != KEY_BYTES:
                raise Refused(f"{one.site} advertises a malformed key")
            key = public_key(listed[one.site].encode())
            one.check_signature(key)
            keys.append(key)
        if len({one.key for one in ordered}) != len(ordered):
            raise Refused("two sites advertise the same key")
        return cls(roster.federation, run_id, tuple(ordered), tuple(keys))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {one.site: number for number, one in enumerate(self.advertisements)}

    @cached_property
    def _digests(self) -> dict[str, bytes]:
        return {one.site: hashlib.sha256(one.to_bytes()).digest() for one in self.advertisements}

    def advertisement(self, site: str) -> Advertisement:
        """Return what a site advertised; a site that did not is Refused."""
        if site not in self._numbers:
            raise Refused(f"{site[:40]} advertised no key for this run")
        return self.advertisements[self._numbers[site]]

    def signing_key(self, site: str) -> Ed25519PublicKey:
        """Return the key that the roster lists for a site of this run."""
        self.advertisement(site)
        return self.signing_keys[self._numbers[site]]

    def digest(self, request: RoundRequest) -> bytes:
        """Return what binds all messages of a round: the request and its sites' keys, SHA-256.

        A request of another federation or run, of sites that advertised no key, or on terms that
        are not covered, is Refused.
        """
        if (request.federation, request.run_id) != (self.federation, self.run_id):
            raise Refused("a round of another federation or run")
        try:
            request.terms.check(len(request.sites))
        except InputError as error:
            raise Refused(f"a round on terms that protect nobody: {error.message}") from error
        value = hashlib.sha256(request.to_bytes())
        for site in request.sites:
            self.advertisement(site)
            value.update(self._digests[site])
        return value.digest()


class PairKeys:
    """What one site has in common with each other site of a run, by Diffie and Hellman."""

    def __init__(self, participants: Participants, site: str, run_key: bytes) -> None:
        self._own = X25519PrivateKey.from_private_bytes(run_key)
        advertised = participants.advertisement(site).key
        if self._own.public_key().public_bytes_raw() != advertised:
            raise Refused(
                f"the key that {site} advertised is not the one it has",
                hint="its state directory was replaced during the run",
            )
        self._participants = participants
        self._site = site
        self._run_key = run_key
        self._secrets: dict[str, bytes] = {}

    def mask_seed(self, other: str, round_digest: bytes) -> bytes:
        """Return the 32 bytes from which both sites expand their mask of one round."""
        return derive_key(self._secret(other), "mask", round_digest.hex())

    def share_key(self, dealer: str, holder: str, round_digest: bytes) -> bytes:
        """Return the key under which `dealer` seals a share to `holder`; one of them is this."""
        other = holder if dealer == self._site else dealer
        return derive_key(self._secret(other), "share", round_digest.hex(), dealer, holder)

    def _secret(self, other: str) -> bytes:
        if other not in self._secrets:
            self._secrets[other] = self._agree(other)
        return self._secrets[other]

    def _agree(self, other: str) -> bytes:
        if other == self._site:
            return derive_key(self._run_key, "own shares")
        theirs = X25519PublicKey.from_public_bytes(self._participants.advertisement(other).key)
        try:
            agreed = self._own.exchange(theirs)
        except ValueError as error:  # a point of small order, with which all agree on zero
            raise Refused(f"{other} advertises a key that agrees on nothing") from error
        labels = (self._participants.federation, self._participants.run_id)
        info = "\0".join(("veilface masking pair 1", *labels, *sorted((self._site, other))))
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info.encode()).derive(
            agreed
        )


def seal_share(key: bytes, share: bytes, round_digest: bytes) -> bytes:
    """Return a share sealed by AES-256-GCM-SIV (RFC 8452), 16 bytes longer; repeatable."""
    return AESGCMSIV(key).encrypt(_NONCE, share, round_digest)


def open_share(key: bytes, sealed: bytes, round_digest: bytes) -> bytes:
    """Return a sealed share; raises cryptography's InvalidTag if it was changed or moved."""
    return AESGCMSIV(key).decrypt(_NONCE, sealed, round_digest)


def commitment(what: str, round_digest: bytes, secret: bytes, *labels: str) -> bytes:
    """Return the SHA-256 that binds whoever signs it to one secret of at least 256 bits."""
    text = "\0".join(("veilface masking", what, *labels)).encode()
    value = hashlib.sha256(len(text).to_bytes(DIGEST_BYTES, "big") + text + round_digest + secret)
    return value.digest()
