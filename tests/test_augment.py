"""Augmentation does what its configuration says, repeatably, and disturbs no one's randomness."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from common.augment import AugmentConfig, build
from common.errors import InputError
from common.face import ChipSpec
from common.occlusion import glasses_alpha, mask_alpha
from simulations.people import generate

SPEC = ChipSpec(112, "arcface")
OFF = {"flip": 0.0, "rotation": 0.0, "crop": 0.0, "light": 0.0}
ALL = AugmentConfig(low_resolution=0.5, noise=6.0, mask=0.5, glasses=0.5)


@pytest.fixture(scope="module")
def chips() -> Tensor:
    return torch.from_numpy(generate(4, 2, 3, SPEC).chips)


def changed(chips: Tensor, seed: int = 0, **config: float) -> Tensor:
    only = AugmentConfig(**{**OFF, **config})  # type: ignore[arg-type]
    return build(only, SPEC)(chips, torch.Generator().manual_seed(seed))


def test_a_seed_gives_one_result_and_another_seed_another(chips: Tensor) -> None:
    augment = build(ALL, SPEC)
    first, again, other = (augment(chips, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.dtype == torch.uint8
    assert first.shape == chips.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_generator_goes_on_from_call_to_call(chips: Tensor) -> None:
    augment, generator = build(ALL, SPEC), torch.Generator().manual_seed(1)
    assert not torch.equal(augment(chips, generator), augment(chips, generator))


def test_the_global_generators_are_left_alone_and_have_no_say(chips: Tensor) -> None:
    augment = build(ALL, SPEC)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.RandomState(5).rand()
    first = augment(chips, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.rand() == before[2]
    torch.manual_seed(6)
    assert torch.equal(augment(chips, torch.Generator().manual_seed(1)), first)


def test_the_input_is_not_changed_and_all_off_changes_nothing(chips: Tensor) -> None:
    copy = chips.clone()
    build(ALL, SPEC)(chips, torch.Generator().manual_seed(1))
    assert torch.equal(chips, copy)
    assert torch.equal(changed(chips), chips)


def test_images_of_one_batch_are_changed_differently(chips: Tensor) -> None:
    same = chips[:1].repeat(6, 1, 1, 1)
    found = build(AugmentConfig(), SPEC)(same, torch.Generator().manual_seed(1))
    assert len({row.numpy().tobytes() for row in found}) == 6


def test_flip_mirrors_about_as_often_as_asked(chips: Tensor) -> None:
    many = chips[:1].repeat(200, 1, 1, 1)
    found = changed(many, flip=0.3)
    mirrored = (found == many.flip(2)).flatten(1).all(1)
    assert (mirrored | (found == many).flatten(1).all(1)).all()
    assert 35 <= int(mirrored.sum()) <= 85  # 60 +- 4 standard deviations


def test_rotation_moves_the_corners_and_keeps_the_centre() -> None:
    ramp = torch.arange(112, dtype=torch.uint8).view(1, 1, 112, 1).expand(8, 112, 112, 3)
    found = changed(ramp.contiguous(), rotation=10.0).float()
    down = found[:, 66, 56, 0] - found[:, 46, 56, 0]  # 20 sin(angle): at most 3.5, rounded
    assert down.abs().max() <= 4.5
    assert down.std() > 1
    assert (found[:, 56, 66, 0] - found[:, 56, 46, 0] - 20).abs().max() <= 1
    assert (found[:, 55:57, 55:57, 0].mean((1, 2)) - 55.5).abs().max() <= 1


def test_crop_enlarges_by_no_more_than_asked() -> None:
    ramp = torch.arange(112, dtype=torch.uint8).view(1, 1, 112, 1).expand(20, 112, 112, 3)
    found = changed(ramp.contiguous(), crop=0.25).float()
    width = found[:, 56, 111, 0] - found[:, 56, 0, 0] + 1
    assert width.min() >= 112 * 0.75 - 2
    assert width.min() < 100
    assert width.max() <= 112


def test_light_scales_brightness_within_bounds() -> None:
    grey = torch.full((40, 112, 112, 3), 100, dtype=torch.uint8)
    levels = changed(grey, light=0.3)[:, 0, 0, 0].float()
    assert levels.min() >= 69
    assert levels.max() <= 131
    assert levels.std() > 5


def test_low_resolution_removes_detail_and_keeps_the_mean(chips: Tensor) -> None:
    found = changed(chips, low_resolution=1.0, coarsest=8).float()
    rough = (chips.float()[:, :, 1:] - chips.float()[:, :, :-1]).abs().mean()
    assert (found[:, :, 1:] - found[:, :, :-1]).abs().mean() < rough
    assert (found.mean((1, 2, 3)) - chips.float().mean((1, 2, 3))).abs().max() < 2


def test_noise_has_at_most_the_asked_deviation() -> None:
    grey = torch.full((30, 112, 112, 3), 128, dtype=torch.uint8)
    deviations = (changed(grey, noise=10.0).float() - 128).flatten(1).std(1)
    assert deviations.max() < 10.5
    assert deviations.max() > 7
    assert deviations.min() < 4


@pytest.mark.parametrize("worn", ["mask", "glasses"])
def test_what_is_worn_covers_its_place_and_nothing_else(chips: Tensor, worn: str) -> None:
    if worn == "mask":
        untouched = mask_alpha(SPEC) == 0
    else:
        untouched = (glasses_alpha(SPEC, dark=True) + glasses_alpha(SPEC, dark=False)) == 0
    found = changed(chips, mask=float(worn == "mask"), glasses=float(worn == "glasses"))
    outside = torch.from_numpy(untouched)
    assert torch.equal(found[:, outside], chips[:, outside])
    assert (found[:, ~outside] != chips[:, ~outside]).float().mean() > 0.3


@pytest.mark.parametrize("spec", [SPEC, ChipSpec(150, "dlib"), ChipSpec(64, "dlib")])
def test_a_mask_covers_the_mouth_and_glasses_the_eyes(spec: ChipSpec) -> None:
    eyes, mouth = {
        "arcface": (((38, 52), (74, 52)), ((42, 92), (56, 95), (71, 92))),
        "dlib": (((35, 33), (77, 33)), ((38, 76), (56, 80), (74, 76))),
    }[spec.template]
    scale = spec.size / 112
    mask, dark = mask_alpha(spec), glasses_alpha(spec, dark=True)
    clear = glasses_alpha(spec, dark=False)
    for x, y in eyes:
        place = round(y * scale), round(x * scale)
        assert mask[place] == 0
        assert clear[place] == 0
        assert dark[place] > 0.8
    for x, y in mouth:
        place = round(y * scale), round(x * scale)
        assert mask[place] == 1
        assert dark[place] == 0


@pytest.mark.parametrize(
    "wrong",
    [{"flip": 1.1}, {"mask": -0.1}, {"crop": 0.6}, {"noise": float("nan")}, {"coarsest": 0}],
)
def test_a_value_out_of_range_is_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=name):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
