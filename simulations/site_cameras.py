"""Cameras as sites have them: chips [n, S, S, 3] and draws [n, ...] -> chips as they would look.

What is random about an image comes as numbers, so that a camera is a function and nothing else.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from common.cameras import bilinear, by_area

Chips = NDArray[np.uint8]
Draws = NDArray[np.float32]
Planes = NDArray[np.floating]

DARK_SIDE = 64
INFRARED_SIDE = 80
VIDEO_SIDE = 64
TINY_SIDE = 16
BLOCK = 8
# Annex K of the JPEG standard (ITU-T T.81), luminance: how coarsely each frequency is kept.
QUANTA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
# ITU-R 601, full range: RGB -> Y, Cb, Cr about zero.
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def low_light(chips: Chips, uniform: Draws, normal: Draws) -> Chips:
    """A dark room: few photons a pixel, their noise, and a gain that shows both.

    The sensor has 64 x 64 pixels a face. White gives 25 to 100 electrons (log-uniform), of which
    each pixel counts a Poisson number (as a Gaussian) with 2 electrons of read-out noise; the gain
    leaves the picture at a third of its light. `uniform` [n, 1], `normal` [n, 3, 64, 64].
    """
    seen = _shrunk(chips, DARK_SIDE)
    light = (seen / 255) ** 2.2  # [n, 3, 64, 64], linear
    white = 25 * 4 ** uniform[:, 0, None, None, None]
    electrons = light * white
    counted = np.maximum(electrons + np.sqrt(electrons + 4) * normal, 0)
    return _enlarged(255 * (counted / white / 3) ** (1 / 2.2), chips.shape[1])


def near_infrared(chips: Chips, uniform: Draws, normal: Draws) -> Chips:
    """A night camera with a lamp of its own: grey, pale smooth skin, bright in the middle.

    Red stands for near infrared, where skin of all colours reflects much; the lamp shines from a
    place near the middle and fades by a Gaussian. 80 x 80 pixels a face, noise of 4 grey levels.
    `uniform` [n, 2], `normal` [n, 1, 80, 80].
    """
    seen = _shrunk(chips, INFRARED_SIDE)
    red, green = seen[:, 0], seen[:, 1]
    reflected = 255 * ((0.9 * red + 0.1 * green) / 255) ** 0.6
    place = np.linspace(-1, 1, INFRARED_SIDE, dtype=np.float32)
    away = 0.6 * (uniform - 0.5)  # [n, 2]
    squared = (place - away[:, :1])[:, None, :] ** 2 + (place - away[:, 1:])[:, :, None] ** 2
    lit = (reflected * np.exp(-squared / (2 * 0.8**2)))[:, None] + 4 * normal
    return _enlarged(np.repeat(lit, 3, axis=1), chips.shape[1])


def video(chips: Chips, uniform: Draws) -> Chips:
    """A frame of a stream of few bits: 64 x 64 pixels a face in blocks of 8, colour at half.

    Each block's cosines are rounded to multiples of the JPEG standard's table, 1.5 to 3 times as
    coarse (log-uniform). `uniform` [n, 1].
    """
    seen = np.einsum("oc,nchw->nohw", TO_YCC, _shrunk(chips, VIDEO_SIDE))
    coarse = QUANTA * (1.5 * 2 ** uniform[:, 0, None, None])
    half, double = by_area(VIDEO_SIDE, VIDEO_SIDE // 2), bilinear(VIDEO_SIDE, VIDEO_SIDE // 2)
    luma = _rounded_blocks(seen[:, 0] - 128, coarse) + 128
    colour = [_rounded_blocks(half @ seen[:, c] @ half.T, coarse) for c in (1, 2)]
    shown = np.stack([luma, *(double @ plane @ double.T for plane in colour)], axis=1)
    back = np.linalg.inv(TO_YCC.astype(np.float64)).astype(np.float32)
    return _enlarged(np.einsum("oc,nchw->nohw", back, shown), chips.shape[1])


def tiny(chips: Chips, normal: Draws) -> Chips:
    """A face far away: 16 x 16 pixels in colour, noise of 2 levels. `normal` [n, 3, 16, 16]."""
    return _enlarged(_shrunk(chips, TINY_SIDE) + 2 * normal, chips.shape[1])


def fisheye(chips: Chips, uniform: Draws) -> Chips:
    """A door viewer's lens: the middle swells, the rest shrinks towards a black rim.

    What is seen at radius r (1 at the border) lies at r (a + (1 - a) r^2), a in 0.5 to 0.7, about
    a centre within 0.15 of the chip's; beyond radius 1.15 nothing is seen. `uniform` [n, 3].
    """
    size = chips.shape[1]
    place = np.linspace(-1, 1, size, dtype=np.float32)
    centre = 0.3 * (uniform[:, :2] - 0.5)  # [n, 2]
    across = np.broadcast_to((place - centre[:, :1])[:, None, :], (len(chips), size, size))
    down = np.broadcast_to((place - centre[:, 1:])[:, :, None], (len(chips), size, size))
    squared = across**2 + down**2
    middle = 0.5 + 0.2 * uniform[:, 2, None, None]
    factor = middle + (1 - middle) * squared
    at = np.stack([across * factor, down * factor], axis=-1) + centre[:, None, None]
    pixels = torch.from_numpy(np.ascontiguousarray(chips)).permute(0, 3, 1, 2).float()
    bent = grid_sample(pixels, torch.from_numpy(at.astype(np.float32)), align_corners=False)
    rim = np.clip((1.15 - np.sqrt(squared)) * size / 6, 0, 1)[:, None]
    return _as_chips(bent.numpy() * rim)


def motion(chips: Chips, uniform: Draws) -> Chips:
    """Somebody who walks: blurred along a line of 5% to 15% of the side in any direction.

    A line's transfer function is a sinc along it, so the blur is a product of spectra; what lies
    beyond the border is its mirror image. `uniform` [n, 2].
    """
    size = chips.shape[1]
    margin = int(np.ceil(0.15 * size))
    pad = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    pixels = np.pad(chips.astype(np.float32), pad, mode="symmetric")
    length = size * (0.05 + 0.10 * uniform[:, 0])
    angle = np.pi * uniform[:, 1]
    side = pixels.shape[1]
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)
    turns = (length * np.cos(angle))[:, None, None] * across
    turns = turns + (length * np.sin(angle))[:, None, None] * down[:, None]
    spectrum = torch.fft.rfft2(torch.from_numpy(pixels), dim=(1, 2))
    transfer = torch.from_numpy(np.sinc(turns).astype(np.float32))[..., None]
    blurred = torch.fft.irfft2(spectrum * transfer, s=(side, side), dim=(1, 2)).numpy()
    inner: NDArray[np.float32] = blurred[:, margin : margin + size, margin : margin + size]
    return _levels(inner)


def _shrunk(chips: Chips, side: int) -> NDArray[np.float32]:
    """By area, to planes float32 [n, 3, side, side]."""
    shrink = by_area(chips.shape[1], side)
    planes = np.moveaxis(chips, -1, 1).astype(np.float32)
    return (shrink @ planes @ shrink.T).astype(np.float32)


def _enlarged(planes: Planes, size: int) -> Chips:
    """What a sensor gives, in whole levels, shown bilinearly."""
    levels = np.clip(np.rint(planes), 0, 255)
    enlarge = bilinear(size, planes.shape[-1])
    return _as_chips(enlarge @ levels @ enlarge.T)


def _as_chips(planes: Planes) -> Chips:
    return np.ascontiguousarray(np.moveaxis(_levels(planes), 1, -1))


def _levels(light: Planes) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return whole


def _rounded_blocks(plane: NDArray[np.float32], quanta: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, side, side] with the cosines of each 8 x 8 block rounded to multiples of [n, 8, 8]."""
    count, side = plane.shape[:2]
    blocks = plane.reshape(count, side // BLOCK, BLOCK, side // BLOCK, BLOCK).swapaxes(2, 3)
    cosines = _cosines()
    step = quanta[:, None, None]
    kept = np.rint(cosines @ blocks @ cosines.T / step) * step
    back = (cosines.T @ kept @ cosines).swapaxes(2, 3)
    return back.reshape(count, side, side).astype(np.float32)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """The orthonormal discrete cosine transform of 8 points, [8, 8]."""
    rows, at = np.arange(BLOCK)[:, None], np.arange(BLOCK)
    matrix: NDArray[np.float64] = np.sqrt(2 / BLOCK) * np.cos(
        np.pi * (2 * at + 1) * rows / (2 * BLOCK)
    )
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)
