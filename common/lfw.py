"""Labeled Faces in the Wild, View 2: ten folds of 300 mated and 300 non-mated pairs.

Huang, Ramesh, Berg and Learned-Miller 2007, section 3: report mean accuracy over ten folds, each
classified with what was chosen on the other nine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.metrics import PairScores, eer, tmr_at_fmr

FOLDS, PAIRS_PER_FOLD = 10, 300


@dataclass(frozen=True)
class LfwPair:
    """Two images by their file names without folder, whether one person, and their fold 0..9."""

    first: str
    second: str
    mated: bool
    fold: int


@dataclass(frozen=True)
class LfwResult:
    """View-2 accuracy and, over all 6,000 pairs, the rates of `common.metrics`.

    `accuracy` is the mean over ten folds and `accuracy_std` their sample standard deviation
    (divide by sqrt(10) for the standard error that LFW papers print); `threshold` is the mean of
    the ten chosen thresholds, a cosine.
    """

    accuracy: float
    accuracy_std: float
    eer: float
    tmr_at_fmr_1e3: float
    threshold: float

    def to_json(self) -> dict[str, object]:
        """The object that `veilface evaluate --protocol lfw --json` prints."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "eer": self.eer,
            "tmr_at_fmr_1e-3": self.tmr_at_fmr_1e3,
            "threshold": self.threshold,
        }


def read_pairs(path: Path) -> tuple[LfwPair, ...]:
    """The 6,000 pairs of a View-2 `pairs.txt`, in the order of the file.

    Raises InputError that names the file and line for anything but a first line `10 300`, then ten
    times 300 lines `name n1 n2` and 300 lines `name1 n1 name2 n2` of two persons.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the LFW pairs cannot be read from {path}", hint="give the folder that has pairs.txt"
        ) from error
    if not lines or lines[0].split() != [str(FOLDS), str(PAIRS_PER_FOLD)]:
        raise InputError(
            f"{path}, line 1: not the head of View 2", hint=f"'{FOLDS} {PAIRS_PER_FOLD}' expected"
        )
    expected = 1 + 2 * FOLDS * PAIRS_PER_FOLD
    if len(lines) != expected:
        raise InputError(f"{path} has {len(lines)} lines, View 2 has {expected}")
    return tuple(_pair(line, n, path) for n, line in enumerate(lines[1:]))


def _pair(line: str, index: int, path: Path) -> LfwPair:
    fold, place = divmod(index, 2 * PAIRS_PER_FOLD)
    mated = place < PAIRS_PER_FOLD
    match line.split():
        case [name, first, second] if mated and first != second:
            pair = ((name, first), (name, second))
        case [name, first, other, second] if not mated and name != other:
            pair = ((name, first), (other, second))
        case _:
            form = "name n1 n2" if mated else "name1 n1 name2 n2"
            raise InputError(f"{path}, line {index + 2}: '{form}' expected, found {line!r}")
    if not all(number.isdecimal() and number.isascii() and int(number) > 0 for _, number in pair):
        raise InputError(f"{path}, line {index + 2}: image numbers start at 1, found {line!r}")
    first_file, second_file = (f"{name}_{int(number):04d}" for name, number in pair)
    return LfwPair(first_file, second_file, mated, fold)


def lfw_result(scores: NDArray[np.floating], pairs: tuple[LfwPair, ...]) -> LfwResult:
    """View 2 from one finite score [6000] a pair, in the order of `pairs`."""
    mated = np.array([pair.mated for pair in pairs])
    fold = np.array([pair.fold for pair in pairs])
    accuracies, thresholds = np.empty(FOLDS), np.empty(FOLDS)
    every = PairScores(scores[mated], scores[~mated])
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        thresholds[k] = best_threshold(scores[train], mated[train])
        accuracies[k] = np.mean((scores[test] >= thresholds[k]) == mated[test])
    return LfwResult(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std(ddof=1)),
        eer=eer(every),
        tmr_at_fmr_1e3=tmr_at_fmr(every, 1e-3),
        threshold=float(thresholds.mean()),
    )


def best_threshold(scores: NDArray[np.floating], mated: NDArray[np.bool_]) -> float:
    """The threshold of most correct decisions: halfway between two neighbouring scores.

    Of several that are equally good the middle one is taken, so that a gap between the two kinds
    is cut in its middle; accepting all or nothing cuts half a unit outside the scores.
    """
    distinct = np.unique(scores).astype(np.float64)
    cuts = np.concatenate(
        [[distinct[0] - 0.5], (distinct[1:] + distinct[:-1]) / 2, [distinct[-1] + 0.5]]
    )
    rejected_mated = np.searchsorted(np.sort(scores[mated]), cuts)
    rejected_non_mated = np.searchsorted(np.sort(scores[~mated]), cuts)
    correct = rejected_non_mated - rejected_mated
    best = np.flatnonzero(correct == correct.max())
    return float(cuts[best[(len(best) - 1) // 2]])
