"""Exact search: the answer is that of float64, whatever the rows, the bytes and the threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.search import Index
from common.errors import InputError

Floats = NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[1]


def unit(rows: NDArray[np.float64]) -> Floats:
    normalised: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalised.astype(np.float32)


def random_rows(count: int, dim: int, seed: int) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def clustered_rows(persons: int, images: int, dim: int, seed: int) -> Floats:
    """Templates as faces give them: several a person, close to one another."""
    noise = np.random.default_rng(seed)
    centres = noise.standard_normal((persons, 1, dim))
    return unit((centres + 0.4 * noise.standard_normal((persons, images, dim))).reshape(-1, dim))


def oracle(vectors: Floats, probes: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    """All scores in float64, rounded to float32; equal ones by the lower row."""
    scores = np.array(
        [(vectors.astype(np.float64) * probe).sum(axis=1) for probe in probes.astype(np.float64)]
    ).reshape(len(probes), len(vectors))
    rounded = scores.astype(np.float32)
    rows = np.argsort(-rounded, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rounded, rows, axis=1), rows


def assert_exact(vectors: Floats, probes: Floats, k: int, threads: int | None = 2) -> None:
    scores, rows = Index(vectors, threads=threads).search(probes, k)
    expected_scores, expected_rows = oracle(vectors, probes, k)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("probes", [1, 3, 4, 32, 130])
@pytest.mark.parametrize("count", [1, 2, 255, 20_001])
@pytest.mark.parametrize("k", [1, 10])
def test_the_answer_is_that_of_float64(count: int, probes: int, k: int) -> None:
    assert_exact(random_rows(count, 128, 1), random_rows(probes, 128, 2), k)


@pytest.mark.parametrize("k", [3000, 20_000, 50_000])
def test_many_results_and_more_than_there_are_rows(k: int) -> None:
    assert_exact(random_rows(20_000, 16, 3), random_rows(5, 16, 4), k)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_the_number_of_threads_changes_nothing(threads: int | None) -> None:
    assert_exact(random_rows(9_000, 64, 5), random_rows(7, 64, 6), 10, threads)


@pytest.mark.parametrize("probes", [1, 2, 40])
def test_of_equal_rows_the_lowest_come_first(probes: int) -> None:
    one = random_rows(1, 128, 7)
    vectors = np.repeat(one, 5_003, axis=0)
    scores, rows = Index(vectors, threads=2).search(np.repeat(one, probes, axis=0), 12)
    np.testing.assert_array_equal(rows, np.tile(np.arange(12), (probes, 1)))
    assert len(np.unique(scores)) == 1
    copied = random_rows(3_000, 128, 8)
    copied[[17, 900, 2_999]] = copied[1_500]
    assert_exact(copied, np.repeat(copied[1_500:1_501], probes, axis=0), 3)


def test_scores_descend_even_where_the_best_rows_come_last() -> None:
    probe = random_rows(1, 32, 9)
    vectors = random_rows(40_000, 32, 10)
    vectors = vectors[np.argsort(vectors @ probe[0])]
    scores, _ = Index(vectors, threads=2).search(probe, 100)
    assert (np.diff(scores) <= 0).all()
    assert_exact(vectors, probe, 100)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_nothing_to_search_and_nothing_to_find(eight_bit: bool) -> None:
    empty = Index(np.empty((0, 128), np.float32), eight_bit=eight_bit)
    scores, rows = empty.search(random_rows(3, 128, 11), 10)
    assert scores.shape == rows.shape == (3, 0)
    index = Index(random_rows(20, 128, 11), eight_bit=eight_bit)
    scores, rows = index.search(np.empty((0, 128), np.float32), 10)
    assert scores.shape == rows.shape == (0, 10)


def test_arrays_that_are_not_contiguous_or_cannot_be_written() -> None:
    wide = random_rows(500, 64, 12)
    assert_exact(wide[::-2], random_rows(8, 64, 13)[::2], 10)
    assert_exact(np.asfortranarray(wide), np.asfortranarray(random_rows(8, 64, 13)), 10)
    wide.setflags(write=False)
    assert_exact(wide, wide[:5], 10)


def spoilt(value: float) -> Floats:
    rows = random_rows(10, 16, 14)
    rows[4, 3] = value
    return rows


BAD = {
    "nan": spoilt(np.nan),
    "inf": spoilt(np.inf),
    "long": spoilt(2.0),
    "zero": np.zeros((3, 16), np.float32),
    "flat": random_rows(1, 16, 14)[0],
    "double": random_rows(3, 16, 14).astype(np.float64),
    "one-column": np.ones((3, 1), np.float32),
}


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_rows_and_probes_that_cannot_be_compared_are_refused(bad: Floats, eight_bit: bool) -> None:
    with pytest.raises(InputError, match="vectors"):
        Index(bad, eight_bit=eight_bit)
    with pytest.raises(InputError, match="probes"):
        Index(random_rows(10, 16, 15), eight_bit=eight_bit).search(bad, 1)


def test_probes_of_another_model_no_results_and_no_threads_are_refused() -> None:
    index = Index(random_rows(10, 16, 15))
    with pytest.raises(InputError, match="8 numbers"):
        index.search(random_rows(1, 8, 15), 1)
    with pytest.raises(InputError, match="k is 0"):
        index.search(random_rows(1, 16, 15), 0)
    with pytest.raises(InputError, match="threads"):
        Index(random_rows(10, 16, 15), threads=0)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 400),
    probes=st.integers(0, 6),
    dim=st.integers(2, 40),
    k=st.integers(1, 450),
    threads=st.integers(1, 3),
    levels=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_rows_with_few_values_and_many_ties(
    count: int, probes: int, dim: int, k: int, threads: int, levels: int, seed: int
) -> None:
    noise = np.random.default_rng(seed)
    drawn = noise.integers(-levels, levels + 1, (count + probes, dim)).astype(np.float64)
    drawn[~drawn.any(axis=1), 0] = 1
    rows = unit(drawn)
    assert_exact(rows[:count], rows[count:], k, threads)
    scores, found = Index(rows[:count], eight_bit=True, threads=threads).search(rows[count:], k)
    assert scores.shape == found.shape == (probes, min(k, count))
    true, _ = oracle(rows[:count], rows[count:], k)
    np.testing.assert_allclose(scores, true, atol=1e-4)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_searches_at_the_same_time_do_not_disturb_one_another(eight_bit: bool) -> None:
    vectors = random_rows(30_000, 64, 16)
    probes = random_rows(40, 64, 17)
    index = Index(vectors, eight_bit=eight_bit, threads=2)
    batches = [probes[: 1 + i] for i in range(len(probes))]
    alone = [index.search(batch, 5) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: index.search(batch, 5), batches))
    for (scores, rows), (again, same) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(scores, again)
        np.testing.assert_array_equal(rows, same)


def recall(vectors: Floats, probes: Floats, k: int) -> float:
    _, rows = Index(vectors, eight_bit=True, threads=2).search(probes, k)
    _, expected = oracle(vectors, probes, k)
    shared = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]
    return sum(shared) / expected.size


def test_8_bit_finds_what_float32_finds_among_clusters() -> None:
    rows = clustered_rows(4_000, 10, 128, 18)
    probes = unit(rows[::400] + 0.05 * np.random.default_rng(19).standard_normal((100, 128)))
    assert recall(rows, probes, 10) >= 0.999
    assert recall(random_rows(30_000, 128, 20), random_rows(50, 128, 21), 10) >= 0.999


@pytest.mark.parametrize("shared", [1.0, 2.0, 5.0, 50.0])
def test_8_bit_finds_what_float32_finds_among_rows_that_share_a_direction(shared: float) -> None:
    noise = np.random.default_rng(24)
    centre = shared * random_rows(1, 128, 25).astype(np.float64)
    rows = unit(centre + noise.standard_normal((20_000, 128)) / 128**0.5)
    probes = unit(centre + noise.standard_normal((40, 128)) / 128**0.5)
    assert recall(rows, probes, 10) >= 0.99


def test_8_bit_scores_are_true_to_16_bits() -> None:
    rows, probes = clustered_rows(500, 10, 128, 22), random_rows(20, 128, 23)
    scores, found = Index(rows, eight_bit=True).search(probes, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(probes @ rows.T, found, 1), atol=2e-5)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "DEFAULT"])
def test_8_bit_is_right_on_processors_whose_products_saturate(isa: str) -> None:
    """torch is told to run as on an older processor; rows of equal numbers saturate first."""
    code = """
import numpy as np
from client.search import Index
noise = np.random.default_rng(0)
flat = noise.choice([-1.0, 1.0], (6000, 128)) * (1 + 0.01 * noise.random((6000, 128)))
rows = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
for probes in (rows[:1], rows[:40]):
    scores, found = Index(rows, eight_bit=True).search(probes, 10)
    _, expected = Index(rows).search(probes, 10)
    assert (found == expected).mean() > 0.99, (found, expected)
    assert abs(scores[:, 0] - 1).max() < 1e-4
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
