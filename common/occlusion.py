"""Masks and glasses drawn on aligned faces, for augmentation and for shifted test data.

Shapes are given once, in units of the distance between the eyes with the origin midway between
them, x to the right and y down; a chip template only says where the eyes lie.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.detection import Point
from common.face import ChipSpec

Alpha = NDArray[np.float32]

# Midpoint and distance of the eyes as fractions of the chip's side: for dlib the median over
# 399 LFW chips, for ArcFace its own template.
EYES = {"dlib": ((0.5, 0.301), 0.374), "arcface": ((0.4993, 0.4607), 0.3146)}
FINER = 4

HALF_MASK: tuple[Point, ...] = (
    (0.0, 0.28),
    (0.22, 0.36),
    (0.55, 0.46),
    (0.98, 0.38),
    (0.95, 0.80),
    (0.80, 1.30),
    (0.48, 1.70),
    (0.0, 1.86),
)


@lru_cache(maxsize=8)
def mask_alpha(spec: ChipSpec) -> Alpha:
    """Coverage float32 [S, S] in 0..1 of a surgical mask from the nose bridge to the chin."""
    canvas = _Canvas(spec)
    left = tuple((-x, y) for x, y in reversed(HALF_MASK[1:-1]))
    canvas.draw.polygon([canvas.at(x, y) for x, y in HALF_MASK + left], fill=255)
    return canvas.alpha()


@lru_cache(maxsize=8)
def glasses_alpha(spec: ChipSpec, *, dark: bool) -> Alpha:
    """Coverage float32 [S, S] in 0..1 of the frames of glasses, or of sunglasses if `dark`."""
    canvas = _Canvas(spec)
    draw, at, stroke = canvas.draw, canvas.at, canvas.stroke
    for side in (-1, 1):
        corners = (at(side * 0.5 - 0.36, -0.24), at(side * 0.5 + 0.36, 0.32))
        inside = 235 if dark else 0
        draw.rounded_rectangle(corners, 0.24 * canvas.unit, inside, outline=255, width=stroke)
        draw.line((at(side * 0.86, -0.08), at(side * 1.15, -0.12)), fill=255, width=stroke)
    draw.line((at(-0.14, -0.04), at(0.14, -0.04)), fill=255, width=stroke)
    return canvas.alpha()


def paint(chips: NDArray[np.uint8], alpha: Alpha, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Chips [N, S, S, 3] covered by `colours` [N, 3] where `alpha` [S, S] says, as new chips."""
    cover = alpha[:, :, None]
    mixed = chips * (1 - cover) + colours[:, None, None, :] * cover
    return np.rint(mixed).astype(np.uint8)


class _Canvas:
    """A drawing `FINER` times finer than the chip, in units of the distance between the eyes."""

    def __init__(self, spec: ChipSpec) -> None:
        side = spec.size * FINER
        (self._x, self._y), distance = EYES[spec.template]
        self._side, self._size, self.unit = side, spec.size, distance * side
        self.image = Image.new("L", (side, side))
        self.draw = ImageDraw.Draw(self.image)
        self.stroke = max(1, round(0.06 * self.unit))

    def at(self, x: float, y: float) -> Point:
        return self._x * self._side + x * self.unit, self._y * self._side + y * self.unit

    def alpha(self) -> Alpha:
        small = self.image.resize((self._size, self._size), Image.Resampling.BOX)
        return np.asarray(small, np.float32) / np.float32(255)
