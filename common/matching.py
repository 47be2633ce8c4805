"""How alike two embeddings are: cosine or Euclidean score, higher = more alike.

For unit vectors the squared distance is 2 - 2 cos, so both order pairs alike; only thresholds
differ.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

Measure = Literal["cosine", "euclidean"]
_NORM_TOLERANCE: Final = 1e-3


def scores(
    probes: NDArray[np.floating], gallery: NDArray[np.floating], measure: Measure = "cosine"
) -> NDArray[np.float64]:
    """Return the score of every probe [P, D] with every gallery embedding [G, D], [P, G].

    Embeddings must be unit-norm; a zero, NaN or infinite one, or unlike dimensions, is an
    InputError. Cosine lies in [-1, 1]; the Euclidean score is minus the distance, in [-2, 0].
    """
    if measure not in get_args(Measure):
        raise InputError(f"unknown measure {measure!r}", hint="cosine or euclidean")
    left, right = _unit(probes, "probe"), _unit(gallery, "gallery")
    if left.shape[1] != right.shape[1]:
        raise InputError(f"dimensions differ: {left.shape[1]} and {right.shape[1]}")
    cosine = np.clip(left @ right.T, -1.0, 1.0)
    return cosine if measure == "cosine" else cosine_to_euclidean(cosine)


def pair_scores(
    first: NDArray[np.floating], second: NDArray[np.floating], measure: Measure = "cosine"
) -> NDArray[np.float64]:
    """Return the score of each row of `first` [N, D] with the same row of `second`, [N]."""
    left, right = _unit(first, "first"), _unit(second, "second")
    if left.shape != right.shape:
        raise InputError(f"shapes differ: {left.shape} and {right.shape}")
    cosine = np.clip(np.einsum("nd,nd->n", left, right), -1.0, 1.0)
    return cosine if measure == "cosine" else cosine_to_euclidean(cosine)


def cosine_to_euclidean(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean score -sqrt(2 - 2 cos) of unit vectors; works for thresholds too."""
    return np.asarray(-np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0)), dtype=np.float64)


def _unit(vectors: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2:
        raise InputError(f"{name} embeddings must be a matrix, not {array.ndim}-dimensional")
    norms = np.linalg.norm(array, axis=1)
    if not np.all(np.abs(norms - 1.0) <= _NORM_TOLERANCE):  # NaN fails the comparison too
        raise InputError(f"a {name} embedding is zero, not finite or not of unit norm")
    # float32 norms are off by 1e-7, which a distance near 0 would magnify to 5e-4.
    return np.asarray(array / norms[:, None])
