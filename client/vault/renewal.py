"""A new secret space for all templates, at once: what leaked before matches nothing after.

All templates of all models are turned from the old matrix to the new one in one transaction; who
holds old templates, even with the old seed, cannot link them to the new ones without the new seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from client.vault import packing, records, schema, scrubbing, shards, transform
from client.vault.manifest import Model
from client.vault.session import Session
from client.vault.store import Store
from common.randomness import fresh_key


def renew(store: Store) -> None:
    """Draw a new seed and bring every template into its space."""
    with Session.write(store) as session:
        session.check(*schema.COUNTED)
        old, new = session.manifest.transform_seed, fresh_key()
        for model in session.manifest.models:
            if model.dim:
                before = transform.orthogonal(old, model.model_id, model.dim)
                after = transform.orthogonal(new, model.model_id, model.dim)
                _turn(session, model, before.T @ after)
        session.change(transform_seed=new)
        session.log("renew", None, "done")
        scrubbing.owe(session)
        session.touch_gallery()
    scrubbing.scrub(store)


def _turn(session: Session, model: Model, matrix: NDArray[np.float64]) -> None:
    for directory in shards.directories(session, model, again=True):
        rows = transform.apply(shards.open_rows(session, model, directory), matrix)
        packing.write_shard(session, model, directory.subjects, directory.pseudonyms, rows)
        packing.delete_shard(session, directory)
    for one in list(records.loose(session, model)):
        table = schema.SUBJECT
        row = session.connection.execute(select(table).where(table.c.id == one.subject)).one()
        subject = records.open_subject(session, row)
        records.add_templates(session, subject, transform.apply(one.rows, matrix), model)
        session.delete(schema.TEMPLATE, [one.id])
