"""Cosine and Euclidean matching agree on order, and broken embeddings are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import InputError
from common.matching import Measure, cosine_to_euclidean, pair_scores, scores


def unit(seed: int, rows: int) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(size=(rows, 8))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@given(st.integers(0, 10**6))
def test_scores_equal_their_definitions_and_order_alike(seed: int) -> None:
    probes, gallery = unit(seed, 3), unit(seed + 1, 5)
    cosine = scores(probes, gallery)
    euclidean = scores(probes, gallery, "euclidean")
    np.testing.assert_allclose(cosine, probes @ gallery.T, atol=1e-12)
    distance = np.linalg.norm(probes[:, None] - gallery[None], axis=2)
    np.testing.assert_allclose(euclidean, -distance, atol=1e-7)
    assert np.array_equal(np.argsort(cosine, axis=1), np.argsort(euclidean, axis=1))


def test_pairs_are_the_diagonal_of_the_matrix() -> None:
    first, second = unit(1, 4), unit(2, 4)
    measures: tuple[Measure, ...] = ("cosine", "euclidean")
    for measure in measures:
        np.testing.assert_allclose(
            pair_scores(first, second, measure), np.diag(scores(first, second, measure))
        )


def test_a_face_with_itself_has_the_highest_score() -> None:
    one = unit(3, 1)
    assert scores(one, one)[0, 0] == pytest.approx(1.0)
    assert scores(one, one, "euclidean")[0, 0] == pytest.approx(0.0, abs=1e-7)
    single = unit(5, 50).astype(np.float32)
    assert pair_scores(single, single, "euclidean").min() > -1e-7
    assert cosine_to_euclidean(np.array([-1.0]))[0] == pytest.approx(-2.0)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 2.0])
def test_what_is_no_unit_embedding_is_refused(bad: float) -> None:
    good = unit(4, 2)
    broken = good.copy()
    broken[0] = broken[0] * bad if bad else 0.0
    with pytest.raises(InputError):
        scores(broken, good)
    with pytest.raises(InputError):
        pair_scores(good, broken)


def test_shapes_and_measures_must_fit() -> None:
    with pytest.raises(InputError):
        scores(unit(1, 2), unit(1, 2)[:, :4])
    with pytest.raises(InputError):
        scores(unit(1, 2)[0], unit(1, 2))
    with pytest.raises(InputError, match="euclidean"):
        scores(unit(1, 2), unit(1, 2), "manhattan")  # type: ignore[arg-type]
    assert scores(unit(1, 0).reshape(0, 8), unit(1, 2)).shape == (0, 2)
