"""Writing shards: new ones from loose records, and others in their place when a subject goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, insert

from client.vault import schema, shards
from client.vault.manifest import Model
from client.vault.records import Loose, loose
from client.vault.session import Session
from common.randomness import fresh_key
from common.sealing import seal
from common.template import encode_values


def write_shard(
    session: Session,
    model: Model,
    subjects: NDArray[np.int64],
    pseudonyms: NDArray[np.uint8],
    rows: NDArray[np.float32],
) -> None:
    """Seal rows [n, D] under a new key as a new shard."""
    store, new, number, key = session.store, session.next_id(), session.key_number, fresh_key()
    eight_bit = session.manifest.eight_bit
    head = shards.HEADER.pack(shards.VERSION, *rows.shape, eight_bit)
    directory = head + subjects.astype("<i8").tobytes() + pseudonyms.tobytes()
    body = encode_values(rows, eight_bit=eight_bit)
    bound = ("shard directory", new, model.model_id), ("shard body", new, model.model_id)
    row = {
        "id": new,
        "model": model.number,
        "key": number,
        "wrapped": store.wrap(key, number, "shard", new, model.model_id),
    }
    sealed = {
        "id": new,
        "directory": seal(key, directory, store.bind(*bound[0])),
        "body": seal(key, body, store.bind(*bound[1])),
    }
    session.insert(schema.SHARD, [row])
    session.connection.execute(insert(schema.BODY), [sealed])


def drop_subject(session: Session, model: Model, subject: int) -> int:
    """Write every shard that holds a subject anew without it; return how many rows went."""
    dropped = 0
    for directory in shards.directories(session, model, again=False):
        keep = directory.subjects != subject
        if keep.all():
            continue
        dropped += int((~keep).sum())
        if keep.any():
            rows = shards.open_rows(session, model, directory)[keep]
            write_shard(session, model, directory.subjects[keep], directory.pseudonyms[keep], rows)
        delete_shard(session, directory)
    return dropped


def delete_shard(session: Session, directory: shards.Directory) -> None:
    """Delete a shard: its key, its directory and its rows."""
    session.delete(schema.SHARD, [directory.id])
    session.connection.execute(delete(schema.BODY).where(schema.BODY.c.id == directory.id))


def compact(session: Session, model: Model) -> None:
    """Move all loose records of a model into shards."""
    session.check(schema.TEMPLATE)
    waiting, rows = list[Loose](), 0
    for record in list(loose(session, model)):
        waiting.append(record)
        rows += len(record.rows)
        if rows >= shards.ROWS:
            _move(session, model, waiting)
            waiting, rows = [], 0
    if waiting:
        _move(session, model, waiting)


def _move(session: Session, model: Model, records: Sequence[Loose]) -> None:
    counts = [len(record.rows) for record in records]
    subjects = np.repeat(np.array([r.subject for r in records], dtype=np.int64), counts)
    names = np.array([list(bytes.fromhex(r.pseudonym)) for r in records], dtype=np.uint8)
    rows = np.concatenate([record.rows for record in records])
    write_shard(session, model, subjects, np.repeat(names, counts, axis=0), rows)
    session.delete(schema.TEMPLATE, [record.id for record in records])
