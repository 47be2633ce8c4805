"""Leaving no copy of what was deleted, after the fact: what cannot be scrubbed now goes later.

What a person was told is true when it is told: rows and keys are gone once the transaction is. The
pages they lay on are overwritten afterwards, which another program can hold up: a backup that reads
an SQLite file, a dump of a PostgreSQL database. That is a warning and no error, and the next
opening of the vault tries again.
"""

from __future__ import annotations

import logging
from typing import Final

from client.vault import settings
from client.vault.session import Session
from client.vault.store import Store
from common.errors import StorageError

_LOG: Final = logging.getLogger("veilface.vault")
_DUE: Final = "pages to scrub"


def owe(session: Session) -> None:
    """Note in the transaction that deletes that pages are to be scrubbed; a file always is."""
    if session.store.database.path is None:
        settings.remember(session, _DUE, session.manifest.log_head.encode())


def scrub(store: Store) -> bool:
    """Scrub after a transaction that `owe`s it; False, and a warning, where that must wait."""
    due = _due(store)
    try:
        store.database.scrub()
    except StorageError as error:
        _LOG.warning("old pages of the vault are not scrubbed yet: %s", error)
        return False
    _paid(store, due)
    return True


def resume(store: Store) -> None:
    """Scrub what an interrupted erasure left, unless others are using the vault just now."""
    due = _due(store)
    if store.database.path is None and not due:
        return
    try:
        store.database.tidy()
        _paid(store, due)
    except StorageError as error:
        _LOG.info("not tidied: %s", error)


def _due(store: Store) -> bytes:
    """The log's head when a scrub of the database was last called for; empty once it is done."""
    if store.database.path is not None:
        return b""
    with Session.read(store) as session:
        return settings.recall(session, _DUE) or b""


def _paid(store: Store, due: bytes) -> None:
    """Note that what was due is scrubbed, unless more has become due meanwhile."""
    if due:
        with Session.write(store) as session:
            if settings.recall(session, _DUE) == due:
                settings.remember(session, _DUE, b"")
