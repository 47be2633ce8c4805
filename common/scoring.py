"""What turns embeddings into scores: the same for evaluation, calibration and vault.

A score is a cosine of two embeddings. Two statistics of a population, such as the persons of a
vault, may be taken off it, each in part, and "none of both" is the plain cosine:

    x' = unit(x - share_m m)                                    m: mean of the population's persons
    score(x, y) = x' y' - share_c (extra(x') + extra(y')) / 2

crowd(x') is the mean of the `NEAREST` highest cosines of x' with a cohort of persons, one vector
each and without the person who is claimed: how near strangers come to x. extra(x') is how far that
lies above the crowding that the loneliest `SPARED` of the cohort have among themselves, or 0. This
is the location of adaptive score normalisation (AS-norm; Matejka et al. 2017, Interspeech, section
2.2), without its scale and above a floor: so a score stays a cosine, who stands alone is scored as
ever, a part of it may be taken, and search stays an inner product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.metrics import unit_norm

Floats = NDArray[np.float32]
# A population of fewer persons says little of strangers, and much of each of its persons.
LEAST_PERSONS: Final = 20
# More persons change no score that matters, and each costs a product with every template.
MOST_PERSONS: Final = 1024
NEAREST: Final = 7
SPARED: Final = 0.06
_ROWS_AT_ONCE: Final = 4096
_NOBODY: Final = -1


@dataclass(frozen=True)
class Choice:
    """How much of a population's mean, and of its crowding, is taken off: each 0 or more.

    A mean taken off whole is 1; more than 1 of either is allowed up to 2.
    """

    mean: float
    cohort: float

    def __post_init__(self) -> None:
        for name, share in (("mean", self.mean), ("cohort", self.cohort)):
            if not 0.0 <= share <= 2.0:  # NaN fails, too
                raise InputError(f"the share of the {name} lies between 0 and 2, not {share:g}")

    @property
    def plain(self) -> bool:
        """Whether scores are plain cosines, of which no population changes anything."""
        return self.mean == 0.0 and self.cohort == 0.0

    @property
    def words(self) -> str:
        """The choice in a few words, for people."""
        parts = (("mean", self.mean), ("crowding", self.cohort))
        taken = [f"{share:.0%} of the {name}" for name, share in parts if share]
        return " and ".join(taken) + " off" if taken else "plain cosine"


PLAIN: Final = Choice(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Faces:
    """Embeddings made ready: `vectors` [N, D] of norm 1, `offsets` float64 [N].

    The score of rows i and j is vectors_i vectors_j - offsets_i - offsets_j; where `order` [D] is
    given, the product is that of vectors_i in that order (`common.backbones.statistics`).
    """

    vectors: Floats
    offsets: NDArray[np.float64]
    order: NDArray[np.integer] | None = None

    def at(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Faces:
        """Some of the rows."""
        return Faces(self.vectors[rows], self.offsets[rows], self.order)

    def scores(self, others: Faces) -> NDArray[np.float64]:
        """Return the score of every row with every row of `others`, [N, M]."""
        probes = self.vectors if self.order is None else self.vectors[:, self.order]
        cosines = probes.astype(np.float64) @ others.vectors.astype(np.float64).T
        scores: NDArray[np.float64] = cosines - self.offsets[:, None] - others.offsets
        return scores


def plain(embeddings: NDArray[np.floating], order: NDArray[np.integer] | None = None) -> Faces:
    """Embeddings [N, D], finite and not zero, to be scored by their product, in a probe's order."""
    return Faces(unit_norm(embeddings), np.zeros(len(embeddings)), order)


def centres(embeddings: NDArray[np.floating], persons: NDArray[np.integer]) -> Floats:
    """One unit vector a person: the mean of their unit embeddings [N, D], by rising `persons` [N].

    A person whose images cancel out is an InputError, as is an embedding of zero.
    """
    people, row = np.unique(persons, return_inverse=True)
    sums = np.zeros((len(people), embeddings.shape[1]), dtype=np.float64)
    np.add.at(sums, row, unit_norm(embeddings))
    return unit_norm(sums)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores by a choice and a population: made by `Scorer.of`.

    Attributes:
        mean: float64 [D], what is taken off every embedding.
        cohort: [P, D] the persons' vectors, less the mean; [0, D] where no crowding is taken off.
        nearest: how many of the cohort are a crowd.
        floor: the crowding that is spared.
    """

    choice: Choice
    mean: NDArray[np.float64]
    cohort: Floats
    nearest: int
    floor: float

    @classmethod
    def of(cls, choice: Choice, population: NDArray[np.floating]) -> Scorer:
        """A scorer whose population is given as one unit vector a person, [P, D].

        Raises InputError for fewer than `LEAST_PERSONS` unless the choice is the plain cosine.
        """
        nothing = np.zeros(population.shape[1])
        nobody = np.empty((0, population.shape[1]), dtype=np.float32)
        if choice.plain:
            return cls(choice, nothing, nobody, 0, 0.0)
        if len(population) < LEAST_PERSONS:
            raise InputError(
                f"{len(population)} persons are too few to take anything off a score: "
                f"it takes {LEAST_PERSONS}",
                hint="enrol more people, or score by plain cosine",
            )
        mean = nothing
        if choice.mean:
            mean = choice.mean * population.mean(axis=0, dtype=np.float64)
        without = cls(choice, mean, nobody, 0, 0.0)
        if not choice.cohort:
            return without
        cohort = without.vectors(population)
        nearest = min(NEAREST, len(cohort) - 2)  # two may be left out
        own = np.arange(len(cohort))
        crowding = cls(choice, mean, cohort, nearest, 0.0).crowd(cohort, own).crowding
        return cls(choice, mean, cohort, nearest, float(np.quantile(crowding, SPARED)))

    def vectors(self, embeddings: NDArray[np.floating]) -> Floats:
        """Embeddings [N, D] less the mean, of norm 1."""
        unit = unit_norm(embeddings)
        return unit_norm(unit.astype(np.float64) - self.mean) if self.choice.mean else unit

    def faces(
        self, embeddings: NDArray[np.floating], persons: NDArray[np.integer] | None = None
    ) -> Faces:
        """Make ready embeddings [N, D]; `persons` [N] are rows of the population, -1: not in it.

        Who is in it is no crowd to themselves. None: nobody is in it.
        """
        vectors = self.vectors(embeddings)
        offsets = np.zeros(len(vectors))
        if self.choice.cohort:
            own = np.full(len(vectors), _NOBODY) if persons is None else persons
            for start in range(0, len(vectors), _ROWS_AT_ONCE):
                some = slice(start, start + _ROWS_AT_ONCE)
                offsets[some] = self.off(self.crowd(vectors[some], own[some]).crowding)
        return Faces(vectors, offsets)

    def crowd(self, vectors: Floats, persons: NDArray[np.integer]) -> Crowd:
        """How near the cohort comes to `vectors` [N, D], each without its own person [N] or -1."""
        cosines: Floats = vectors @ self.cohort.T
        own = np.flatnonzero(persons >= 0)
        cosines[own, persons[own]] = -2.0  # below any cosine
        first = len(self.cohort) - self.nearest - 1
        top = np.partition(cosines, first, axis=1)[:, first:]  # the lowest of them leads
        return Crowd(cosines, top[:, 1:].mean(axis=1, dtype=np.float64), top[:, 0], self.nearest)

    def off(self, crowding: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the scores of vectors lose by their crowding, both [N]."""
        lost: NDArray[np.float64] = self.choice.cohort / 2 * np.maximum(crowding - self.floor, 0.0)
        return lost


@dataclass(frozen=True, eq=False)
class Crowd:
    """How near a cohort of P persons comes to vectors [N].

    Attributes:
        cosines: [N, P].
        crowding: float64 [N], the mean of the `nearest` highest.
        bar: [N], the next one.
    """

    cosines: Floats
    crowding: NDArray[np.float64]
    bar: Floats
    nearest: int

    def without(self, person: int) -> NDArray[np.float64]:
        """The crowding [N] without one person of the cohort: exact.

        Who is left out of the nearest makes room for the next one, `bar`.
        """
        above = np.maximum(self.cosines[:, person].astype(np.float64) - self.bar, 0.0)
        less: NDArray[np.float64] = self.crowding - above / self.nearest
        return less
