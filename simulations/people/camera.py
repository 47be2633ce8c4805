"""From light to a stored photograph: optics, sensor, tone curve, resolution and JPEG."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simulations.people.drawing import Array
from simulations.people.traits import Scene


def photograph(
    light: Array, scene: Scene, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Linear light [3, n, n] -> an 8-bit sRGB picture [size, size, 3], as a camera gives it."""
    n = light.shape[-1]
    for _ in range(1 + int(max(0.0, scene.blur) * n / 90)):
        light = _soften(light, 0.25 * min(1.0, max(0.0, scene.blur)))
    reach = max(0.0, scene.motion) * n / 75
    if reach > 0.5:
        light = _smear(
            light, reach * math.cos(scene.motion_angle), reach * math.sin(scene.motion_angle)
        )
    # The meter reads the whole picture; an integer sum is the same in any order of adding.
    mean = float((light * 65536).astype(np.int64).sum()) / (65536 * light.size)
    gain = (0.27 / max(mean, 0.01)) ** 0.7 * 2**scene.exposure
    warm = 1 + scene.warmth * 0.5
    light = light * np.array([gain * warm, gain, gain / warm], np.float32).reshape(3, 1, 1)
    grain, tint = rng.standard_normal((2, n, n), dtype=np.float32) * math.exp(scene.log_noise)
    level = np.sqrt(light + 0.01)
    light += level * grain
    light[0] += level[0] * tint
    light[2] -= level[2] * tint
    tone = np.sqrt(np.clip(light, 0, 1))
    tone += scene.contrast * (2 * tone - 1) * tone * (1 - tone) * 2
    grey = 0.3 * tone[0] + 0.59 * tone[1] + 0.11 * tone[2]
    colourful = 0.0 if scene.grey < 0.1 else scene.saturation
    tone = grey + (tone - grey) * colourful
    tone = (scene.haze + (1 - 1.3 * abs(scene.haze)) * tone) * 255 + 0.5
    pixels = np.ascontiguousarray(np.clip(tone, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    picture = Image.fromarray(pixels)
    if n != size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=int(scene.jpeg))
    return np.asarray(Image.open(stored))


def _soften(light: Array, weight: float) -> Array:
    """One pass of the kernel [w, 1 - 2w, w] along both axes, edges kept."""
    out = light * (1 - 2 * weight)
    out[:, :, 1:-1] += weight * (light[:, :, 2:] + light[:, :, :-2])
    out[:, :, [0, -1]] = light[:, :, [0, -1]]
    back = out * (1 - 2 * weight)
    back[:, 1:-1] += weight * (out[:, 2:] + out[:, :-2])
    back[:, [0, -1]] = out[:, [0, -1]]
    return back


def _smear(light: Array, right: float, down: float) -> Array:
    """The mean of five copies along a straight movement of the camera, in whole pixels."""
    n = light.shape[-1]
    place = np.arange(n)
    total = np.zeros_like(light)
    for part in (-1.0, -0.5, 0.0, 0.5, 1.0):
        rows = np.clip(place + round(part * down), 0, n - 1)
        columns = np.clip(place + round(part * right), 0, n - 1)
        total += light.take(rows, 1).take(columns, 2)
    return total * np.float32(0.2)
