"""Fixed point, its sensitivity, its room for noise, and what sums of shares cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.accounting import ConcentratedEvent, GaussianEvent, epsilon, noise_multiplier_for
from common.errors import InputError
from common.masking import FixedPoint, ShareNoise, adversaries, calibrate
from common.randomness import KeyStream, experiment_generator, experiment_key, fresh_key

ALPHA = 1e-6


def seeded(seed: int) -> KeyStream:
    return KeyStream(experiment_key(seed), private=False)


@given(st.integers(0, 2**31), st.floats(0.01, 100.0), st.sampled_from([1, 3, 64, 5000]))
@settings(max_examples=60, deadline=None)
def test_one_person_moves_the_integers_by_the_sensitivity_at_most(
    seed: int, clip: float, dimension: int
) -> None:
    point = FixedPoint(dimension, clip, 10, 0.0)
    generator = experiment_generator(seed, "neighbours")
    total = generator.normal(size=dimension) * clip * generator.choice([0.0, 1.0, 1e3])
    person = generator.normal(size=dimension)
    person *= clip / np.linalg.norm(person)
    moved = point.encode(total + person).value - point.encode(total).value
    assert np.linalg.norm(moved) <= point.l2_sensitivity
    assert point.l2_sensitivity <= clip / point.scale * (1 + 1 / 256 + 1e-9)


def test_the_worst_rounding_comes_close_to_the_bound_and_a_smaller_bound_fails() -> None:
    point = FixedPoint(10_000, 1.0, 2, 0.0)
    # Just below and above a half in every coordinate: rounding adds almost 1 to each difference.
    step = 1.0 / point.scale / math.sqrt(point.dimension)  # of a person in each coordinate
    whole = math.floor(step)
    start = 0.5 - (step - whole) / 2 if step - whole < 1 else 0.5
    total = np.full(point.dimension, (start - 1e-9) * point.scale)
    person = np.full(point.dimension, step * point.scale)
    moved = point.encode(total + person).value - point.encode(total).value
    norm = float(np.linalg.norm(moved))
    assert norm > 1.0 / point.scale, "without sqrt(d) the bound would be wrong"
    assert norm <= point.l2_sensitivity


def test_encoding_is_exact_to_half_a_unit_and_clamps_before_noise() -> None:
    point = FixedPoint(5, 1.0, 4, 1000.0)
    assert math.frexp(point.scale)[0] == 0.5, "a power of two: the division is exact"
    value = np.array([0.0, 0.3, -0.3, 1e300, -1e9])
    encoded = point.encode(value).value
    assert np.abs(encoded[:3] * point.scale - value[:3]).max() <= point.scale / 2
    assert (encoded[3], encoded[4]) == (point.limit, -point.limit)
    quiet = replace(point, sigma=0.0)
    back = quiet.decode(quiet.add_noise(quiet.encode(value), seeded(1)).value)
    assert np.abs(back[:3] - value[:3]).max() <= point.scale / 2


def test_all_sites_at_the_limit_with_their_noise_never_wrap() -> None:
    sites, sigma = 7, 5e6
    point = FixedPoint(20_000, 1.0, sites, sigma)
    total = np.zeros(point.dimension, dtype=np.uint32)
    exact = np.zeros(point.dimension)
    for site in range(sites):
        noised = point.add_noise(point.encode(np.full(point.dimension, 1e9)), seeded(site))
        total += noised.value
        exact += noised.value.view(np.int32)
    assert np.array_equal(total.view(np.int32), exact)
    spread = sigma * math.sqrt(sites)
    assert 9 * spread < 2**31 - sites * point.limit < 11 * spread  # 2^-64 over all coordinates


def test_the_noise_added_is_the_discrete_gaussian_and_a_wrong_scale_fails() -> None:
    point = FixedPoint(200_000, 1.0, 3, 3000.0)
    zero = point.encode(np.zeros(point.dimension))
    noise = point.add_noise(zero, seeded(2)).value.view(np.int32) / 3000.0
    assert stats.kstest(noise, "norm").pvalue > ALPHA
    assert stats.kstest(1.03 * noise, "norm").pvalue < ALPHA
    assert point.add_noise(zero, KeyStream(fresh_key(), private=True)).private
    assert not point.add_noise(zero, seeded(2)).private
    quiet = replace(point, sigma=0.0)
    assert not quiet.add_noise(zero, KeyStream(fresh_key(), private=True)).private


def test_what_cannot_be_encoded_is_refused() -> None:
    point = FixedPoint(3, 1.0, 2, 10.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="NaN or an infinity"):
            point.encode(np.array([0.0, bad, 0.0]))
    with pytest.raises(InputError, match="float64"):
        point.encode(np.zeros(4))
    with pytest.raises(InputError, match="uint32"):
        point.decode(np.zeros(4, dtype=np.uint32))
    with pytest.raises(InputError, match="no room"):
        FixedPoint(1_000_000, 1.0, 100, 5e7)
    for wrong in ({"dimension": 0}, {"max_grad_norm": 0.0}, {"sites": 0}, {"sigma": -1.0}):
        with pytest.raises(InputError):
            replace(point, **wrong)


def test_the_cost_of_a_sum_is_that_of_kairouz_liu_and_steinke() -> None:
    noise = ShareNoise(sigma=0.7, l2_sensitivity=2.0, dimension=50)
    terms = (math.exp(-2 * math.pi**2 * 0.49 * k / (k + 1)) for k in (1, 2, 3))
    inverse = 2.0 / (2 * 0.7) + 10 * sum(terms) * math.sqrt(50)
    assert noise.noise_multiplier(4) == pytest.approx(1 / inverse, rel=1e-9)
    alone = ShareNoise(sigma=5.0, l2_sensitivity=2.0, dimension=50).noise_multiplier(1)
    assert alone == pytest.approx(2.5) and alone <= 2.5


def test_the_discrete_gaussian_itself_costs_no_more_than_is_reported() -> None:
    # The exact hockey-stick divergence of one coordinate shifted by Delta, summed over integers.
    sigma, shift = 2.0, 3
    x = np.arange(-200, 201)
    mass = np.exp(-(x**2) / (2 * sigma**2))
    mass /= mass.sum()
    moved = np.exp(-((x - shift) ** 2) / (2 * sigma**2))
    moved /= moved.sum()
    for delta in (1e-2, 1e-4, 1e-6):
        reported = ShareNoise(sigma, float(shift), 1).epsilon([1], delta)
        for first, second in ((mass, moved), (moved, mass)):
            assert np.maximum(0.0, first - math.exp(reported) * second).sum() <= delta
            too_little = reported * 0.8
            assert np.maximum(0.0, first - math.exp(too_little) * second).sum() > delta


def test_a_sum_of_small_shares_costs_no_more_than_is_reported() -> None:
    # Shares so small that the sum is visibly not a discrete Gaussian: convolved exactly.
    x = np.arange(-60, 61)
    share = np.exp(-(x**2) / (2 * 0.5**2))
    share /= share.sum()
    total = share
    for _ in range(3):
        total = np.convolve(total, share)
    moved = np.roll(total, 2)
    for delta in (1e-2, 1e-4):
        reported = ShareNoise(0.5, 2.0, 1).epsilon([4], delta)
        assert np.maximum(0.0, total - math.exp(reported) * moved).sum() <= delta


@pytest.mark.parametrize(("honest", "target"), [(1, 4.0), (8, 4.0), (90, 0.5)])
def test_the_shares_found_keep_within_epsilon_and_a_thousandth_less_does_not(
    honest: int, target: float
) -> None:
    noise = calibrate(
        epsilon=target, delta=1e-4, rounds=40, dimension=40_000, max_grad_norm=0.5, honest=honest
    )
    assert noise.epsilon([honest] * 40, 1e-4) <= target
    assert replace(noise, sigma=noise.sigma * 0.999).epsilon([honest] * 40, 1e-4) > target
    assert noise.epsilon([honest + 1] * 40, 1e-4) < target
    by_hand = noise_multiplier_for(target, 1e-4, 40, concentrated=True)
    assert noise.sigma == pytest.approx(by_hand * noise.l2_sensitivity / math.sqrt(honest))


def test_shared_noise_costs_less_than_ten_sites_that_trust_no_one() -> None:
    noise = calibrate(
        epsilon=4.0, delta=1e-4, rounds=40, dimension=40_000, max_grad_norm=0.5, honest=8
    )
    all_of_it = noise.noise_multiplier(8)
    alone = noise_multiplier_for(4.0, 1e-4, 40)
    assert all_of_it < 1.1 * alone, "the whole sum has about one site's noise"
    assert all_of_it == pytest.approx(noise.noise_multiplier(1) * math.sqrt(8), rel=1e-6)


def test_each_adversary_pays_for_the_shares_it_knows() -> None:
    noise = calibrate(
        epsilon=2.0, delta=1e-4, rounds=20, dimension=1000, max_grad_norm=1.0, honest=7
    )
    seen = adversaries(noise, [10] * 15 + [8] * 5, 1e-4, minimum=8, colluders=1)
    assert len(seen.colluding) == 9 and len(seen.hostile) == 2
    assert seen.model == seen.server < seen.colluding[0] <= seen.hostile[1] <= 2.0
    ascending = (seen.server, *seen.colluding, seen.unmasked)
    assert list(ascending) == sorted(ascending)
    assert seen.colluding[-1] == pytest.approx(seen.unmasked)
    shares = [9] * 15 + [7] * 5
    by_hand = epsilon([ConcentratedEvent(noise.noise_multiplier(n), 1) for n in shares], 1e-4)
    assert seen.colluding[0] == pytest.approx(by_hand)
    gaussian = epsilon([GaussianEvent(noise.noise_multiplier(n), 1) for n in shares], 1e-4)
    assert gaussian < seen.colluding[0] < 1.2 * gaussian


def test_a_round_below_the_minimum_or_without_noise_has_no_epsilon() -> None:
    noise = ShareNoise(10.0, 5.0, 100)
    with pytest.raises(InputError, match="below the minimum"):
        adversaries(noise, [8, 7], 1e-4, minimum=8, colluders=0)
    with pytest.raises(InputError, match="protects nobody"):
        noise.noise_multiplier(0)
    for sigma in (0.0, 0.49, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma"):
            ShareNoise(sigma, 5.0, 100)
    assert adversaries(noise, [], 1e-4, minimum=2, colluders=0).model == 0.0
