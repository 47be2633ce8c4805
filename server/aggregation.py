"""From the sites' updates to one: pure functions with public weights, in a canonical order.

The order in which updates arrive must not change the result, so all rules sort them by content
first. The robust rules bound what a minority of hostile sites can do; they need single updates
and so exist for `local` trust only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Weighted:
    """One site's delta [d] and its public weight (never a private count)."""

    delta: Vector
    weight: float = 1.0


def _canonical(updates: Sequence[Weighted]) -> list[Weighted]:
    if not updates:
        raise InputError("no update to aggregate")
    if len({update.delta.shape for update in updates}) != 1:
        raise InputError("updates of different lengths cannot be aggregated")
    if not all(math.isfinite(u.weight) and u.weight > 0 for u in updates):
        raise InputError("public weights must be positive and finite")
    return sorted(updates, key=lambda u: (hashlib.sha256(u.delta.tobytes()).digest(), u.weight))


def weighted_mean(updates: Sequence[Weighted]) -> Vector:
    """Federated averaging (McMahan et al. 2017, Algorithm 1) with public weights; float32 [d]."""
    ordered = _canonical(updates)
    total = np.zeros(ordered[0].delta.shape, dtype=np.float64)
    for update in ordered:
        total += update.weight * update.delta.astype(np.float64)
    return (total / sum(u.weight for u in ordered)).astype(np.float32)


def _unweighted(updates: Sequence[Weighted]) -> NDArray[np.float32]:
    ordered = _canonical(updates)
    if len({u.weight for u in ordered}) != 1:
        raise InputError("robust rules count sites, so all public weights must be equal")
    return np.stack([u.delta for u in ordered])


def coordinate_median(updates: Sequence[Weighted]) -> Vector:
    """Median of each coordinate (Yin et al. 2018, Definition 1); holds below half hostile sites."""
    return np.asarray(np.median(_unweighted(updates), axis=0), dtype=np.float32)


def trimmed_mean(updates: Sequence[Weighted], hostile_share: float = 0.3) -> Vector:
    """Mean of each coordinate without its b largest and b smallest (Yin et al. 2018, Def. 2).

    b = ceil(hostile_share * sites), lowered so that at least one site remains.
    """
    stacked = np.sort(_unweighted(updates), axis=0)
    sites = len(stacked)
    cut = min(math.ceil(hostile_share * sites), (sites - 1) // 2)
    kept: Vector = stacked[cut : sites - cut].mean(axis=0, dtype=np.float64).astype(np.float32)
    return kept


def krum(updates: Sequence[Weighted], hostile_share: float = 0.3) -> Vector:
    """Krum (Blanchard et al. 2017, section 4): the update nearest to its n - f - 2 neighbours.

    f = ceil(hostile_share * n), lowered to the largest f with n >= 2 f + 3. Needs 3 sites.
    """
    stacked = _unweighted(updates).astype(np.float64)
    sites = len(stacked)
    if sites < 3:
        raise InputError(f"Krum needs at least 3 sites, not {sites}")
    hostile = min(math.ceil(hostile_share * sites), (sites - 3) // 2)
    squared = (stacked**2).sum(axis=1)
    distances = squared[:, None] + squared[None, :] - 2.0 * stacked @ stacked.T
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : sites - hostile - 2].sum(axis=1)
    chosen: Vector = stacked[int(np.argmin(scores))].astype(np.float32)
    return chosen


AGGREGATORS: Final[dict[str, Callable[[Sequence[Weighted]], Vector]]] = {
    "mean": weighted_mean,
    "median": coordinate_median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
}
