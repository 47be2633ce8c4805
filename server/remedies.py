"""Does a threshold keep its promise for every group, and what helps: before and after.

A promise is an FMR among the pairs of one population; a threshold is carried to groups of another.
Compared are scorings (`common.scoring`), each with a threshold of its own from the same data: the
plain cosine; the mean of a group taken off (a site of one group); the same mean as it would be
released (with noise of a stated epsilon, drawn for an experiment); and the crowding of all groups
mixed (a site that knows no labels), in shares. Random halves: up to `SITE` persons of each group
are the site, others of the group are measured, so nobody is in what is taken off their score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.groups import group_rates
from common.metrics import all_pairs, lowest_threshold, tmr
from common.randomness import experiment_generator
from common.scoring import LEAST_PERSONS, Choice, Faces, Floats, Scorer, centres, plain

SITE: Final = 30  # persons of each group at the site
HALVES: Final = 8
EPSILON, DELTA = 2.0, 1e-4
NOISE_MULTIPLIER: Final = 1.734  # of one Gaussian release of that epsilon; a test recomputes it
SHARES: Final = (0.5, 1.0, 1.25, 1.5)
RELEASED: Final = 300  # persons of a release over several sites of one group
_MEASURED: Final = 100  # persons of each group
_DATA: Final = 1500  # persons whose pairs give the threshold, `_IMAGES` each at most
_IMAGES: Final = 4


@dataclass(frozen=True, eq=False)
class Labelled:
    """Embeddings [N, D] with the person [N] of each, and their group [N]."""

    embeddings: Floats
    persons: NDArray[np.int64]
    groups: NDArray[np.str_]

    def at(self, rows: NDArray[np.integer]) -> Labelled:
        """Some rows."""
        return Labelled(self.embeddings[rows], self.persons[rows], self.groups[rows])


@dataclass(frozen=True)
class GroupErrors:
    """A group's FMR, and its FNMR where someone has two images."""

    group: str
    fmr: float
    fnmr: float | None


@dataclass(frozen=True)
class Remedy:
    """A scoring: TMR at its threshold on the data, and what that threshold gives among groups.

    All numbers are means over halves; `groups` has the worst first, and `persons` is how many the
    site had, of all groups.
    """

    name: str
    persons: int
    threshold: float
    tmr: float
    groups: tuple[GroupErrors, ...]

    @property
    def worst(self) -> GroupErrors:
        return self.groups[0]

    @property
    def mean(self) -> float:
        """The mean FMR of the groups, each counted alike."""
        return float(np.mean([group.fmr for group in self.groups]))

    def to_json(self) -> dict[str, object]:
        """One object of `remedies` in what `veilface evaluate --groups --json` prints."""
        return {
            "scoring": self.name,
            "site_persons": self.persons,
            "threshold": self.threshold,
            "tmr": self.tmr,
            "worst": self.worst.group,
            "worst_fmr": self.worst.fmr,
            "mean_fmr": self.mean,
            "groups": [asdict(group) for group in self.groups],
        }


@dataclass(frozen=True)
class _Outcome:
    threshold: float
    tmr: float
    groups: tuple[GroupErrors, ...]


def remedies(data: Labelled | None, listed: Labelled, target: float) -> tuple[Remedy, ...]:
    """Compare the scorings at FMR `target` on `data`, by the groups of `listed`; plain first.

    Without data, the persons of `listed` who are not at the site take their place. Nothing is
    compared, (), where no group has `LEAST_PERSONS` for a site and as many beside.
    """
    rng = experiment_generator(0, "remedies")
    groups = _large_enough(listed)
    found: dict[str, list[_Outcome]] = {}
    sizes = []
    for _ in range(HALVES if groups else 0):
        site, rest = _half(listed, groups, rng)
        sizes.append(len(np.unique(site.persons)))
        away = listed.at(np.flatnonzero(~np.isin(listed.persons, site.persons)))
        some = _fewer(away if data is None else data, rng)
        for name, of_data, of_rest in _scorings(some, site, rest, groups, rng):
            found.setdefault(name, []).append(_measured(some, of_data, rest, of_rest, target))
    return tuple(_mean(name, outcomes, sizes) for name, outcomes in found.items())


def _large_enough(listed: Labelled) -> tuple[str, ...]:
    names = sorted(set(listed.groups.tolist()))
    persons = [len(np.unique(listed.persons[listed.groups == name])) for name in names]
    least = 2 * LEAST_PERSONS
    return tuple(name for name, count in zip(names, persons, strict=True) if count >= least)


def _fewer(data: Labelled, rng: np.random.Generator) -> Labelled:
    """At most `_DATA` persons of the data with `_IMAGES` each: enough pairs, and no one decides."""
    people = np.unique(data.persons)
    chosen = rng.permutation(people)[:_DATA]
    rows = [np.flatnonzero(data.persons == person)[:_IMAGES] for person in np.sort(chosen)]
    return data.at(np.concatenate(rows))


def _half(
    listed: Labelled, groups: Sequence[str], rng: np.random.Generator
) -> tuple[Labelled, Labelled]:
    """A site of some persons of each group, and other persons to measure."""
    site, rest = [], []
    for group in groups:
        rows = np.flatnonzero(listed.groups == group)
        people = rng.permutation(np.unique(listed.persons[rows]))
        size = min(SITE, len(people) // 2)
        site.append(rows[np.isin(listed.persons[rows], people[:size])])
        others = people[size : size + _MEASURED]
        rest.append(rows[np.isin(listed.persons[rows], others)])
    return listed.at(np.concatenate(site)), listed.at(np.concatenate(rest))


def _scorings(
    data: Labelled,
    site: Labelled,
    rest: Labelled,
    groups: Sequence[str],
    rng: np.random.Generator,
) -> list[tuple[str, Faces, Faces]]:
    """Every scoring's name, and the faces of data and rest under it."""
    own = [_people(site.at(np.flatnonzero(site.groups == group))) for group in groups]
    means = [rows.mean(axis=0, dtype=np.float64) for rows in own]
    of_data = _people(data)
    result = [("plain", plain(data.embeddings), plain(rest.embeddings))]

    def apart(name: str, taken: Sequence[NDArray[np.float64]], share: float) -> None:
        """Take a mean off each group of the rest, and a share of their own off the data."""
        vectors = np.empty_like(rest.embeddings)
        for group, mean in zip(groups, taken, strict=True):
            rows = np.flatnonzero(rest.groups == group)
            vectors[rows] = plain(rest.embeddings[rows]).vectors - mean
        ready = Scorer.of(Choice(share, 0.0), of_data).faces(data.embeddings)
        result.append((name, ready, plain(vectors)))

    apart("own mean off", means, 1.0)
    for persons, words in ((None, "each site's own"), (RELEASED, f"{RELEASED} persons'")):
        noised = [
            _noised(mean, persons or len(rows), rng) for mean, rows in zip(means, own, strict=True)
        ]
        share = float(np.mean([share for _, share in noised]))
        name = f"own mean off, simulated noise of epsilon {EPSILON:g}, {words}"
        apart(name, [share * seen for seen, _ in noised], share)
    mixed = np.concatenate(own)
    for share in SHARES:
        scorer = Scorer.of(Choice(0.0, share), mixed)
        faces = scorer.faces(data.embeddings), scorer.faces(rest.embeddings)
        result.append((f"mixed cohort, {share:.0%} of the crowding off", *faces))
    return result


def _noised(
    mean: NDArray[np.float64], persons: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """A mean of unit vectors as released for `persons`, and the share of it that the noise leaves.

    The share is James and Stein's (1961): known from the release and its noise alone.
    """
    deviation = NOISE_MULTIPLIER / persons
    seen = mean + rng.normal(0.0, deviation, mean.shape)
    return seen, max(0.0, 1 - len(seen) * deviation**2 / float(seen @ seen))


def _people(labelled: Labelled) -> Floats:
    return centres(labelled.embeddings, labelled.persons)


def _measured(
    data: Labelled, of_data: Faces, rest: Labelled, of_rest: Faces, target: float
) -> _Outcome:
    scores = all_pairs(of_data.vectors, data.persons, of_data.offsets)
    threshold = lowest_threshold(scores.non_mated, target)
    report = group_rates(of_rest, rest.groups.tolist(), threshold, rest.persons)
    errors = [
        GroupErrors(one.group, one.fmr, one.false_non_match.value if one.false_non_match else None)
        for one in report.groups
    ]
    return _Outcome(threshold, tmr(scores, threshold), tuple(errors))


def _mean(name: str, outcomes: Sequence[_Outcome], sizes: Sequence[int]) -> Remedy:
    by_group: dict[str, list[GroupErrors]] = {}
    for outcome in outcomes:
        for one in outcome.groups:
            by_group.setdefault(one.group, []).append(one)
    groups = [
        GroupErrors(
            group,
            float(np.mean([one.fmr for one in seen])),
            _mean_of([one.fnmr for one in seen if one.fnmr is not None]),
        )
        for group, seen in by_group.items()
    ]
    return Remedy(
        name,
        round(float(np.mean(sizes))),
        float(np.mean([outcome.threshold for outcome in outcomes])),
        float(np.mean([outcome.tmr for outcome in outcomes])),
        tuple(sorted(groups, key=lambda one: (-one.fmr, one.group))),
    )


def _mean_of(rates: Sequence[float]) -> float | None:
    return float(np.mean(rates)) if rates else None
