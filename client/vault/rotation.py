"""A new vault key for an old one: every data key is wrapped anew, no template is touched.

Three steps, each durable: the new key is put beside the old one, each sealed under the other; data
keys are wrapped anew, a few hundred in a transaction, while the vault stays in use; the old key and
the links are deleted and scrubbed. Stopped anywhere, the vault opens with the old lock or the new
one, and the next `rotate` goes on from there.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, bindparam, delete, insert, select, update

from client.vault import schema, scrubbing
from client.vault.opening import lock_context
from client.vault.session import Session
from client.vault.store import Store
from common.errors import SealError
from common.randomness import fresh_key
from common.sealing import KeyLock, seal

BATCH = 500  # data keys in one transaction


def rotate(store: Store, new: KeyLock) -> None:
    """Put a new vault key, locked by `new`, in the place of the old one."""
    number = _begin(store, new)
    for table in (schema.SUBJECT, schema.SHARD):
        last: int | None = 0
        while last is not None:
            last = _rewrap_some(store, table, number, last)
    _finish(store, number)
    scrubbing.scrub(store)


def _begin(store: Store, new: KeyLock) -> int:
    """Return the number of the new key, which may be there since a rotation that was stopped."""
    with Session.write(store) as session:
        number = session.key_number
        row = session.connection.execute(_row(number)).one()
        if row.back is not None:
            wrapped = new.wrap(store.keys[number], lock_context(store.vault_id, number))
            change = {"kind": new.kind, "wrapped": wrapped}
            session.connection.execute(_update(number), change)
            return number
        old, number, key = number, number + 1, fresh_key()
        forward = seal(store.keys[old], key, store.bind("next vault key", old))
        session.connection.execute(_update(old), {"forward": forward})
        added = {
            "id": number,
            "kind": new.kind,
            "wrapped": new.wrap(key, lock_context(store.vault_id, number)),
            "back": seal(key, store.keys[old], store.bind("vault key before", number)),
        }
        session.connection.execute(insert(schema.KEY), [added])
        session.log("rotate", None, "begun")
        session.use_key(number, key)
    return number


def _rewrap_some(store: Store, table: Table, number: int, after: int) -> int | None:
    """Wrap a batch of data keys under the new vault key; return its last id, None at the end."""
    with Session.write(store) as session:
        wanted = select(table).where(table.c.key != number, table.c.id > after)
        rows = session.connection.execute(wanted.order_by(table.c.id).limit(BATCH)).all()
        if not rows:
            return None
        changes = [_rewrapped(session, table, row, number) for row in rows]
        session.connection.execute(update(table).where(table.c.id == bindparam("row")), changes)
    return int(rows[-1].id)


def _rewrapped(session: Session, table: Table, row: Any, number: int) -> dict[str, Any]:
    if table is schema.SUBJECT:
        parts = ("subject", row.id, row.pseudonym)
    else:
        parts = ("shard", row.id, session.manifest.model(row.model).model_id)
    key = session.store.unwrap(row.wrapped, row.key, *parts)
    wrapped = session.store.wrap(key, number, *parts)
    return {"row": row.id, "key": number, "wrapped": wrapped}


def _finish(store: Store, number: int) -> None:
    with Session.write(store) as session:
        for table in (schema.SUBJECT, schema.SHARD):
            left = select(table.c.id).where(table.c.key != number).limit(1)
            if session.connection.execute(left).one_or_none() is not None:
                raise SealError("a row is wrapped under the old key still")
        session.connection.execute(delete(schema.KEY).where(schema.KEY.c.id != number))
        session.connection.execute(_update(number), {"back": None})
        session.log("rotate", None, "done")
        scrubbing.owe(session)
    for old in [n for n in store.keys if n < number - 1]:
        del store.keys[old]  # the last one may serve a reader of the moment before


def _row(number: int) -> Any:
    return select(schema.KEY).where(schema.KEY.c.id == number)


def _update(number: int) -> Any:
    return update(schema.KEY).where(schema.KEY.c.id == number)
