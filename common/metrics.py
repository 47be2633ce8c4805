"""Verification error rates from comparison scores, in the terms of ISO/IEC 19795-1.

A score is the cosine of two embeddings, higher = more alike; a comparison is accepted if
score >= threshold. FMR(t) is the share of non-mated pairs accepted, FNMR(t) the share of mated
pairs rejected, TMR = 1 - FNMR.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

FloatArray = NDArray[np.floating]
BLOCK_ROWS = 512
RATES = ("eer", "tmr_at_fmr_1e2", "tmr_at_fmr_1e3")
FMR_TARGETS = (1e-2, 1e-3)


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of mated [M] and non-mated [N] pairs, float32 or float64, finite, in any order.

    `images` [S] int64 is set by `all_pairs` alone: how many images each subject has, the scores
    then being every pair in row order of the images sorted by subject. The subject bootstrap
    reads from it whose images a pair compares. `subjects` [S], set with it, are their numbers.

    Raises InputError if either array is empty, not one-dimensional or not finite.
    """

    mated: FloatArray
    non_mated: FloatArray
    images: NDArray[np.int64] | None = None
    subjects: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name, values, hint in (
            ("mated", self.mated, "at least one person needs two usable images"),
            ("non-mated", self.non_mated, "at least two persons need a usable image"),
        ):
            if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
                raise InputError(f"{name} scores are not one row of numbers")
            if len(values) == 0:
                raise InputError(f"there are no {name} pairs to compare", hint=hint)
            if not np.isfinite(values).all():
                raise InputError(f"some {name} scores are not finite", hint="check the model")


def all_pairs(
    embeddings: NDArray[np.floating],
    subjects: NDArray[np.integer],
    offsets: NDArray[np.floating] | None = None,
    probe_order: NDArray[np.integer] | None = None,
) -> PairScores:
    """Score of every pair of images, each unordered pair once.

    Args:
        embeddings: [N, D] finite and non-zero; scaled to unit norm here.
        subjects: [N] integers, equal where two images show one person.
        offsets: [N] what each image takes off its cosines (`common.scoring`); None: nothing.
        probe_order: [D], the places that bring an embedding to the probe's side, where the score
            is not a plain cosine (`common.backbones.statistics`); None: as it is.

    Returns float32 scores; peak memory is those N(N-1)/2 scores and one block of
    `BLOCK_ROWS` x N. Raises InputError for shapes that differ, NaN, infinite or zero
    embeddings, and where no mated or no non-mated pair exists.
    """
    if embeddings.ndim != 2 or subjects.shape != embeddings.shape[:1]:
        raise InputError(f"{embeddings.shape} embeddings do not fit {subjects.shape} subjects")
    order = np.argsort(subjects, kind="stable")
    unit = unit_norm(embeddings[order])
    probes = unit if probe_order is None else np.ascontiguousarray(unit[:, probe_order])
    off = None if offsets is None else offsets[order].astype(np.float32)
    numbers, counts = np.unique(subjects, return_counts=True)
    images = counts.astype(np.int64)
    end = np.repeat(np.cumsum(images), images)
    total = len(unit)
    mated = np.empty(int(np.sum(images * (images - 1)) // 2), dtype=np.float32)
    non_mated = np.empty(total * (total - 1) // 2 - len(mated), dtype=np.float32)
    m = n = 0
    for start in range(0, total, BLOCK_ROWS):
        block = probes[start : start + BLOCK_ROWS] @ unit[start:].T
        if off is not None:
            block -= off[start : start + BLOCK_ROWS, None]
            block -= off[start:]
        for at, row in enumerate(block):
            last = end[start + at] - start
            own, others = row[at + 1 : last], row[last:]
            mated[m : (m := m + len(own))] = own
            non_mated[n : (n := n + len(others))] = others
    return PairScores(mated, non_mated, images, numbers.astype(np.int64))


def unit_norm(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows [N, D] scaled to length 1; InputError for rows that are zero or not finite."""
    values = np.ascontiguousarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    bad = int(np.count_nonzero(~(np.isfinite(norms) & (norms > 0))))
    if bad:
        raise InputError(
            f"{bad} of {len(values)} embeddings are not finite or zero", hint="check the model"
        )
    unit: NDArray[np.float32] = values / norms
    return unit


def fmr(scores: PairScores, threshold: float) -> float:
    """Share of non-mated pairs with score >= threshold."""
    return float(np.count_nonzero(scores.non_mated >= threshold)) / len(scores.non_mated)


def fnmr(scores: PairScores, threshold: float) -> float:
    """Share of mated pairs with score < threshold."""
    return float(np.count_nonzero(scores.mated < threshold)) / len(scores.mated)


def tmr(scores: PairScores, threshold: float) -> float:
    """Share of mated pairs with score >= threshold."""
    return float(np.count_nonzero(scores.mated >= threshold)) / len(scores.mated)


def threshold_at_fmr(non_mated: FloatArray, target: float) -> float:
    """The smallest threshold at which FMR <= target, from enough non-mated scores [N].

    Raises InputError unless 0 < target < 1 and N >= 3 / target: below that, even no false match
    at all would not show FMR <= target with 95% confidence (the rule of three: Jovanovic and
    Levy 1997; ISO/IEC 19795-1).
    """
    if not 0 < target < 1:
        raise InputError(f"an FMR target of {target:g} is not between 0 and 1")
    if shortage := pairs_missing(len(non_mated), target):
        raise InputError(shortage, hint="add persons to the test data")
    return lowest_threshold(non_mated, target)


def lowest_threshold(non_mated: FloatArray, target: float) -> float:
    """The smallest threshold at which FMR <= target on these scores, however few they are.

    With k = floor(target N) false matches allowed and s the (k+1)-th highest score, FMR(t) <=
    target exactly for t > s, so the answer is the next number of the scores' own precision after
    s; ties at s are all rejected.
    """
    rank = len(non_mated) - 1 - int(target * len(non_mated) * (1 + 1e-12))
    highest_rejected = np.partition(non_mated, rank)[rank]
    return float(np.nextafter(highest_rejected, np.asarray(np.inf, highest_rejected.dtype)))


def pairs_missing(non_mated: int, target: float) -> str:
    """Why so many non-mated pairs cannot show an FMR of `target`, or "" where they can."""
    needed = int(np.ceil(3 / target - 1e-6))
    if non_mated >= needed:
        return ""
    return f"{non_mated:,} non-mated pairs cannot show an FMR of {target:g}: it takes {needed:,}"


def tmr_at_fmr(scores: PairScores, target: float) -> float:
    """TMR at `threshold_at_fmr(scores.non_mated, target)`."""
    return tmr(scores, threshold_at_fmr(scores.non_mated, target))


def eer(scores: PairScores) -> float:
    """Equal error rate: where the DET curve, its vertices joined by lines, meets FMR = FNMR.

    Vertices are the operating points at every distinct score and one above all. Between the
    last vertex with FMR >= FNMR and the next, both rates are interpolated linearly. All scores
    equal gives 0.5. Not the convex hull (ROCCH), which is optimistic on small sets.
    """
    mated = np.unique(scores.mated)
    low, high = 0, len(mated)
    while low < high:  # FMR - FNMR never rises with the threshold
        middle = (low + high) // 2
        if fmr(scores, mated[middle]) >= fnmr(scores, mated[middle]):
            low = middle + 1
        else:
            high = middle
    # The crossing lies between two neighbouring mated scores: look at the non-mated inside.
    below = mated[low - 1] if low > 0 else -np.inf
    above = mated[low] if low < len(mated) else np.inf
    inside = scores.non_mated[(scores.non_mated > below) & (scores.non_mated < above)]
    counts = np.unique(inside, return_counts=True)[1]
    false = fmr(scores, above) + np.cumsum(counts[::-1])[::-1] / len(scores.non_mated)
    fmr_steps = np.concatenate([[fmr(scores, below)], false, [fmr(scores, above)]])
    fnmr_steps = np.full_like(fmr_steps, fnmr(scores, above))
    fnmr_steps[0] = fnmr(scores, below)
    return float(crossing(fmr_steps[:, None], fnmr_steps[:, None])[0])


def crossing(
    fmr_steps: NDArray[np.floating], fnmr_steps: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Where falling FMR meets rising FNMR along axis 0, linear between steps; [K, B] -> [B].

    NaN in a column that never crosses.
    """
    gap = np.asarray(fmr_steps - fnmr_steps, dtype=np.float64)
    after = np.argmax(gap < 0, axis=0)
    column = np.arange(gap.shape[1])
    before = np.maximum(after - 1, 0)
    span = gap[before, column] - gap[after, column]
    share = np.divide(gap[before, column], span, out=np.full(len(column), np.nan), where=span > 0)
    start, stop = fmr_steps[before, column], fmr_steps[after, column]
    return np.asarray(start + share * (stop - start), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class DetCurve:
    """Operating points by rising threshold: FMR falls from 1 to 0, FNMR rises from 0 to 1.

    The last threshold is infinite (nothing is accepted). All arrays are float64 [K].
    """

    threshold: NDArray[np.float64]
    fmr: NDArray[np.float64]
    fnmr: NDArray[np.float64]


def det_curve(scores: PairScores, points: int | None = None) -> DetCurve:
    """The detection error trade-off (Martin et al. 1997) at every distinct score.

    `points` asks for about that many of the same exact operating points instead, evenly spaced
    in log FMR.
    """
    mated, non_mated = np.sort(scores.mated), np.sort(scores.non_mated)
    if points is None:
        threshold = np.unique(np.concatenate([mated, non_mated]))
    else:
        ranks = np.geomspace(1, len(non_mated), points).astype(np.int64)
        threshold = np.unique(np.append(non_mated[-ranks], mated[[0, -1]]))
    return DetCurve(
        np.append(threshold, np.inf).astype(np.float64),
        np.append((len(non_mated) - np.searchsorted(non_mated, threshold)) / len(non_mated), 0.0),
        np.append(np.searchsorted(mated, threshold) / len(mated), 1.0),
    )


@dataclass(frozen=True)
class Interval:
    """A confidence interval [low, high] of a rate."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """95% confidence intervals of the three rates of a `Verification`."""

    eer: Interval
    tmr_at_fmr_1e2: Interval
    tmr_at_fmr_1e3: Interval


@dataclass(frozen=True)
class Verification:
    """How well a model verifies: rates in [0, 1], and how many pairs they were measured on.

    `ci` holds 95% intervals over persons (`common.intervals`), or None where not asked for. With
    too few pairs for an FMR (see `shortages`) its TMR is that of the lowest threshold that keeps
    the FMR on these pairs, and promises nothing for others.
    """

    eer: float
    tmr_at_fmr_1e2: float
    tmr_at_fmr_1e3: float
    mated: int
    non_mated: int
    ci: Intervals | None = None

    @property
    def shortages(self) -> tuple[str, ...]:
        """A sentence for each operating point that the pairs are too few for."""
        found = (pairs_missing(self.non_mated, target) for target in FMR_TARGETS)
        return tuple(sentence for sentence in found if sentence)

    def to_json(self) -> dict[str, object]:
        """The object that `veilface simulate --json` prints as `before` and `after`."""
        names = {name.replace("_1e", "_1e-"): name for name in RATES}
        ci = {key: getattr(self.ci, name) for key, name in names.items()} if self.ci else {}
        return {
            **{key: getattr(self, name) for key, name in names.items()},
            "ci": {key: [interval.low, interval.high] for key, interval in ci.items()},
            "mated": self.mated,
            "non_mated": self.non_mated,
        }
