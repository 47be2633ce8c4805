"""How a vault is made and opened: the lock gives the vault key, the vault key gives the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select

from client.vault import schema, scrubbing, witness
from client.vault.database import Database, remove_files
from client.vault.manifest import Manifest, associated, new_vault_id
from client.vault.session import Session
from client.vault.store import Store, blob
from common.errors import InputError, SealError
from common.randomness import KEY_BYTES, fresh_key
from common.sealing import KeyLock, open_sealed
from common.template import MAX_DIM


def create(where: str, lock: KeyLock, manifest: Manifest) -> Store:
    """Make an empty vault; if that fails, no file stays behind."""
    model = manifest.current
    if not model.model_id or not 1 <= model.dim <= MAX_DIM:
        raise InputError(f"a vault needs a model id and 1 to {MAX_DIM} dimensions")
    vault_id, key = new_vault_id(), fresh_key()
    wrapped = lock.wrap(key, lock_context(vault_id, 1))  # before there is a file
    database = Database(where, create=True)
    store = Store(database, vault_id, {1: key})
    try:
        store.begin_witness(manifest)
        with database.write() as connection:
            row = {"id": 1, "kind": lock.kind, "wrapped": wrapped}
            connection.execute(insert(schema.KEY), [row])
            sealed = store.seal_manifest(manifest, 1)
            vault = {"id": 1, "vault_id": vault_id, "key": 1, "manifest": sealed}
            connection.execute(insert(schema.VAULT), [vault])
    except BaseException:
        database.close()
        if database.path is not None:
            remove_files(database.path)
        raise
    return store


def open_store(where: str, lock: KeyLock, *, trust: bool = False) -> Store:
    """Open a vault's keys and manifest, and finish scrubbing what an interrupted erasure left.

    With `trust` a file is taken as it lies, whatever its witness says; the log tells of it.
    """
    database = Database(where, create=False)
    try:
        with database.read() as connection:
            vault = connection.execute(select(schema.VAULT)).one_or_none()
            rows = connection.execute(select(schema.KEY).order_by(schema.KEY.c.id.desc())).all()
        if vault is None or not isinstance(vault.vault_id, str):
            raise SealError("the vault has no manifest", hint="it was never finished, or damaged")
        store = Store(database, vault.vault_id, _unlock(vault.vault_id, rows, lock))
        if vault.key not in store.keys:
            raise SealError("the vault's manifest and its keys are not of the same moment")
        with Session.read(store) as session:
            if database.path is not None and not trust:
                witness.check(database.path, store.vault_id, session.manifest)
        if trust:
            _trust(store)
        scrubbing.resume(store)
    except BaseException:
        database.close()
        raise
    return store


def _trust(store: Store) -> None:
    with Session.write(store) as session:
        session.log("trust", None, "done")
        manifest = session.manifest
    store.begin_witness(manifest)


def lock_context(vault_id: str, number: int) -> bytes:
    """Return what a wrapped vault key is bound to."""
    return f"veilface vault {vault_id} key {number}".encode()


def _unlock(vault_id: str, rows: Sequence[Any], lock: KeyLock) -> dict[int, bytes]:
    """Return the vault keys by number: one, or two while a rotation lasts."""
    fitting = [row for row in rows if row.kind == lock.kind]
    if rows and not fitting:
        raise SealError(f"this vault's lock is a {rows[0].kind}, not a {lock.kind}")
    refusal = SealError("the vault has no key")
    for row in fitting:
        try:
            key = lock.unwrap(blob(row.wrapped), lock_context(vault_id, row.id))
        except SealError as error:
            refusal = error
            continue
        if len(key) != KEY_BYTES:
            raise SealError("the lock gave something else than a key")
        return {row.id: key, **_linked(vault_id, row, key)}
    raise SealError("this does not open the vault", hint=refusal.message) from refusal


def _linked(vault_id: str, row: Any, key: bytes) -> dict[int, bytes]:
    """Return the other key of a rotation that has not ended."""
    found = {}
    if row.back is not None:
        bound = associated(vault_id, "vault key before", row.id)
        found[row.id - 1] = open_sealed(key, blob(row.back), bound)
    if row.forward is not None:
        bound = associated(vault_id, "next vault key", row.id)
        found[row.id + 1] = open_sealed(key, blob(row.forward), bound)
    return found
