"""What a page may show of a vault: sizes, models, pseudonyms, dates; never a name."""

from __future__ import annotations

from dataclasses import dataclass

from client.vault import holdings, records
from client.vault.session import Session


@dataclass(frozen=True)
class VaultInfo:
    """What a vault is and how much it holds; `stale` subjects have no template of its model."""

    vault_id: str
    model_id: str
    dim: int
    eight_bit: bool
    keep_chips: bool
    subjects: int
    templates: int
    stale: int


@dataclass(frozen=True)
class SubjectInfo:
    """One subject: how many templates of which model, and the date of the first enrolment."""

    pseudonym: str
    templates: int
    model_id: str
    stale: bool
    created: str


def info(session: Session) -> VaultInfo:
    """Return what the vault is."""
    manifest, model, stale = session.manifest, session.manifest.current, 0
    if any(one.templates for one in manifest.models[:-1]):
        held = holdings.counts(session).values()
        stale = sum(1 for mine in held if model.number not in mine)
    return VaultInfo(
        session.store.vault_id,
        model.model_id,
        model.dim,
        manifest.eight_bit,
        manifest.keep_chips,
        manifest.subjects,
        sum(one.templates for one in manifest.models),
        stale,
    )


def subjects(session: Session) -> tuple[SubjectInfo, ...]:
    """Return everyone, in the order of enrolment."""
    manifest, counts, found = session.manifest, holdings.counts(session), []
    for one in records.all_subjects(session):
        mine = counts.get(one.id, {})
        newest = max(mine, default=manifest.current.number)
        model, stale = manifest.model(newest), newest != manifest.current.number
        held = mine.get(newest, 0)
        found.append(SubjectInfo(one.pseudonym, held, model.model_id, stale, one.created))
    return tuple(found)
