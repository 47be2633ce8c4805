"""Shifted data depend on the image and nothing else, and are what their names say."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.face import ChipSpec
from common.occlusion import mask_alpha
from common.vocabulary import SHIFTS, Shift
from simulations.people import generate
from simulations.shifts import apply_shift

DLIB = ChipSpec(150, "dlib")
ARCFACE = ChipSpec(112, "arcface")


def digests(count: int) -> NDArray[np.uint8]:
    rows = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.array([list(row) for row in rows], np.uint8)


@pytest.fixture(scope="module")
def chips() -> NDArray[np.uint8]:
    return generate(3, 2, 3, DLIB).chips


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shifted_image_depends_on_its_own_content_only(
    chips: NDArray[np.uint8], shift: Shift
) -> None:
    all_at_once = apply_shift(chips, digests(6), shift, spec=DLIB)
    assert all_at_once.shape == chips.shape
    assert all_at_once.dtype == np.uint8
    np.random.seed(1)
    turned = apply_shift(chips[::-1], digests(6)[::-1], shift, spec=DLIB)[::-1]
    alone = apply_shift(chips[2:3], digests(6)[2:3], shift, spec=DLIB)
    assert np.array_equal(all_at_once, turned)
    assert np.array_equal(all_at_once[2], alone[0])


def test_no_shift_changes_nothing(chips: NDArray[np.uint8]) -> None:
    assert np.array_equal(apply_shift(chips, digests(6), "none", spec=DLIB), chips)


def test_the_same_picture_in_two_files_gets_different_noise(chips: NDArray[np.uint8]) -> None:
    twice = np.repeat(chips[:1], 2, axis=0)
    first, second = apply_shift(twice, digests(2), "cctv", spec=DLIB)
    assert not np.array_equal(first, second)


def test_cctv_noise_is_the_same_on_every_machine() -> None:
    grey = np.full((1, 24, 24, 3), 128, np.uint8)
    found = apply_shift(grey, digests(1), "cctv", spec=ChipSpec(24, "dlib"))
    assert found[0, 0, :6, 0].tolist() == [127, 128, 124, 124, 127, 128]


def test_cctv_noise_is_gaussian_of_standard_deviation_four() -> None:
    grey = np.full((200, 24, 24, 3), 128, np.uint8)
    noise = apply_shift(grey, digests(200), "cctv", spec=ChipSpec(24, "dlib"))[..., 0] - 128.0
    # variance 16, and 1/12 from rounding; 115,200 draws: four standard errors are 0.14 and 0.05
    assert abs(noise.var() - (16 + 1 / 12)) < 0.27
    assert abs(noise.mean()) < 0.05
    assert abs((noise**4).mean() / noise.var() ** 2 - 3) < 0.06


@pytest.mark.parametrize("side", [24, 50, 112, 150])
def test_cctv_is_a_shrink_by_area_then_a_bilinear_enlargement(side: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    finer = np.repeat(np.repeat(picture, 24, axis=0), 24, axis=1)  # cells meet pixels exactly
    small = finer.reshape(24, side, 24, side).mean((1, 3), dtype=np.float32)
    expected = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR))
    same = np.broadcast_to(picture[None, :, :, None], (100, side, side, 3))
    inner = (expected > 20) & (expected < 235)  # where noise is not clipped
    found = apply_shift(same, digests(100), "cctv", spec=ChipSpec(side, "dlib"))
    assert np.ptp(found, axis=-1).max() == 0
    error = (found[..., 0].mean(0) - expected)[inner]
    assert np.abs(error).max() < 2.4  # six standard errors of a mean of 100
    assert abs(error.mean()) < 0.15


@pytest.mark.parametrize("spec", [DLIB, ARCFACE])
def test_a_mask_covers_the_lower_face_in_one_colour(spec: ChipSpec) -> None:
    chips = generate(3, 2, 3, spec).chips
    found = apply_shift(chips, digests(6), "mask", spec=spec)
    covered, free = mask_alpha(spec) == 1, mask_alpha(spec) == 0
    assert np.array_equal(found[:, free], chips[:, free])
    assert np.ptp(found[:, covered], axis=1).max() == 0
    assert 0.2 < covered.mean() < 0.5
    assert covered[: round(0.35 * spec.size)].sum() == 0


def test_masks_come_in_several_colours() -> None:
    chips = np.zeros((40, 150, 150, 3), np.uint8)
    middle = apply_shift(chips, digests(40), "mask", spec=DLIB)[:, 110, 75]
    assert len({tuple(colour) for colour in middle.tolist()}) == 4
