"""Two factors, one score: calibrated weights for a face score and any second score.

Logistic regression (Brümmer and du Preez 2006, calibration and fusion of detection scores): the
fused score is a log-likelihood ratio, w . s + b with the prior of the training pairs taken out, so
0 means that mated and non-mated are equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.errors import InputError

# A weak pull to zero keeps the weights finite where a factor separates the training pairs wholly.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Fusion:
    """Weights [F] of the factors' scores, and an offset."""

    weights: tuple[float, ...]
    offset: float

    def fused(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores [N, F], a column a factor -> log-likelihood ratios [N]."""
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.weights):
            raise InputError(f"{values.shape} scores do not fit {len(self.weights)} factors")
        return np.asarray(values @ np.array(self.weights) + self.offset)


def fit(scores: NDArray[np.floating], mated: NDArray[np.bool_]) -> Fusion:
    """Learn the weights from pairs with scores [N, F] of which `mated` [N] are of one person.

    Raises InputError for shapes that differ, scores that are not finite, or one kind of pair only.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or mated.shape != values.shape[:1]:
        raise InputError(f"{values.shape} scores do not fit {mated.shape} pairs")
    if not np.isfinite(values).all():
        raise InputError("a score is not finite")
    share = float(mated.mean()) if len(mated) else 0.0
    if not 0.0 < share < 1.0:
        raise InputError("fusion needs mated and non-mated pairs")
    center, spread = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-12)
    inputs = np.column_stack([(values - center) / spread, np.ones(len(values))])
    signs = np.where(mated, 1.0, -1.0)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = signs * (inputs @ theta)
        slope = -signs / (1.0 + np.exp(np.clip(margin, -500.0, 500.0)))
        penalty = np.append(theta[:-1], 0.0)
        value = np.logaddexp(0.0, -margin).mean() + _RIDGE * float(penalty @ penalty) / 2
        return float(value), inputs.T @ slope / len(slope) + _RIDGE * penalty

    theta = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    weights = theta[:-1] / spread
    prior = float(np.log(share / (1.0 - share)))
    return Fusion(tuple(weights.tolist()), float(theta[-1] - weights @ center - prior))
