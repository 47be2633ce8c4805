"""What 8-bit storage costs: the same comparisons against float and against 8-bit templates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common import template
from common.errors import InputError
from common.metrics import PairScores, fnmr, threshold_at_fmr


@dataclass(frozen=True)
class EightBitCost:
    """FNMR at one FMR with float and with 8-bit templates; each at its own threshold.

    `largest_change` is the largest change of any one score.
    """

    target_fmr: float
    fnmr_float32: float
    fnmr_eight_bit: float
    largest_change: float
    mated: int
    non_mated: int


def eight_bit_cost(
    embeddings: NDArray[np.float32], subjects: NDArray[np.integer], target_fmr: float
) -> EightBitCost:
    """Compare every float probe with every other embedding stored both ways.

    `embeddings` [N, D] unit rows, `subjects` [N] integers. Rotating them first changes nothing but
    rounding, so that they are compared as they are. Too few pairs for the FMR: InputError.
    """
    rows = template.check_rows(embeddings, int(np.shape(embeddings)[-1]))
    if len(subjects) != len(rows):
        raise InputError(f"{len(subjects)} subjects for {len(rows)} embeddings")
    stored = template.decode(template.encode(rows, eight_bit=True))
    same = subjects[:, None] == subjects[None, :]
    others = ~np.eye(len(rows), dtype=np.bool_)
    plain, coarse = rows @ rows.T, rows @ stored.T
    rates = []
    for scores in (plain, coarse):
        pairs = PairScores(scores[same & others], scores[~same])
        rates.append(fnmr(pairs, threshold_at_fmr(pairs.non_mated, target_fmr)))
    return EightBitCost(
        target_fmr,
        rates[0],
        rates[1],
        float(np.abs(plain - coarse)[others].max()),
        int((same & others).sum()),
        int((~same).sum()),
    )
