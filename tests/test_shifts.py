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
from simulations.shifts import apply_shift, apply_shifts

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


COUNT = 64
NEW: tuple[Shift, ...] = ("low-light", "near-infrared", "video", "tiny", "fisheye", "motion")


def grey_of(level: int, count: int) -> NDArray[np.uint8]:
    return np.full((count, 150, 150, 3), level, np.uint8)


def roughness(chips: NDArray[np.float32]) -> float:
    """Mean step from a pixel to the next: how much detail is left."""
    return float(np.abs(np.diff(chips, axis=2)).mean())


def through(chips: NDArray[np.uint8], shift: Shift) -> NDArray[np.float32]:
    return apply_shift(chips, digests(len(chips)), shift, spec=DLIB).astype(np.float32)


@pytest.mark.parametrize("shift", NEW)
def test_every_camera_changes_every_face_and_leaves_it_a_face(
    chips: NDArray[np.uint8], shift: Shift
) -> None:
    seen = through(chips, shift)
    before = chips.astype(np.float32)
    assert (seen != before).any((1, 2, 3)).all()
    middle = np.s_[:, 30:120, 30:120]
    for mine, its in zip(seen[middle].mean(-1), before[middle].mean(-1), strict=True):
        assert np.corrcoef(mine.ravel(), its.ravel())[0, 1] > 0.3
    first, second = apply_shift(chips[[0, 0]], digests(2), shift, spec=DLIB)
    assert not np.array_equal(first, second), "one picture in two files is seen twice"


def test_low_light_is_darker_and_its_noise_is_of_photons() -> None:
    deviation = {}
    for level in (120, 250):
        seen = through(grey_of(level, COUNT), "low-light")
        # a third of the light is 0.61 of the levels by a gamma of 2.2; noise bends it a little
        assert abs(seen.mean() / level - 3 ** (-1 / 2.2)) < 0.1
        deviation[level] = float(((seen / 255) ** 2.2).std(axis=(1, 2, 3)).mean())
    # Poisson: the deviation grows as the root of the light, slower than the light itself
    assert 1.5 < deviation[250] / deviation[120] < 0.7 * (250 / 120) ** 2.2


def test_near_infrared_is_grey_lit_from_the_middle_and_takes_red_for_skin() -> None:
    red, blue = grey_of(0, COUNT), grey_of(0, COUNT)
    red[..., 0] = blue[..., 2] = 150
    seen = through(red, "near-infrared")
    assert np.ptp(seen, axis=-1).max() == 0
    assert seen[:, 60:90, 60:90].mean() > 1.5 * seen[:, :15, :15].mean()
    assert through(blue, "near-infrared").mean() < 10


def test_video_keeps_flat_colour_and_loses_what_is_fine() -> None:
    flat = grey_of(0, COUNT)
    flat[...] = (200, 120, 90)
    seen = through(flat, "video")
    assert np.abs(seen.mean((0, 1, 2), dtype=np.float64) - (200, 120, 90)).max() < 12
    assert seen.std(axis=(1, 2)).max() < 1, "one block is as the other"
    rng = np.random.default_rng(0)
    faint = (128 + 6 * rng.standard_normal((8, 150, 150, 3))).astype(np.uint8)
    assert roughness(through(faint, "video")) < 0.1 * roughness(faint.astype(np.float32))


def test_tiny_is_sixteen_pixels_in_colour_and_a_little_noise() -> None:
    flat = grey_of(0, COUNT)
    flat[...] = (180, 120, 60)
    seen = through(flat, "tiny")
    assert np.abs(seen.mean((0, 1, 2), dtype=np.float64) - (180, 120, 60)).max() < 0.5
    assert 0.8 < seen.std(axis=0).mean() < 2
    step = grey_of(50, 8)
    step[:, :, 75:] = 200
    profile = through(step, "tiny").mean((0, 1, 3))
    assert 6 <= int(((profile > 60) & (profile < 190)).sum()) <= 12, "a pixel is 9.4 wide"


def test_fisheye_swells_the_middle_and_ends_in_a_black_rim() -> None:
    ramp = grey_of(50, COUNT)
    ramp += np.arange(150, dtype=np.uint8)[:, None]
    seen = through(ramp, "fisheye")
    slope = (seen[:, 75, 80, 0] - seen[:, 75, 70, 0]) / 10
    assert (slope > 0.4).all()
    assert (slope < 0.85).all(), "one pixel of before is more than one now"
    assert not seen[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (seen[:, 40:110, 40:110] > 0).all()


def test_motion_blurs_along_one_direction_and_keeps_the_light() -> None:
    dot = grey_of(0, COUNT)
    dot[:, 71:79, 71:79] = 255
    seen = through(dot, "motion")[..., 0]
    total = seen.sum((1, 2))
    assert np.abs(total / (64 * 255) - 1).max() < 0.05
    place = np.arange(150, dtype=np.float32) - 74.5
    across = (seen.sum(1) * place**2).sum(1) / total
    down = (seen.sum(2) * place**2).sum(1) / total
    both = np.einsum("nyx,y,x->n", seen, place, place) / total
    moments = np.stack([across, both, both, down], 1).reshape(-1, 2, 2)
    least, most = np.linalg.eigvalsh(moments).T
    own = 64 / 12  # of the dot itself
    assert np.abs(np.sqrt(least) - np.sqrt(own)).max() < 0.4
    length = np.sqrt(12 * (most - own))  # of a uniform line
    assert 0.04 * 150 < length.min() < 9
    assert 21 < length.max() < 0.16 * 150
    assert np.abs(through(grey_of(77, 4), "motion") - 77).max() == 0


def test_several_cameras_see_their_own_rows(chips: NDArray[np.uint8]) -> None:
    camera = np.array([1, 0, 2, 1, 0, 2])
    shifts: tuple[Shift, ...] = ("none", "tiny", "mask")
    seen = apply_shifts(chips, digests(6), camera, shifts, spec=DLIB)
    for row, number in enumerate(camera):
        one = slice(row, row + 1)
        alone = apply_shift(chips[one], digests(6)[one], shifts[number], spec=DLIB)
        assert np.array_equal(seen[one], alone)
