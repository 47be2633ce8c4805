"""Test data as another camera would have made it: the same shift for every run and machine.

    shifted = apply_shift(chips.chips, chips.digests, "cctv", spec=backbone.chip)

What is random about a shifted image depends on the SHA-256 of its file and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.cameras import bilinear, by_area
from common.face import ChipSpec, grey_chips
from common.occlusion import mask_alpha, paint
from common.randomness import KeyStream, derive_key
from common.vocabulary import Shift

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


def apply_shifts(
    chips: NDArray[np.uint8],
    digests: NDArray[np.uint8],
    camera: NDArray[np.int64],
    shifts: Sequence[Shift],
    *,
    spec: ChipSpec,
) -> NDArray[np.uint8]:
    """Apply to each row the shift of its own camera, which `camera` [N] gives as an index."""
    seen = np.empty_like(chips)
    for number, shift in enumerate(shifts):
        rows = np.flatnonzero(camera == number)
        seen[rows] = apply_shift(chips[rows], digests[rows], shift, spec=spec)
    return seen


def _cctv(
    chips: NDArray[np.uint8], digests: NDArray[np.uint8], spec: ChipSpec
) -> NDArray[np.uint8]:
    grey = grey_chips(chips)[..., 0].astype(np.float32)  # [N, S, S]
    shrink, enlarge = by_area(spec.size, CAMERA_SIDE), bilinear(spec.size, CAMERA_SIDE)
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
