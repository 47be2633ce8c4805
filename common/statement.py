"""What a site says to auditors: one signed statement, handed in with its ledger.

The site signs with the key that the federation's roster names; its ledger's head is in the
statement, so that no line of the ledger can be changed, added or cut off afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.config import from_json, to_json
from common.errors import InputError, Refused
from common.signing import sign, verified
from common.software import Software

KIND: Final = "audit statement"


@dataclass(frozen=True)
class Consent:
    """The limits that the site has set itself in its policy (see `client.consent`)."""

    backbones: tuple[str, ...]
    epsilon: float
    delta: float
    epsilon_per_run: float
    rounds_per_run: int
    trust: tuple[str, ...]
    survivors: int
    colluders: int
    code: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    """What one site vouches for at the time `issued` (UTC).

    Attributes:
        ledger_seq, ledger_head: number and hash of the ledger's last line.
        contracts: digests of the runs' constants that the site was given.
        consent: its policy; None where the ledger's own budget is the only limit.
        simulated: all sites were played by one machine, which held every key.
    """

    federation: str
    site: str
    issued: str
    ledger_seq: int
    ledger_head: str
    contracts: tuple[str, ...]
    software: Software
    consent: Consent | None
    simulated: bool

    def signed(self, key: Ed25519PrivateKey) -> str:
        """Return the signed document."""
        return sign(KIND, to_json(self), key).decode()

    @classmethod
    def read(cls, document: str, key: Ed25519PublicKey) -> Statement:
        """Return a statement signed by `key`, strictly parsed; anything else is Refused."""
        return cls._parsed(verified(KIND, document.encode(), key))

    @classmethod
    def unverified(cls, document: str) -> Statement:
        """Return what a document claims to state, to find the key that must have signed it."""
        return cls._parsed(document.partition("\n")[0])

    @classmethod
    def _parsed(cls, body: str) -> Statement:
        try:
            found = from_json(cls, body, where=KIND)
        except InputError as error:
            raise Refused(f"the statement is malformed: {error.message}") from error
        if to_json(found) != body:
            raise Refused("the statement is malformed: its JSON is not canonical")
        return found


@dataclass(frozen=True)
class Evidence:
    """What a site hands in: the signed statement and its ledger, line by line."""

    statement: str
    ledger: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the file."""
        return (json.dumps(json.loads(to_json(self)), indent=1) + "\n").encode()

    @classmethod
    def read(cls, data: bytes, where: str) -> Evidence:
        """Return what a file holds; another form is an InputError."""
        return from_json(cls, data.decode(errors="replace"), where=where)
