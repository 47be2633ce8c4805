"""The discrete Gaussian: its law, its scale, its tails, its exactness and its speed."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from common import discrete
from common.discrete import discrete_gaussian
from common.errors import InputError
from common.randomness import KeyStream, derive_key, experiment_key

ALPHA = 1e-6


def stream(label: str) -> KeyStream:
    return KeyStream(derive_key(experiment_key(5), label), private=False)


def chi_square(draws: NDArray[np.int64], sigma: float) -> float:
    """Return the p-value of draws against N_Z(0, sigma^2), in cells of about a twentieth sigma."""
    reach = math.ceil(12 * sigma)
    integers = np.arange(-reach, reach + 1)
    mass = np.exp(-((integers / sigma) ** 2) / 2)
    width = max(1, int(sigma / 20))
    starts = np.arange(0, len(integers), width)
    expected = np.add.reduceat(mass / mass.sum(), starts) * len(draws)
    observed = np.bincount((draws + reach) // width, minlength=len(starts)).astype(float)
    big = np.flatnonzero(expected > 20)
    inner = slice(big[0], big[-1] + 1)  # the two tails become one cell

    def cells(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(counts[inner], counts.sum() - counts[inner].sum())

    return float(stats.chisquare(cells(observed), cells(expected), sum_check=False).pvalue)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7, 31.9, 32.0, 1000.25, 77_777.7])
def test_draws_have_the_law_of_the_discrete_gaussian_and_a_wrong_scale_fails(sigma: float) -> None:
    draws = discrete_gaussian(stream(f"law {sigma}"), sigma, 400_000)
    assert chi_square(draws, sigma) > ALPHA
    assert chi_square(draws, 1.02 * sigma) < ALPHA
    assert chi_square(draws + max(1, int(0.03 * sigma)), sigma) < ALPHA


def test_low_digits_are_uniform_where_the_law_is_wide_and_a_bent_one_is_not() -> None:
    draws = discrete_gaussian(stream("digits"), 5000.25, 400_000)
    for modulus in (2, 7, 256):  # a segment is 256 wide
        assert stats.chisquare(np.bincount(draws % modulus)).pvalue > ALPHA
    bent = np.where(draws % 50 == 0, draws + 1, draws)
    assert stats.chisquare(np.bincount(bent % 2)).pvalue < ALPHA


def test_tails_are_gaussian() -> None:
    sigma, draws = 900.0, np.abs(discrete_gaussian(stream("tails"), 900.0, 2_000_000))
    for threshold in (3.0, 4.0, 4.8):
        expected = 2 * stats.norm.sf((threshold * sigma - 0.5) / sigma)
        count = int((draws >= threshold * sigma).sum())
        assert stats.binomtest(count, len(draws), expected).pvalue > ALPHA


def test_every_decision_that_floats_take_is_the_one_exact_arithmetic_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sigma in (0.5, 2.3, 33_333.3, 2.0**40):
        quick = discrete_gaussian(stream("exact"), sigma, 3000)
        monkeypatch.setattr(discrete, "_DOUBT", 2.0)  # every coin is now in doubt
        assert np.array_equal(quick, discrete_gaussian(stream("exact"), sigma, 3000))
        monkeypatch.undo()


def test_the_same_key_and_scale_give_the_same_draws_and_another_key_does_not() -> None:
    first = discrete_gaussian(stream("a"), 50.0, 1000)
    assert np.array_equal(first, discrete_gaussian(stream("a"), 50.0, 1000))
    assert not np.array_equal(first, discrete_gaussian(stream("b"), 50.0, 1000))
    assert discrete_gaussian(stream("a"), 50.0, 0).shape == (0,)


@pytest.mark.parametrize("bad", [0.0, 0.49, -1.0, math.nan, math.inf, 2.0**41])
def test_a_scale_that_is_not_covered_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="sigma"):
        discrete_gaussian(stream("bad"), bad, 1)


def test_a_million_draws_take_under_two_seconds_and_forty_thousand_under_a_tenth() -> None:
    for count, limit in ((40_000, 0.1), (1_000_000, 2.0)):  # 0.003 and 0.06 s on an idle core
        times = []
        for _ in range(3):
            started = time.process_time()
            discrete_gaussian(stream("speed"), 123_456.7, count)
            times.append(time.process_time() - started)
        assert min(times) < limit


def test_noise_needs_no_torch() -> None:
    code = "import sys, common.discrete; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
