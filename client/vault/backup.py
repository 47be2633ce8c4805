"""Everything in a vault, in one sealed file, and a vault from such a file.

Inside are the vault's rows, sealed as they lie in it, and the vault key. Importing takes nothing
for granted: the manifest and every row are checked before the new vault is kept. The new vault has
the old one's id and pseudonyms; whoever was erased after the backup was made is in it again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, insert, select

from client.vault import schema
from client.vault.backup_file import read_backup, write_backup
from client.vault.database import Database, remove_files
from client.vault.opening import lock_context
from client.vault.session import Session
from client.vault.store import Store
from common.errors import InputError, Refused
from common.sealing import KeyLock

_TABLES: Final = (*schema.COUNTED, schema.BODY, schema.LOG, schema.VAULT)
_CHUNK: Final = 8 << 20  # bytes of rows after which a chunk ends


def export(store: Store, path: Path, lock: KeyLock) -> None:
    """Write a backup to a new file that `lock` opens; not while a rotation lasts: Refused."""
    with Session.read(store) as session:
        session.check(*schema.COUNTED)
        if session.connection.execute(select(func.count()).select_from(schema.KEY)).scalar() != 1:
            raise Refused("the vault's key is being rotated", hint="finish 'rotate-key' first")
        write_backup(path, _chunks(session), store.vault_id, lock)
    with Session.write(store) as session:
        session.log("export", None, "done")


def import_(path: Path, lock: KeyLock, where: str, new_lock: KeyLock) -> Store:
    """Make a new vault from a backup; if anything in it is wrong, no vault is kept."""
    try:
        with path.open("rb") as file:
            vault_id, chunks = read_backup(file, lock)
            return _restore(chunks, vault_id, where, new_lock)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _chunks(session: Session) -> Iterator[bytes]:
    number = session.key_number
    yield _line("", {"number": number, "key": session.store.keys[number]})
    lines, size = list[bytes](), 0
    for table in _TABLES:
        options = {"yield_per": 8}
        with session.connection.execute(select(table), execution_options=options) as rows:
            for row in rows:
                lines.append(_line(table.name, dict(row._mapping)))
                size += len(lines[-1])
                if size >= _CHUNK:
                    yield b"\n".join(lines)
                    lines, size = [], 0
    yield b"\n".join(lines)


def _restore(chunks: Iterator[bytes], vault_id: str, where: str, lock: KeyLock) -> Store:
    _, first = _row(next(chunks))
    number, key = first["number"], first["key"]
    wrapped = lock.wrap(key, lock_context(vault_id, number))
    database = Database(where, create=True)
    store = Store(database, vault_id, {number: key})
    try:
        with database.write() as connection:
            row = {"id": number, "kind": lock.kind, "wrapped": wrapped}
            connection.execute(insert(schema.KEY), [row])
            for chunk in chunks:
                rows = [_row(line) for line in chunk.split(b"\n")]
                for name, some in groupby(rows, key=itemgetter(0)):
                    table = schema.METADATA.tables[name]
                    connection.execute(insert(table), [values for _, values in some])
            session = Session(store, connection, writes=True)
            session.check(*schema.COUNTED)
            session.log("import", None, "done")
            session.touch_gallery()
            session.save()
            store.begin_witness(session.manifest)
    except BaseException:
        database.close()
        if database.path is not None:
            remove_files(database.path)
        raise
    return store


def _line(name: str, values: dict[str, Any]) -> bytes:
    plain = {
        key: [base64.b64encode(value).decode()] if isinstance(value, bytes) else value
        for key, value in values.items()
    }
    return json.dumps([name, plain], separators=(",", ":")).encode()


def _row(line: bytes) -> tuple[str, dict[str, Any]]:
    name, plain = json.loads(line)
    return name, {
        key: base64.b64decode(value[0]) if isinstance(value, list) else value
        for key, value in plain.items()
    }
