"""Brushes: soft shapes, edges and noise, all anti-aliased by distance instead of supersampling.

Only + - * / and square roots touch pixels: IEEE 754 rounds each correctly, so that a seed gives
the same picture on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Float32 wherever there are pixels; numpy's own types lose that at `array * float`."""


def dome(squared: Array) -> Array:
    """A smooth bump of compact support: (1 - r^2)^2 inside the unit circle, from r^2."""
    inside: Array = np.maximum(1 - squared, 0)
    inside *= inside
    return inside


def stroke(distance: Array, half: float, pixel: float) -> Array:
    """A soft line: 1 on it, 0 from `half` plus half a pixel away; never thinner than a pixel."""
    return dome((distance * (1 / (half + 0.5 * pixel))) ** 2)


def unit(value: Array) -> Array:
    """Cut to 0..1."""
    cut: Array = np.minimum(np.maximum(value, 0), 1)
    return cut


def edge(distance: Array, width: float) -> Array:
    """Coverage in 0..1 of a shape from the signed distance to its edge (positive inside)."""
    return unit(distance * (1 / width) + 0.5)


def smooth(value: Array) -> Array:
    """The cubic step of a value in 0..1."""
    step: Array = value * value * (3 - 2 * value)
    return step


def over(below: Array, colour: Sequence[float | Array] | Array, cover: Array) -> None:
    """Lay three channels of `colour` over `below`, float32 [3, H, W], in place."""
    for channel in range(3):
        below[channel] += (colour[channel] - below[channel]) * cover


def clouds(rng: np.random.Generator, cell: float, rows: int, columns: int) -> Array:
    """Smooth noise around 0 with features of `cell` pixels, float32 [rows, columns]."""
    knots = rng.standard_normal((int(rows / cell) + 2, int(columns / cell) + 2), dtype=np.float32)

    def between(count: int) -> tuple[NDArray[np.intp], Array]:
        at = np.arange(count, dtype=np.float32) * np.float32(1 / cell)
        low = at.astype(np.intp)
        return low, smooth(at - low)

    row, part = between(rows)
    lines = knots[row] + (knots[row + 1] - knots[row]) * part[:, None]
    column, part = between(columns)
    left = lines.take(column, 1)
    left += (lines.take(column + 1, 1) - left) * part
    return left
