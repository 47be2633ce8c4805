"""The form in which a vault's facts reach an auditor: signed by the vault, without a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.config import from_json, to_json
from common.errors import InputError
from common.signing import sign, verified

KIND: Final = "vault facts"


@dataclass(frozen=True)
class VaultFacts:
    """Counts and dates (UTC, to the day) of one vault; hex keys and hashes.

    Attributes:
        vault: the beginning of the vault id's SHA-256.
        key_locks: what locks the vault key now (passphrase, key file, key service).
        rotations, renewals, erasures: the days on which each was finished, one entry each; for
            every erasure the vault gave a signed receipt.
        log_entries, log_head: length and last hash of the operation log, whose chain held.
    """

    vault: str
    issued: str
    public_key: str
    subjects: int
    templates: int
    models: int
    encryption: str
    key_locks: tuple[str, ...]
    keeps_chips: bool
    rotations: tuple[str, ...]
    renewals: tuple[str, ...]
    erasures: tuple[str, ...]
    log_entries: int
    log_head: str

    def signed(self, key: Ed25519PrivateKey) -> str:
        """Return the signed document."""
        return sign(KIND, to_json(self), key).decode()

    @classmethod
    def read(cls, document: str) -> VaultFacts:
        """Return facts signed by the key that they name; another form or a change is refused."""
        claimed = from_json(cls, document.partition("\n")[0], where=KIND)
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(claimed.public_key))
        except ValueError as error:
            raise InputError(f"{KIND}: public_key is not an Ed25519 key") from error
        return from_json(cls, verified(KIND, document.encode(), key), where=KIND)
