"""Test data as another camera would have made it: the same shift for every run and machine.

    shifted = apply_shift(chips.chips, chips.digests, "cctv", spec=backbone.chip)

What is random about a shifted image depends on the SHA-256 of its file and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.cameras import bilinear, by_area
from common.face import ChipSpec, grey_chips
from common.occlusion import mask_alpha, paint
from common.randomness import KeyStream, derive_key
from common.vocabulary import Shift
from simulations import site_cameras
from simulations.site_cameras import Chips

CAMERA_SIDE = 24
CAMERA_NOISE = 4.0
MASK_COLOURS = np.array(
    [[236, 239, 241], [176, 206, 220], [70, 95, 140], [38, 40, 44]], dtype=np.uint8
)
AT_ONCE = 256
Camera = Callable[[Chips, NDArray[np.uint8], ChipSpec], Chips]


def apply_shift(
    chips: NDArray[np.uint8], digests: NDArray[np.uint8], shift: Shift, *, spec: ChipSpec
) -> NDArray[np.uint8]:
    """Chips [N, S, S, 3] and the digests [N, 32] of their files -> shifted chips [N, S, S, 3].

    `none`: the chips themselves. `cctv`: shrunk by area to 24 x 24, grey, Gaussian noise of
    standard deviation 4 (of 255), enlarged bilinearly to S. `mask`: the lower face covered, from
    the bridge of the nose to the chin, by a mask in one of four colours. The others are described
    in `simulations.site_cameras`.
    """
    if shift == "none":
        return chips
    degrade = _CAMERAS[shift]
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


def _low_light(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    side = site_cameras.DARK_SIDE
    uniform, normal = _drawn(digests, "low-light", 1, 3 * side**2)
    return site_cameras.low_light(chips, uniform, normal.reshape(-1, 3, side, side))


def _near_infrared(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    side = site_cameras.INFRARED_SIDE
    uniform, normal = _drawn(digests, "near-infrared", 2, side**2)
    return site_cameras.near_infrared(chips, uniform, normal.reshape(-1, 1, side, side))


def _video(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    return site_cameras.video(chips, _drawn(digests, "video", 1)[0])


def _tiny(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    side = site_cameras.TINY_SIDE
    drawn = _drawn(digests, "tiny", 0, 3 * side**2)
    return site_cameras.tiny(chips, drawn[1].reshape(-1, 3, side, side))


def _fisheye(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    return site_cameras.fisheye(chips, _drawn(digests, "fisheye", 3)[0])


def _motion(chips: Chips, digests: NDArray[np.uint8], _: ChipSpec) -> Chips:
    return site_cameras.motion(chips, _drawn(digests, "motion", 2)[0])


_CAMERAS: Final[dict[Shift, Camera]] = {
    "cctv": _cctv,
    "mask": _mask,
    "low-light": _low_light,
    "near-infrared": _near_infrared,
    "video": _video,
    "tiny": _tiny,
    "fisheye": _fisheye,
    "motion": _motion,
}


def _drawn(
    digests: NDArray[np.uint8], name: str, uniform: int, normal: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Numbers of each image alone: uniform on (0, 1] and standard normal, [n, so many] each."""
    flat, bell = np.empty((len(digests), uniform)), np.empty((len(digests), normal))
    for row, digest in enumerate(digests):
        stream = KeyStream(derive_key(digest.tobytes(), name), private=False)
        flat[row], bell[row] = stream.uniform(uniform), stream.standard_normal(normal)
    return flat.astype(np.float32), bell.astype(np.float32)


def _noise(digest: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sensor noise [24, 24] of the image with this digest."""
    stream = KeyStream(derive_key(digest.tobytes(), "cctv"), private=False)
    drawn = CAMERA_NOISE * stream.standard_normal(CAMERA_SIDE**2)
    return drawn.reshape(CAMERA_SIDE, CAMERA_SIDE).astype(np.float32)
