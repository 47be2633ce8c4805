"""What the vault holds of whom, loose and in shards together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from sqlalchemy import func, select

from client.vault import packing, records, schema, shards
from client.vault.manifest import Model
from client.vault.session import Session
from common.errors import Refused


def model_of(session: Session, model_id: str | None) -> Model:
    """Return the model of that id, or the vault's own; an unknown one is Refused."""
    if model_id is None:
        return session.manifest.current
    for model in session.manifest.models:
        if model.model_id == model_id:
            return model
    raise Refused(
        "the vault has no templates of this model", hint="models are never mixed: migrate"
    )


def counts(session: Session) -> dict[int, dict[int, int]]:
    """Return for each subject id how many templates it has of each model number."""
    session.check(schema.TEMPLATE)
    held: dict[int, dict[int, int]] = defaultdict(dict)
    for model in session.manifest.models:
        for directory in shards.directories(session, model, again=True):
            for subject, count in zip(
                *np.unique(directory.subjects, return_counts=True), strict=True
            ):
                mine = held[int(subject)]
                mine[model.number] = mine.get(model.number, 0) + int(count)
        for one in records.loose(session, model):
            mine = held[one.subject]
            mine[model.number] = mine.get(model.number, 0) + len(one.rows)
    return held


def drop(session: Session, subject: int, models: Iterable[Model]) -> int:
    """Delete a subject's templates of these models, wherever they lie; return how many."""
    session.check(schema.TEMPLATE, again=False)
    total = 0
    for model in models:
        if not session.manifest.model(model.number).templates:
            continue
        loose = sum(len(one.rows) for one in records.loose(session, model, subject))
        records.delete_rows(session, schema.TEMPLATE, subject, model.number)
        gone = loose + packing.drop_subject(session, model, subject)
        session.count_templates(model.number, -gone)
        total += gone
    return total


def compaction_due(session: Session) -> bool:
    """Return whether there are enough loose records for a shard."""
    loose = select(func.count()).select_from(schema.TEMPLATE)
    return bool(session.connection.execute(loose).scalar_one() >= shards.LOOSE)


def compact(session: Session) -> None:
    """Move all loose records into shards."""
    for model in session.manifest.models:
        packing.compact(session, model)
