"""Thresholds from data: at a chosen FMR or FPIR, with an interval, or not at all.

There is no default threshold: one that fits one camera and one population is wrong on another
(the same threshold has an FMR of 0.1% on LFW and 14% on ORL). Data that cannot show the chosen
rate are refused by the rule of three (ISO/IEC 19795-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.metrics import all_pairs, lowest_threshold, threshold_at_fmr
from common.scoring import PLAIN, Choice, Faces
from common.wording import plural

Purpose = Literal["verify", "identify"]
_REPLICATES: Final = 400
_TRIALS: Final = 40
_INTERVAL: Final = (0.025, 0.975)


@dataclass(frozen=True)
class Threshold:
    """A calibrated threshold and what it rests on.

    Attributes:
        purpose: with "verify" `target` is an FMR, with "identify" an FPIR among `gallery` persons.
        value: a score at or above it is accepted.
        low, high: 95% interval of the rate at `value`, over persons.
        comparisons, persons: how many non-mated comparisons of how many persons there were.
        model_id: of the network whose embeddings were compared.
        source: where the pictures came from, in a few words.
        scoring: what is taken off a cosine by the persons of the vault; `value` is for that.
        population: how many persons of the vault that rested on; 0 for the plain cosine.
        plain: the threshold of the plain cosine, for a vault that holds too few persons to take
            anything off; None where `value` is that already.
    """

    purpose: Purpose
    target: float
    value: float
    low: float
    high: float
    comparisons: int
    persons: int
    gallery: int
    model_id: str
    source: str
    scoring: Choice = PLAIN
    population: int = 0
    plain: float | None = None


def for_verification(
    faces: Faces,
    subjects: NDArray[np.int64],
    fmr: float,
    *,
    model_id: str,
    source: str,
) -> Threshold:
    """The lowest threshold with FMR at most `fmr` on faces [N] of `subjects` [N].

    Raises InputError where fewer than 3 / fmr non-mated pairs exist.
    """
    scores = all_pairs(faces.vectors, subjects, faces.offsets, faces.order)
    value = threshold_at_fmr(scores.non_mated, fmr)
    low, high = _fmr_interval(faces, subjects, value)
    persons = len(np.unique(subjects))
    return Threshold(
        "verify", fmr, value, low, high, len(scores.non_mated), persons, 0, model_id, source
    )


def for_identification(
    faces: Faces,
    subjects: NDArray[np.int64],
    fpir: float,
    gallery: int,
    *,
    model_id: str,
    source: str,
) -> Threshold:
    """The threshold at which a stranger is taken for one of `gallery` persons with rate `fpir`.

    Measured, not derived from an FMR: again and again `gallery` random persons are enrolled with
    all their images and everyone else appears once. Raises InputError unless at least 3 / fpir
    persons are left to be strangers.
    """
    people, owner = np.unique(subjects, return_inverse=True)
    check_persons(len(people), fpir, gallery)
    rng = np.random.default_rng(0)
    best = [_strangers(faces, owner, len(people), gallery, rng) for _ in range(_TRIALS)]
    value = lowest_threshold(np.concatenate(best), fpir)
    rates = [float(np.mean(rng.choice(top, len(top)) >= value)) for top in best for _ in range(10)]
    low, high = np.quantile(rates, _INTERVAL)
    comparisons = sum(len(top) for top in best)
    return Threshold(
        "identify", fpir, value, float(low), float(high), comparisons, len(people), gallery,
        model_id, source,
    )  # fmt: skip


def check_persons(persons: int, fpir: float, gallery: int) -> None:
    """Raise InputError unless `persons` leave at least 3 / fpir strangers beside a gallery."""
    if not 0 < fpir < 1 or gallery < 1:
        raise InputError(f"an FPIR lies between 0 and 1 and a gallery has a person, not {fpir:g}")
    needed = gallery + int(np.ceil(3 / fpir - 1e-6))
    if persons < needed:
        raise InputError(
            f"{plural(persons, 'person')} cannot show an FPIR of {fpir:g} "
            f"in a gallery of {gallery}: it takes {needed}",
            hint="add persons to the data, or choose a larger FPIR or a smaller gallery",
        )


def _strangers(
    faces: Faces,
    owner: NDArray[np.intp],
    people: int,
    gallery: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The best score of one image of each person outside a random gallery, [people - gallery]."""
    enrolled = np.zeros(people, dtype=np.bool_)
    enrolled[rng.permutation(people)[:gallery]] = True
    order = rng.permutation(len(owner))
    _, first = np.unique(owner[order], return_index=True)  # a random image of each person
    probes = faces.at(order[first][~enrolled])
    best: NDArray[np.float64] = probes.scores(faces.at(enrolled[owner])).max(axis=1)
    return best


def _fmr_interval(faces: Faces, subjects: NDArray[np.int64], value: float) -> tuple[float, float]:
    """95% interval of the FMR at `value`: bootstrap over persons, since pairs share persons."""
    people, owner, images = np.unique(subjects, return_inverse=True, return_counts=True)
    false = np.zeros((len(people), len(people)))
    for start in range(0, len(subjects), 1024):
        rows, columns = np.nonzero(faces.at(slice(start, start + 1024)).scores(faces) >= value)
        np.add.at(false, (owner[rows + start], owner[columns]), 1.0)
    np.fill_diagonal(false, 0.0)
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(_REPLICATES):
        weight = np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))
        pairs = (weight @ images) ** 2 - (weight**2) @ (images**2)
        if pairs > 0:
            rates.append(float(weight @ false @ weight) / float(pairs))
    low, high = np.quantile(rates, _INTERVAL)
    return float(low), float(high)
