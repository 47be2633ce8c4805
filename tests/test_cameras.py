"""Views by cameras nobody has seen are what they promise, and come from the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.cameras import jittered, randomised
from common.face import ChipSpec
from common.randomness import experiment_generator
from simulations.people import generate

SIDE = 150
VIEWS = {"jittered": jittered, "randomised": randomised}


@pytest.fixture(scope="module")
def chips() -> Tensor:
    return torch.from_numpy(generate(3, 2, 3, ChipSpec(SIDE, "dlib")).chips)


def of_grey(level: int, count: int) -> Tensor:
    return torch.full((count, SIDE, SIDE, 3), level, dtype=torch.uint8)


def ramp(count: int) -> Tensor:
    """Chips whose red rises by one level a pixel to the right, and whose green by one downwards."""
    levels = torch.arange(SIDE, dtype=torch.uint8)
    chip = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    chip[..., 0], chip[..., 1] = levels, levels[:, None]
    return chip.expand(count, SIDE, SIDE, 3).contiguous()


def drawn(seed: int = 0) -> np.random.Generator:
    return experiment_generator(seed, "test")


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_the_generators_alone_and_never_the_same_twice(chips: Tensor, name: str) -> None:
    view, copy, generator = VIEWS[name], chips.clone(), drawn()
    first, second = view(chips, generator), view(chips, generator)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(view(chips, drawn()), first)
    assert torch.equal(chips, copy)
    assert first.shape == chips.shape
    assert first.dtype == torch.uint8
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(view(chips, drawn(1)), first)


@pytest.mark.parametrize("name", VIEWS)
def test_no_images_give_no_views(chips: Tensor, name: str) -> None:
    assert VIEWS[name](chips[:0], drawn()).shape == (0, SIDE, SIDE, 3)


def test_half_of_the_unknown_cameras_are_grey() -> None:
    coloured = ramp(200)
    grey = (randomised(coloured, drawn()).float().std(-1) == 0).flatten(1).all(1)
    assert 70 <= int(grey.sum()) <= 130  # 100 +- four standard errors


def test_noise_of_unknown_cameras_is_of_their_pixels_and_lies_between_0_and_8() -> None:
    seen = randomised(of_grey(128, 300), drawn()).float() - 128
    deviation = seen[..., 0].flatten(1).std(1)  # bilinear enlargement takes up to a third of it
    assert deviation.max() < 8
    assert deviation.max() > 4
    assert deviation.min() < 0.5
    assert abs(float(seen.mean())) < 0.1


def test_sides_of_unknown_cameras_are_log_uniform_between_16_and_96() -> None:
    """A step of black to white is as wide as a camera's pixel when enlarged."""
    step = of_grey(0, 300)
    step[:, :, SIDE // 2 :] = 255
    profile = randomised(step, drawn()).float().mean((1, 3))  # noise averaged over rows
    between = ((profile > 0.1 * 255) & (profile < 0.9 * 255)).sum(1) / 0.8
    # an odd side has a pixel half black, half white: the step is two pixels wide there
    wide, narrow = float(between.max()), float(between.min())
    assert 2 * SIDE / 16 * 0.7 < wide < 2 * SIDE / 16 * 1.2
    assert narrow < 2 * SIDE / 96 * 1.2
    coarse = float((between > 1.5 * SIDE / 39.2).float().mean())  # 39.2 is the median side
    assert 0.3 < coarse < 0.7


def test_a_chip_smaller_than_a_cameras_side_is_not_enlarged_by_it() -> None:
    small = torch.full((20, 12, 12, 3), 100, dtype=torch.uint8)
    assert (randomised(small, drawn()).float().mean((1, 2, 3)) - 100).abs().max() < 5


def test_half_of_the_second_looks_are_mirrored_and_all_are_turned_a_little() -> None:
    seen = jittered(ramp(400), drawn()).float()
    # contrast and light change levels, so geometry is read where they cancel: the ratio of slopes
    across = seen[:, 75, 95, :2] - seen[:, 75, 55, :2]
    down = seen[:, 95, 75, :2] - seen[:, 55, 75, :2]
    # blue is flat but for light: its slope is what light adds to the others
    across, down = (
        across - (seen[:, 75, 95, 2] - seen[:, 75, 55, 2])[:, None],
        down - (seen[:, 95, 75, 2] - seen[:, 55, 75, 2])[:, None],
    )
    good = (seen[:, 50:100, 50:100].flatten(1).amin(1) > 0) & (
        seen[:, 50:100, 50:100].flatten(1).amax(1) < 255
    )
    assert int(good.sum()) > 100
    mirrored = across[good, 0] < 0
    assert 0.35 < float(mirrored.float().mean()) < 0.65
    assert (down[good, 1] > 0).all()  # never upside down
    angle = torch.rad2deg(torch.atan2(across[good, 1], down[good, 1]))
    assert 2.5 < float(angle.std()) < 4.5


def test_second_looks_are_shifted_and_scaled_a_little() -> None:
    dots = of_grey(0, 500)
    dots[:, 73:77, 35:39] = dots[:, 73:77, 111:115] = 160  # 76 pixels apart, about the middle
    seen = (jittered(dots, drawn()).float().sum(-1) > 3 * 80).float()
    halves = seen.view(len(seen), SIDE, 2, SIDE // 2)  # [N, down, half, across]
    total = halves.sum((1, 3))  # [N, half]
    found = ((total > 6) & (total < 30)).all(1)  # in the others light hides the dots
    assert int(found.sum()) > 300
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    down = (seen[found].sum(2) * place).sum(1) / total[found].sum(1)
    dots_at = ((halves.sum(1) * place.view(2, -1)).sum(2) / total)[found]
    assert abs(float(down.std()) - 3) < 0.6  # 2% of 150
    assert abs(float(dots_at.mean(1).std()) - 3) < 0.6
    assert abs(float((dots_at[:, 1] - dots_at[:, 0]).std() / 76) - 0.03) < 0.008


def test_light_changes_as_promised() -> None:
    seen = jittered(of_grey(128, 500), drawn()).float()[..., 0]
    middle = seen[:, 74:76, 74:76].mean((1, 2)) - 128
    right, left = seen[:, 75, -1], seen[:, 75, 0]
    free = (seen.amin((1, 2)) > 0) & (seen.amax((1, 2)) < 255)
    assert abs(float(middle.std()) - 18) < 2.5  # four standard errors of a deviation of 500
    assert abs(float(((right - left) / 2)[free].std()) - 18) < 2.5


def test_contrast_changes_as_promised_about_the_mean() -> None:
    two = of_grey(118, 500)
    two[:, 50:100, 50:100] = 138
    seen = jittered(two, drawn()).float()[..., 0]
    # the square in the middle over the mean of its left and right, above and below: light cancels
    around = (seen[:, 75, 25] + seen[:, 75, 125] + seen[:, 25, 75] + seen[:, 125, 75]) / 4
    ratio = torch.log((seen[:, 75, 75] - around) / 20)
    assert abs(float(ratio.std()) - 0.2) < 0.03
    assert abs(float(ratio.mean())) < 0.04
