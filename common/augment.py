"""Random changes to chips for training, driven by a generator that the caller owns.

augment = build(AugmentConfig(mask=0.2), backbone.chip)
chips = augment(chips, generator)      # uint8 [B, S, S, 3] -> uint8 [B, S, S, 3]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from threading import Lock

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from common.errors import InputError
from common.face import ChipSpec
from common.occlusion import glasses_alpha, mask_alpha

Pixels = Tensor  # uint8 [3, S, S]
_GLOBAL_GENERATOR = Lock()


@dataclass(frozen=True)
class AugmentConfig:
    """How much of each change; 0 turns it off.

    Attributes:
        flip: probability of mirroring, in 0..1.
        rotation: largest angle either way, degrees in 0..180.
        crop: largest share of the side that is cut off, in 0..0.5.
        light: brightness and contrast are multiplied by 1 - light .. 1 + light, in 0..1.
        low_resolution: probability of a coarser image, in 0..1; its side is uniform between
            `coarsest` pixels and the chip's.
        coarsest: smallest side of a coarser image, in pixels.
        noise: largest standard deviation of Gaussian noise, in grey levels of 255.
        mask: probability of a face mask, in 0..1.
        glasses: probability of glasses, half of them dark, in 0..1.
    """

    flip: float = 0.5
    rotation: float = 8.0
    crop: float = 0.08
    light: float = 0.25
    low_resolution: float = 0.0
    coarsest: int = 24
    noise: float = 0.0
    mask: float = 0.0
    glasses: float = 0.0

    def __post_init__(self) -> None:
        most = {"rotation": 180.0, "crop": 0.5, "coarsest": 4096, "noise": 255.0}
        for field in fields(self):
            least = 1 if field.name == "coarsest" else 0
            value, top = getattr(self, field.name), most.get(field.name, 1.0)
            if not least <= value <= top:
                raise InputError(
                    f"augmentation {field.name} = {value}", hint=f"between {least} and {top:g}"
                )


Augment = Callable[[Tensor, torch.Generator], Tensor]


def build(config: AugmentConfig, spec: ChipSpec) -> Augment:
    """The augmentation of `config` for chips of `spec`.

    It maps uint8 [B, S, S, 3] to the same shape and type, each chip changed on its own, and takes
    all its randomness from the generator: one state of the generator gives one result, and the
    global generators of torch, numpy and Python are left as they were.
    """
    change = v2.Compose(_steps(config, spec))

    def augment(chips: Tensor, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(2**63 - 1, (len(chips),), generator=generator).tolist()
        changed = torch.empty_like(chips)
        with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
            for row, seed in enumerate(seeds):
                torch.default_generator.manual_seed(seed)
                changed[row] = change(chips[row].permute(2, 0, 1)).permute(1, 2, 0)
        return changed

    return augment


def _steps(config: AugmentConfig, spec: ChipSpec) -> list[Callable[[Pixels], Pixels]]:
    """What is worn comes first, then the pose, then the light, then the camera."""
    steps: list[Callable[[Pixels], Pixels]] = [v2.Identity()]
    if config.mask:
        steps.append(v2.RandomApply([_Wear(torch.tensor(mask_alpha(spec)))], config.mask))
    if config.glasses:
        pairs = [_Wear(torch.tensor(glasses_alpha(spec, dark=dark))) for dark in (False, True)]
        steps.append(v2.RandomApply([v2.RandomChoice(pairs)], config.glasses))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.rotation:
        steps.append(v2.RandomRotation(config.rotation, v2.InterpolationMode.BILINEAR))
    if config.crop:
        area = ((1 - config.crop) ** 2, 1.0)
        steps.append(v2.RandomResizedCrop(spec.size, area, (1.0, 1.0), antialias=True))
    if config.light:
        steps.append(v2.ColorJitter(brightness=config.light, contrast=config.light))
    if config.low_resolution:
        coarser = _LowResolution(min(config.coarsest, spec.size))
        steps.append(v2.RandomApply([coarser], config.low_resolution))
    if config.noise:
        steps.append(_Noise(config.noise))
    return steps


@dataclass(frozen=True, eq=False)
class _Wear:
    """Covers pixels in one random colour where `alpha` [S, S] says."""

    alpha: Tensor

    def __call__(self, pixels: Pixels) -> Pixels:
        colour = 255 * torch.rand(3, 1, 1)
        return (pixels * (1 - self.alpha) + colour * self.alpha).round().to(torch.uint8)


@dataclass(frozen=True)
class _LowResolution:
    """Shrinks to a random side of at least `coarsest`, and enlarges again."""

    coarsest: int

    def __call__(self, pixels: Pixels) -> Pixels:
        side = pixels.shape[-1]
        coarse = int(torch.randint(self.coarsest, side + 1, ()))
        small = F.resize(pixels, [coarse, coarse], antialias=True)
        return torch.as_tensor(F.resize(small, [side, side], antialias=True))


@dataclass(frozen=True)
class _Noise:
    """Adds Gaussian noise whose standard deviation is uniform in 0..`most`."""

    most: float

    def __call__(self, pixels: Pixels) -> Pixels:
        noise = self.most * torch.rand(()) * torch.randn(pixels.shape)
        return (pixels + noise).round().clamp(0, 255).to(torch.uint8)
