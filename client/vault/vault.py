"""The vault: templates of a site, sealed, by one small set of verbs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from client.vault import (
    backup,
    bulk,
    holdings,
    listing,
    opening,
    records,
    renewal,
    rotation,
    schema,
    scrubbing,
    settings,
    shards,
    transform,
)
from client.vault.gallery import Gallery, read_gallery
from client.vault.listing import SubjectInfo, VaultInfo
from client.vault.log import LogEntry, Operation, open_entries
from client.vault.manifest import Manifest, Model
from client.vault.migration import Embed, Migration, change_model
from client.vault.naming import check_new, fault_of, pseudonym_of
from client.vault.receipt import Receipt, sign
from client.vault.session import Session
from client.vault.store import Store
from common.errors import InputError, Refused, StorageError
from common.sealing import KeyLock
from common.template import check_rows

_LOG: Final = logging.getLogger("veilface.vault")
MOST_ROWS: Final = shards.ROWS  # of one enrolment


class Vault:
    """Open templates of one vault; safe to call from threads, closed by its `with` block.

    Every write is on the disk when it returns. `enrol`, `erase`, `rotate_key`, `renew`,
    `change_model`, `export`, `import_` and `trust` write their own entry in the operation log;
    callers `record` verify, identify and refused.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._matrices: dict[tuple[bytes, str, int], NDArray[np.float64]] = {}

    @staticmethod
    def create(
        where: str,
        lock: KeyLock,
        *,
        model_id: str,
        dim: int,
        eight_bit: bool = False,
        keep_chips: bool = False,
    ) -> Vault:
        """Make a vault in a new SQLite file or an empty PostgreSQL database."""
        manifest = Manifest.fresh(model_id, dim, eight_bit=eight_bit, keep_chips=keep_chips)
        return Vault(opening.create(where, lock, manifest))

    @staticmethod
    def open(where: str, lock: KeyLock, *, trust: bool = False) -> Vault:
        """Open a vault; wrong lock or changed data: SealError.

        So is a file that is older than the witness beside it says, or has none. `trust` takes it
        as it lies, be it an old copy in which erased people still are, and writes the witness anew.
        """
        return Vault(opening.open_store(where, lock, trust=trust))

    def close(self) -> None:
        """Forget the keys and give the database back."""
        self._store.keys.clear()
        self._matrices.clear()
        self._store.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def info(self) -> VaultInfo:
        with Session.read(self._store) as session:
            return listing.info(session)

    @property
    def model_id(self) -> str:
        """The model that new templates are of."""
        with Session.read(self._store) as session:
            return session.manifest.current.model_id

    @property
    def generation(self) -> int:
        """A number that rises whenever the gallery may have changed, in any process."""
        with Session.read(self._store) as session:
            return session.manifest.generation

    def pseudonym(self, subject: str) -> str:
        """Return the opaque id of a subject in this vault: 32 hex digits, keyed."""
        with Session.read(self._store) as session:
            return pseudonym_of(session.manifest, subject)

    def enrol(
        self,
        subject: str,
        embeddings: NDArray[np.float32],
        *,
        model_id: str,
        chips: NDArray[np.uint8] | None = None,
        known: bool | None = None,
    ) -> str:
        """Add [n, D] unit rows to a subject; on the disk on return. Returns the pseudonym.

        Templates of an older model are replaced. Chips only where the vault keeps them: Refused.
        So is a subject who, by now, is there and should not be by `known`, or the other way round.
        """
        with Session.write(self._store) as session:
            model = self._current(session, model_id, embeddings)
            if len(embeddings) > MOST_ROWS:
                raise InputError(f"one enrolment has at most {MOST_ROWS} embeddings")
            if chips is not None and not session.manifest.keep_chips:
                raise Refused("this vault keeps no chips", hint="make one with --keep-chips")
            if chips is not None and (chips.dtype != np.uint8 or len(chips) != len(embeddings)):
                raise InputError("chips are uint8, one for each embedding")
            pseudonym = pseudonym_of(session.manifest, subject)
            owner = records.find_subject(session, pseudonym)
            if known is not None and known != (owner is not None):
                raise Refused("this subject was enrolled or erased just now", hint="try it again")
            if owner is None:
                check_new(subject)
                owner, row = records.new_subject(session, pseudonym)
                session.insert(schema.SUBJECT, [row])
            else:
                holdings.drop(session, owner.id, [m for m in session.manifest.models if m != model])
            rows = self._turn(session, check_rows(embeddings, model.dim), model)
            records.add_templates(session, owner, rows, model)
            session.count_templates(model.number, len(rows))
            if chips is not None:
                records.add_chips(session, owner, chips)
            session.log("enrol", pseudonym, "done")
            session.touch_gallery()
        self._compact_when_due()
        return pseudonym

    def knows(self, subject: str) -> bool:
        """Return whether someone is enrolled under this name."""
        with Session.read(self._store) as session:
            pseudonym = pseudonym_of(session.manifest, subject)
            return records.find_subject(session, pseudonym) is not None

    def enrol_many(
        self, subjects: Sequence[str], embeddings: NDArray[np.float32], *, model_id: str
    ) -> tuple[str, ...]:
        """Enrol new subjects at once, all or none: `subjects[i]` owns row i of [N, D] unit rows."""
        with Session.write(self._store) as session:
            model = self._current(session, model_id, embeddings)
            rows = self._turn(session, check_rows(embeddings, model.dim), model)
            return bulk.enrol_new(session, subjects, rows, model)

    def templates(self, subject: str, model_id: str | None = None) -> NDArray[np.float32]:
        """Return a subject's templates, float32 [n, D] in the vault's space; unknown: InputError.

        Without `model_id`, those of the vault's model; a subject that has none of the model asked
        for is Refused, since other templates must not be compared.
        """
        with Session.read(self._store) as session:
            model = holdings.model_of(session, model_id)
            known = self._known(session, subject)
            session.check(schema.TEMPLATE, again=False)
            single = [one.rows for one in records.loose(session, model, known.id)]
            rows = np.concatenate([shards.rows_of(session, model, known.id), *single])
            if not len(rows):
                raise Refused(
                    "this subject has no template of the model in use", hint="migrate or enrol"
                )
            return rows

    def protect(
        self, embeddings: NDArray[np.float32], model_id: str | None = None
    ) -> NDArray[np.float32]:
        """Bring probes [n, D] into the vault's space: cosines with templates are as before."""
        with Session.read(self._store) as session:
            model = holdings.model_of(session, model_id)
            dim = model.dim or np.shape(embeddings)[-1]
            return self._turn(session, check_rows(embeddings, dim), model)

    def gallery(self, model_id: str | None = None) -> Gallery:
        """Open all templates of a model."""
        with Session.read(self._store) as session:
            return read_gallery(session, holdings.model_of(session, model_id))

    def subjects(self) -> tuple[SubjectInfo, ...]:
        """Return everyone in the vault, in the order of enrolment."""
        with Session.read(self._store) as session:
            return listing.subjects(session)

    def erase(self, subject: str, told: Callable[[Receipt], None] | None = None) -> Receipt:
        """Destroy a subject's keys and rows; returns the signed receipt.

        `told` gets it as soon as the erasure is durable, before storage is scrubbed. Pages that
        others keep alive are a warning, and go when the vault is next opened.
        """
        with Session.write(self._store) as session:
            known = self._known(session, subject)
            gone = holdings.drop(session, known.id, list(session.manifest.models))
            records.delete_rows(session, schema.CHIP, known.id)
            session.delete(schema.SUBJECT, [known.id])
            session.change(subjects=session.manifest.subjects - 1)
            time = session.log("erase", known.pseudonym, "done", gone)
            session.touch_gallery()
            scrubbing.owe(session)
            head, key = session.manifest.log_head, session.manifest.signing_key
            receipt = sign(self._store.vault_id, known.pseudonym, time, gone, head, key)
        try:
            if told is not None:
                told(receipt)
        finally:
            scrubbing.scrub(self._store)
        return receipt

    def receipt(self, subject: str) -> Receipt:
        """Return the receipt of a subject's last erasure again; InputError if there is none."""
        with Session.read(self._store) as session:
            manifest, pseudonym = session.manifest, pseudonym_of(session.manifest, subject)
            rows = session.connection.execute(select(schema.LOG).order_by(schema.LOG.c.id)).all()
            for entry in reversed(open_entries(rows, manifest, self._store.vault_id)):
                what = (entry.operation, entry.outcome, entry.pseudonym)
                if what == ("erase", "done", pseudonym) and entry.templates is not None:
                    return sign(
                        self._store.vault_id,
                        pseudonym,
                        entry.time,
                        entry.templates,
                        entry.hash,
                        manifest.signing_key,
                    )
        raise InputError(
            "nobody of that name was erased", hint="or before receipts could be had again"
        )

    def rotate_key(self, new: KeyLock) -> None:
        """Put a new vault key, locked by `new`, in the old one's place, while the vault is in use.

        Stopped anywhere, the vault opens with either lock; the same call goes on.
        """
        rotation.rotate(self._store, new)

    def renew(self) -> None:
        """Bring all templates into a new secret space, at once: what leaked matches no more."""
        renewal.renew(self._store)
        self._matrices.clear()

    def chips(self, pseudonym: str) -> list[NDArray[np.uint8]]:
        """Return what was kept of a subject's pictures, one array an enrolment; unknown: none."""
        with Session.read(self._store) as session:
            found = records.find_subject(session, pseudonym)
            return [] if found is None else records.chips_of(session, found)

    def change_model(
        self, model_id: str, embed: Embed, remember: Mapping[str, bytes] | None = None
    ) -> Migration:
        """Make `model_id` the vault's; `embed` turns kept chips into its unit rows [n, D].

        Also to a model of before. `remember` are settings to keep in the same moment.
        """
        return change_model(self._store, model_id, embed, remember or {})

    def export(self, path: Path, lock: KeyLock) -> None:
        """Write a sealed backup to a new file that `lock` opens."""
        backup.export(self._store, path, lock)

    @staticmethod
    def import_(path: Path, lock: KeyLock, where: str, new_lock: KeyLock) -> Vault:
        """Make a new vault from a backup, checked whole."""
        return Vault(backup.import_(path, lock, where, new_lock))

    def remember(self, name: str, value: bytes) -> None:
        """Keep a small sealed setting, in place of an older one."""
        with Session.write(self._store) as session:
            settings.remember(session, name, value)

    def recall(self, name: str) -> bytes | None:
        """Return a setting, or None."""
        with Session.read(self._store) as session:
            return settings.recall(session, name)

    def record(self, operation: Operation, pseudonym: str | None, outcome: str) -> None:
        """Append to the operation log; words are from `OPERATIONS` and `OUTCOMES`."""
        with Session.write(self._store) as session:
            session.log(operation, pseudonym, outcome)

    def log(self) -> tuple[LogEntry, ...]:
        """Return the operation log, checked; a log that does not hold: SealError."""
        with Session.read(self._store) as session:
            wanted = select(schema.LOG).order_by(schema.LOG.c.id)
            rows = session.connection.execute(wanted).all()
            return open_entries(rows, session.manifest, self._store.vault_id)

    def _current(self, session: Session, model_id: str, embeddings: NDArray[np.float32]) -> Model:
        """Return the vault's model, whose width the first embedding decides after a change."""
        model = session.manifest.current
        if model.model_id != model_id:
            raise Refused(
                "the templates are of another model than the vault's",
                hint="models are never mixed: migrate the vault, or use its model",
            )
        if np.ndim(embeddings) != 2:
            raise InputError("embeddings have the shape [n, D]")
        if model.dim == 0:
            model = Model(model.number, model_id, int(np.shape(embeddings)[1]), 0)
            session.change(models=session.manifest.with_model(model).models)
        return model

    def _turn(
        self, session: Session, rows: NDArray[np.float32], model: Model
    ) -> NDArray[np.float32]:
        key = (session.manifest.transform_seed, model.model_id, rows.shape[1])
        if key not in self._matrices:
            self._matrices[key] = transform.orthogonal(*key)
        return transform.apply(rows, self._matrices[key])

    def _known(self, session: Session, subject: str) -> records.Subject:
        found = records.find_subject(session, pseudonym_of(session.manifest, subject))
        if found is None:
            hint = fault_of(subject) or "enrol them first"
            raise InputError("nobody of that name is in the vault", hint=hint)
        return found

    def _compact_when_due(self) -> None:
        """Make shards when enough is loose; a full disk here fails no enrolment, only waits."""
        try:
            with Session.read(self._store) as session:
                due = holdings.compaction_due(session)
            if due:
                with Session.write(self._store) as session:
                    holdings.compact(session)
        except StorageError as error:
            _LOG.warning("templates stay loose for now: %s", error)
