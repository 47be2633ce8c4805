"""A head: a stack of ellipses, one a millimetre of height, under a map of relief and skin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from simulations.people.drawing import Array, clouds, dome, unit
from simulations.people.traits import Identity

TOP: Final = -140
"""Height of the first row of every map, in millimetres below the pupils."""
BOTTOM: Final = 220
SIDE: Final = 108
ROWS: Final = BOTTOM - TOP + 1
COLUMNS: Final = 2 * SIDE + 1
"""A skin map has a cell a millimetre."""
RELIEF, TONE, RED, OPEN, BEARD, LINES = range(6)
"""Channels of a skin map: millimetres outwards; factor on the skin's colour; redness; how much
of the sky reaches it; density of beard; depth of wrinkles."""


@dataclass(frozen=True)
class Head:
    """One person's geometry and skin, ready to be looked up.

    `half_width`, `half_depth`: radii of the ellipse at each millimetre from TOP, float32 [361].
    `skin`: channels over a (y, x) grid, float32 [6, ROWS * COLUMNS].
    `strands`: the grain of the hair, float32 [64, 256].
    """

    half_width: Array
    half_depth: Array
    skin: Array
    strands: Array

    def radii(self, y: Array) -> tuple[Array, Array]:
        """Half width and half depth of the ellipses at heights y, linear between millimetres."""
        at = np.minimum(np.maximum(y - TOP, 0), BOTTOM - TOP - 1.001)
        low = at.astype(np.intp)
        at -= low
        high = low + 1
        wide, deep = self.half_width.take(low), self.half_depth.take(low)
        wide += (self.half_width.take(high) - wide) * at
        deep += (self.half_depth.take(high) - deep) * at
        return wide, deep

    def cells(self, x: Array, y: Array) -> NDArray[np.intp]:
        """The cell of the skin nearest to (x, y)."""
        column = np.minimum(np.maximum(x + (SIDE + 0.5), 0), COLUMNS - 1)
        row = np.minimum(np.maximum(y + (0.5 - TOP), 0), ROWS - 1)
        cell = row.astype(np.intp)
        cell *= COLUMNS
        cell += column.astype(np.intp)
        return cell

    def relief(self, x: Array, y: Array) -> Array:
        """Millimetres outwards at (x, y), bilinear."""
        u = np.minimum(np.maximum(x + SIDE, 0), COLUMNS - 1.001)
        v = np.minimum(np.maximum(y - TOP, 0), ROWS - 1.001)
        column, cell = u.astype(np.intp), v.astype(np.intp)
        u -= column
        v -= cell
        cell *= COLUMNS
        cell += column
        found: list[Array] = []
        for start in (0, COLUMNS):
            row = self.skin[RELIEF, start:]
            left, right = row.take(cell), row[1:].take(cell)
            right -= left
            right *= u
            left += right
            found.append(left)
        upper, lower = found
        lower -= upper
        lower *= v
        upper += lower
        return upper

    def point(self, x: float, y: float) -> float:
        """The depth z of the surface at one point, to the nearest cell."""
        row = min(max(int(y) - TOP, 0), BOTTOM - TOP)
        wide, deep = float(self.half_width[row]), float(self.half_depth[row])
        ratio = x / max(wide, 1.0)
        cell = int(y + 0.5 - TOP) * COLUMNS + int(x + SIDE + 0.5)
        return float(deep * max(1 - ratio * ratio, 0.0) ** 0.5 + float(self.skin[RELIEF, cell]))


def build_head(who: Identity, rng: np.random.Generator) -> Head:
    """Work out the geometry and the skin of one person; `rng` draws the textures."""
    wide, deep = _profiles(who)
    x = np.arange(-SIDE, SIDE + 1, 2, dtype=np.float32)[None, :]
    y = np.arange(TOP, BOTTOM + 1, 2, dtype=np.float32)[:, None]
    grid = _Grid(who, x, y)
    spots, stubble = rng.standard_normal((2, y.size, x.size), dtype=np.float32)
    blotches = clouds(rng, 13, y.size, x.size) + clouds(rng, 3.5, y.size, x.size)
    beard = grid.beard() * (0.8 + 0.25 * stubble)
    tone = 1 - who.mottle * 0.5 * blotches
    tone -= max(who.freckles, 0) * unit(spots - 1.2) * grid.blob(22, 22, 55, 48)
    maps = (
        grid.relief() + 2 * np.minimum(beard, 1),
        tone,
        grid.red(),
        grid.opened(),
        beard,
        grid.lines(),
    )
    skin = _doubled(np.stack([part.astype(np.float32) for part in maps]))
    strands = clouds(rng, 2, 64, 256) + 0.7 * clouds(rng, 8.5, 64, 256)
    return Head(wide, deep, skin.reshape(len(maps), -1), strands)


def _doubled(maps: Array) -> Array:
    """Maps [6, h, w] with a row and a column between each two: [6, 2h - 1, 2w - 1]."""
    count, rows, columns = maps.shape
    out = np.empty((count, 2 * rows - 1, 2 * columns - 1), np.float32)
    out[:, ::2, ::2] = maps
    out[:, ::2, 1::2] = (maps[:, :, 1:] + maps[:, :, :-1]) * 0.5
    out[:, 1::2] = (out[:, :-2:2] + out[:, 2::2]) * 0.5
    return out


def _profiles(who: Identity) -> tuple[Array, Array]:
    """Half width and half depth at every millimetre of height."""
    y = np.arange(TOP, BOTTOM + 1, dtype=np.float64)
    w, d, end, lips = who.face_width, who.head_depth, who.chin_y, who.lips_y
    knots = (TOP, -60, -10, 22, lips, 0.9 * end, end, BOTTOM)
    brow, cheek, jaw = w * who.forehead, 0.98 * w + 0.3 * who.cheek, w * who.jaw + 0.5 * who.cheek
    chin = w * who.chin_width
    widths = (brow, brow, w, cheek, jaw, chin + 0.12 * w, chin, chin)
    depths = (d, d - 1, d - 5, d - 3, d - 2, d - 10, d - 22, d - 45)
    wide, deep = PchipInterpolator(knots, (widths, depths), axis=1)(y)
    above = np.clip((-20 - y) / 102, 0, 1)
    below = np.clip((y - lips) / (end - lips), 0, 1)
    crown, close = np.sqrt(1 - above * above), np.sqrt(1 - below * below * below * below)
    wide *= crown * close
    deep *= np.sqrt(1 - 0.8 * above * above)
    return wide.astype(np.float32), deep.astype(np.float32)


@dataclass(frozen=True)
class _Grid:
    """The maps of one person over millimetres x [1, columns] and y [rows, 1]."""

    who: Identity
    x: Array
    y: Array

    def blob(self, x: float, y: float, rx: float, ry: float) -> Array:
        """A dome of radii (rx, ry) at x to both sides of the middle, and at height y."""
        across, down = (np.abs(self.x) - x) * (1 / rx), (self.y - y) * (1 / ry)
        return dome(across * across + down * down)

    def relief(self) -> Array:
        who, x, y, blob, n = self.who, self.x, self.y, self.blob, self.who.nose_length
        along = unit((y + 14) / (n + 6))
        ridge = who.nose_bridge + (who.nose_tip - who.nose_bridge) * along * along
        ridge += who.nose_hump * 4 * along * (1 - along)
        thin = who.nose_bridge_width + (who.nose_tip_radius + 1.5 - who.nose_bridge_width) * along
        fade = unit((y + 26) / 20) * unit((n + 3 - y) / 9)
        across = (x - who.asymmetry * along) / (thin * 1.55)
        nose = ridge * fade * fade * (3 - 2 * fade) * dome(across * across)
        wing = 0.36 * who.nose_tip * blob(who.nose_width - 5, n - 7, 8.5, 9)
        lips, up, low = who.lips_y, who.upper_lip, who.lower_lip
        relief: Array = (
            np.maximum(nose, wing)
            + 0.35 * np.minimum(nose, wing)
            - who.eye_depth * blob(who.eye_apart - 2, -1, 25, 18)
            + 2.5 * blob(who.eye_apart, 0, 14, 11)
            + who.brow_ridge * blob(17, who.brow_y - 1, 34, 13)
            + who.cheekbone * blob(44, 27, 26, 20)
            + who.cheek * blob(38, lips - 4, 26, 34)
            + 2.6 * blob(0, lips - 0.5 * up, who.mouth_width + 4, up + 3)
            + 3.4 * blob(0, lips + 0.5 * low, who.mouth_width, low + 2)
            - 2.2 * blob(0, lips + low + 5, 20, 7)
            - 1.2 * blob(0, n + 8, 4.5, 9)
            + who.chin_bump * blob(0, 0.9 * who.chin_y, 22, 18)
        )
        return relief

    def red(self) -> Array:
        cheeks, nose = self.blob(34, 34, 30, 24), self.blob(0, self.who.nose_length - 6, 14, 12)
        return self.who.ruddy * (cheeks + 0.8 * nose + 0.3 * self.blob(0, 100, 24, 16))

    def opened(self) -> Array:
        who = self.who
        return (
            1
            - 0.42 * self.blob(who.eye_apart - 8, -6, 16, 11)
            - 0.3 * self.blob(0, who.nose_length + 2, who.nose_width + 2, 6)
            - 0.32 * self.blob(0, who.lips_y + who.lower_lip + 3, 22, 5)
            - 0.75 * unit((self.y - who.chin_y + 16) / 22)
            - 0.2 * unit((np.abs(self.x) - 52) / 30)
        )

    def lines(self) -> Array:
        """Folds beside the mouth, bags under the eyes, furrows, crow's feet: they come with age."""
        who, side, y = self.who, np.abs(self.x), self.y
        fold = y - who.nose_length + 6 - np.maximum(side - who.nose_width - 2, 0) * 2.4
        bag = y - 12 + 0.012 * (side - who.eye_apart) ** 2
        foot = (y - 3 - 0.3 * (side - who.eye_apart - who.eye_width)) * 0.2
        beside = self.blob(who.nose_width + 9, who.nose_length + 10, 15, 26)
        lines = 1.1 * beside * dome((fold / 5) ** 2)
        lines += 0.55 * self.blob(who.eye_apart, 10, 16, 12) * dome((bag / 3.2) ** 2)
        feet = self.blob(who.eye_apart + 23, 3, 9, 12)
        lines += 0.5 * feet * dome((foot - np.rint(foot)) ** 2 * 12)
        for row in (-36, -45, -54):
            furrow = (y - row + 0.004 * side * side) / 2.4
            lines += 0.5 * self.blob(0, row, 46, 8) * dome(furrow * furrow)
        return min(1.0, max(0.0, (who.age - 28) / 50)) * lines

    def beard(self) -> Array:
        who, side, y = self.who, np.abs(self.x), self.y
        below = unit((y - who.lips_y - who.lower_lip - 1) / 4)
        under = unit((y - 12 - 1.15 * (who.face_width - side)) / 8)
        under = under * unit((y - who.nose_length) / 10)
        around = unit((side - who.mouth_width - 3) / 6)
        lip = unit((y - who.nose_length - 3) / 4) * unit((who.lips_y - 0.5 * who.upper_lip - y) / 4)
        moustache = who.moustache * unit((who.mouth_width + 8 - side) / 6) * lip
        goatee = who.goatee * unit((27 - side) / 5) * below
        whiskers = who.beard * under * np.maximum(around, below)
        every: Array = np.maximum(np.maximum(moustache, goatee), whiskers)
        return every
