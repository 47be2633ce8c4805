"""Small sealed settings of a vault, such as thresholds; their names are keyed, too."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from sqlalchemy import select

from client.vault import schema
from client.vault.session import Session
from client.vault.store import blob
from common.errors import InputError
from common.sealing import open_sealed, seal

_LARGEST: Final = 1 << 20


def remember(session: Session, name: str, value: bytes) -> None:
    """Keep a value of up to 1 MiB under a name, in place of an older one."""
    if len(value) > _LARGEST:
        raise InputError(f"a setting has at most {_LARGEST} bytes")
    session.check(schema.SETTING)
    table, tag = schema.SETTING, _tag(session, name)
    old = select(table.c.id).where(table.c.name + "" == tag)
    session.delete(table, list(session.connection.execute(old).scalars()))
    new = session.next_id()
    sealed = seal(session.manifest.key("settings"), value, _bound(session, new, tag))
    session.insert(table, [{"id": new, "name": tag, "sealed": sealed}])


def recall(session: Session, name: str) -> bytes | None:
    """Return the value of a name, or None where the manifest vouches that there is none."""
    session.check(schema.SETTING)
    table, tag = schema.SETTING, _tag(session, name)
    wanted = select(table).where(table.c.name + "" == tag)  # read, not by the index
    row = session.connection.execute(wanted).one_or_none()
    if row is None:
        return None
    bound = _bound(session, row.id, tag)
    return open_sealed(session.manifest.key("settings"), blob(row.sealed), bound)


def _tag(session: Session, name: str) -> str:
    key = session.manifest.key("setting names")
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:32]


def _bound(session: Session, id_: int, tag: str) -> bytes:
    return session.store.bind("setting", id_, tag)
