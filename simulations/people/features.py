"""Eyes, brows, nostrils, mouth, beard, moles and glasses, painted on skin in head millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.people.anatomy import BEARD, LINES, OPEN, RED, TONE, Head
from simulations.people.drawing import Array, dome, edge, over, stroke, unit
from simulations.people.pose import Frame, Surface
from simulations.people.traits import Identity, Scene
from simulations.people.wardrobe import BLACK, CLOTH, FRAMES, Colour, mix, palette


@dataclass(frozen=True)
class Patch:
    """A view into the picture [3, h, w] and where its pixels meet the head, [h, w] each."""

    paint: Array
    x: Array
    y: Array
    cover: Array


@dataclass(frozen=True)
class Sitter:
    """A person in a scene, seen by a camera: all that a brush needs."""

    who: Identity
    scene: Scene
    head: Head
    frame: Frame
    surface: Surface

    def patch(self, picture: Array, x: float, y: float, radius: float) -> Patch:
        """The part of `picture` [3, n, n] within about `radius` mm of a point of the face."""
        w = self.frame.window(self.head, x, y, radius)
        surface = self.surface
        return Patch(picture[:, *w], surface.x[w], surface.y[w], surface.cover[w])


def paint_skin(sitter: Sitter) -> tuple[Array, Array]:
    """Albedo of the bare face with all its features, [3, n, n], and its openness [n, n]."""
    who, scene, surface = sitter.who, sitter.scene, sitter.surface
    cells = sitter.head.cells(surface.x, surface.y)
    tone, red, opened, beard, lines = (
        sitter.head.skin[channel].take(cells) for channel in (TONE, RED, OPEN, BEARD, LINES)
    )
    tone *= (1 - scene.tan) * (1 - lines * (0.25 + 0.15 * max(0.0, scene.smile)))
    albedo = np.empty((3, *tone.shape), np.float32)
    np.multiply(tone * who.skin[0], 1 + 0.1 * red, out=albedo[0])
    tone *= tone
    np.multiply(tone * who.skin[1], 1 - 0.9 * red, out=albedo[1])
    np.multiply(tone * who.skin[2], 1 - 0.8 * red, out=albedo[2])
    for side in (-1, 1):
        _eye(sitter, albedo, side)
        _brow(sitter, albedo, side)
    _nostrils(sitter, albedo)
    _mouth(sitter, albedo)
    for x, y, radius in who.moles:
        at = sitter.patch(albedo, x, y, radius + 1)
        gap = radius - np.sqrt((at.x - x) ** 2 + (at.y - y) ** 2)
        over(
            at.paint,
            mix(who.skin, (0.05, 0.02, 0.01), 0.75),
            0.8 * edge(gap, sitter.frame.pixel + 0.5),
        )
    if max(who.moustache, who.goatee, who.beard) > 0:
        cover = np.minimum(beard * (0.35 + 0.9 * scene.growth), 0.93)
        over(albedo, mix(who.hair, (0.03, 0.025, 0.02), 0.25), cover)
    return albedo, opened


def _eye(sitter: Sitter, albedo: Array, side: int) -> None:
    who, scene, pixel = sitter.who, sitter.scene, sitter.frame.pixel
    at = sitter.patch(albedo, side * who.eye_apart, 0, who.eye_width + 8)
    x = at.x * side - who.eye_apart
    y = at.y + who.eye_tilt * x + 0.25 * side * who.asymmetry
    lids = min(1.15, max(0.03, scene.lids - 0.18 * max(0.0, scene.smile)))
    e = x * (1 / who.eye_width)
    arc = np.maximum(1 - e * e, -0.6)
    top = -who.eye_height * (1.25 * lids - 0.25) * arc * (1 - 0.18 * e)
    low = 0.55 * who.eye_height * (0.6 + 0.4 * lids) * arc * (1 + 0.15 * e)
    inside = edge(np.minimum(y - top, low - y), pixel)
    shadow = mix(who.skin, BLACK, 0.45)
    fold = stroke(y - top + 2.2 + 2.4 * who.eye_fold, 1, pixel) * unit(arc * 2)
    over(at.paint, shadow, fold * (0.65 * min(1.0, 2 * who.eye_fold)))
    over(at.paint, (0.58, 0.53, 0.5), inside)
    off = np.sqrt((x - scene.gaze_x * side) ** 2 + (y - scene.gaze_y) ** 2)
    over(at.paint, mix(who.iris, BLACK, 0.5), inside * edge(who.iris_radius - off, pixel))
    over(at.paint, who.iris, inside * edge(who.iris_radius - 1 - off, pixel + 0.5))
    over(at.paint, BLACK, inside * edge(2.3 - off, pixel))
    over(at.paint, (0.1, 0.07, 0.06), inside * unit(1 - (y - top) / 3.5) * 0.55)
    lash = 0.9 + 1.6 * max(0.0, scene.eyeliner) * (1 - who.masculine)
    line = stroke(y - top + 0.3, lash, pixel) * unit(arc * 4 + 0.3)
    over(at.paint, (0.02, 0.014, 0.012), line * (0.9 * min(1.0, lash / pixel)))
    over(at.paint, shadow, stroke(y - low, 0.8, pixel) * unit(arc * 3) * 0.5)


def _brow(sitter: Sitter, albedo: Array, side: int) -> None:
    who, scene = sitter.who, sitter.scene
    middle = side * (who.brow_gap + who.brow_length / 1.6)
    at = sitter.patch(albedo, middle, who.brow_y, who.brow_length)
    part = (at.x * side - who.brow_gap) * (1 / (1.55 * who.brow_length))
    t = unit(part)
    level = who.brow_y - scene.brow_raise + 0.5 * side * who.asymmetry
    line = level + (who.brow_slope + scene.frown) * 20 * (1 - 2 * t)
    line -= 4 * who.brow_arch * t * (1 - t) * (0.6 + 0.8 * t)
    half = 0.65 * who.brow_thick * (1.15 - t * t * t)
    ends = np.minimum(part, 1 - part) * (1.5 * who.brow_length)
    cover = edge(np.minimum(half - np.abs(at.y - line), ends), sitter.frame.pixel + 1.6)
    over(at.paint, mix(who.hair, (0.03, 0.02, 0.015), 0.5), cover * min(1.0, who.brow_dark))


def _nostrils(sitter: Sitter, albedo: Array) -> None:
    who = sitter.who
    show = min(1.0, max(0.0, who.nostril + 1.6 * sitter.scene.pitch))
    at = sitter.patch(albedo, 0, who.nose_length - 3, who.nose_width + 5)
    y = at.y - who.nose_length + 3.2
    across = (np.abs(at.x) - 0.5 * who.nose_width) * (1 / (0.28 * who.nose_width))
    hole = dome(across * across + (y * (0.77 / (1.4 + 1.6 * show))) ** 2)
    over(at.paint, mix(who.skin, (0.01, 0, 0), 0.85), show * hole)
    crease = np.abs(at.x) - who.nose_width + 0.5 + 0.03 * (y + 4) ** 2
    line = stroke(crease, 1.2, sitter.frame.pixel) * dome(((y + 3) / 9) ** 2)
    over(at.paint, mix(who.skin, BLACK, 0.5), 0.5 * line)


def _mouth(sitter: Sitter, albedo: Array) -> None:
    who, scene, pixel = sitter.who, sitter.scene, sitter.frame.pixel
    smile, opened = scene.smile, max(0.0, scene.mouth_open) * 11
    half = who.mouth_width * (1 + 0.14 * smile - 0.004 * opened)
    at = sitter.patch(albedo, 0, who.lips_y + 3, half + 6)
    m = (at.x - 0.5 * who.asymmetry) * (1 / half)
    square = m * m
    arc = np.maximum(1 - square, -0.5)
    y = at.y - who.lips_y + (3.2 * smile + who.mouth_corner) * square - 0.6 * smile
    full = 1 - 0.22 * max(0.0, smile)
    upper = who.cupid_bow * dome(square * 14) - who.upper_lip * full * arc * (0.75 + 0.25 * arc)
    lower = opened * arc + who.lower_lip * full * arc * (0.6 + 0.4 * arc)
    stick = max(0.0, scene.lipstick) * (1 - who.masculine)
    lips = mix(who.skin, (0.36, 0.07, 0.08), 0.4 + 0.4 * who.lip_red)
    lips = mix(mix(lips, BLACK, 0.18), (0.32, 0.02, 0.04), min(0.9, stick))
    inside = edge(np.minimum(y - upper, lower - y), pixel + 0.8)
    over(at.paint, lips, inside * (0.75 + 0.25 * min(1.0, who.lip_red + stick)))
    over(at.paint, mix(lips, BLACK, 0.35), 0.5 * inside * edge(-y, pixel + 1.5))
    if opened > 2.5:
        hole = edge(np.minimum(y + 0.2, opened * arc - y), pixel)
        over(at.paint, (0.03, 0.008, 0.008), hole)
        teeth = min(opened, 7.5) * (arc * 0.5 + 0.4) - y
        over(at.paint, (0.6, 0.56, 0.49), hole * edge(teeth, pixel + 0.5))
    else:
        line = stroke(y, 0.8, pixel) * unit(arc * 5) * min(1.0, 1.2 / pixel + 0.2)
        over(at.paint, mix(lips, BLACK, 0.75), line)


def glint_eyes(sitter: Sitter, light: Array) -> None:
    """Add the lamp's reflection in each eye to `light` [3, n, n]."""
    who, scene, pixel = sitter.who, sitter.scene, sitter.frame.pixel
    for side in (-1, 1):
        x = side * who.eye_apart + scene.gaze_x + 1.9 * scene.light_x
        y = scene.gaze_y + 1.9 * scene.light_y
        at = sitter.patch(light, x, y, 2)
        spot = edge(1.1 - np.sqrt((at.x - x) ** 2 + (at.y - y) ** 2), pixel)
        at.paint[...] += spot * (0.5 * min(1.0, 2.2 / pixel) * min(1.0, max(0.0, scene.lids)))


def put_on_glasses(sitter: Sitter, light: Array) -> None:
    """Lay the person's glasses, clear or dark, over `light` [3, n, n]."""
    who, scene, pixel = sitter.who, sitter.scene, sitter.frame.pixel
    at = sitter.patch(light, 0, 4, who.eye_apart + who.glasses_width + 42)
    side = np.abs(at.x - 14 * sitter.frame.view.sin_yaw)
    y = at.y - 3
    dx = ((side - who.eye_apart - 1) * (1 / who.glasses_width)) ** 2
    dy = (y * (1 / who.glasses_height)) ** 2
    square = (who.glasses_round - 2) / 3
    ring = (dx + dy) * (1 - square) + (dx * dx + dy * dy) * square
    gap = (1 - ring) * (0.4 * who.glasses_height / (1 + square))
    half, dark = who.glasses_frame, scene.dark_glasses < 0.12
    lens: Colour = (0.02, 0.02, 0.025) if dark else (0.5, 0.55, 0.6)
    over(at.paint, lens, edge(gap, pixel) * at.cover * (0.88 if dark else 0.06))
    wire = edge(half - np.abs(gap), pixel + 0.3) * min(1.0, 2 * half / pixel)
    outer = side - who.eye_apart
    bridge = edge(np.minimum(half - np.abs(y + 3), 2 - who.glasses_width - outer), pixel)
    arm = edge(np.minimum(half - np.abs(y + 4), outer - who.glasses_width), pixel)
    cover = np.maximum(np.maximum(wire, bridge), arm) * at.cover
    over(at.paint, palette(FRAMES, 0.5 + 0.5 * who.hair_part), cover)


def stand_in_front(sitter: Sitter, light: Array, rng: np.random.Generator) -> None:
    """Lay something nearer the camera over `light`: a scarf, a hand, a shoulder."""
    angle, colour, where, level = (float(value) for value in rng.random(4))
    angle = np.pi * (0.15 + 0.7 * angle)
    along = sitter.frame.across * float(np.cos(angle)) + sitter.frame.down * float(np.sin(angle))
    red, green, blue = palette(CLOTH, colour)
    level = 0.4 + 0.6 * level
    cover = edge(along - 55 - 50 * where, sitter.frame.pixel + 1)
    over(light, (red * level, green * level, blue * level), cover)
