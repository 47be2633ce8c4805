"""A vault's own persons as the population that scores rest on.

Nothing of it is stored: it is made in memory from the templates, and made again when someone is
enrolled or erased.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.vault import Gallery
from common.scoring import MOST_PERSONS, Floats, centres

_FIRST_BYTES = ">u8"  # of a pseudonym, to order persons by


@dataclass(frozen=True, eq=False)
class Population:
    """Up to `MOST_PERSONS` persons of a gallery, [P, D] one unit vector each.

    `samples` [P, D] are a template of each. `row_of` [all persons of the gallery] is each one's
    row, -1 for who is not among them. They are those of the lowest pseudonyms: keyed, so as if
    chosen at random, and an enrolment changes one of them at most.
    """

    vectors: Floats
    samples: Floats
    row_of: NDArray[np.int64]

    @classmethod
    def nobody(cls, gallery: Gallery) -> Population:
        """No population, which is enough for plain cosines."""
        none = gallery.vectors[:0]
        return cls(none, none, np.full(len(gallery.names), -1, dtype=np.int64))

    @classmethod
    def of(cls, gallery: Gallery, leave_out: frozenset[str] = frozenset()) -> Population:
        """The population of a gallery, without some pseudonyms."""
        order = np.ascontiguousarray(gallery.names[:, :8]).view(_FIRST_BYTES).ravel()
        persons = np.argsort(order, kind="stable")
        if leave_out:
            kept = [gallery.pseudonyms[person] not in leave_out for person in persons]
            persons = persons[np.array(kept, dtype=np.bool_)]
        chosen = np.sort(persons[:MOST_PERSONS])
        if not len(chosen):
            return cls.nobody(gallery)
        row_of = np.full(len(gallery.names), -1, dtype=np.int64)
        row_of[chosen] = np.arange(len(chosen))
        rows = row_of[gallery.owners]
        inside = np.flatnonzero(rows >= 0)
        _, first = np.unique(rows[inside], return_index=True)
        vectors = gallery.vectors[inside]
        return cls(centres(vectors, rows[inside]), vectors[first], row_of)
