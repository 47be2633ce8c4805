"""Which persons take part in a step: all of them, or each by an independent coin."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.randomness import KeyStream


def check_sample_rate(sample_rate: float) -> None:
    """Raise InputError unless 0 < sample_rate <= 1."""
    if not (math.isfinite(sample_rate) and 0.0 < sample_rate <= 1.0):
        raise InputError(f"sample_rate must lie in (0, 1], not {sample_rate}")


def sample_persons(persons: int, sample_rate: float, stream: KeyStream) -> NDArray[np.intp]:
    """Return the indices, ascending, of the persons who take part in one step.

    `sample_rate` 1 is the full batch. Below 1 each person is in by an independent coin (Poisson
    sampling, Mironov et al. 2019, arXiv:1908.10530), so the count is random and may be zero: such
    a step still adds its noise. Shuffled batches of fixed size are not Poisson sampling and are
    not offered. The coins come from the cryptographic stream: amplification holds only while
    nobody knows who was drawn.
    """
    check_sample_rate(sample_rate)
    if sample_rate == 1.0:
        return np.arange(persons, dtype=np.intp)
    return np.flatnonzero(stream.bernoulli(persons, sample_rate))
