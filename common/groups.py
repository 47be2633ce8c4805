"""Errors by demographic group: a threshold that is safe on average may not be for all.

Compared are images of the same group: different persons, the pairs that false matches come from
(Grother, Ngan and Hanaoka 2019, NISTIR 8280), and, where persons have several images, those of one
person. Each pair of persons counts alike for FMR and each person alike for FNMR, whatever number of
images they have: else a few much photographed persons would decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.intervals import wilson
from common.metrics import BLOCK_ROWS, Interval, threshold_at_fmr
from common.scoring import Faces


@dataclass(frozen=True)
class Rate:
    """An error rate, worth as much as `trials` independent trials."""

    value: float
    trials: float

    @property
    def ci(self) -> Interval:
        """Wilson's 95% interval."""
        return wilson(self.value, self.trials)

    @property
    def variance(self) -> float:
        return self.value * (1 - self.value) / self.trials


@dataclass(frozen=True)
class GroupRate:
    """A group's FMR over `pairs` non-mated pairs of images, and its FNMR over `mated` ones.

    `several` is how many of its `persons` have two images or more; where none has,
    `false_non_match` is None.
    """

    group: str
    images: int
    persons: int
    pairs: int
    false_matches: int
    false_match: Rate
    several: int
    mated: int
    false_non_matches: int
    false_non_match: Rate | None

    @property
    def fmr(self) -> float:
        return self.false_match.value

    @property
    def ci(self) -> Interval:
        return self.false_match.ci

    def to_json(self) -> dict[str, object]:
        missed = self.false_non_match
        return {
            "group": self.group,
            "images": self.images,
            "persons": self.persons,
            "pairs": self.pairs,
            "false_matches": self.false_matches,
            "fmr": self.fmr,
            "ci": [self.ci.low, self.ci.high],
            "mated": self.mated,
            "false_non_matches": self.false_non_matches,
            "fnmr": missed.value if missed else None,
            "fnmr_ci": [missed.ci.low, missed.ci.high] if missed else None,
        }


@dataclass(frozen=True)
class Gap:
    """How far the worst group's error rate lies above that of all groups together.

    `ratio` is `worst` over `overall`, with its 95% interval; both None where nobody erred. (The
    ratio to the best group would be infinite once a group has no error.)
    """

    overall: float
    worst: str
    ratio: float | None
    ci: Interval | None


@dataclass(frozen=True)
class GroupReport:
    """Errors at one threshold for each group, in falling order of FMR.

    `false_match` and `false_non_match` compare the groups; the latter is None without mated pairs.
    """

    threshold: float
    groups: tuple[GroupRate, ...]
    false_match: Gap
    false_non_match: Gap | None

    @property
    def fmr(self) -> float:
        return self.false_match.overall

    @property
    def worst(self) -> GroupRate:
        return self.groups[0]

    @property
    def ratio(self) -> float | None:
        return self.false_match.ratio

    def to_json(self) -> dict[str, object]:
        """The `groups` object that `veilface evaluate --groups --json` prints."""
        missed = self.false_non_match
        return {
            "threshold": self.threshold,
            "fmr": self.fmr,
            "worst": self.worst.group,
            "ratio": self.ratio,
            "ratio_ci": _ends(self.false_match.ci),
            "fnmr": missed.overall if missed else None,
            "fnmr_worst": missed.worst if missed else None,
            "fnmr_ratio": missed.ratio if missed else None,
            "fnmr_ratio_ci": _ends(missed.ci if missed else None),
            "groups": [rate.to_json() for rate in self.groups],
        }


def _ends(interval: Interval | None) -> list[float] | None:
    return [interval.low, interval.high] if interval else None


def threshold_within(faces: Faces, target: float) -> float:
    """The threshold of FMR `target` over all pairs of faces [N], one image a person."""
    return threshold_at_fmr(faces.scores(faces)[np.triu_indices(len(faces.vectors), 1)], target)


def group_rates(
    faces: Faces,
    groups: Sequence[str],
    threshold: float,
    subjects: NDArray[np.integer] | None = None,
) -> GroupReport:
    """Errors within each group of faces [N] at `threshold`.

    `subjects` [N] are equal where two images show one person; None: each shows another. Raises
    InputError where no group has two persons; a group of one person is left out.
    """
    labels = np.array(groups)
    persons = np.arange(len(labels)) if subjects is None else subjects
    rates: list[GroupRate] = []
    for group in sorted(set(groups)):
        mine = np.flatnonzero(labels == group)
        mine = mine[np.argsort(persons[mine], kind="stable")]
        if len(np.unique(persons[mine])) >= 2:
            rates.append(_rate(group, faces.at(mine), persons[mine], threshold))
    if not rates:
        raise InputError("no group has two images to compare", hint="of different persons")
    rates.sort(key=lambda rate: (-rate.fmr, rate.group))
    matches = [(r.group, r.false_match, r.persons * (r.persons - 1) / 2) for r in rates]
    missed = [(r.group, m, r.several) for r in rates if (m := r.false_non_match) is not None]
    return GroupReport(threshold, tuple(rates), _gap(matches), _gap(missed) if missed else None)


def _rate(group: str, faces: Faces, persons: NDArray[np.integer], threshold: float) -> GroupRate:
    """The rates of one group's images, sorted by person.

    Pairs that share a person are not independent, so their number would give a far too narrow
    interval. The variance of FMR is 4/n times that of a person's own rate (Hoeffding 1948, theorem
    7.1), that of FNMR 1/n times; a rate is worth p(1-p)/variance independent trials: for FMR
    between n/2 (pairs that share no person) and all pairs, for FNMR between n and all pairs.
    """
    _, row, images = np.unique(persons, return_inverse=True, return_counts=True)
    people = len(images)
    share = (1 / images[row]).astype(np.float32)
    own = np.zeros(people)
    false_matches = 0
    for start in range(0, len(persons), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        matched = (faces.at(block).scores(faces) >= threshold) & (row[block, None] != row)
        false_matches += int(np.count_nonzero(matched))
        np.add.at(own, row[block], share[block] * (matched @ share))
    pairs = (len(persons) ** 2 - int(images @ images)) // 2
    fmr = _worth(own / (people - 1), 4, people / 2, pairs)
    mated, missed = images * (images - 1) // 2, np.zeros(people)
    first = np.cumsum(images) - images
    for person in np.flatnonzero(mated):
        members = faces.at(slice(first[person], first[person] + images[person]))
        scores = members.scores(members)[np.triu_indices(images[person], 1)]
        missed[person] = np.count_nonzero(scores < threshold)
    several = np.flatnonzero(mated)
    fnmr = None
    if len(several):
        fnmr = _worth(missed[several] / mated[several], 1, len(several), int(mated.sum()))
    return GroupRate(
        *(group, len(persons), people, pairs, false_matches // 2, fmr),
        *(len(several), int(mated.sum()), int(missed.sum()), fnmr),
    )


def _worth(own: NDArray[np.floating], order: int, least: float, most: float) -> Rate:
    """The mean of the persons' own rates [n], and how many independent trials it is worth."""
    value, variance = float(own.mean()), order * float(own.var()) / len(own)
    trials = value * (1 - value) / variance if variance > 0 else least
    return Rate(value, float(np.clip(trials, least, max(least, most))))


def _gap(rates: Sequence[tuple[str, Rate, float]]) -> Gap:
    """Compare groups given as (name, rate, weight in the overall rate).

    The interval is that of log(worst / overall) by the delta method, groups being independent and
    the worst one taken as given.
    """
    weights = [weight for _, _, weight in rates]
    shares = [weight / sum(weights) for weight in weights]
    overall = sum(share * rate.value for share, (_, rate, _) in zip(shares, rates, strict=True))
    name, worst, _ = max(rates, key=lambda entry: entry[1].value)
    if overall == 0:
        return Gap(overall, name, None, None)
    variance = sum(
        ((group == name) / worst.value - share / overall) ** 2 * rate.variance
        for share, (group, rate, _) in zip(shares, rates, strict=True)
    )
    ratio, spread = worst.value / overall, math.exp(1.959964 * math.sqrt(variance))
    return Gap(overall, name, ratio, Interval(ratio / spread, ratio * spread))
