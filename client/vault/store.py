"""An open vault in this process: its database, its keys, and what was checked of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import RLock
from typing import Any, Final

from sqlalchemy import Connection, select

from client.vault import schema, witness
from client.vault.database import Database
from client.vault.manifest import Manifest, associated
from common.errors import Outdated, SealError, StorageError
from common.randomness import derive_key
from common.sealing import open_sealed, seal

_LOG: Final = logging.getLogger("veilface.vault")


class Store:
    """A database and the vault keys that open it, by number: two while a rotation lasts.

    A vault key wraps data keys and seals the manifest, under a key derived for each purpose.
    """

    def __init__(self, database: Database, vault_id: str, keys: Mapping[int, bytes]) -> None:
        self.database = database
        self.vault_id = vault_id
        self.keys = dict(keys)
        self.lock = RLock()
        self.checked: dict[str, tuple[int, int]] = {}
        self.directories: dict[int, Any] = {}  # of shards, which never change under their id

    def bind(self, *parts: str | int) -> bytes:
        """Return the associated data of something sealed in this vault."""
        return associated(self.vault_id, *parts)

    def wrap(self, key: bytes, number: int, *parts: str | int) -> bytes:
        """Wrap a data key under the vault key of that number."""
        return seal(self._wrapping_key(number), key, self.bind("data key", number, *parts))

    def unwrap(self, wrapped: Any, number: int, *parts: str | int) -> bytes:
        """Open a wrapped data key; of another place or another vault key: SealError."""
        bound = self.bind("data key", number, *parts)
        return open_sealed(self._wrapping_key(number), blob(wrapped), bound)

    def seal_manifest(self, manifest: Manifest, number: int) -> bytes:
        """Seal the manifest under the vault key of that number."""
        key = derive_key(self.keys[number], "manifest")
        return seal(key, manifest.to_bytes(), self.bind("manifest", number))

    def open_manifest(self, sealed: Any, number: int) -> Manifest:
        """Open the manifest that was sealed under the vault key of that number."""
        if number not in self.keys:
            raise SealError("the manifest names a vault key that this vault does not have")
        key = derive_key(self.keys[number], "manifest")
        return Manifest.from_bytes(open_sealed(key, blob(sealed), self.bind("manifest", number)))

    def learn_key(self, connection: Connection, number: int) -> None:
        """Take up a vault key that another process has put into use by a rotation."""
        for row in connection.execute(select(schema.KEY).order_by(schema.KEY.c.id)).all():
            if row.id in self.keys and row.forward is not None and row.id + 1 not in self.keys:
                bound = self.bind("next vault key", row.id)
                self.keys[row.id + 1] = open_sealed(self.keys[row.id], blob(row.forward), bound)
        if number not in self.keys:
            raise Outdated(
                "the vault's key was rotated by another program", hint="open it with the new key"
            )

    def begin_witness(self, manifest: Manifest) -> None:
        """Put a witness beside a SQLite file, in place of any other: StorageError if it cannot."""
        if self.database.path is not None:
            witness.note(self.database.path, self.vault_id, manifest, anew=True)

    def note_generation(self, manifest: Manifest) -> None:
        """Tell the witness beside a SQLite file how far the vault has come."""
        if self.database.path is not None:
            try:
                witness.note(self.database.path, self.vault_id, manifest)
            except StorageError as error:  # the change is durable; only the witness is behind
                _LOG.warning("the vault's witness could not be written: %s", error)

    def _wrapping_key(self, number: int) -> bytes:
        if number not in self.keys:
            raise SealError("a row is wrapped under a vault key that this vault does not have")
        return derive_key(self.keys[number], "data keys")


def blob(value: Any) -> bytes:
    """Return a column's bytes; another type, which a changed file can bring, is damage."""
    if not isinstance(value, bytes):
        raise SealError("a column of the vault holds another type than bytes")
    return value
