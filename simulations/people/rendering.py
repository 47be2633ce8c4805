"""From a person and a scene to the light that falls on the sensor, back to front."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.face import ChipSpec
from simulations.people.anatomy import TOP, Head
from simulations.people.drawing import Array, clouds, dome, edge, over, smooth, unit
from simulations.people.features import (
    Sitter,
    glint_eyes,
    paint_skin,
    put_on_glasses,
    stand_in_front,
)
from simulations.people.pose import aim, bulk_up, meet, normals
from simulations.people.traits import Identity, Scene
from simulations.people.wardrobe import BLACK, CLOTH, HAIRCUTS, Colour, Haircut, mix, palette


@dataclass(frozen=True)
class Lamp:
    """One far lamp and the light from everywhere else; colours are linear RGB.

    `sun` points to the lamp: right, down, towards the camera.
    """

    sun: tuple[float, float, float]
    key: Colour
    fill: Colour

    def diffuse(self, normal: Array, wrap: float) -> Array:
        """How much a surface faces the lamp, 0..1; `wrap` lets light reach round the edge."""
        x, y, z = (part / (1 + wrap) for part in self.sun)
        facing: Array = normal[0] * x + normal[1] * y + normal[2] * z
        facing += wrap / (1 + wrap)
        np.maximum(facing, 0, out=facing)
        return facing

    def on(self, colour: Colour, part: float) -> Colour:
        """What a flat thing of this colour sends to the camera."""
        red, green, blue = (
            part * paint * (fill + 0.55 * key)
            for paint, fill, key in zip(colour, self.fill, self.key, strict=True)
        )
        return red, green, blue


def paint(
    who: Identity, head: Head, scene: Scene, spec: ChipSpec, rng: np.random.Generator
) -> Array:
    """Light on the sensor, linear RGB, float32 [3, n, n]; `rng` draws what has no name."""
    frame = aim(who, head, scene, spec, rng)
    sitter = Sitter(who, scene, head, frame, meet(head, frame, relief=True, steps=3))
    lamp = _lamp(scene)
    albedo, opened = paint_skin(sitter)
    light = _behind(sitter, lamp, rng)
    hair_cover, hair, hair_depth = _hair(sitter, lamp, rng)
    nearest = np.where(hair_cover > 0.5, hair_depth, sitter.surface.depth)
    nearest = np.where(sitter.surface.cover + hair_cover > 0.3, nearest, -60)
    reached = _shadows(sitter, lamp, nearest)
    _shade(sitter, lamp, albedo, opened, reached)
    glint_eyes(sitter, albedo)
    over(light, albedo, sitter.surface.cover)
    over(light, hair, hair_cover)
    if scene.glasses < who.wears_glasses:
        put_on_glasses(sitter, light)
    if scene.in_front < 0.035:
        stand_in_front(sitter, light, rng)
    return light


def _lamp(scene: Scene) -> Lamp:
    size = math.sqrt(scene.light_x**2 + scene.light_y**2 + 1)
    warm, cool = 1 + scene.warmth, 1 + scene.fill_warmth
    strength = 1.5 * (1 - 0.75 * scene.ambient)
    return Lamp(
        (scene.light_x / size, scene.light_y / size, 1 / size),
        (strength * warm, strength, strength / warm),
        (scene.ambient * cool, scene.ambient, scene.ambient / cool),
    )


def _shadows(sitter: Sitter, lamp: Lamp, depth: Array) -> Array:
    """Which part of the lamp's light reaches each pixel, 0..1 [n, n].

    Five steps towards the lamp over the depth map find what stands between; the scene may add
    the soft shadow of something out of the picture.
    """
    scene, frame = sitter.scene, sitter.frame
    flat = math.hypot(lamp.sun[0], lamp.sun[1])
    block = np.zeros_like(depth)
    place = np.arange(frame.n)
    for reach in (5.0, 10.0, 17.0, 26.0, 38.0) if flat > 0.1 else ():
        step = reach / flat / frame.pixel
        rows = np.clip(place + round(step * lamp.sun[1]), 0, frame.n - 1)
        columns = np.clip(place + round(step * lamp.sun[0]), 0, frame.n - 1)
        toward = depth.take(rows, 0).take(columns, 1)
        toward -= depth
        toward -= reach * lamp.sun[2] / flat + 1.5
        np.maximum(block, toward, out=block)
    reached = 1 - unit(block * 0.2)
    if scene.shade > 0:
        angle = scene.shade_angle
        along = frame.across * math.cos(angle) + frame.down * math.sin(angle)
        reached *= 1 - min(0.9, scene.shade) * edge(along - scene.shade_at, 14)
    return reached


def _shade(sitter: Sitter, lamp: Lamp, albedo: Array, opened: Array, reached: Array) -> None:
    """Turn the skin's albedo into light, in place: sky, lamp, red bleeding, shine."""
    normal = normals(sitter.surface.depth, sitter.frame.pixel)
    sky = opened * (0.8 - 0.3 * normal[1])
    root = np.sqrt(opened)
    reached_root = reached * root
    lit = lamp.diffuse(normal, 0.1) * reached_root
    # Blood scatters red light sideways under the skin, so red reaches further into the dark.
    soft = lamp.diffuse(normal, 0.3) * (0.15 * root + 0.85 * reached_root)
    x, y, z = lamp.sun[0], lamp.sun[1], lamp.sun[2] + 1
    size = math.sqrt(x * x + y * y + z * z)
    shine = np.maximum(normal[0] * (x / size) + normal[1] * (y / size) + normal[2] * (z / size), 0)
    for _ in range(4):
        shine *= shine
    shine *= reached * opened
    shine *= 0.18 * sitter.who.oily * sitter.scene.shine
    for channel, lamp_light in enumerate((soft, lit, lit)):
        albedo[channel] *= sky * lamp.fill[channel] + lamp_light * lamp.key[channel]
        albedo[channel] += shine * lamp.key[channel]


def _behind(sitter: Sitter, lamp: Lamp, rng: np.random.Generator) -> Array:
    """Background, long hair, neck, clothes and ears: light, float32 [3, n, n]."""
    who, frame = sitter.who, sitter.frame
    across, down, view, pixel = frame.across, frame.down, frame.view, frame.pixel
    draw = [float(value) for value in rng.random(10)]
    light = np.empty((3, frame.n, frame.n), np.float32)
    pattern = unit(0.5 + 0.45 * clouds(rng, frame.n / (2 + 7 * draw[0] ** 2), frame.n, frame.n))
    # The camera's meter brightens a dark face; were the wall brightened with it, it would tell.
    bright = (0.03 + 0.7 * draw[1]) * (sum(who.skin) / 0.9) ** 0.7
    for channel in range(3):
        first, second = (bright * (0.6 + 0.6 * draw[k + channel]) for k in (2, 5))
        light[channel] = first + (second * (0.4 + draw[8]) - first) * pattern
    cut = _haircut(sitter)
    if cut.curtain:
        behind = across + 25 * view.sin_yaw
        over_top = 1 - (behind / 86) ** 2 - (np.minimum(down, 0) / 118) ** 2
        gap = np.minimum(who.face_width + 9 - np.abs(behind), cut.length - down)
        cover = edge(np.minimum(gap, over_top * 50), 2)
        over(light, lamp.on(mix(who.hair, BLACK, 0.3), 0.8), cover)
    neck = 0.72 * who.face_width * (0.85 + 0.15 * who.masculine)
    along = (across + 15 * view.sin_yaw) * (1 / neck)
    gap = np.minimum((1 - np.abs(along)) * neck, down - 40)
    shade = np.maximum(0.57 - 0.3 * along * along, 0.12)
    over(light, [shade * part for part in lamp.on(who.skin, 1)], edge(gap, pixel))
    neckline = (6 + 16 * draw[9]) * dome((across / 62) ** 2)
    collar = who.face_length + 16 + 0.2 * np.abs(across) + neckline
    over(light, lamp.on(palette(CLOTH, float(rng.random())), 0.8), edge(down - collar, pixel + 1))
    if not cut.curtain:
        _ears(sitter, lamp, light)
    return light


def _ears(sitter: Sitter, lamp: Lamp, light: Array) -> None:
    who, frame = sitter.who, sitter.frame
    view = frame.view
    for side in (-1, 1):
        root = view.project(side * (float(sitter.head.half_width[10 - TOP]) - 2), 14, -8)
        root = (root - view.shift) / view.scale
        out = who.ear_out * view.cos_yaw + 6 + 14 * max(0.0, -side * view.sin_yaw)
        dx = (frame.across - root.real) * (side / out) - 0.25
        dy = (frame.down - root.imag) * (1 / who.ear_length)
        ring = dx * dx + dy * dy
        level = 0.75 + 0.6 * side * lamp.sun[0]
        rim = lamp.on(mix(who.skin, (0.5, 0.12, 0.1), 0.08), level)
        over(light, rim, edge((1 - ring) * 0.5 * out, frame.pixel))
        over(light, lamp.on(who.skin, 0.4 * level), 0.7 * dome(ring * 2.4))


def _haircut(sitter: Sitter) -> Haircut:
    """How the hair is worn today: nearly always the person's own way."""
    own = HAIRCUTS[sitter.who.hair_style]
    return HAIRCUTS[own.otherwise] if sitter.scene.hair_change < 0.1 else own


def _hair(sitter: Sitter, lamp: Lamp, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Coverage [n, n], light [3, n, n] and depth [n, n] of the hair, or the hat, in front."""
    who, scene, frame, head = sitter.who, sitter.scene, sitter.frame, sitter.head
    cut = HAIRCUTS["hat"] if scene.hat < 0.05 else _haircut(sitter)
    thick = cut.thick * who.hair_thick
    bulk = meet(bulk_up(head, thick, straight=cut.curtain), frame, relief=False, steps=2)
    side = np.abs(bulk.u)
    fall = smooth(unit((side - cut.side) * (1.6 / (1.001 - cut.side))))
    line = (-44.0 if cut.cloth else who.hairline) + cut.lower
    limit = line - 9 * side * side + cut.part * who.hair_part * bulk.u
    limit += fall * (cut.length - line + 9)
    limit -= cut.temples * dome(((side - 0.5) * 2.6) ** 2)
    lock = (bulk.u * cut.grain + 128).astype(np.intp) & 255
    lock += ((bulk.y * cut.kink + 60).astype(np.intp) & 63) << 8
    strand = head.strands.take(lock)
    outline = bulk.cover if cut.kink < 0.5 else edge(2 * bulk.cover - 1 + 0.2 * strand, 1)
    cover = edge(limit - bulk.y + cut.rough * strand, frame.pixel + cut.soft) * outline
    cover *= cut.dense
    normal = normals(bulk.depth, frame.pixel)
    diffuse = lamp.diffuse(normal, 0.2)
    grain = np.minimum(np.maximum(0.8 + (0.0 if cut.cloth else 0.28) * strand, 0.25), 1.6)
    band = dome(((normal[1] + 0.55 - 0.5 * lamp.sun[1]) * 3) ** 2)
    band *= diffuse * grain * (0.0 if cut.cloth else 0.06)
    colour = palette(CLOTH, float(rng.random())) if cut.cloth else who.hair
    light = np.empty((3, frame.n, frame.n), np.float32)
    for channel in range(3):
        fill, key = 0.8 * colour[channel] * lamp.fill[channel], lamp.key[channel]
        light[channel] = grain * (fill + diffuse * (0.9 * colour[channel] * key)) + band * key
    return cover, light, bulk.depth
