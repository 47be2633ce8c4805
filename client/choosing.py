"""How much of a vault's mean and crowding is taken off scores: chosen on held-out persons.

Each candidate, the plain cosine among them, gets its threshold on one half of the persons of the
data and its TMR on the other. What the threshold then promises is looked at where it is used: among
the vault's own persons, who need no labels for it. Of the candidates that cost little TMR, that is
chosen which keeps the promise best for the tenth of them whom it serves worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.population import Population
from common.metrics import all_pairs, lowest_threshold, tmr
from common.scoring import LEAST_PERSONS, PLAIN, Choice, Floats, Scorer

CANDIDATES: Final = tuple(
    Choice(mean, cohort) for mean in (0.0, 0.5, 1.0) for cohort in (0.0, 0.5, 1.0, 1.25, 1.5)
)
COST: Final = 0.01  # of TMR, against the candidate that has most
_SERVED_WORST: Final = 0.1
_PERSONS: Final = 1500
_IMAGES: Final = 4


@dataclass(frozen=True)
class Trial:
    """A candidate: TMR on held-out persons, and FMR among the vault's own.

    `own_fmr` is over all pairs of them, `worst_tenth` over those of the tenth with most matches.
    """

    scoring: Choice
    tmr: float
    own_fmr: float
    worst_tenth: float


@dataclass(frozen=True)
class Chosen:
    """The candidate that was chosen, the plain one beside it, and all; `note` says why none was."""

    trial: Trial | None
    plain: Trial | None
    trials: tuple[Trial, ...]
    note: str

    @property
    def scoring(self) -> Choice:
        return PLAIN if self.trial is None else self.trial.scoring


def choose(
    embeddings: Floats, subjects: NDArray[np.int64], population: Population, fmr: float
) -> Chosen:
    """Choose on embeddings [N, D] of `subjects` [N], none of whom is in the population.

    Where the vault holds too few persons, or too few of the data have two pictures, it is the plain
    cosine, and `note` says so.
    """
    if len(population.vectors) < LEAST_PERSONS:
        return Chosen(None, None, (), f"the vault holds fewer than {LEAST_PERSONS} other persons")
    rng = np.random.default_rng(0)
    halves = _halves(subjects, rng)
    if min(len(np.unique(subjects[rows])) for rows in halves) < LEAST_PERSONS:
        few = f"fewer than {2 * LEAST_PERSONS} persons of the data have two pictures"
        return Chosen(None, None, (), few)
    trials = [
        _trial(choice, embeddings, subjects, halves, population, fmr) for choice in CANDIDATES
    ]
    best = max(trial.tmr for trial in trials)
    able = [trial for trial in trials if trial.tmr >= best - COST]

    def harm(trial: Trial) -> tuple[float, float, float]:
        taken = trial.scoring.mean + trial.scoring.cohort
        return max(trial.worst_tenth, fmr), -trial.tmr, taken

    plain = next(trial for trial in trials if trial.scoring.plain)
    return Chosen(min(able, key=harm), plain, tuple(trials), "")


def _halves(
    subjects: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two halves of the persons with two images or more, a few images each."""
    people, images = np.unique(subjects, return_counts=True)
    several = rng.permutation(people[images >= 2])[:_PERSONS]
    rows = [np.flatnonzero(subjects == person)[:_IMAGES] for person in several]
    nobody = [np.empty(0, dtype=np.int64)]
    middle = len(rows) // 2
    return np.concatenate(nobody + rows[:middle]), np.concatenate(nobody + rows[middle:])


def _trial(
    choice: Choice,
    embeddings: Floats,
    subjects: NDArray[np.int64],
    halves: Sequence[NDArray[np.int64]],
    population: Population,
    fmr: float,
) -> Trial:
    scorer = Scorer.of(choice, population.vectors)
    pairs = []
    for rows in halves:
        faces = scorer.faces(embeddings[rows])
        pairs.append(all_pairs(faces.vectors, subjects[rows], faces.offsets))
    thresholds = [lowest_threshold(half.non_mated, fmr) for half in pairs]
    held_out = [tmr(pairs[1], thresholds[0]), tmr(pairs[0], thresholds[1])]
    own = _among_the_own(scorer, population) >= float(np.mean(thresholds))
    rates = own.sum(axis=1) / (len(own) - 1)
    worst = np.sort(rates)[-max(1, round(_SERVED_WORST * len(rates))) :]
    return Trial(choice, float(np.mean(held_out)), float(rates.mean()), float(worst.mean()))


def _among_the_own(scorer: Scorer, population: Population) -> NDArray[np.float64]:
    """Scores among the population [P, P], each pair as if neither were in the cohort."""
    vectors = scorer.vectors(population.samples)
    scores = vectors.astype(np.float64) @ vectors.T
    if scorer.choice.cohort:
        crowd = scorer.crowd(vectors, np.arange(len(vectors)))
        above = np.maximum(crowd.cosines - crowd.bar[:, None], 0.0).astype(np.float64)
        off = scorer.off(crowd.crowding[:, None] - above / crowd.nearest)
        scores -= off + off.T
    np.fill_diagonal(scores, -np.inf)
    return scores
