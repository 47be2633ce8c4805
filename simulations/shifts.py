"""Test data as another camera would have made it: the same shift for every run and machine.

    shifted = apply_shift(chips.chips, chips.digests, "cctv", spec=backbone.chip)

What is random about a shifted image depends on the SHA-256 of its file and nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.face import ChipSpec, grey_chips
from common.occlusion import mask_alpha, paint
from common.randomness import KeyStream, derive_key

Shift = Literal["none", "cctv", "mask"]
SHIFTS: tuple[Shift, ...] = ("none", "cctv", "mask")

CAMERA_SIDE = 24
CAMERA_NOISE = 4.0
MASK_COLOURS = np.array(
    [[236, 239, 241], [176, 206, 220], [70, 95, 140], [38, 40, 44]], dtype=np.uint8
)
AT_ONCE = 256


def apply_shift(
    chips: NDArray[np.uint8], digests: NDArray[np.uint8], shift: Shift, *, spec: ChipSpec
) -> NDArray[np.uint8]:
    """Chips [N, S, S, 3] and the digests [N, 32] of their files -> shifted chips [N, S, S, 3].

    `none`: the chips themselves. `cctv`: shrunk by area to 24 x 24, grey, Gaussian noise of
    standard deviation 4 (of 255), enlarged bilinearly to S. `mask`: the lower face covered, from
    the bridge of the nose to the chin, by a mask in one of four colours.
    """
    if shift == "none":
        return chips
    degrade = _cctv if shift == "cctv" else _mask
    shifted = np.empty_like(chips)
    for start in range(0, len(chips), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        shifted[part] = degrade(chips[part], digests[part], spec)
    return shifted


def _cctv(
    chips: NDArray[np.uint8], digests: NDArray[np.uint8], spec: ChipSpec
) -> NDArray[np.uint8]:
    grey = grey_chips(chips)[..., 0].astype(np.float32)  # [N, S, S]
    shrink, enlarge = _by_area(spec.size), _bilinear(spec.size)
    small = shrink @ grey @ shrink.T  # [N, 24, 24]
    noise = np.stack([_noise(digest) for digest in digests])
    camera = np.clip(np.rint(small + noise), 0, 255)
    shown = np.rint(enlarge @ camera @ enlarge.T).astype(np.uint8)  # [N, S, S]
    return np.repeat(shown[..., None], 3, axis=-1)


def _mask(
    chips: NDArray[np.uint8], digests: NDArray[np.uint8], spec: ChipSpec
) -> NDArray[np.uint8]:
    colours = MASK_COLOURS[digests[:, 0] % len(MASK_COLOURS)]
    return paint(chips, mask_alpha(spec), colours)


def _noise(digest: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sensor noise [24, 24] of the image with this digest."""
    stream = KeyStream(derive_key(digest.tobytes(), "cctv"), private=False)
    drawn = CAMERA_NOISE * stream.standard_normal(CAMERA_SIDE**2)
    return drawn.reshape(CAMERA_SIDE, CAMERA_SIDE).astype(np.float32)


@lru_cache(maxsize=4)
def _by_area(size: int) -> NDArray[np.float32]:
    """[24, size]: the share of each pixel in each of 24 equal intervals; rows sum to 1."""
    edges = np.linspace(0, size, CAMERA_SIDE + 1)
    pixels = np.arange(size)
    upper = np.minimum(edges[1:, None], pixels + 1)
    lower = np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float64] = np.maximum(upper - lower, 0) * CAMERA_SIDE / size
    return shares.astype(np.float32)


@lru_cache(maxsize=4)
def _bilinear(size: int) -> NDArray[np.float32]:
    """[size, 24]: linear interpolation between pixel centres, constant beyond the outer ones."""
    centres = (np.arange(size) + 0.5) * CAMERA_SIDE / size - 0.5
    apart = np.clip(centres, 0, CAMERA_SIDE - 1)[:, None] - np.arange(CAMERA_SIDE)
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(apart), 0)
    return weights.astype(np.float32)
