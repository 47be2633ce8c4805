"""Thresholds: at the chosen rate on fresh data, with an honest interval, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client.calibration import Threshold, for_identification, for_verification
from common.errors import InputError
from common.scoring import plain

People = tuple[NDArray[np.float32], NDArray[np.int64]]


def verify_threshold(people: People, fmr: float) -> Threshold:
    return for_verification(plain(people[0]), people[1], fmr, model_id="m", source="drawn")


def identify_threshold(people: People, fpir: float, gallery: int) -> Threshold:
    return for_identification(
        plain(people[0]), people[1], fpir, gallery, model_id="m", source="drawn"
    )


def people(count: int, images: int, seed: int) -> People:
    """Unit embeddings [N, 32]: each person a direction, each image near it."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 32))
    rows = np.repeat(centres, images, axis=0) + 0.6 * rng.normal(size=(count * images, 32))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32), np.repeat(np.arange(count), images)


def false_matches(value: float, seed: int) -> float:
    """FMR of a threshold on people it was not calibrated on."""
    unit, owner = people(400, 2, seed)
    scores = unit @ unit.T
    return float((scores >= value)[owner[:, None] != owner].mean())


def test_a_verification_threshold_holds_its_fmr_on_other_people() -> None:
    found = verify_threshold(people(400, 3, 1), 1e-2)
    assert found.low < 1e-2 < found.high
    assert 0.5e-2 < false_matches(found.value, 2) < 2e-2
    assert false_matches(found.value - 0.1, 2) > 2e-2  # a wrong threshold would be seen
    assert (found.purpose, found.persons, found.gallery) == ("verify", 400, 0)


def strangers_taken(found: Threshold, seed: int) -> float:
    unit, _ = people(800, 1, seed)
    gallery, probes = unit[: found.gallery], unit[found.gallery :]
    return float(((probes @ gallery.T).max(axis=1) >= found.value).mean())


@pytest.mark.parametrize("gallery", [20, 200])
def test_an_identification_threshold_holds_its_fpir_for_its_gallery(gallery: int) -> None:
    found = identify_threshold(people(600, 1, 3), 0.05, gallery)
    rates = [strangers_taken(found, seed) for seed in range(10, 14)]
    assert 0.02 < float(np.mean(rates)) < 0.10
    assert found.low <= 0.05 <= found.high


def test_a_larger_gallery_needs_a_higher_threshold() -> None:
    small, large = (identify_threshold(people(600, 1, 3), 0.05, g).value for g in (10, 300))
    assert large > small + 0.02


@pytest.mark.parametrize(
    ("count", "fmr"), [(10, 1e-2), (40, 1e-4), (40, 0.0), (40, 1.0), (40, float("nan"))]
)
def test_an_fmr_that_the_data_cannot_support_is_refused(count: int, fmr: float) -> None:
    with pytest.raises(InputError):
        verify_threshold(people(count, 2, 1), fmr)


@pytest.mark.parametrize(
    ("fpir", "gallery", "words"),
    [
        (0.01, 10, "it takes 310"),
        (0.5, 100, "it takes 106"),
        (0.0, 10, "between 0 and 1"),
        (0.1, 0, "a gallery has a person"),
    ],
)
def test_an_fpir_that_the_data_cannot_support_is_refused(
    fpir: float, gallery: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        identify_threshold(people(100, 2, 1), fpir, gallery)


def test_the_interval_is_wider_for_fewer_people() -> None:
    few, many = (verify_threshold(people(n, 3, 5), 2e-2) for n in (40, 400))
    assert few.high - few.low > many.high - many.low
