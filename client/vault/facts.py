"""What an auditor may know of a vault: counts, encryption, rotations, erasures; never who.

A document signed by the vault's own key, the one that signs the receipts of erasures.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from client.vault import opening, schema
from client.vault.log import LogEntry, open_entries
from client.vault.manifest import Manifest
from client.vault.session import Session
from common.sealing import KeyLock
from common.vault_facts import VaultFacts


def facts_of(where: str, lock: KeyLock) -> str:
    """Return the signed document; a vault or log that does not hold is a SealError."""
    store = opening.open_store(where, lock)
    try:
        with Session.read(store) as session:
            session.check(schema.SUBJECT, schema.TEMPLATE)
            rows = session.connection.execute(select(schema.LOG).order_by(schema.LOG.c.id)).all()
            entries = open_entries(rows, session.manifest, store.vault_id)
            locks = session.connection.execute(select(schema.KEY.c.kind)).scalars().all()
            return _signed(store.vault_id, session.manifest, entries, set(locks))
    finally:
        store.database.close()


def _signed(
    vault_id: str, manifest: Manifest, entries: tuple[LogEntry, ...], locks: set[str]
) -> str:
    def done(operation: str) -> tuple[str, ...]:
        found = (one for one in entries if (one.operation, one.outcome) == (operation, "done"))
        return tuple(one.time[:10] for one in found)

    key = Ed25519PrivateKey.from_private_bytes(manifest.signing_key)
    return VaultFacts(
        vault=sha256(vault_id.encode()).hexdigest()[:16],
        issued=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        public_key=key.public_key().public_bytes_raw().hex(),
        subjects=manifest.subjects,
        templates=sum(model.templates for model in manifest.models),
        models=len([model for model in manifest.models if model.templates]),
        encryption="AES-256-GCM",
        key_locks=tuple(sorted(locks)),
        keeps_chips=manifest.keep_chips,
        rotations=done("rotate"),
        renewals=done("renew"),
        erasures=done("erase"),
        log_entries=len(entries),
        log_head=manifest.log_head,
    ).signed(key)
