"""All templates of a model in memory, ready to be searched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.vault import schema, shards
from client.vault.manifest import Model
from client.vault.records import loose
from client.vault.session import Session
from common.errors import SealError


@dataclass(frozen=True)
class Gallery:
    """Templates in the vault's space: `vectors` float32 [N, D], `owners` int64 [N].

    `pseudonyms[owners[i]]` is whose row i is; `names` uint8 [P, 16] are their bytes.
    """

    vectors: NDArray[np.float32]
    owners: NDArray[np.int64]
    names: NDArray[np.uint8]

    @cached_property
    def pseudonyms(self) -> tuple[str, ...]:
        """All P pseudonyms, made when they are first asked for: a million strings take a while."""
        text, width = self.names.tobytes().hex(), 2 * shards.PSEUDONYM
        return tuple(text[at : at + width] for at in range(0, len(text), width))


def read_gallery(session: Session, model: Model) -> Gallery:
    """Open every template of a model, checked against the manifest first."""
    session.check(schema.TEMPLATE, schema.SHARD)
    found = shards.directories(session, model, again=True)
    single = list(loose(session, model))
    starts = np.cumsum([0, *(d.layout.count for d in found), *(len(s.rows) for s in single)])
    if starts[-1] != model.templates:
        raise SealError("the vault holds another number of templates than its manifest says")
    vectors = np.empty((model.templates, model.dim), dtype=np.float32)
    _open_shards(session, model, found, vectors)
    for start, record in zip(starts[len(found) :], single, strict=False):
        vectors[start : start + len(record.rows)] = record.rows
    ids = [d.subjects for d in found]
    ids += [np.full(len(s.rows), s.subject, dtype=np.int64) for s in single]
    names = [d.pseudonyms for d in found]
    names += [
        np.tile(np.frombuffer(bytes.fromhex(s.pseudonym), dtype=np.uint8), (len(s.rows), 1))
        for s in single
    ]
    if not ids:
        nobody = np.empty((0, shards.PSEUDONYM), dtype=np.uint8)
        return Gallery(vectors, np.empty(0, dtype=np.int64), nobody)
    owners, firsts = _numbered(np.concatenate(ids))
    return Gallery(vectors, owners, np.concatenate(names)[firsts])


def _open_shards(
    session: Session, model: Model, found: list[shards.Directory], vectors: NDArray[np.float32]
) -> None:
    """Decrypt all shards into `vectors`, one after the other."""
    rows, start = shards.rows_of_model(session, model), 0
    for directory in found:
        row = next(rows, None)
        if row is None or row.id != directory.id or directory.layout.dim != model.dim:
            raise SealError("a shard of the vault is missing or of another width")
        part = vectors[start : start + directory.layout.count]
        start += directory.layout.count
        shards.open_body(session, model, directory, row, part)


def _numbered(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row's owner numbered from 0 by rising id, and each owner's first row."""
    top = int(ids.max()) + 1
    if top > 16 * ids.size + 1_000_000:  # ids far apart: sorting needs less memory
        _, firsts, owners = np.unique(ids, return_index=True, return_inverse=True)
        return owners.astype(np.int64), firsts.astype(np.int64)
    present = np.zeros(top, dtype=np.bool_)
    present[ids] = True
    owners = (np.cumsum(present) - 1)[ids]
    firsts = np.empty(int(present.sum()), dtype=np.int64)
    firsts[owners[::-1]] = np.arange(ids.size - 1, -1, -1)
    return owners, firsts
