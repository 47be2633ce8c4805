"""Pixels to detected, aligned chip: the same for training, enrolment and probe.

    image = decode_image(data, name="a.jpg")
    chip = extract_chip(image, backbone.chip, DlibDetector(), name="a.jpg")   # uint8 [S, S, 3]

`ready_chip` takes the place of `extract_chip` where the images are aligned chips already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import dlib
import numpy as np
from PIL import Image

from common.decoding import Pixels
from common.detection import Detector, Face, Point, choose_face, dlib_landmarks
from common.errors import NoFaceError
from common.upright import upright

# Deng et al. 2019, ArcFace: eyes, nose tip, mouth corners on a 112-pixel square.
ARCFACE_POINTS: tuple[Point, ...] = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# Where dlib's five points fall on that square: medians over 326 FairFace images aligned by
# YuNet's landmarks, mirrored and averaged. Order of dlib's predictor.
DLIB_POINTS_ON_ARCFACE: tuple[Point, ...] = (
    (81.34, 52.98),
    (66.80, 53.46),
    (30.66, 52.98),
    (45.20, 53.46),
    (56.00, 80.24),
)
PADDING = 0.25


@dataclass(frozen=True)
class ChipSpec:
    """How a backbone wants its faces: `size` x `size` RGB, aligned by `template`.

    `dlib` is dlib's five-point chip with padding 0.25; `arcface` is the five-point similarity
    transform of Deng et al. 2019 (ArcFace) on a 112-pixel square, scaled to `size`.
    """

    size: int
    template: Literal["dlib", "arcface"]


def extract_chip(image: Pixels, spec: ChipSpec, detector: Detector, *, name: str) -> Pixels:
    """Image [H, W, 3] RGB -> chip uint8 [S, S, 3] of the face nearest to its centre.

    `choose_face` says which face that is, `upright` which way up the image is. Pixels from beyond
    the border of the image are black. Raises NoFaceError, calling the image `name`, if the
    detector finds no face.
    """
    seen = upright(image, detector)
    face = choose_face(seen.faces, seen.image)
    if face is None:
        raise NoFaceError(f"{name}: no face found", hint="use a larger or more frontal face")
    return chip_of_face(seen.image, face, spec)


def chip_of_face(image: Pixels, face: Face, spec: ChipSpec) -> Pixels:
    """Image [H, W, 3], C-contiguous, and a face in it -> its aligned chip uint8 [S, S, 3]."""
    if spec.template == "dlib":
        points = dlib_landmarks(image, face)
        chip: Pixels = dlib.get_face_chip(image, points, spec.size, PADDING)
        return chip
    if face.landmarks is not None:
        return _similarity(image, face.landmarks, ARCFACE_POINTS, spec.size)
    five = tuple((part.x, part.y) for part in dlib_landmarks(image, face).parts())
    return _similarity(image, five, DLIB_POINTS_ON_ARCFACE, spec.size)


def ready_chip(image: Pixels, spec: ChipSpec) -> Pixels:
    """An aligned image [H, W, 3] -> chip uint8 [S, S, 3]: central square, resized if needed.

    Shrinks by area, enlarges bilinearly; an image of the right size is returned as it is.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == spec.size:
        return np.ascontiguousarray(square)
    how = Image.Resampling.BOX if side > spec.size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(square).resize((spec.size, spec.size), how))


def grey_chips(chips: Pixels) -> Pixels:
    """RGB [..., 3] -> the same shape with three equal channels of ITU-R 601 luma."""
    red, green, blue = np.moveaxis(chips.astype(np.uint32), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=-1)


def _similarity(
    image: Pixels, points: tuple[Point, ...], template: tuple[Point, ...], size: int
) -> Pixels:
    """Least-squares similarity of `points` to `template` (on 112), cut with antialiasing."""
    scale = size / 112
    onto = dlib.dpoints([dlib.dpoint(x * scale, y * scale) for x, y in template])
    found = dlib.dpoints([dlib.dpoint(float(x), float(y)) for x, y in points])
    details = dlib.chip_details(onto, found, dlib.chip_dims(size, size))
    chip: Pixels = dlib.extract_image_chip(image, details)
    return chip
