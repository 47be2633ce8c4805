"""Two models compared on the same persons: a difference with its interval, a verdict, a choice.

A model's rates on one set of test persons vary with who they are far more than the difference of
two models' rates does, since persons who are hard for one are hard for the other. So an interval of
the difference comes from the differences under the *same* resampled persons (the paired bootstrap
of Efron and Tibshirani 1993, chapter 8), not from two intervals held side by side.

Persons may be seen by several cameras: a *world* each. Only images of one world are compared, each
world has thresholds of its own, and a rate is the mean over worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.intervals import REPLICATES, drawn, persons_of, rates_under, verification_of
from common.metrics import RATES, DetCurve, Interval, Intervals, PairScores, Verification, det_curve

Verdict = Literal["helped", "no-difference", "worse"]
_TAILS: Final = (0.025, 0.975)
_DET_POINTS: Final = 200


@dataclass(frozen=True, eq=False)
class Measured:
    """A model's rates on test persons, and the same rates on resampled ones.

    Attributes:
        rates: EER, TMR@1e-2, TMR@1e-3 and the mean of both TMRs, [4], means over worlds.
        replicates: the same on B resamples of the persons, [4, B], NaN where a resample has none.
        persons: the persons' numbers [S], rising: measurements of the same ones can be paired.
        mated, non_mated: pairs of all worlds, each counted once.
        det: FNMR over FMR, the mean over worlds where there are several.
    """

    rates: NDArray[np.float64]
    replicates: NDArray[np.float64]
    persons: NDArray[np.int64]
    mated: int
    non_mated: int
    det: DetCurve

    @property
    def verification(self) -> Verification:
        """The rates with their 95% intervals over persons."""
        bounds = _bounds(self.replicates)[:3]
        ci = Intervals(*(Interval(float(low), float(high)) for low, high in bounds))
        eer, wide, strict = self.rates[:3].tolist()
        return Verification(eer, wide, strict, self.mated, self.non_mated, ci)


def measured(
    scores: Sequence[PairScores], worlds: Sequence[int] | None = None, *, seed: int = 0
) -> Measured:
    """Return the rates of one model, or the mean rates of several, over the worlds.

    Args:
        scores: from `all_pairs`, persons numbered alike in all of them.
        worlds: in which world each was measured; None: each in one of its own. Several models in
            one world (those of sites that train alone) count in it with their mean.

    Measurements of the same persons with the same `seed` resample them alike, however many scores
    each has. Raises InputError for no scores, and where too few persons are left to resample.
    """
    places = list(range(len(scores))) if worlds is None else list(worlds)
    if not scores or len(places) != len(scores):
        raise InputError(f"{len(places)} worlds do not fit {len(scores)} sets of scores")
    persons = np.unique(np.concatenate([persons_of(each) for each in scores]))
    draws = drawn(len(persons), replicates=REPLICATES, seed=seed)
    rates, replicates, curves = [], [], []
    for each in scores:
        plain = verification_of(each, ci=False)
        rates.append([getattr(plain, name) for name in RATES])
        mine = np.searchsorted(persons, persons_of(each))
        replicates.append(rates_under(each, draws[mine]))
        curves.append(det_curve(each, _DET_POINTS))
    weights = np.array([1 / places.count(place) for place in places]) / len(set(places))
    mean = np.tensordot(weights, np.array(rates), 1)
    resampled = np.tensordot(weights, np.array(replicates), 1)
    if np.isnan(resampled).all():
        raise InputError("the test persons are too few to tell what their choice changes")
    one = dict(zip(places, scores, strict=True))  # one of each world: all have its pairs
    return Measured(
        np.append(mean, mean[1:].mean()),
        np.vstack([resampled, resampled[1:].mean(axis=0)]),
        persons,
        sum(len(each.mated) for each in one.values()),
        sum(len(each.non_mated) for each in one.values()),
        _mean_curve(curves, weights),
    )


def _mean_curve(curves: Sequence[DetCurve], weights: NDArray[np.float64]) -> DetCurve:
    """FNMR at equal FMR, averaged; thresholds differ from world to world and are not stated."""
    if len(curves) == 1:
        return curves[0]
    least = min(float(curve.fmr[curve.fmr > 0].min()) for curve in curves)
    fmr = np.append(np.geomspace(1.0, least, _DET_POINTS), 0.0)
    # Where one FMR has several FNMR, the lowest is what the best threshold gives.
    at = [np.interp(fmr, *_rising(curve)) for curve in curves]
    fnmr = np.tensordot(weights, np.array(at), 1)
    return DetCurve(np.full(len(fmr), np.nan), fmr, fnmr)


def _rising(curve: DetCurve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    fmr, first = np.unique(curve.fmr, return_index=True)
    return fmr, curve.fnmr[first]


@dataclass(frozen=True)
class Change:
    """A rate's difference, and its paired 95% interval over persons; in [-1, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """What one model's rates are more than another's, on the same persons.

    `tmr_mean` is the mean of both TMRs: what the verdict and every choice go by.
    """

    eer: Change
    tmr_at_fmr_1e2: Change
    tmr_at_fmr_1e3: Change
    tmr_mean: Change

    @property
    def verdict(self) -> Verdict:
        """Helped or worse where the interval of the mean TMR leaves zero out, else neither."""
        return verdict_of(self.tmr_mean)

    def to_json(self) -> dict[str, object]:
        """The rates by the names of `Verification.to_json`, and their intervals under `ci`."""
        found = {f.name.replace("_1e", "_1e-"): getattr(self, f.name) for f in fields(self)}
        return {
            **{name: change.value for name, change in found.items()},
            "ci": {name: [change.low, change.high] for name, change in found.items()},
        }


def verdict_of(change: Change) -> Verdict:
    """Return what an interval says of its difference, more being better."""
    if change.low > 0:
        return "helped"
    return "worse" if change.high < 0 else "no-difference"


def difference(after: Measured, before: Measured) -> Difference:
    """Return the rates of `after` minus those of `before`, with paired 95% intervals.

    Percentile intervals over the replicates, both under the same draws. InputError unless both were
    measured on the same persons and as many pairs of them.
    """
    _must_be_paired(after, before)
    values = (after.rates - before.rates).tolist()
    bounds = _bounds(after.replicates - before.replicates).tolist()
    return Difference(*(Change(v, *ends) for v, ends in zip(values, bounds, strict=True)))


def choose(candidates: Sequence[tuple[str, Measured]]) -> str:
    """Return the name of the candidate to use, the first unless a later one is surely better.

    In their order, a candidate takes the place of the one chosen so far where its gain in mean TMR
    is more than one bootstrap standard error of that paired difference: what noise alone gives
    seldom moves the choice away from the first. Measure the candidates on other persons than those
    on whom the chosen one is reported.
    """
    if not candidates:
        raise InputError("there is nothing to choose from")
    (name, chosen), *later = candidates
    for other, found in later:
        _must_be_paired(found, chosen)
        gain = float(found.rates[-1] - chosen.rates[-1])
        if gain > float(np.nanstd(found.replicates[-1] - chosen.replicates[-1])):
            name, chosen = other, found
    return name


def _must_be_paired(one: Measured, other: Measured) -> None:
    alike = (one.mated, one.non_mated) == (other.mated, other.non_mated)
    if not alike or not np.array_equal(one.persons, other.persons):
        raise InputError("two models that were not measured on the same persons are not compared")


def _bounds(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Percentile intervals [K, 2] of [K, B], resamples without both kinds of pair left out."""
    return np.asarray(np.nanquantile(replicates, _TAILS, axis=1).T, dtype=np.float64)
