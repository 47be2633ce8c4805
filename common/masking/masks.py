"""Masks: seeds of 256 bits expanded by AES-256-CTR to uniform numbers modulo 2^32."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.randomness import KeyStream

_WORDS: Final = 1 << 14  # 128 KB at once stay in the cache


def add_mask(total: NDArray[np.uint32], seed: bytes, *, negative: bool) -> None:
    """Add the mask of `seed` to `total` [d] in place modulo 2^32, or take it away.

    Without the seed, the mask is as hard to tell from uniform as AES-256; one seed, one mask.
    """
    stream = KeyStream(seed, private=True)
    change = np.subtract if negative else np.add
    for start in range(0, len(total), 2 * _WORDS):
        part = total[start : start + 2 * _WORDS]
        mask = stream.words((len(part) + 1) // 2).view("<u4")[: len(part)]
        change(part, mask, out=part)
