"""Signed documents: two lines, canonical JSON and its Ed25519 signature (RFC 8032) in hex.

The signature is over the document's kind and the JSON, so that one kind never passes for another.
It is verified before anything is parsed: a parser sees only what the signer wrote.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_ssh_public_key, ssh_key_fingerprint

from common.errors import Refused

LIMIT: Final = 4 << 20
_SIGNATURE: Final = re.compile(rb"[0-9a-f]{128}")


def sign(kind: str, body: str, key: Ed25519PrivateKey) -> bytes:
    """Return the signed document of one line of JSON."""
    return f"{body}\n{key.sign(_message(kind, body.encode())).hex()}\n".encode()


def verified(kind: str, document: bytes, key: Ed25519PublicKey) -> str:
    """Return the JSON of a signed document; any changed byte, other key or kind is Refused."""
    parts = document.split(b"\n") if len(document) <= LIMIT else []
    if len(parts) != 3 or parts[2] or not _SIGNATURE.fullmatch(parts[1]):
        raise Refused(f"this is not a signed {kind}", hint="ask the federation's operator again")
    try:
        key.verify(bytes.fromhex(parts[1].decode()), _message(kind, parts[0]))
    except InvalidSignature as error:
        raise Refused(
            f"the {kind} was changed, or is not signed by this federation",
            hint="ask the federation's operator again",
        ) from error
    return parts[0].decode()


def public_key(line: bytes) -> Ed25519PublicKey:
    """Return the Ed25519 key of an OpenSSH line; anything else is Refused."""
    try:
        key = load_ssh_public_key(line)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(f"not an OpenSSH public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Refused("not an Ed25519 public key")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return SHA256:..., as `ssh-keygen -lf` prints it, for people to compare."""
    digest = ssh_key_fingerprint(key, SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _message(kind: str, body: bytes) -> bytes:
    return f"veilface {kind} 1\0".encode() + body
