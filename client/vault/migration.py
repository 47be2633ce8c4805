"""A new model for an old one: templates made anew from kept chips, or a list of who must come back.

From the first step on the vault is the new model's. A subject that was not migrated keeps its old
templates, which answer to the old model id only, until it is migrated or enrolled again. The way
back is the same: to a model that the vault had before, whose templates count again at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.vault import holdings, records, scrubbing, settings, transform
from client.vault.manifest import Model
from client.vault.session import Session
from client.vault.store import Store
from common.errors import InputError
from common.template import MAX_DIM, check_rows

# Chips [n, ...] to unit rows [n, D]; None where they are not of the model's kind.
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Migration:
    """Pseudonyms of who was migrated, and of who must enrol again since no chip of use was kept."""

    model_id: str
    migrated: tuple[str, ...]
    must_enrol: tuple[str, ...]


def change_model(
    store: Store, model_id: str, embed: Embed, remember: Mapping[str, bytes]
) -> Migration:
    """Make `model_id` the vault's model; `embed` turns chips [n, ...] into unit rows [n, D].

    Durable subject by subject: stopped anywhere, the same call goes on. The settings in `remember`
    are the vault's from the moment on in which the model is.
    """
    _announce(store, model_id, remember)
    migrated, must_enrol = list[str](), list[str]()
    for pseudonym in _stale(store):
        done = _migrate_one(store, pseudonym, embed)
        if done is not None:
            (migrated if done else must_enrol).append(pseudonym)
    with Session.write(store) as session:
        session.log("migrate", None, "done")
        scrubbing.owe(session)
    scrubbing.scrub(store)
    return Migration(model_id, tuple(migrated), tuple(must_enrol))


def _announce(store: Store, model_id: str, remember: Mapping[str, bytes]) -> None:
    if not model_id:
        raise InputError("a model needs an id")
    with Session.write(store) as session:
        for name, value in remember.items():
            settings.remember(session, name, value)
        models = session.manifest.models
        if model_id == models[-1].model_id:
            return
        left = [model for model in models if model.model_id != model_id]
        known = [model for model in models if model.model_id == model_id]
        number = max(model.number for model in models) + 1
        session.change(models=(*left, *(known or [Model(number, model_id, 0, 0)])))
        session.log("migrate", None, "begun")
        session.touch_gallery()


def _stale(store: Store) -> list[str]:
    with Session.read(store) as session:
        held, current = holdings.counts(session), session.manifest.current.number
        return [
            one.pseudonym
            for one in records.all_subjects(session)
            if current not in held.get(one.id, {})
        ]


def _migrate_one(store: Store, pseudonym: str, embed: Embed) -> bool | None:
    """Return whether a subject had chips to migrate from; None if it was erased meanwhile."""
    with Session.read(store) as session:
        subject = records.find_subject(session, pseudonym)
        if subject is None:
            return None
        kept = records.chips_of(session, subject)
    made = [embed(chips) for chips in kept]
    found = [np.asarray(each, dtype=np.float32) for each in made if each is not None]
    if not found:
        return False
    rows = np.concatenate(found)
    with Session.write(store) as session:
        model = session.manifest.current
        if records.find_subject(session, pseudonym) is None:
            return None
        if model.dim == 0 and rows.ndim == 2 and 1 <= rows.shape[1] <= MAX_DIM:
            model = Model(model.number, model.model_id, rows.shape[1], 0)
            session.manifest = session.manifest.with_model(model)
        matrix = transform.orthogonal(session.manifest.transform_seed, model.model_id, model.dim)
        turned = transform.apply(check_rows(rows, model.dim), matrix)
        holdings.drop(session, subject.id, list(session.manifest.models))
        records.add_templates(session, subject, turned, model)
        session.count_templates(model.number, len(turned))
        session.log("migrate", pseudonym, "done")
        session.touch_gallery()
    return True
