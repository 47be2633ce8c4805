"""Chips as cameras nobody has seen would give them, for what public images are to teach.

    view = randomised(jittered(chips, generator), generator)      # uint8 [N, S, S, 3]

A server that does not know the cameras of its sites shows the public bank through many plausible
ones. Whatever is random comes from the generator: one state of it gives one result.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

AT_ONCE = 128

# Of cameras that are not known: the side of the face in their pixels, and their sensors' noise.
COARSEST, FINEST = 16, 96
MOST_NOISE = 8.0  # standard deviation, in grey levels of 255
GREY = 0.5
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601

# Of a second look at the same face by the same camera, as standard deviations.
ROTATION = np.deg2rad(3.5)
SCALE = 0.03
SHIFT = 0.02  # of the chip's side
CONTRAST = 0.2  # of its logarithm
BRIGHTNESS = 18.0  # grey levels
RAMP = 18.0  # grey levels from the middle to the border, each axis
MIRRORED = 0.5


def randomised(chips: Tensor, generator: np.random.Generator) -> Tensor:
    """Chips uint8 [N, S, S, 3] -> each through a camera of its own, uint8 [N, S, S, 3].

    A camera shrinks by area to a side that is log-uniform between 16 and 96 pixels (at most S),
    is grey with probability 1/2, adds Gaussian noise whose standard deviation is uniform between 0
    and 8 to each of its pixels, and is shown enlarged bilinearly.
    """
    count, size = len(chips), chips.shape[1]
    finest = min(FINEST, size)
    sides = np.exp(generator.uniform(np.log(min(COARSEST, size)), np.log(finest), count))
    grey = torch.from_numpy(generator.random(count) < GREY)
    noise = torch.from_numpy(generator.uniform(0, MOST_NOISE, count)).float()
    shown = torch.empty_like(chips)
    for start in range(0, count, AT_ONCE):
        part = slice(start, min(start + AT_ONCE, count))
        taken = np.rint(sides[part]).astype(int).tolist()
        largest = max(taken)
        shrink = torch.from_numpy(np.stack([_padded(by_area(size, n), largest) for n in taken]))
        enlarge = torch.from_numpy(np.stack([_padded(bilinear(size, n).T, largest) for n in taken]))
        shape = (len(taken), 3, largest, largest)
        sensor = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        pixels = chips[part].permute(0, 3, 1, 2).float()  # [n, 3, S, S]
        dull = grey[part, None, None, None]
        luma = (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        pixels = torch.where(dull, luma, pixels)
        sensor = torch.where(dull, sensor[:, :1], sensor)
        seen = shrink[:, None] @ pixels @ shrink[:, None].mT  # [n, 3, side, side], zero beyond
        seen = (seen + sensor * noise[part, None, None, None]).round().clamp(0, 255)
        large = enlarge[:, None].mT @ seen @ enlarge[:, None]
        shown[part] = large.round().to(torch.uint8).permute(0, 2, 3, 1)
    return shown


def jittered(chips: Tensor, generator: np.random.Generator) -> Tensor:
    """Chips uint8 [N, S, S, 3] -> a second look at each of them, uint8 [N, S, S, 3].

    Standard deviations: rotation 3.5 degrees, scale 3%, shift 2% of the side on each axis,
    logarithm of contrast 0.2 (about the chip's mean), brightness 18 grey levels, and light that
    changes by 18 from the middle to the border on each axis; half of them are mirrored. What lies
    beyond the border of a chip is its mirror image.
    """
    count, size = len(chips), chips.shape[1]
    draws = torch.from_numpy(generator.standard_normal((8, count))).float()
    flip = torch.from_numpy(np.where(generator.random(count) < MIRRORED, -1.0, 1.0)).float()
    angle, scale = ROTATION * draws[0], 1 + SCALE * draws[1]
    across, down = 2 * SHIFT * draws[2], 2 * SHIFT * draws[3]  # the chip reaches from -1 to 1
    contrast, brightness = torch.exp(CONTRAST * draws[4]), BRIGHTNESS * draws[5]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    onto = torch.stack([flip * cos, -flip * sin, flip * across, sin, cos, down], 1).view(-1, 2, 3)
    axis = torch.linspace(-1, 1, size)
    shown = torch.empty_like(chips)
    for start in range(0, count, AT_ONCE):
        part = slice(start, min(start + AT_ONCE, count))
        pixels = chips[part].permute(0, 3, 1, 2).float()  # [n, 3, S, S]
        grid = affine_grid(onto[part], list(pixels.shape), align_corners=False)
        moved = grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        light = RAMP * (
            draws[6, part, None, None] * axis + draws[7, part, None, None] * axis[:, None]
        )
        middle = moved.mean((1, 2, 3), keepdim=True)
        moved = (moved - middle) * contrast[part, None, None, None] + middle
        moved += (light + brightness[part, None, None])[:, None]
        shown[part] = moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return shown


@lru_cache(maxsize=256)
def by_area(size: int, side: int) -> NDArray[np.float32]:
    """[side, size]: the share of each pixel in each of `side` equal intervals; rows sum to 1."""
    edges = np.linspace(0, size, side + 1)
    pixels = np.arange(size)
    upper = np.minimum(edges[1:, None], pixels + 1)
    lower = np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float64] = np.maximum(upper - lower, 0) * side / size
    return shares.astype(np.float32)


@lru_cache(maxsize=256)
def bilinear(size: int, side: int) -> NDArray[np.float32]:
    """[size, side]: linear interpolation between pixel centres, constant beyond the outer ones."""
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    apart = np.clip(centres, 0, side - 1)[:, None] - np.arange(side)
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(apart), 0)
    return weights.astype(np.float32)


def _padded(matrix: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The matrix with rows of zeros below: cameras of several sides in one product."""
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))
