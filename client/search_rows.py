"""How an index keeps its rows: float32, or two bytes a number of which one is scored first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import VeilfaceError

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

# Templates stored in 8 bits come back with a norm that is one to about a hundredth.
NORM_TOLERANCE = 0.02
# Up to here one dot product a row and probe is faster than a matrix product of so few columns.
FEW_PROBES = 3
# A row's second byte counts in 254ths of its first, so that -127..127 spans one step of it.
FINER = 254
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class Coarse:
    """The coarse pass for some probes: `score(start, stop, out)` fills out [Q, stop - start].

    They are the true scores, less a number of each probe's own, within `bound` [Q].
    """

    bound: Floats
    score: Callable[[int, int, Floats], None]


class SingleRows:
    """Rows in float32."""

    def __init__(self, rows: Floats) -> None:
        self._rows = rows
        with warnings.catch_warnings():  # about arrays that cannot be written: nor do we
            warnings.simplefilter("ignore", UserWarning)
            self._tensor = torch.from_numpy(rows)
        self.nbytes = rows.nbytes

    def coarse(self, probes: Floats) -> Coarse:
        """Dot products in float32; Higham, Accuracy and Stability (2002), eq. 3.5, bounds them."""
        queries = torch.tensor(probes)

        def score(start: int, stop: int, out: Floats) -> None:
            if len(probes) <= FEW_PROBES:
                for probe, line in zip(probes, out, strict=True):
                    np.einsum("nd,d->n", self._rows[start:stop], probe, out=line)
            else:
                torch.mm(queries, self._tensor[start:stop].T, out=torch.from_numpy(out))

        return Coarse(np.full(len(probes), _rounding(probes.shape[1]), np.float32), score)

    def wide(self, row: Rows) -> NDArray[np.float64]:
        """Return these rows [n, D] in float64."""
        return self._rows[row].astype(np.float64)


class ByteRows:
    """Rows in two bytes a number: row = mean + scale * (high + low / 254), |high| <= levels.

    The gallery's mean is taken off first. Embeddings of many networks share most of their
    direction: their scores differ little, and bytes spent on what they share would miss it.
    """

    def __init__(self, rows: Floats) -> None:
        self._levels = _levels(rows.shape[1])
        total = rows.sum(axis=0, dtype=np.float64)
        self._mean = (total / max(1, len(rows))).astype(np.float32)
        self._scale = np.empty(len(rows), dtype=np.float32)
        self._along = np.empty(len(rows), dtype=np.float32)  # (row - mean) mean
        self._high = np.empty(rows.shape, dtype=np.int8)
        self._low = np.empty(rows.shape, dtype=np.int8)
        self._longest = 0.0  # largest |row - mean|
        self._error = 0.0  # largest distance between a row and its high bytes alone
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            scale, whole, rest = _rounded(rows[some] - self._mean, self._levels)
            low = np.rint(rest * FINER)
            self._scale[some], self._high[some], self._low[some] = scale, whole, low
            lost = low * (scale[:, None] / FINER)
            kept = whole * scale[:, None] + lost
            self._along[some] = kept @ self._mean
            self._longest = max(self._longest, float(np.linalg.norm(kept, axis=1).max()))
            self._error = max(self._error, float(np.linalg.norm(lost, axis=1).max()))
        self._tensor = torch.from_numpy(self._high)
        self.nbytes = sum(a.nbytes for a in (self._high, self._low, self._scale, self._along))

    def coarse(self, probes: Floats) -> Coarse:
        """Return scores less m q: x q = (x - m)(q - m) + (x - m) m + m q, with m the mean.

        Of the first term only high bytes x', q' are multiplied, and with x and q less the mean
        |x q - x' q'| <= |x - x'| |q'| + |x| |q - q'|.
        """
        scale, whole, rest = _rounded(probes - self._mean, self._levels)
        queries = torch.from_numpy(whole).t()
        length = np.linalg.norm(whole.astype(np.float32), axis=1) * scale
        error = np.linalg.norm(rest, axis=1) * scale
        bound = self._error * length + self._longest * error + 2 * _rounding(probes.shape[1])

        def score(start: int, stop: int, out: Floats) -> None:
            out[:] = torch._int_mm(self._tensor[start:stop], queries).numpy().T
            out *= self._scale[start:stop]
            out *= scale[:, None]
            out += self._along[start:stop]

        return Coarse(bound.astype(np.float32), score)

    def wide(self, row: Rows) -> NDArray[np.float64]:
        """Return these rows [n, D] in float64."""
        fine = self._high[row] + self._low[row] / float(FINER)
        fine *= self._scale[row, None]
        fine += self._mean
        return fine


def _rounded(rows: Floats, levels: int) -> tuple[Floats, NDArray[np.int8], Floats]:
    """Return scale [n], whole and rest [n, D]: rows = scale (whole + rest), |rest| <= 1/2."""
    scale = np.abs(rows).max(axis=1) / np.float32(levels)
    scale[scale < 1e-30] = 1  # a row of zeros, as the mean of one row leaves it
    steps = rows / scale[:, None]
    whole = np.rint(steps)
    return scale, whole.astype(np.int8), steps - whole


def _rounding(dim: int) -> float:
    """Bound the error of a float32 dot product of two such rows, with room for the conversions."""
    return 2 * (dim + 8) * 2.0**-24


@cache
def _levels(dim: int) -> int:
    """Return how far 8-bit numbers may go before this processor's products are wrong.

    Processors without VNNI add two products, of an unsigned and a signed byte, in 16 bits that
    saturate silently: (78 + 128) * 78 * 2 < 2^15 cannot. Measured here rather than asked, since
    what runs depends on the processor, on torch and on its environment.
    """
    for levels in (127, 78):
        if all(_exact(levels, rows, dim, probes) for rows in (1, 5, 4096) for probes in (1, 2, 32)):
            return levels
    raise VeilfaceError(
        "this build of torch multiplies 8-bit numbers wrongly", hint="search without eight_bit"
    )


def _exact(levels: int, rows: int, dim: int, probes: int) -> bool:
    """Whether the largest products and products of random numbers come out right."""
    ends = np.full((rows, dim), levels), np.full((probes, dim), levels)
    noise = np.random.default_rng(0)
    for left, right in (
        ends,
        (-ends[0], ends[1]),
        (ends[0], -ends[1]),
        (-ends[0], -ends[1]),
        tuple(noise.integers(-levels, levels + 1, end.shape) for end in ends),
    ):
        pair = torch.from_numpy(left.astype(np.int8)), torch.from_numpy(right.astype(np.int8)).t()
        if not np.array_equal(torch._int_mm(*pair).numpy(), left @ right.T):
            return False
    return True
