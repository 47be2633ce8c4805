"""Two models on the same persons: intervals of the difference that cover, a choice that is calm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from common.errors import InputError
from common.intervals import verification_of
from common.metrics import PairScores, all_pairs
from common.paired import Measured, choose, difference, measured

ALPHA = 1e-6
# Half of what two models get wrong is the picture's fault and shared, half is their own.
SHARED, OWN, BETTER = 1.0, 0.7, 0.45


@dataclass(frozen=True)
class Pictures:
    """One set of test persons and what makes their pictures hard for every model."""

    truth: NDArray[np.float64]
    subjects: NDArray[np.int64]
    seed: int

    @classmethod
    def of(cls, people: int, each: int, seed: int) -> Pictures:
        rng = np.random.default_rng(seed)
        hard = np.repeat(rng.uniform(0.3, 1.7, size=(people, 1)), each, axis=0)
        centres = np.repeat(rng.normal(size=(people, 16)), each, axis=0)
        shared = SHARED * hard * rng.normal(size=centres.shape)
        return cls(centres + shared, np.repeat(np.arange(people), each), seed)

    def under(self, model: int, noise: float = OWN) -> PairScores:
        rng = np.random.default_rng([self.seed, model])
        return all_pairs(self.truth + noise * rng.normal(size=self.truth.shape), self.subjects)


@cache
def two(seed: int, noise: float) -> tuple[Measured, Measured]:
    """Before, and a model whose own noise is `noise`, on 30 persons."""
    pictures = Pictures.of(30, 3, seed)
    return measured([pictures.under(0)]), measured([pictures.under(1, noise)])


def true_gain(noise: float) -> float:
    """The difference of mean TMR over very many persons."""
    found = []
    for seed in range(6):
        pictures = Pictures.of(250, 3, 1000 + seed)
        rates = [verification_of(pictures.under(*m), ci=False) for m in ((0,), (1, noise))]
        means = [(r.tmr_at_fmr_1e2 + r.tmr_at_fmr_1e3) / 2 for r in rates]
        found.append(means[1] - means[0])
    return float(np.mean(found))


def test_the_interval_of_a_difference_covers_it_and_one_that_is_too_narrow_does_not() -> None:
    trials, truth = 60, true_gain(BETTER)
    changes = [difference(*two(seed, BETTER)[::-1]).tmr_mean for seed in range(trials)]
    covered = sum(change.low <= truth <= change.high for change in changes)
    # At least 88% in truth: few persons make every bootstrap somewhat narrow.
    assert covered >= binom.ppf(ALPHA, trials, 0.88)
    middles = [(change.low + change.high) / 2 for change in changes]
    quarter = [(change.high - change.low) / 8 for change in changes]
    wrong = sum(abs(truth - m) <= q for m, q in zip(middles, quarter, strict=True))
    assert wrong < binom.ppf(ALPHA, trials, 0.88)


def test_models_of_equal_worth_are_seldom_told_apart_and_unequal_ones_are() -> None:
    trials = 60
    alike = [difference(*two(seed, OWN)).verdict for seed in range(trials)]
    assert sum(said != "no-difference" for said in alike) <= binom.ppf(1 - ALPHA, trials, 0.07)
    before, better = two(0, 0.1)
    assert difference(better, before).verdict == "helped"
    assert difference(before, better).verdict == "worse"


def test_the_same_persons_make_the_interval_of_a_difference_narrower_than_others_would() -> None:
    before, after = two(0, BETTER)
    paired = difference(after, before).tmr_mean
    pictures = Pictures.of(30, 3, 0)
    other_draws = measured([pictures.under(1, BETTER)], seed=1)
    unpaired = difference(other_draws, before).tmr_mean
    assert unpaired.value == paired.value
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_a_model_differs_from_itself_by_nothing() -> None:
    before, _ = two(0, OWN)
    found = difference(before, before)
    assert found.verdict == "no-difference"
    rates = ("eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3", "tmr_mean")
    ci = {name: [0.0, 0.0] for name in rates}
    assert found.to_json() == {**dict.fromkeys(rates, 0.0), "ci": ci}


def test_one_world_is_measured_as_without_worlds() -> None:
    scores = Pictures.of(30, 3, 5).under(0)
    assert measured([scores]).verification == verification_of(scores)


def test_only_pictures_of_one_camera_are_compared_and_cameras_count_alike() -> None:
    pictures = [Pictures.of(people, 3, people) for people in (20, 60)]
    scores = [each.under(0) for each in pictures]
    both = measured(scores)
    one, other = (verification_of(each, ci=False) for each in scores)
    assert both.rates[1] == pytest.approx((one.tmr_at_fmr_1e2 + other.tmr_at_fmr_1e2) / 2)
    assert both.mated == one.mated + other.mated
    assert both.non_mated == one.non_mated + other.non_mated
    assert (np.diff(both.det.fmr) < 0).all() and (np.diff(both.det.fnmr) >= 0).all()
    strict = both.verification.ci
    assert strict is not None and strict.eer.low < both.rates[0] < strict.eer.high
    # At FMR 1e-2, the mean curve passes where the mean rate says.
    fnmr = float(np.interp(-0.01, -both.det.fmr, both.det.fnmr))
    assert fnmr == pytest.approx(1 - both.rates[1], abs=0.03)


def test_sites_that_share_a_camera_count_in_it_with_their_mean() -> None:
    pictures = Pictures.of(30, 3, 1)
    scores = [pictures.under(model) for model in range(3)]
    many = Pictures.of(20, 3, 2).under(0)
    found = measured([*scores, many], [4, 4, 4, 7])
    mean = np.mean([measured([each]).rates[2] for each in scores])
    assert found.rates[2] == pytest.approx((mean + measured([many]).rates[2]) / 2)
    assert found.mated == len(scores[0].mated) + len(many.mated)
    # And they are compared with a model that has one score a camera.
    assert difference(found, measured([scores[0], many], [4, 7])).verdict == "no-difference"


def test_other_persons_are_not_compared() -> None:
    before, _ = two(0, OWN)
    shifted = Pictures.of(30, 3, 0)
    elsewhere = all_pairs(shifted.truth, shifted.subjects + 1)
    for other in (measured([Pictures.of(31, 3, 0).under(0)]), measured([elsewhere])):
        with pytest.raises(InputError, match="same persons"):
            difference(other, before)
        with pytest.raises(InputError, match="same persons"):
            choose([("before", before), ("after", other)])
    with pytest.raises(InputError, match="do not fit"):
        measured([Pictures.of(30, 3, 0).under(0)], [0, 1])
    with pytest.raises(InputError, match="all pairs"):
        measured([PairScores(np.ones(3), np.zeros(3))])


def test_noise_seldom_moves_the_choice_away_from_the_first_and_a_real_gain_does() -> None:
    trials, moved, taken = 60, 0, 0
    for seed in range(trials):
        before, alike = two(seed, OWN)
        moved += choose([("before", before), ("after", alike)]) == "after"
    for seed in range(10):
        before, better = two(seed, 0.1)
        assert choose([("better", better), ("before", before)]) == "better"
        taken += choose([("before", before), ("better", better)]) == "better"
    # One standard error is passed by chance about once in six; without that rule, once in two.
    assert moved <= binom.ppf(1 - ALPHA, trials, 0.2)
    assert moved < binom.ppf(0.001, trials, 0.5)
    assert taken == 10


def test_the_first_of_equals_is_chosen_and_nothing_to_choose_from_is_named() -> None:
    before, better = two(0, 0.1)
    assert choose([("before", before), ("public", before), ("after", before)]) == "before"
    assert choose([("before", before), ("public", better), ("after", better)]) == "public"
    with pytest.raises(InputError, match="nothing"):
        choose([])
