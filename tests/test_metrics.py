"""Error rates against brute force and closed forms; intervals over persons; every edge named."""

from __future__ import annotations

import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binom, norm

from common.errors import InputError
from common.intervals import bootstrap, intervals, verification, verification_of, wilson
from common.metrics import (
    PairScores,
    all_pairs,
    det_curve,
    eer,
    fmr,
    fnmr,
    threshold_at_fmr,
    tmr,
    tmr_at_fmr,
)

Floats = NDArray[np.float64]
# Few distinct values, so that ties within and between the two kinds are common.
coarse = st.integers(-6, 6).map(lambda n: n / 8)
score_rows = st.integers(1, 40).flatmap(lambda n: arrays(np.float64, n, elements=coarse))


def faces(
    people: int, each: int, noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(people, 16)), each, axis=0)
    noisy = centres + noise * rng.normal(size=centres.shape)
    return noisy.astype(np.float32), np.repeat(np.arange(people), each)


def brute_eer(mated: Floats, non_mated: Floats) -> float:
    steps = [*np.unique(np.concatenate([mated, non_mated])), np.inf]
    rates = [(np.mean(non_mated >= t), np.mean(mated < t)) for t in steps]
    for (f0, n0), (f1, n1) in pairwise(rates):
        if f0 >= n0 and f1 < n1:
            share = (f0 - n0) / ((f0 - n0) - (f1 - n1))
            return float(f0 + share * (f1 - f0))
    raise AssertionError("FMR and FNMR always cross")


@given(score_rows, score_rows)
def test_eer_equals_brute_force_ties_included(mated: Floats, non_mated: Floats) -> None:
    assert eer(PairScores(mated, non_mated)) == pytest.approx(brute_eer(mated, non_mated))


@given(score_rows, score_rows)
def test_det_curve_equals_brute_force_at_every_threshold(mated: Floats, non_mated: Floats) -> None:
    curve = det_curve(PairScores(mated, non_mated))
    assert curve.fmr.tolist() == [np.mean(non_mated >= t) for t in curve.threshold]
    assert curve.fnmr.tolist() == [np.mean(mated < t) for t in curve.threshold]
    assert (curve.fmr[0], curve.fnmr[0]) == (1, 0)
    assert (curve.fmr[-1], curve.fnmr[-1]) == (0, 1)


@given(arrays(np.float64, st.integers(60, 200), elements=coarse), st.sampled_from([0.05, 0.1, 0.3]))
def test_threshold_is_the_smallest_that_keeps_the_fmr_ties_included(
    non_mated: Floats, target: float
) -> None:
    scores = PairScores(np.array([0.0]), non_mated)
    threshold = threshold_at_fmr(non_mated, target)
    assert fmr(scores, threshold) <= target
    assert fmr(scores, float(np.nextafter(threshold, -np.inf))) > target


def test_threshold_uses_the_precision_of_the_scores() -> None:
    non_mated = np.linspace(0, 1, 300, dtype=np.float32)
    threshold = threshold_at_fmr(non_mated, 0.01)
    assert threshold == np.nextafter(non_mated[-4], np.float32(2))


@given(
    st.lists(st.integers(0, 4), min_size=6, max_size=24).filter(
        lambda ids: 1 < len(set(ids)) < len(ids)
    ),
    st.integers(0, 99),
)
def test_all_pairs_equals_a_loop_over_pairs_in_any_order(ids: list[int], seed: int) -> None:
    embeddings = np.random.default_rng(seed).normal(size=(len(ids), 5))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(range(len(ids)), 2):
        expected[ids[i] == ids[j]].append(float(unit[i] @ unit[j]))
    scores = all_pairs(embeddings, np.array(ids))
    assert np.allclose(np.sort(scores.mated), np.sort(expected[True]), atol=1e-6)
    assert np.allclose(np.sort(scores.non_mated), np.sort(expected[False]), atol=1e-6)


def test_all_pairs_is_the_same_across_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, subjects = faces(20, 3, 1.0)
    whole = all_pairs(embeddings, subjects)
    monkeypatch.setattr("common.metrics.BLOCK_ROWS", 7)
    blocked = all_pairs(embeddings, subjects)
    assert np.allclose(whole.mated, blocked.mated, atol=1e-6)
    assert np.allclose(whole.non_mated, blocked.non_mated, atol=1e-6)


def test_gaussian_scores_give_the_closed_form() -> None:
    # Mated N(d, 1), non-mated N(0, 1): EER = Phi(-d/2), TMR at FMR f = Phi(d - Phi^-1(1 - f)).
    distance, rng = 2.0, np.random.default_rng(1)
    scores = PairScores(rng.normal(distance, 1, 400_000), rng.normal(0, 1, 400_000))
    assert eer(scores) == pytest.approx(norm.cdf(-distance / 2), abs=2e-3)
    for target in (1e-2, 1e-3):
        expected = norm.cdf(distance - norm.isf(target))
        assert tmr_at_fmr(scores, target) == pytest.approx(expected, abs=1e-2)


def test_thinned_curve_keeps_exact_points_and_both_ends() -> None:
    rng = np.random.default_rng(2)
    scores = PairScores(rng.normal(1, 1, 500), rng.normal(0, 1, 20_000))
    curve = det_curve(scores, points=100)
    assert len(curve.fmr) < 110
    for t, false_match, false_non_match in zip(curve.threshold, curve.fmr, curve.fnmr, strict=True):
        assert (fmr(scores, t), fnmr(scores, t)) == pytest.approx((false_match, false_non_match))
    assert curve.fmr[0] == 1 and curve.fmr[-1] == 0


def test_separated_scores_give_no_error_and_equal_ones_a_coin() -> None:
    high, low, same = np.full(5, 0.9), np.full(5, 0.1), np.full(5, 0.5)
    assert eer(PairScores(high, low)) == 0
    assert eer(PairScores(low, high)) == 1
    assert eer(PairScores(same, same)) == 0.5


@pytest.mark.parametrize(
    ("mated", "non_mated", "words"),
    [
        ([], [0.1], "no mated pairs"),
        ([0.1], [], "no non-mated pairs"),
        ([np.nan], [0.1], "mated scores are not finite"),
        ([0.1], [np.inf], "non-mated scores are not finite"),
    ],
)
def test_missing_or_broken_scores_are_named(
    mated: list[float], non_mated: list[float], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        PairScores(np.array(mated, dtype=float), np.array(non_mated, dtype=float))


def test_one_person_and_one_image_each_are_named() -> None:
    embeddings = np.eye(3)
    with pytest.raises(InputError, match="no non-mated pairs"):
        all_pairs(embeddings, np.array([7, 7, 7]))
    with pytest.raises(InputError, match="no mated pairs"):
        all_pairs(embeddings, np.array([1, 2, 3]))
    with pytest.raises(InputError, match="do not fit"):
        all_pairs(embeddings, np.array([1, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_embeddings_that_are_not_finite_or_zero_are_counted(value: float) -> None:
    embeddings = np.eye(4)
    embeddings[2] = value
    with pytest.raises(InputError, match="1 of 4 embeddings"):
        all_pairs(embeddings, np.array([0, 0, 1, 1]))


def test_an_fmr_that_the_pairs_cannot_show_is_refused() -> None:
    mated = np.ones(2)
    with pytest.raises(InputError, match="2,999 non-mated pairs cannot show"):
        threshold_at_fmr(np.linspace(0, 1, 2999), 1e-3)
    assert tmr_at_fmr(PairScores(mated, np.linspace(0, 1, 3000)), 1e-3) == 1
    for target in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="not between 0 and 1"):
            threshold_at_fmr(np.linspace(0, 1, 3000), target)


def test_a_small_test_set_is_measured_as_it_is_and_says_what_it_cannot_show() -> None:
    few, many = verification(*faces(5, 4, 1.0)), verification(*faces(30, 4, 1.0))
    assert [text.split(": ")[1] for text in few.shortages] == ["it takes 300", "it takes 3,000"]
    assert 0 <= few.tmr_at_fmr_1e3 <= few.tmr_at_fmr_1e2 <= 1
    assert many.shortages == ()


def brute_replicate(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64], weight: NDArray[np.int64]
) -> list[float]:
    """EER and TMRs where each pair is repeated as often as its persons were drawn."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    score = np.sum(unit[i] * unit[j], axis=1)
    same = subjects[i] == subjects[j]
    times = np.where(same, weight[subjects[i]], weight[subjects[i]] * weight[subjects[j]])
    mated, non_mated = np.repeat(score[same], times[same]), np.repeat(score[~same], times[~same])
    ranked = np.sort(non_mated)[::-1]
    rates = [np.mean(mated > ranked[int(target * len(ranked))]) for target in (1e-2, 1e-3)]
    return [brute_eer(mated, non_mated), *map(float, rates)]


def test_bootstrap_equals_brute_force_on_the_same_draws() -> None:
    embeddings, subjects = faces(40, 4, 1.0)
    rates = bootstrap(all_pairs(embeddings, subjects), replicates=12, seed=3)
    draws = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=12)
    expected = np.array([brute_replicate(embeddings, subjects, weight) for weight in draws]).T
    # Read linearly between thresholds, where the exact curve has steps: with 12,000 pairs one
    # non-mated pair drawn w_i w_j times is most of the way to FMR 1e-3.
    assert np.abs(rates - expected).max() < 0.02
    assert np.abs(rates - expected).mean() < 0.003


def test_many_resamples_at_once_give_what_few_do() -> None:
    scores = all_pairs(*faces(40, 4, 1.0))
    few, many = (bootstrap(scores, replicates=count, seed=3) for count in (12, 2000))
    assert np.array_equal(few, many[:, :12])


@pytest.mark.parametrize("noise", [0.7, 1.4])
def test_intervals_over_persons_are_as_wide_as_the_rates_really_vary(noise: float) -> None:
    runs = [verification(*faces(60, 4, noise, seed), ci=False).eer for seed in range(60)]
    widths = []
    for seed in range(8):
        interval = intervals(all_pairs(*faces(60, 4, noise, seed))).eer
        widths.append(interval.high - interval.low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(runs), rel=0.3)


def test_two_persons_still_get_an_interval_from_the_replicates_that_have_both() -> None:
    rates = bootstrap(all_pairs(*faces(2, 3, 0.5)), replicates=50)
    assert 0 < np.isnan(rates[0]).sum() < 50


def test_a_hopeless_model_gets_an_interval_too() -> None:
    rng = np.random.default_rng(0)
    scores = all_pairs(rng.normal(size=(160, 8)), np.repeat(np.arange(40), 4))
    interval = intervals(scores).eer
    assert interval.low < eer(scores) < interval.high


def test_a_perfect_model_has_an_interval_of_no_error() -> None:
    interval = intervals(all_pairs(*faces(30, 4, 0.01)))
    assert (interval.eer.low, interval.eer.high) == (0, 0)
    assert (interval.tmr_at_fmr_1e3.low, interval.tmr_at_fmr_1e3.high) == (1, 1)


def test_the_same_seed_gives_the_same_intervals() -> None:
    scores = all_pairs(*faces(30, 4, 1.0))
    assert intervals(scores, seed=5) == intervals(scores, seed=5)
    assert intervals(scores, seed=5) != intervals(scores, seed=6)


def test_bootstrap_needs_to_know_who_is_compared() -> None:
    with pytest.raises(InputError, match="persons"):
        bootstrap(PairScores(np.ones(3), np.zeros(3)))


def test_verification_prints_the_keys_of_the_contract() -> None:
    embeddings, subjects = faces(30, 4, 1.0)
    result = verification(embeddings, subjects).to_json()
    assert list(result) == ["eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3", "ci", "mated", "non_mated"]
    assert (result["mated"], result["non_mated"]) == (30 * 6, 120 * 119 // 2 - 30 * 6)
    intervals_json = result["ci"]
    assert isinstance(intervals_json, dict)
    for key in ("eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3"):
        low, high = intervals_json[key]
        rate = result[key]
        assert isinstance(rate, float) and low <= rate <= high
    assert verification(embeddings, subjects, ci=False).to_json()["ci"] == {}


def test_rates_at_one_threshold_add_up() -> None:
    scores = PairScores(np.array([0.2, 0.5, 0.5, 0.9]), np.array([0.1, 0.5]))
    assert (fmr(scores, 0.5), fnmr(scores, 0.5), tmr(scores, 0.5)) == (0.5, 0.25, 0.75)


@settings(max_examples=30)
@given(st.integers(1, 60), st.floats(0.02, 0.98))
def test_wilson_equals_its_definition(trials: int, rate: float) -> None:
    # The interval holds every p that a score test does not reject: (rate - p)^2 = z^2 p(1-p)/n.
    interval = wilson(rate, trials)
    for p in (interval.low, interval.high):
        assert (rate - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / trials, rel=1e-3)


def test_wilson_keeps_its_coverage_for_rare_errors() -> None:
    trials, truth = 400, 0.01
    hits = np.arange(trials + 1)
    inside = [
        wilson(h / trials, trials).low <= truth <= wilson(h / trials, trials).high for h in hits
    ]
    assert 0.93 < float(np.sum(binom.pmf(hits, trials, truth) * inside)) < 0.99
    assert wilson(0.0, 100).low < 1e-9 < wilson(0.0, 100).high < 0.04
    with pytest.raises(InputError, match="not a proportion"):
        wilson(0.5, 0)


def test_a_round_of_three_thousand_images_is_evaluated_within_its_time() -> None:
    scores_of = faces(750, 4, 1.0)
    started = time.process_time()
    verification(*scores_of, ci=False)
    without = time.process_time() - started
    verification_of(all_pairs(*scores_of))
    # Of this process alone, so that a busy machine changes little: several times 0.1 s and 0.6 s.
    assert without < 1.5
    assert time.process_time() - started - without < 9
