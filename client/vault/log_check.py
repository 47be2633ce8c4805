"""A check of a vault's operation log, with its key or without."""

from __future__ import annotations

from sqlalchemy import select

from client.vault import opening, schema
from client.vault.database import Database
from client.vault.log import LogReport, check_chain, open_entries
from client.vault.session import Session
from common.errors import SealError
from common.sealing import KeyLock


def verify_log(where: str, lock: KeyLock | None = None) -> LogReport:
    """Check a vault's operation log; what does not hold is in the findings.

    Without a lock: changed, removed and reordered entries. With it also a log that was cut off,
    rolled back, or written by someone who has no key.
    """
    database = Database(where, create=False)
    wanted = select(schema.LOG).order_by(schema.LOG.c.id)
    try:
        with database.read() as connection:
            report = check_chain(connection.execute(wanted).all())
    finally:
        database.close()
    if lock is None or report.findings:
        return report
    try:
        store = opening.open_store(where, lock)
        try:
            with Session.read(store) as session:
                rows = session.connection.execute(wanted).all()
                open_entries(rows, session.manifest, store.vault_id)
        finally:
            store.database.close()
    except SealError as error:
        return LogReport((error.message,), report.entries, report.head)
    return report
