"""A gallery in memory, scored and searched by what its own persons take off a score.

Who is claimed is never their own crowd: neither in what their templates lose nor in what the probe
loses when it is compared with them.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.population import Population
from client.search import Index
from client.vault import Gallery
from common.errors import InputError
from common.scoring import Choice, Crowd, Faces, Floats, Scorer


class Scored:
    """A gallery whose templates are made ready by a choice of scoring; safe to use from threads.

    Raises InputError where the population is too small for the choice.
    """

    def __init__(
        self, gallery: Gallery, population: Population, choice: Choice, *, eight_bit: bool
    ) -> None:
        self.gallery = gallery
        self._row_of, self._eight_bit = population.row_of, eight_bit
        self._scorer = Scorer.of(choice, population.vectors)
        self._faces = Faces(gallery.vectors, np.zeros(len(gallery.vectors)))  # no copy
        if not choice.plain:
            own = population.row_of[gallery.owners]
            self._faces = self._scorer.faces(gallery.vectors, own)
        self._person_of = np.flatnonzero(population.row_of >= 0)

    def score(self, probe: Floats, pseudonym: str) -> float:
        """The best score of a probe [1, D] with a person's templates."""
        name = np.frombuffer(bytes.fromhex(pseudonym), dtype=np.uint8)
        person = np.flatnonzero((self.gallery.names == name).all(axis=1))
        if not len(person):
            raise InputError("nobody of that name is in the vault", hint="enrol them first")
        return self._best(*self._probe(probe), int(person[0]))

    def ranked(self, probe: Floats, wanted: int) -> list[tuple[str, float]]:
        """The best `wanted` persons for a probe [1, D], by the best score of their templates.

        Exact. The index ranks by template, as if nobody were left out of the probe's crowd. That is
        so for all but the few who are near the probe, and to leave those out can only raise their
        scores: they are scored one by one, beside the first `wanted` of the index.
        """
        vectors, crowd = self._probe(probe)
        found = self._first(vectors, wanted)
        if crowd is not None:
            near = np.flatnonzero(crowd.cosines[0] > crowd.bar[0])
            found.update(self._person_of[near].tolist())
        scored = sorted((-self._best(vectors, crowd, person), person) for person in found)
        return [(self.gallery.pseudonyms[person], -score) for score, person in scored[:wanted]]

    def _probe(self, probe: Floats) -> tuple[Floats, Crowd | None]:
        vectors = self._scorer.vectors(probe)
        if not self._scorer.choice.cohort:
            return vectors, None
        return vectors, self._scorer.crowd(vectors, np.full(1, -1))

    def _best(self, vectors: Floats, crowd: Crowd | None, person: int) -> float:
        """The score with one person's templates, without that person in the probe's crowd."""
        off = np.zeros(1)
        if crowd is not None:
            row = int(self._row_of[person])
            off = self._scorer.off(crowd.crowding if row < 0 else crowd.without(row))
        order, starts = self._rows
        rows = order[starts[person] : starts[person + 1]]
        return float(Faces(vectors, off).scores(self._faces.at(rows)).max())

    def _first(self, vectors: Floats, wanted: int) -> set[int]:
        """The persons of the best templates for one probe: searched until there are enough."""
        index, total, rows = self._index, len(self.gallery.vectors), 4 * wanted
        if self._scorer.choice.cohort:
            vectors = np.concatenate([vectors, np.array([[-1.0, 0.0]], np.float32)], axis=1)
            vectors = vectors / np.sqrt(np.float32(2.0))
        while True:
            _, found = index.search(vectors, rows)
            persons: list[int] = self.gallery.owners[found[0]].tolist()
            distinct = dict.fromkeys(persons)  # in order
            if len(distinct) >= wanted or rows >= total:
                return set(list(distinct)[:wanted])
            rows *= 4

    @cached_property
    def _index(self) -> Index:
        """Rows that rank as scores do: an offset is one more number, and another makes the norm 1.

        (x, o, sqrt(m^2 - o^2)) (v, -1, 0) = x v - o, and all such rows have one length.
        """
        vectors, offsets = self._faces.vectors, self._faces.offsets
        if self._scorer.choice.cohort:
            most = float(offsets.max(initial=0.0))
            rest = np.sqrt(np.maximum(most**2 - offsets**2, 0.0))
            longer = np.column_stack([vectors, offsets, rest]) / np.sqrt(1 + most**2)
            vectors = np.ascontiguousarray(longer, dtype=np.float32)
        return Index(vectors, eight_bit=self._eight_bit)

    @cached_property
    def _rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows by person, and where each person's begin."""
        order = np.argsort(self.gallery.owners, kind="stable")
        persons = np.arange(len(self.gallery.names) + 1)
        return order, np.searchsorted(self.gallery.owners[order], persons)
