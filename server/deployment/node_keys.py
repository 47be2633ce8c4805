"""The public keys of sites' nodes, as Flower writes them; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import Refused
from common.roster import Roster


@lru_cache(maxsize=4096)
def node_key(line: str) -> bytes:
    """Return the PEM, by which Flower knows a node, of a roster's OpenSSH line."""
    key = load_ssh_public_key(line.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused("a node key on the roster is not an ECDSA key")
    return public_key_to_bytes(key)


def names_by_key(roster: Roster) -> Mapping[bytes, str]:
    """Return the names of the roster's sites by node key."""
    return {node_key(site.node_key): site.name for site in roster.sites}
