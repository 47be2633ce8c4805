"""The door to randomness: distribution, independence, and that a seed leaves its mark."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from common.errors import InputError
from common.randomness import (
    KeyStream,
    derive_key,
    experiment_generator,
    experiment_key,
    fresh_key,
)

ALPHA = 1e-6
SEEDED = KeyStream(experiment_key(1), private=False)


def test_normals_pass_kolmogorov_smirnov_and_a_wrong_scale_fails() -> None:
    draws = SEEDED.standard_normal(200_000)
    assert stats.kstest(draws, "norm").pvalue > ALPHA
    assert stats.kstest(1.02 * draws, "norm").pvalue < ALPHA
    assert stats.kstest(draws + 0.02, "norm").pvalue < ALPHA


def test_normals_have_gaussian_tails() -> None:
    draws = np.abs(SEEDED.standard_normal(1_000_000))
    for threshold in (3.0, 4.0):
        expected = 2 * stats.norm.sf(threshold)
        count = int((draws > threshold).sum())
        assert stats.binomtest(count, len(draws), expected).pvalue > ALPHA


def test_neighbouring_draws_are_uncorrelated() -> None:
    draws = SEEDED.standard_normal(200_001)
    half = len(draws) // 2
    for lag in (1, half, half + 1):
        assert stats.pearsonr(draws[:-lag], draws[lag:]).pvalue > ALPHA
        assert stats.pearsonr(draws[:-lag] ** 2, draws[lag:] ** 2).pvalue > ALPHA


def test_coins_have_their_probability_and_a_wrong_one_fails() -> None:
    heads = int(SEEDED.bernoulli(200_000, 0.3).sum())
    assert stats.binomtest(heads, 200_000, 0.3).pvalue > ALPHA
    assert stats.binomtest(heads, 200_000, 0.31).pvalue < ALPHA
    assert SEEDED.bernoulli(5, 1.0).all()
    assert not SEEDED.bernoulli(5, 0.0).any()


def test_a_stream_repeats_for_its_key_and_never_across_keys() -> None:
    key = fresh_key()
    first = KeyStream(key, private=True).standard_normal(9)
    assert np.array_equal(first, KeyStream(key, private=True).standard_normal(9))
    assert not np.array_equal(first, KeyStream(fresh_key(), private=True).standard_normal(9))


def test_known_answer_of_the_stream() -> None:
    # AES-256-CTR of zeros under the all-zero key (the first block is AES_0(0), FIPS 197).
    words = KeyStream(bytes(32), private=False).words(2)
    assert words.tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_labels_are_told_apart_even_when_their_letters_are_the_same() -> None:
    key = fresh_key()
    assert derive_key(key, "ab", "c") != derive_key(key, "a", "bc")
    assert derive_key(key, "ab") != derive_key(key, "ab", "")
    assert derive_key(key, "x") == derive_key(key, "x")


def test_experiment_generators_repeat_by_seed_and_label() -> None:
    first = experiment_generator(3, "split").permutation(50)
    assert np.array_equal(first, experiment_generator(3, "split").permutation(50))
    assert not np.array_equal(first, experiment_generator(4, "split").permutation(50))
    assert not np.array_equal(first, experiment_generator(3, "other").permutation(50))


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_a_key_of_the_wrong_length_is_refused(key: bytes) -> None:
    with pytest.raises(InputError):
        KeyStream(key, private=True)
    with pytest.raises(InputError):
        derive_key(key, "label")


def test_a_probability_outside_its_range_is_refused() -> None:
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError):
            SEEDED.bernoulli(3, bad)
