"""Many subjects at once, straight into shards: for a site that brings its gallery along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from client.vault import packing, records, schema, shards
from client.vault.manifest import Model
from client.vault.naming import check_new, pseudonym_of
from client.vault.session import Session
from common.errors import InputError

_SUBJECTS: Final = 4096  # rows of one statement


def enrol_new(
    session: Session, subjects: Sequence[str], rows: NDArray[np.float32], model: Model
) -> tuple[str, ...]:
    """Enrol subjects that the vault does not have; `rows` [N, D] are in the vault's space.

    `subjects[i]` owns row i and may own several, one after the other. Returns N pseudonyms.
    """
    if len(subjects) != len(rows):
        raise InputError(f"{len(subjects)} subjects for {len(rows)} embeddings")
    for name in dict.fromkeys(subjects):
        check_new(name)
    owned = {name: pseudonym_of(session.manifest, name) for name in subjects}
    if len(set(owned.values())) != len(owned):
        raise InputError("two names are the same in Unicode form NFC")
    ids, waiting = dict[str, int](), list[dict[str, object]]()
    session.check(schema.SUBJECT)
    known = set(session.connection.execute(select(schema.SUBJECT.c.pseudonym)).scalars())
    if not known.isdisjoint(owned.values()):
        raise InputError("one of the subjects is in the vault", hint="enrol them one by one")
    for name, pseudonym in owned.items():
        subject, row = records.new_subject(session, pseudonym)
        ids[name] = subject.id
        waiting.append(row)
    for start in range(0, len(waiting), _SUBJECTS):
        session.insert(schema.SUBJECT, waiting[start : start + _SUBJECTS])
    owners = np.array([ids[name] for name in subjects], dtype=np.int64)
    names = np.frombuffer(bytes.fromhex("".join(owned[n] for n in subjects)), dtype=np.uint8)
    names = names.reshape(-1, shards.PSEUDONYM)
    for start in range(0, len(rows), shards.ROWS):
        part = slice(start, start + shards.ROWS)
        packing.write_shard(session, model, owners[part], names[part], rows[part])
    session.count_templates(model.number, len(rows))
    for pseudonym in owned.values():
        session.log("enrol", pseudonym, "done")
    session.touch_gallery()
    return tuple(owned[name] for name in subjects)
