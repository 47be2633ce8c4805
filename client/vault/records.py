"""Subjects and their loose templates and chips, each sealed under the subject's own data key.

Deleting the wrapped data key makes all of them unreadable at once. A row is bound to its table, its
id, its subject and its model, so that none opens in another's place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, select

from client.vault import schema
from client.vault.manifest import Model
from client.vault.session import Session
from client.vault.store import blob
from common import template
from common.errors import SealError
from common.randomness import fresh_key
from common.sealing import open_sealed, seal


@dataclass(frozen=True)
class Subject:
    """A subject's row, opened: id, pseudonym, data key and the day it was first enrolled."""

    id: int
    pseudonym: str
    key: bytes
    created: str


@dataclass(frozen=True)
class Loose:
    """One enrolment that is not in a shard yet: `rows` float32 [n, D] in the vault's space."""

    id: int
    subject: int
    pseudonym: str
    rows: NDArray[np.float32]


def find_subject(session: Session, pseudonym: str) -> Subject | None:
    """Return a subject, or None where the manifest vouches that there is no such row."""
    session.check(schema.SUBJECT, again=False)
    name = schema.SUBJECT.c.pseudonym
    by_index, by_reading = name == pseudonym, name + "" == pseudonym
    for condition in (by_index, by_reading):  # a damaged index must not make anyone unknown
        row = session.connection.execute(select(schema.SUBJECT).where(condition)).one_or_none()
        if row is not None:
            if row.pseudonym != pseudonym:
                raise SealError("the vault's index of subjects is damaged")
            return open_subject(session, row)
    return None


def all_subjects(session: Session) -> Iterator[Subject]:
    """Yield every subject, in the order of their ids."""
    session.check(schema.SUBJECT)
    wanted, count = select(schema.SUBJECT).order_by(schema.SUBJECT.c.id), 0
    with session.connection.execute(wanted, execution_options={"yield_per": 1000}) as rows:
        for row in rows:
            yield open_subject(session, row)
            count += 1
    if count != session.manifest.subjects:
        raise SealError("the vault holds another number of subjects than its manifest says")


def new_subject(session: Session, pseudonym: str) -> tuple[Subject, dict[str, Any]]:
    """Return a subject with a new data key, and its row to insert."""
    today = datetime.now(UTC).date().isoformat()
    subject = Subject(session.next_id(), pseudonym, fresh_key(), today)
    store, number = session.store, session.key_number
    bound = store.bind("subject", subject.id, pseudonym)
    row = {
        "id": subject.id,
        "pseudonym": pseudonym,
        "key": number,
        "wrapped": store.wrap(subject.key, number, "subject", subject.id, pseudonym),
        "sealed": seal(subject.key, json.dumps([today]).encode(), bound),
    }
    session.change(subjects=session.manifest.subjects + 1)
    return subject, row


def data_key(session: Session, row: Any) -> bytes:
    """Return the data key of a subject's row."""
    return session.store.unwrap(row.wrapped, row.key, "subject", row.id, row.pseudonym)


def add_templates(
    session: Session, subject: Subject, rows: NDArray[np.float32], model: Model
) -> None:
    """Seal rows [n, D], already in the vault's space, as one loose record."""
    new = session.next_id()
    data = template.encode(rows, eight_bit=session.manifest.eight_bit)
    bound = _bound(session, new, subject.id, subject.pseudonym, model)
    row = {"id": new, "subject": subject.id, "model": model.number}
    session.insert(schema.TEMPLATE, [{**row, "sealed": seal(subject.key, data, bound)}])


def loose(session: Session, model: Model, subject: int | None = None) -> Iterator[Loose]:
    """Yield the loose records of a model, of one subject or of all, in the order of their ids."""
    table, owner = schema.TEMPLATE, schema.SUBJECT
    wanted = (
        select(table.c.id, table.c.sealed, table.c.subject, owner.c.pseudonym)
        .add_columns(owner.c.wrapped, owner.c.key)
        .join_from(table, owner, table.c.subject == owner.c.id, isouter=True)
        .where(table.c.model == model.number)
        .order_by(table.c.id)
    )
    if subject is not None:
        wanted = wanted.where(table.c.subject == subject)
    for row in session.connection.execute(wanted).all():
        if not isinstance(row.pseudonym, str):
            raise SealError("a template names a subject that the vault does not have")
        parts = ("subject", row.subject, row.pseudonym)
        key = session.store.unwrap(row.wrapped, row.key, *parts)
        bound = _bound(session, row.id, row.subject, row.pseudonym, model)
        rows = template.decode(open_sealed(key, blob(row.sealed), bound))
        yield Loose(row.id, row.subject, row.pseudonym, rows)


def add_chips(session: Session, subject: Subject, chips: NDArray[np.uint8]) -> None:
    """Seal aligned faces, uint8 of any shape, as one row."""
    new = session.next_id()
    head = json.dumps(chips.shape).encode() + b"\n"
    bound = session.store.bind("chip", new, subject.id, subject.pseudonym)
    sealed = seal(subject.key, head + np.ascontiguousarray(chips).tobytes(), bound)
    session.insert(schema.CHIP, [{"id": new, "subject": subject.id, "sealed": sealed}])


def chips_of(session: Session, subject: Subject) -> list[NDArray[np.uint8]]:
    """Return what `add_chips` kept of a subject, one array a row."""
    session.check(schema.CHIP, again=False)
    found = []
    wanted = select(schema.CHIP).where(schema.CHIP.c.subject == subject.id)
    for row in session.connection.execute(wanted.order_by(schema.CHIP.c.id)).all():
        bound = session.store.bind("chip", row.id, subject.id, subject.pseudonym)
        head, _, body = open_sealed(subject.key, blob(row.sealed), bound).partition(b"\n")
        found.append(np.frombuffer(bytearray(body), dtype=np.uint8).reshape(json.loads(head)))
    return found


def delete_rows(session: Session, table: Table, subject: int, model: int | None = None) -> None:
    """Delete a subject's templates (of one model) or chips."""
    wanted = select(table.c.id).where(table.c.subject == subject)
    if model is not None:
        wanted = wanted.where(table.c.model == model)
    session.delete(table, list(session.connection.execute(wanted).scalars()))


def open_subject(session: Session, row: Any) -> Subject:
    """Open a row of the subject table."""
    key = data_key(session, row)
    bound = session.store.bind("subject", row.id, row.pseudonym)
    (created,) = json.loads(open_sealed(key, blob(row.sealed), bound))
    return Subject(row.id, row.pseudonym, key, created)


def _bound(session: Session, id_: int, subject: int, pseudonym: str, model: Model) -> bytes:
    return session.store.bind("template", id_, subject, pseudonym, model.model_id)
