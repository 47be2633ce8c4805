"""The receipt of an erasure: signed by the vault, checked by anyone who knows its public key."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import InputError, SealError


@dataclass(frozen=True)
class Receipt:
    """Which pseudonym's data key and `templates` rows were destroyed when; hex keys and hashes.

    `log_head` is the operation log's head with this erasure in it.
    """

    vault_id: str
    pseudonym: str
    time: str
    templates: int
    log_head: str
    public_key: str
    signature: str = ""
    format: int = 1

    def to_json(self) -> str:
        """Return the receipt as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    def message(self) -> bytes:
        """Return what is signed: all fields but the signature, in canonical JSON."""
        values = dataclasses.asdict(self)
        del values["signature"]
        body = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return b"veilface erasure receipt\n" + body.encode()

    @staticmethod
    def verify(receipt_json: str, public_key: str | None = None) -> Receipt:
        """Return the receipt if its signature holds, and is by `public_key` (hex) where given.

        Another form: InputError; a changed receipt or another signer: SealError.
        """
        try:
            values = json.loads(receipt_json)
            receipt = Receipt(**values)
            types = {field.name: type(field.default) for field in dataclasses.fields(Receipt)}
            wanted = {name: int if name in ("format", "templates") else str for name in types}
            if any(type(values.get(name)) is not kind for name, kind in wanted.items()):
                raise TypeError("a field has another type")
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(receipt.public_key))
            signature = bytes.fromhex(receipt.signature)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError("this is not an erasure receipt") from error
        if receipt.format != 1:
            raise InputError(f"a receipt of unknown format {receipt.format}")
        if public_key is not None and public_key != receipt.public_key:
            raise SealError("the receipt was signed by another vault")
        try:
            key.verify(signature, receipt.message())
        except InvalidSignature as error:
            raise SealError("the receipt was changed after it was signed") from error
        return receipt


def sign(
    vault_id: str, pseudonym: str, time: str, templates: int, log_head: str, signing_key: bytes
) -> Receipt:
    """Return the signed receipt of an erasure; the same arguments give the same receipt."""
    key = Ed25519PrivateKey.from_private_bytes(signing_key)
    public = key.public_key().public_bytes_raw().hex()
    receipt = Receipt(vault_id, pseudonym, time, templates, log_head, public)
    return dataclasses.replace(receipt, signature=key.sign(receipt.message()).hex())
