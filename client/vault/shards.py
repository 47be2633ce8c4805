"""Templates in bulk: sealed shards, each under a random key of its own.

A shard is one AES-GCM message of up to a few thousand rows, so that opening a gallery costs little
more than the cipher, and a small sealed directory that says whose each row is: subject ids (int64)
and pseudonyms (16 bytes). Taking a subject out writes the remaining rows under a new key and
deletes the old one: key destruction for one subject, at the price of one shard.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Select, select

from client.vault import schema
from client.vault.database import read_large
from client.vault.manifest import Model
from client.vault.session import Session
from client.vault.store import blob
from common.errors import SealError
from common.sealing import open_sealed, open_sealed_into
from common.template import Layout, decode_values

ROWS = 2048  # a shard is full at this many
LOOSE = 4096  # loose records that call for a new shard
PSEUDONYM: Final = 16  # bytes
HEADER: Final = struct.Struct("<BIIB")  # version, rows, dim, 8 bit
VERSION: Final = 1


@dataclass(frozen=True)
class Directory:
    """Whose the rows of one shard are: `subjects` int64 [n], `pseudonyms` uint8 [n, 16]."""

    id: int
    model: int
    layout: Layout
    subjects: NDArray[np.int64]
    pseudonyms: NDArray[np.uint8]


def directories(session: Session, model: Model, *, again: bool) -> list[Directory]:
    """Return the directories of a model's shards; `again` True opens those known already, too."""
    session.check(schema.SHARD, again=again)
    table, known = schema.SHARD, session.store.directories
    wanted = select(table.c.id).where(table.c.model == model.number).order_by(table.c.id)
    ids = list(session.connection.execute(wanted).scalars())
    found = {} if again else {id_: known[id_] for id_ in set(ids) & known.keys()}
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        some = _select(schema.BODY.c.directory).where(table.c.model == model.number)
        if len(missing) < len(ids):
            some = some.where(table.c.id.in_(missing))
        opened = session.connection.execute(some).all()
        found |= {row.id: _open_directory(session, model, row) for row in opened}
        session.store.directories = {**session.store.directories, **found}
    if found.keys() != set(ids):
        raise SealError("a shard of the vault is missing")
    return [found[id_] for id_ in ids]


def rows_of(session: Session, model: Model, subject: int) -> NDArray[np.float32]:
    """Return a subject's rows [n, D] in the shards of a model; n may be 0."""
    found = [np.empty((0, model.dim), dtype=np.float32)]
    for directory in directories(session, model, again=False):
        mine = directory.subjects == subject
        if mine.any():
            found.append(open_rows(session, model, directory)[mine])
    return np.concatenate(found)


def open_rows(session: Session, model: Model, directory: Directory) -> NDArray[np.float32]:
    """Return all rows [n, D] of one shard."""
    layout = directory.layout
    rows = np.empty((layout.count, layout.dim), dtype=np.float32)
    for row in _rows(session, model, directory.id):
        open_body(session, model, directory, row, rows)
        return rows
    raise SealError("a shard of the vault is missing")


def open_body(
    session: Session, model: Model, directory: Directory, row: Any, out: NDArray[np.float32]
) -> None:
    """Decrypt a shard's body into `out`, float32 [n, D]: without a copy where it holds floats."""
    key, layout = _shard_key(session, model, row), directory.layout
    bound = session.store.bind("shard body", row.id, model.model_id)
    body = read_large(session.connection, schema.BODY.c.body, row.id)
    if layout.eight_bit:
        values = np.empty(layout.size, dtype=np.uint8)
        open_sealed_into(key, body, bound, values.data)
        decode_values(values, layout, out)
    else:
        flat = out.reshape(-1).view(np.uint8)
        open_sealed_into(key, body, bound, flat.data)


def rows_of_model(session: Session, model: Model) -> Iterator[Any]:
    """Yield the rows of a model's shards, in the order of their ids."""
    return _rows(session, model, None)


def _rows(session: Session, model: Model, id_: int | None) -> Iterator[Any]:
    table = schema.SHARD
    wanted = select(table).where(table.c.model == model.number).order_by(table.c.id)
    if id_ is not None:
        wanted = wanted.where(table.c.id == id_)
    yield from session.connection.execute(wanted).all()


def _select(column: Column[bytes]) -> Select[Any]:
    table, body = schema.SHARD, schema.BODY
    return select(table.c.id, table.c.key, table.c.wrapped, column).join_from(
        table, body, table.c.id == body.c.id
    )


def _shard_key(session: Session, model: Model, row: Any) -> bytes:
    return session.store.unwrap(row.wrapped, row.key, "shard", row.id, model.model_id)


def _open_directory(session: Session, model: Model, row: Any) -> Directory:
    bound = session.store.bind("shard directory", row.id, model.model_id)
    data = open_sealed(_shard_key(session, model, row), blob(row.directory), bound)
    version, count, dim, eight_bit = HEADER.unpack_from(data)
    if version != VERSION or len(data) != HEADER.size + count * (8 + PSEUDONYM):
        raise SealError("a shard's directory has an unknown form")
    subjects = np.frombuffer(data, dtype="<i8", count=count, offset=HEADER.size)
    names = np.frombuffer(data, dtype=np.uint8, offset=HEADER.size + 8 * count)
    return Directory(
        row.id, model.number, Layout(count, dim, bool(eight_bit)), subjects, names.reshape(-1, 16)
    )
