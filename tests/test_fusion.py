"""Fusion: two weak factors beat either alone, and the score means what it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client.fusion import Fusion, fit
from common.errors import InputError
from common.metrics import PairScores, eer


def drawn(seed: int, mated: int, others: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Face cosines and, on another scale, a second factor's scores, independent of each other."""
    rng = np.random.default_rng(seed)
    truth = np.arange(mated + others) < mated
    face = rng.normal(np.where(truth, 0.6, 0.2), 0.2)
    second = rng.normal(np.where(truth, 40.0, 15.0), 14.0)
    return np.column_stack([face, second]), truth


def error(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    return eer(PairScores(scores[truth], scores[~truth]))


def test_two_factors_together_err_less_than_either() -> None:
    fusion = fit(*drawn(0, 2000, 4000))
    scores, truth = drawn(1, 2000, 4000)
    fused = error(fusion.fused(scores), truth)
    assert fused < 0.75 * min(error(scores[:, 0], truth), error(scores[:, 1], truth))


def test_the_fused_score_is_a_log_likelihood_ratio_whatever_the_share_of_mated_pairs() -> None:
    """For these normal factors the true ratio is linear: slopes (m1 - m0) / s^2."""
    for mated, others in ((20000, 20000), (5000, 40000)):
        fusion = fit(*drawn(2, mated, others))
        assert fusion.weights == pytest.approx((0.4 / 0.2**2, 25 / 14**2), rel=0.1)
        middle = fusion.fused(np.array([[0.4, 27.5]]))
        assert abs(float(middle[0])) < 0.15


def test_a_useless_factor_gets_no_weight() -> None:
    scores, truth = drawn(3, 3000, 3000)
    scores[:, 1] = np.random.default_rng(4).normal(size=len(scores))
    fusion = fit(scores, truth)
    assert abs(fusion.weights[1]) < 0.1


def test_factors_that_separate_everything_stay_finite() -> None:
    truth = np.arange(20) < 10
    fusion = fit(np.where(truth, 1.0, 0.0)[:, None], truth)
    assert np.isfinite(fusion.weights).all()


@pytest.mark.parametrize(
    ("scores", "truth", "words"),
    [
        (np.zeros((3, 2)), np.ones(3, bool), "mated and non-mated"),
        (np.zeros((0, 2)), np.ones(0, bool), "mated and non-mated"),
        (np.full((2, 1), np.nan), np.array([True, False]), "not finite"),
        (np.zeros((3, 2)), np.ones(2, bool), "do not fit"),
        (np.zeros(3), np.ones(3, bool), "do not fit"),
    ],
)
def test_bad_training_pairs_are_refused(
    scores: NDArray[np.float64], truth: NDArray[np.bool_], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        fit(scores, truth)


def test_scores_of_another_number_of_factors_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit 1 factors"):
        Fusion((1.0,), 0.0).fused(np.zeros((2, 2)))
