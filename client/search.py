"""Exact cosine search in memory: every row is scored, and the answer is that of float64.

Two passes. The coarse one scores a block of rows at a time, in float32 or on 8-bit numbers, while
the block is in the cache, and its error has a bound b. Let t be the k-th best coarse score so far:
a row below t - 2b cannot be among the k best, so only the few above it are kept. The second pass
scores those in float64. Nothing is approximated, and no score of the other rows is ever stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from client.search_rows import NORM_TOLERANCE, ByteRows, Coarse, Floats, Rows, SingleRows
from common.errors import InputError

# Scores of a block, 1 MiB of float32 at most, stay in a core's own cache; more probes than
# PROBES_AT_ONCE gain nothing from sharing one reading of the rows.
SCORES_AT_ONCE = 1 << 18
ROWS_AT_ONCE = 1 << 17
PROBES_AT_ONCE = 64
LOWEST = np.finfo(np.float32).min


class Index:
    """The rows of a gallery, ready to be searched from many threads at once.

    Memory a row of D floats: 4 D bytes, the caller's own array, kept and not copied where it is
    contiguous (do not change it); with `eight_bit` 2 D + 8 bytes of its own: D are read for every
    row, the other D, which make the numbers 16-bit, only for candidates.

    Args:
        vectors: [N, D] float32, N >= 0, D >= 2, rows of norm 1 (within 0.02).
        eight_bit: score on 8-bit numbers first; the answer is exact for the 16-bit numbers.
        threads: how many threads share one search; None means every core of this process.

    Raises:
        InputError: another shape or type, a row that is not finite or not of norm 1, threads < 1.
    """

    def __init__(
        self, vectors: Floats, *, eight_bit: bool = False, threads: int | None = None
    ) -> None:
        self._threads = len(os.sched_getaffinity(0)) if threads is None else threads
        if self._threads < 1:
            raise InputError(f"{threads} threads cannot search", hint="pass 1 or more, or None")
        vectors = _unit_rows(vectors, "vectors")
        self._count, self._dim = vectors.shape
        self._gallery = ByteRows(vectors) if eight_bit else SingleRows(vectors)
        # One thread an operation: those of one operation would wait for one another.
        self._pool = ThreadPoolExecutor(
            self._threads, "search", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def nbytes(self) -> int:
        """How many bytes the rows take (in float32 they may be the caller's own array)."""
        return self._gallery.nbytes

    def search(self, probes: Floats, k: int) -> tuple[Floats, Rows]:
        """Find the k rows with the highest cosine to each probe.

        Args:
            probes: [Q, D] float32, Q >= 0, rows of norm 1 (within 0.02).
            k: how many, at least 1; no more than N are returned.

        Returns:
            Scores [Q, min(k, N)] descending, and their rows [Q, min(k, N)]; of equal scores
            (as float32) the lower row comes first.

        Raises:
            InputError: another shape or type, a probe not finite or not of norm 1, k < 1.
        """
        if k < 1:
            raise InputError(f"k is {k}", hint="ask for at least 1 row")
        probes = _unit_rows(probes, "probes")
        if probes.shape[1] != self._dim:
            raise InputError(
                f"probes have {probes.shape[1]} numbers, the rows of this index {self._dim}",
                hint="embed both with the same model",
            )
        k = min(k, self._count)
        scores = np.empty((len(probes), k), dtype=np.float32)
        rows = np.empty((len(probes), k), dtype=np.int64)
        for start in range(0, len(probes) if k else 0, PROBES_AT_ONCE):
            some = slice(start, start + PROBES_AT_ONCE)
            scores[some], rows[some] = self._search(probes[some], k)
        return scores, rows

    def _search(self, probes: Floats, k: int) -> tuple[Floats, Rows]:
        coarse = self._gallery.coarse(probes)
        share = -(-self._count // (4 * self._threads))
        block = 1 << (min(ROWS_AT_ONCE, SCORES_AT_ONCE // len(probes), share) - 1).bit_length()
        chunk = 1 << max(0, min(256, block // (2 * k)).bit_length() - 1)
        starts = iter(range(0, self._count, block))
        parts = [
            self._pool.submit(_scan, coarse, starts, self._count, k, (len(probes), block, chunk))
            for _ in range(self._threads)
        ]
        probe, row, score = _joined([found for part in parts for found in part.result()])
        place = _best(probe, row, score, k)[:, -1]  # each probe's k-th best coarse score
        near = score >= (score[place] - 2 * coarse.bound)[probe]
        probe, row = probe[near], row[near]
        score = self._exact(probes, probe, row)
        best = _best(probe, row, score, k)
        return score[best], row[best]

    def _exact(self, probes: Floats, probe: Rows, row: Rows) -> Floats:
        wide = probes.astype(np.float64)
        scores = np.empty(len(row), dtype=np.float32)
        for start in range(0, len(row), 4096):
            some = slice(start, start + 4096)
            # Not a matrix product: equal rows have to give equal sums wherever they stand.
            scores[some] = (self._gallery.wide(row[some]) * wide[probe[some]]).sum(axis=1)
        return scores


def _scan(
    coarse: Coarse, starts: Iterator[int], count: int, k: int, shape: tuple[int, int, int]
) -> list[tuple[Rows, Rows, Floats]]:
    """Take blocks until none is left; return every (probe, row, score) that may be a best one.

    The k-th best of the chunks' highest scores is at most the k-th best score: one pass of max
    over the block gives the bar, and shows the few chunks where something is above it.
    """
    probes, block, chunk = shape
    scores = np.empty((probes, block), dtype=np.float32)
    chunks = scores.reshape(probes, -1, chunk)
    best = np.full((probes, k), -np.inf, dtype=np.float32)
    found = []
    for start in starts:
        stop = min(start + block, count)
        scores[:, stop - start :] = -np.inf
        coarse.score(start, stop, scores[:, : stop - start])
        peaks = chunks.max(axis=2)
        best = np.partition(np.concatenate((best, peaks), axis=1), -k, axis=1)[:, -k:]
        bar = np.maximum(best[:, 0] - 2 * coarse.bound, LOWEST)
        probe, which = np.nonzero(peaks >= bar[:, None])
        near = chunks[probe, which]
        hit, column = np.nonzero(near >= bar[probe, None])
        found.append((probe[hit], start + which[hit] * chunk + column, near[hit, column]))
    return found


def _joined(found: list[tuple[Rows, Rows, Floats]]) -> tuple[Rows, Rows, Floats]:
    probe, row, score = (np.concatenate(part) for part in zip(*found, strict=True))
    return probe, row, score


def _best(probe: Rows, row: Rows, score: Floats, k: int) -> Rows:
    """Return where each probe's k best are, [Q, k]: by score, then the lower row."""
    order = np.lexsort((row, -score, probe))
    firsts = np.flatnonzero(np.diff(probe[order], prepend=-1))
    best: Rows = order[firsts[:, None] + np.arange(k)]
    return best


def _unit_rows(rows: Floats, name: str) -> Floats:
    """Return rows [n, D] contiguous, or refuse them by name."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        raise InputError(f"{name} are not a table of float32", hint="pass [n, D] float32")
    if rows.shape[1] < 2:
        raise InputError(f"{name} have {rows.shape[1]} numbers a row", hint="pass [n, D], D >= 2")
    rows = np.ascontiguousarray(rows)
    # Not `>`: a NaN is off too.
    off = ~(np.abs(np.einsum("nd,nd->n", rows, rows) - 1) <= 2 * NORM_TOLERANCE)
    if off.any():
        raise InputError(
            f"row {int(off.argmax())} of {name} is not finite or its length is not 1",
            hint="normalise embeddings before they are searched",
        )
    return rows
