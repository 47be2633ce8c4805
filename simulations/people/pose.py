"""Where the head is, and which point of it every pixel sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from common.face import ChipSpec
from simulations.people.anatomy import BOTTOM, RELIEF, TOP, Head
from simulations.people.drawing import Array, edge, unit
from simulations.people.traits import Identity, Scene

# Where the landmarks belong: dlib's mean of eye corners and nose base in its 150-pixel chip with
# padding 0.25, and eyes, nose tip and mouth corners of Deng et al. 2019 (ArcFace) in 112 pixels.
DLIB: Final = (
    (37.058, 46.373),
    (58.409, 47.906),
    (89.606, 47.897),
    (110.957, 46.350),
    (74.011, 87.780),
)
ARCFACE: Final = (
    (38.295, 51.696),
    (73.532, 51.501),
    (56.025, 71.737),
    (41.549, 92.366),
    (70.730, 92.204),
)
FACE_PLANE: Final = 80.0
"""Millimetres from the middle of the head to the plane that perspective leaves as it is."""


@dataclass(frozen=True)
class View:
    """A turned head before a camera, and the similarity from its millimetres to the chip."""

    sin_yaw: float
    cos_yaw: float
    sin_pitch: float
    cos_pitch: float
    distance: float
    scale: complex = 1
    shift: complex = 0

    def project(self, x: float, y: float, z: float) -> complex:
        """Head millimetres to the chip, as right + down * 1j."""
        turned = z * self.cos_yaw - x * self.sin_yaw
        depth = y * self.sin_pitch + turned * self.cos_pitch
        right = x * self.cos_yaw + z * self.sin_yaw
        down = y * self.cos_pitch - turned * self.sin_pitch
        near = 1 / (1 - (depth - FACE_PLANE) / self.distance)
        return complex(right, down) * near * self.scale + self.shift


@dataclass(frozen=True)
class Surface:
    """What each pixel sees of a head, each array [n, n].

    x, y: head millimetres; u: -1..1 from one side of the head to the other; depth: millimetres
    towards the camera; cover: 0..1.
    """

    x: Array
    y: Array
    u: Array
    depth: Array
    cover: Array


@dataclass(frozen=True)
class Frame:
    """The sensor: n x n pixels, each `pixel` millimetres wide in the plane of the face.

    zoom: its pixels to a pixel of the chip; across, down: that plane's millimetres at each pixel,
    float32 [n, n].
    """

    view: View
    n: int
    zoom: float
    pixel: float
    across: Array
    down: Array

    def window(self, head: Head, x: float, y: float, radius: float) -> tuple[slice, slice]:
        """Rows and columns of the pixels within about `radius` mm of a point of the face."""
        place = (self.view.project(x, y, head.point(x, y)) + 0.5 + 0.5j) * self.zoom
        reach = radius * 1.15 / self.pixel + 2
        rows = slice(max(0, int(place.imag - reach)), max(0, int(place.imag + reach) + 1))
        columns = slice(max(0, int(place.real - reach)), max(0, int(place.real + reach) + 1))
        return rows, columns


def aim(who: Identity, head: Head, scene: Scene, spec: ChipSpec, rng: np.random.Generator) -> Frame:
    """Turn the head, find its five landmarks (with a detector's error) and cut the chip."""
    yaw, pitch = scene.yaw, scene.pitch
    view = View(
        math.sin(yaw), math.cos(yaw), math.sin(pitch), math.cos(pitch), math.exp(scene.log_distance)
    )
    found = np.array(
        [view.project(x, y, head.point(x, y)) for x, y in _landmarks(who, scene, spec)]
    )
    error = rng.standard_normal((2, len(found))) * scene.landmark_error
    found += error[0] + 1j * error[1]
    template, base = (DLIB, 150) if spec.template == "dlib" else (ARCFACE, 112)
    goal = np.array([complex(*point) for point in template]) * (spec.size / base)
    middle = complex(found.mean())
    centred = found - middle
    # Least squares over complex numbers: the best rotation and scale in one.
    scale = complex((centred.conj() * goal).sum() / (centred.conj() * centred).sum())
    view = replace(view, scale=scale, shift=complex(goal.mean()) - scale * middle)
    n = min(spec.size, max(40, round(spec.size * math.exp(scene.log_pixels))))
    at = (np.arange(n) + 0.5) * (spec.size / n) - 0.5
    plane = (at[None, :] + 1j * at[:, None] - view.shift) / scale
    pixel = spec.size / n / abs(scale)
    return Frame(
        view, n, n / spec.size, pixel, plane.real.astype(np.float32), plane.imag.astype(np.float32)
    )


def _landmarks(who: Identity, scene: Scene, spec: ChipSpec) -> list[tuple[float, float]]:
    apart, wide = who.eye_apart, who.eye_width
    if spec.template == "dlib":
        rise = who.eye_tilt * wide
        eyes = [
            (-apart - wide, -rise),
            (wide - apart, rise),
            (apart - wide, rise),
            (apart + wide, -rise),
        ]
        return [*eyes, (0.0, who.nose_length)]
    mouth = who.mouth_width * (1 + 0.1 * scene.smile)
    return [
        (-apart, 0.0),
        (apart, 0.0),
        (0.0, who.nose_length - 8),
        (-mouth, who.lips_y),
        (mouth, who.lips_y),
    ]


def meet(head: Head, frame: Frame, *, relief: bool, steps: int) -> Surface:
    """Meet the head along every pixel's ray.

    The ellipse at the ray's height is met in closed form, yaw included; `steps` fixed-point steps
    add pitch, perspective and, with `relief`, the bumps.
    """
    view = frame.view
    s, c = view.sin_yaw, view.cos_yaw
    turned = np.full_like(frame.across, FACE_PLANE)
    near = np.ones_like(frame.across)
    bump: Array | float = 0.0
    for step in range(steps):
        y = (frame.down * near + turned * view.sin_pitch) * (1 / view.cos_pitch)
        wide, deep = head.radii(y)
        right, front = wide * c, deep * s
        span = np.sqrt(right * right + front * front)
        span += np.float32(1e-3)
        reach = frame.across * near - bump * s
        sine = np.minimum(np.maximum(reach / span, -1), 1)
        cosine = np.sqrt(np.maximum(1 - sine * sine, 0))
        right /= span
        front /= span
        u = sine * right - cosine * front
        x = u * wide
        z = (sine * front + cosine * right) * deep
        if relief:
            bump = head.relief(x, y) if step else head.skin[RELIEF].take(head.cells(x, y))
            z += bump
        turned = z * c - x * s
        depth = y * view.sin_pitch + turned * view.cos_pitch
        near = 1 - (depth - FACE_PLANE) * (1 / view.distance)
    # Below the chin the ellipse is a blade without width, which a turned head must not show.
    cover = edge(span - np.abs(reach), frame.pixel) * unit(wide * 0.25)
    return Surface(x, y, u, depth, cover)


def normals(depth: Array, pixel: float) -> Array:
    """Unit normals of a depth map [n, n], towards the camera: float32 [3, n, n]."""
    out = np.zeros((3, *depth.shape), np.float32)
    np.subtract(depth[:, :-2], depth[:, 2:], out=out[0, :, 1:-1])
    np.subtract(depth[:-2], depth[2:], out=out[1, 1:-1])
    out *= 0.5 / pixel
    out[2] = 1
    size = 1 / np.sqrt(out[0] * out[0] + out[1] * out[1] + 1)
    out *= size
    return out


def bulk_up(head: Head, thick: float, *, straight: bool) -> Head:
    """The head under `thick` mm of hair: thin at the ears, or falling `straight` past the jaw."""
    y = np.arange(TOP, BOTTOM + 1, dtype=np.float64)
    row = np.where(y < 0, y * (120 / (120 + thick)), y)
    if straight:
        row = np.where(y > 25, 25 + (y - 25) * 0.15, row)
    taper = 1.0 if straight else 1 - 0.85 * np.clip((y + 70) / 55, 0, 1)
    more = (thick * taper + np.zeros_like(y)).astype(np.float32)
    index = (row - TOP).astype(np.intp)
    return replace(
        head, half_width=head.half_width[index] + more, half_depth=head.half_depth[index] + more
    )
