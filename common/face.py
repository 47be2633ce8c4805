"""Bytes to decoded, detected, aligned chip: the same for training, enrolment and probe.

    image = decode_image(data, name="a.jpg")
    chip = extract_chip(image, backbone.chip, DlibDetector(), name="a.jpg")   # uint8 [S, S, 3]

`ready_chip` takes the place of `extract_chip` where the images are aligned chips already.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from common.detection import Detector, Face, Point, choose_face, dlib_landmarks
from common.errors import ImageError, NoFaceError

Pixels = NDArray[np.uint8]

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
FORMATS = ("JPEG", "PNG", "PPM", "WEBP")


@dataclass(frozen=True)
class ChipSpec:
    """How a backbone wants its faces: `size` x `size` RGB, aligned by `template`.

    `dlib` is dlib's five-point chip with padding 0.25; `arcface` is the five-point similarity
    transform of Deng et al. 2019 (ArcFace) on a 112-pixel square, scaled to `size`.
    """

    size: int
    template: Literal["dlib", "arcface"]


@dataclass(frozen=True)
class DecodeLimits:
    """What an image may cost: larger ones are refused before their pixels are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: width times height, from the header.
        max_scans: of a progressive JPEG, each of which is a pass over all pixels.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_scans: int = 100


def decode_image(data: bytes, *, name: str, limits: DecodeLimits | None = None) -> Pixels:
    """An encoded JPEG, PNG, PGM (any PNM) or WebP image -> uint8 [H, W, 3] RGB, upright.

    EXIF orientation is applied. Grey becomes three equal channels, 16 bits are scaled to 8,
    palettes and CMYK are converted, transparency is laid over white. Of an animation, the first
    frame. `name` is what errors call the image.

    Raises ImageError if the bytes are corrupt, truncated, of another format or over a limit.
    """
    limits = limits or DecodeLimits()
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"{name}: {len(data)} bytes are more than the limit of {limits.max_bytes}",
            hint="shrink the image",
        )
    # A switch of the whole process, which libraries that draw pages turn on when they are imported.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _refuse_bombs(image, data, name, limits)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except Exception as error:  # decoders fed hostile bytes raise whatever they like
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ImageError(
            f"{name}: not a readable JPEG, PNG, PGM or WebP image{detail}",
            hint="replace or remove the file",
        ) from error


def extract_chip(image: Pixels, spec: ChipSpec, detector: Detector, *, name: str) -> Pixels:
    """Image [H, W, 3] RGB -> chip uint8 [S, S, 3] of the face nearest to its centre.

    `choose_face` says which face that is. Pixels from beyond the border of the image are black.
    Raises NoFaceError, calling the image `name`, if the detector finds no face.
    """
    image = np.ascontiguousarray(image)
    face = choose_face(detector.detect(image), image)
    if face is None:
        raise NoFaceError(f"{name}: no face found", hint="use a larger or more frontal face")
    return chip_of_face(image, face, spec)


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


def _refuse_bombs(image: Image.Image, data: bytes, name: str, limits: DecodeLimits) -> None:
    """Raise ImageError if the header promises more than the limits allow."""
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels are more than the limit of "
            f"{limits.max_pixels}",
            hint="shrink the image",
        )
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > limits.max_scans:
        raise ImageError(
            f"{name}: a JPEG of more than {limits.max_scans} scans", hint="save the image again"
        )


def _as_rgb(image: Image.Image, name: str) -> Pixels:
    """A decoded image of any mode -> uint8 [H, W, 3] RGB."""
    if image.mode in ("F", "RGBF"):
        raise ImageError(f"{name}: floating-point pixels", hint="save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    return np.array(image.convert("RGB"))
