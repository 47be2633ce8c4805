"""Confidence intervals: a bootstrap over persons for score rates, Wilson for proportions.

Pairs that share a person rise and fall together, so an interval that treats pairs as independent
is far too narrow. `bootstrap` resamples persons, not pairs (the subsets bootstrap of Bolle, Ratha
and Pankanti 2004; Poh, Martin and Bengio 2007). `wilson` (Wilson 1927) is for a plain proportion
of independent trials; unlike the normal approximation it keeps its coverage near 0 and 1.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtri

from common.errors import InputError
from common.metrics import (
    FMR_TARGETS,
    FloatArray,
    Interval,
    Intervals,
    PairScores,
    Verification,
    all_pairs,
    crossing,
    eer,
    lowest_threshold,
    tmr,
)

REPLICATES = 400
GRID = 400
_AT_ONCE = 4_000_000


def verification(
    embeddings: NDArray[np.floating],
    subjects: NDArray[np.integer],
    *,
    ci: bool = True,
    seed: int = 0,
) -> Verification:
    """EER and TMR@FMR over every pair of embeddings [N, D] of subjects [N] (see `all_pairs`)."""
    return verification_of(all_pairs(embeddings, subjects), ci=ci, seed=seed)


def verification_of(scores: PairScores, *, ci: bool = True, seed: int = 0) -> Verification:
    """The same from scores; `ci` needs those of `all_pairs`."""
    tmr_1e2, tmr_1e3 = (
        tmr(scores, lowest_threshold(scores.non_mated, target)) for target in FMR_TARGETS
    )
    mated, non_mated = len(scores.mated), len(scores.non_mated)
    result = Verification(eer(scores), tmr_1e2, tmr_1e3, mated, non_mated)
    return replace(result, ci=intervals(scores, seed=seed)) if ci else result


def intervals(scores: PairScores, *, level: float = 0.95, seed: int = 0) -> Intervals:
    """Percentile intervals of the bootstrap over persons; replicates without both kinds of pair
    are left out."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    bounds = np.nanquantile(bootstrap(scores, seed=seed), tails, axis=1)
    return Intervals(*(Interval(float(low), float(high)) for low, high in bounds.T))


def bootstrap(
    scores: PairScores, *, replicates: int = REPLICATES, seed: int = 0
) -> NDArray[np.float64]:
    """EER, TMR@1e-2 and TMR@1e-3 on resampled persons, [3, B], NaN where a replicate has none.

    S persons are drawn with replacement, person i w_i times: a mated pair of person i then counts
    w_i times, a non-mated pair of i and j w_i w_j times; two draws of one person are not a
    non-mated pair. The rates are read off `GRID` thresholds, evenly spaced in log FMR, linear in
    between, which moves them by far less than the interval's width.
    """
    return rates_under(scores, drawn(len(persons_of(scores)), replicates=replicates, seed=seed))


def persons_of(scores: PairScores) -> NDArray[np.int64]:
    """The persons [S] whose images the scores compare; InputError where that is not known."""
    if scores.images is None or scores.subjects is None:
        raise InputError("an interval over persons needs the scores of all pairs of images")
    return scores.subjects


def drawn(people: int, *, replicates: int = REPLICATES, seed: int = 0) -> NDArray[np.int64]:
    """How often each of S persons is drawn in each of B resamples of S persons, [S, B]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=replicates).T


def rates_under(scores: PairScores, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rates of `bootstrap` under given draws of the scores' persons: [S, B] -> [3, B]."""
    people, images = len(persons_of(scores)), scores.images
    assert images is not None  # `persons_of` has looked
    # Lower thresholds are never read: stop where FMR is well past any likely replicate's EER.
    likely = min(1.0, 1.5 * eer(scores) + 2 * max(FMR_TARGETS) + 0.5 / people**0.5)
    rates = _replicates(scores, images, draws, likely)
    if likely < 1 and np.isnan(rates).any():
        rates = _replicates(scores, images, draws, 1.0)
    return rates


def _replicates(
    scores: PairScores, images: NDArray[np.int64], draws: NDArray[np.int64], deepest: float
) -> NDArray[np.float64]:
    ranked, first, second = _highest_non_mated(scores.non_mated, images, deepest)
    ranks = np.unique(np.geomspace(1, len(ranked), GRID).astype(np.int64)) - 1
    none_above = np.nextafter(ranked[:1], np.asarray(np.inf, ranked.dtype))
    thresholds = np.concatenate([none_above, np.unique(ranked[ranks])[::-1]])
    weights = np.ascontiguousarray(draws, dtype=np.float32)
    accepted = len(ranked) - np.searchsorted(ranked[::-1], thresholds)
    false = _weighted_counts(first, second, accepted, weights)
    pairs = images * (images - 1) // 2
    true = _mated_counts(scores.mated, pairs, thresholds) @ draws
    possible_false = ((images @ draws) ** 2 - images**2 @ draws**2) / 2
    possible_true = pairs @ draws
    usable = (possible_false > 0) & (possible_true > 0)
    none = np.zeros((1, int(usable.sum())))
    fmrs = np.concatenate([none, false[:, usable] / possible_false[usable]])
    tmrs = np.concatenate([none, true[:, usable] / possible_true[usable]])
    rates = np.full((1 + len(FMR_TARGETS), draws.shape[1]), np.nan)
    rates[0, usable] = crossing(fmrs[::-1], 1 - tmrs[::-1])
    for row, target in enumerate(FMR_TARGETS, start=1):
        rates[row, usable] = [
            np.interp(target, *curve) for curve in zip(fmrs.T, tmrs.T, strict=True)
        ]
    return rates


def _highest_non_mated(
    scores: FloatArray, images: NDArray[np.int64], share: float
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """The highest `share` of non-mated scores, falling, with the two persons of each."""
    rank = max(0, len(scores) - int(np.ceil(share * len(scores))))
    kept = np.flatnonzero(scores >= np.partition(scores, rank)[rank])
    end = np.repeat(np.cumsum(images), images)
    row_start = np.concatenate([[0], np.cumsum(end[-1] - end)])
    row = np.searchsorted(row_start, kept, side="right") - 1
    column = end[row] + kept - row_start[row]
    owner = np.repeat(np.arange(len(images)), images)
    order = np.argsort(-scores[kept])
    return scores[kept][order], owner[row[order]], owner[column[order]]


def _weighted_counts(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    accepted: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """sum of w_first w_second over the first accepted[k] pairs: weights [S, B] -> [K, B]."""
    people = len(weights)
    if len(first) * weights.shape[1] <= _AT_ONCE:  # few pairs: no matrix a step
        each = weights[first] * weights[second]
        none = np.zeros((1, weights.shape[1]))
        so_far = np.concatenate([none, np.cumsum(each, axis=0, dtype=np.float64)])
        return np.asarray(so_far[accepted])
    steps = np.empty((len(accepted), weights.shape[1]))
    for k, (start, stop) in enumerate(pairwise([0, *accepted])):
        part = slice(start, stop)
        ones = np.ones(stop - start, dtype=np.float32)
        counts = csr_array((ones, (first[part], second[part])), shape=(people, people))
        steps[k] = np.sum(weights * (counts @ weights), axis=0, dtype=np.float64)
    return np.cumsum(steps, axis=0)


def _mated_counts(
    scores: FloatArray, pairs: NDArray[np.int64], thresholds: FloatArray
) -> NDArray[np.int64]:
    """How many of each person's mated scores reach each of the falling thresholds, [K, S]."""
    people, steps = len(pairs), len(thresholds)
    reached = steps - np.searchsorted(thresholds[::-1], scores, side="right")
    cell = reached * people + np.repeat(np.arange(people), pairs)
    counts = np.bincount(cell, minlength=(steps + 1) * people)[: steps * people]
    return np.cumsum(counts.reshape(steps, people), axis=0)


def wilson(rate: float, trials: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate seen in `trials` independent trials (eq. of Wilson 1927).

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); `trials` need not be whole, so that
    an effective number of independent trials can be given.
    """
    if not trials > 0 or not 0 <= rate <= 1:
        raise InputError(f"a rate of {rate:g} in {trials:g} trials is not a proportion")
    z = float(ndtri((1 + level) / 2))
    centre = rate + z * z / (2 * trials)
    half = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(
        max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))
    )
