"""One transaction on a vault: its manifest opened, its rows counted, its changes in the log.

Leaving `Session.write` without an error seals the new manifest and puts everything on the disk, or
nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Self

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from client.vault import schema
from client.vault.census import LOOKED_UP, add, sum_rows
from client.vault.log import Operation, next_entry
from client.vault.manifest import Manifest
from client.vault.store import Store
from common.errors import SealError

_LOG: Final = logging.getLogger("veilface.vault")
_MANY: Final = 500  # ids in one statement


class Session:
    """An open transaction; made by `Session.read` or `Session.write`."""

    def __init__(self, store: Store, connection: Connection, *, writes: bool) -> None:
        self.store = store
        self.connection = connection
        wanted = select(schema.VAULT)
        row = connection.execute(wanted.with_for_update() if writes else wanted).one_or_none()
        if row is None or row.vault_id != store.vault_id or row.id != 1:
            raise SealError("this is not the vault that was opened")
        if row.key not in store.keys:
            store.learn_key(connection, row.key)
        self.key_number: int = row.key
        self.manifest = store.open_manifest(row.manifest, row.key)
        self._check_log_head()

    @classmethod
    @contextmanager
    def read(cls, store: Store) -> Iterator[Self]:
        with store.database.read() as connection:
            yield cls(store, connection, writes=False)

    @classmethod
    @contextmanager
    def write(cls, store: Store) -> Iterator[Self]:
        with store.lock:
            with store.database.write() as connection:
                session = cls(store, connection, writes=True)
                before, number = session.manifest, session.key_number
                try:
                    yield session
                    session.save()
                except BaseException:
                    if session.key_number != number:
                        del store.keys[session.key_number]
                    raise
            if session.manifest.generation != before.generation:
                store.note_generation(session.manifest)
            for table in schema.COUNTED:  # what was checked and then changed here stays checked
                if store.checked.get(table.name) == before.sum_of(table.name):
                    store.checked[table.name] = session.manifest.sum_of(table.name)

    def next_id(self) -> int:
        self.change(counter=self.manifest.counter + 1)
        return self.manifest.counter

    def change(self, **values: Any) -> None:
        """Set fields of the manifest."""
        self.manifest = dataclasses.replace(self.manifest, **values)

    def insert(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows with new ids and count them in."""
        if rows:
            self.connection.execute(insert(table), list(rows))
            names = ("id", *LOOKED_UP[table.name])
            self._count(table, [[row[name] for row in rows] for name in names], 1)

    def delete(self, table: Table, ids: Sequence[int]) -> None:
        """Delete rows by id and count them out; a row that is not there is damage."""
        for start in range(0, len(ids), _MANY):
            some = ids[start : start + _MANY]
            self._count(table, self._columns(table, some), -1)
            gone = self.connection.execute(delete(table).where(table.c.id.in_(some))).rowcount
            if gone != len(some):
                raise SealError("a row of the vault is missing")

    def check(self, *tables: Table, again: bool = True) -> None:
        """Compare tables with the manifest; with `again` False, only what is not known to hold."""
        for table in tables:
            expected = self.manifest.sum_of(table.name)
            if not again and self.store.checked.get(table.name) == expected:
                continue
            if sum_rows(self._census_key(table), self._columns(table, None)) != expected:
                raise SealError(
                    f"rows of the vault's {table.name} table were taken away, put back or added",
                    hint="restore the last good backup with 'import'",
                )
            self.store.checked[table.name] = expected

    def log(
        self,
        operation: Operation,
        pseudonym: str | None,
        outcome: str,
        templates: int | None = None,
    ) -> str:
        """Append to the operation log; returns the time of the entry."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        what = (operation, pseudonym, outcome, templates)
        row = next_entry(self.manifest, self.store.vault_id, now, *what)
        self.connection.execute(insert(schema.LOG), [row])
        self.change(log_entries=row["id"], log_head=row["hash"])
        return now

    def use_key(self, number: int, key: bytes) -> None:
        """Seal what is written from now on under another vault key."""
        self.store.keys[number] = key
        self.key_number = number

    def count_templates(self, number: int, more: int) -> None:
        """Add to a model's number of templates."""
        model = self.manifest.model(number)
        changed = dataclasses.replace(model, templates=model.templates + more)
        self.manifest = self.manifest.with_model(changed)

    def touch_gallery(self) -> None:
        self.change(generation=self.manifest.generation + 1)

    def _columns(self, table: Table, ids: Sequence[int] | None) -> list[list[Any]]:
        """Return the columns that are counted, of all rows or of some."""
        names = ("id", *LOOKED_UP[table.name])
        columns = [table.c[name] for name in names]
        # The last column is in no index: with it, the table itself is read and not an index.
        wanted = select(*columns, func.length(list(table.columns)[-1]))
        if ids is not None:
            wanted = wanted.where(table.c.id.in_(ids))
        rows = self.connection.execute(wanted).all()
        return [[row[place] for row in rows] for place in range(len(names))]

    def _census_key(self, table: Table) -> bytes:
        return self.manifest.key(f"rows of {table.name}")

    def _count(self, table: Table, columns: Sequence[Sequence[Any]], sign: int) -> None:
        sums = dict(self.manifest.sums)
        change = sum_rows(self._census_key(table), columns)
        sums[table.name] = add(self.manifest.sum_of(table.name), change, sign)
        self.change(sums=tuple(sorted(sums.items())))

    def _check_log_head(self) -> None:
        newest = select(schema.LOG.c.id, schema.LOG.c.hash).order_by(schema.LOG.c.id.desc())
        row = self.connection.execute(newest.limit(1)).one_or_none()
        found = (0, Manifest.log_head) if row is None else (row.id, row.hash)
        if found != (self.manifest.log_entries, self.manifest.log_head):
            raise SealError(
                "the manifest and the operation log are not of the same moment",
                hint="one of them was rolled back; restore the last good backup",
            )

    def save(self) -> None:
        """Seal the manifest; what `Session.write` does last."""
        sealed = self.store.seal_manifest(self.manifest, self.key_number)
        self.connection.execute(
            update(schema.VAULT).where(schema.VAULT.c.id == 1),
            {"key": self.key_number, "manifest": sealed},
        )
