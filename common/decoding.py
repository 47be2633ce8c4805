"""Bytes to pixels, within bounds of memory: the same for training, enrolment and probe.

    pixels = decode_image(data, name="a.jpg")      # uint8 [H, W, 3], upright

A picture is shrunk while it is decoded and converted in strips, so that beside what the decoder
itself needs there is never more than one picture of `DecodeLimits.kept_pixels` in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from common.errors import ImageError
from common.jpeg_stream import JpegStream, read_stream

Pixels = NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "PPM", "WEBP")
_STRIP: Final = 2**20  # pixels that are converted at once
_MOST_SEGMENTS: Final = 10_000
_MOST_TEXT: Final = 4 * 2**20
_LONGEST: Final = 65_535
# Bytes a pixel in Pillow's memory; all others take four.
_NARROW: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Pillow decodes WebP as an animation: two canvases, a copy, and the image.
_WEBP: Final = 16
_DEPTHS: Final = (8, 10, 12, 14, 16)
_END_OF_JPEG: Final = b"\xff\xd9"


@dataclass(frozen=True)
class DecodeLimits:
    """What an image may cost: larger ones are refused before their pixels are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: width times height, from the header.
        max_scans: of a progressive JPEG, each of which is a pass over all pixels.
        max_memory: bytes that the decoder needs, by format, size and kind of pixels.
        kept_pixels: a larger image is shrunk to at most so many, by a whole number.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_scans: int = 100
    max_memory: int = 256 * 2**20
    kept_pixels: int = 16_000_000


def decode_image(data: bytes, *, name: str, limits: DecodeLimits | None = None) -> Pixels:
    """An encoded JPEG, PNG, PGM (any PNM) or WebP image -> uint8 [H, W, 3] RGB, upright.

    The orientation in EXIF, or without one in XMP, is applied. Grey becomes three equal channels,
    palettes and CMYK are converted, transparency is laid over white. Sixteen bits are scaled to
    eight; where a grey image uses only the lower 8, 10, 12 or 14 of them, as cameras write it,
    those are. Of an animation or a motion photo, the first frame. `name` is what errors call it.

    Raises ImageError if the bytes are corrupt, truncated, of another format or over a limit. A
    JPEG that lacks nothing but the mark of its end is whole.
    """
    limits = limits or DecodeLimits()
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"{name}: {len(data)} bytes are more than the limit of {limits.max_bytes}",
            hint="shrink the image",
        )
    # Switches of the whole process; libraries that draw pages turn the first on when imported.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    PngImagePlugin.MAX_TEXT_MEMORY = _MOST_TEXT
    try:
        _refuse_canvas(data, name, limits)
        stream = read_stream(data)
        if stream.scans and not stream.ended:
            return _without_end(data, lambda whole: _decoded(whole, stream, name, limits))
        return _decoded(data, stream, name, limits)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name}: there is too little memory to decode it", hint="shrink the image"
        ) from error
    except Exception as error:  # decoders fed hostile bytes raise whatever they like
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ImageError(
            f"{name}: not a readable JPEG, PNG, PGM or WebP image{detail}",
            hint="replace or remove the file",
        ) from error


def _decoded(data: bytes, stream: JpegStream, name: str, limits: DecodeLimits) -> Pixels:
    # The decoder's own pixels are gone before the image is turned.
    pixels, orientation = _as_stored(data, stream, name, limits)
    return _upright(pixels, orientation)


def _as_stored(
    data: bytes, stream: JpegStream, name: str, limits: DecodeLimits
) -> tuple[Pixels, object]:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        _refuse_bombs(image, stream, name, limits)
        if image.mode in ("F", "RGBF"):
            raise ImageError(
                f"{name}: floating-point pixels", hint="save the image with 8 or 16 bits"
            )
        wide = _is_wide(image)
        if (shrink := _draft(image, limits)) > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
        if wide and max(_brightest(image)[:3]) < 2**6:
            raise ImageError(
                f"{name}: its 16-bit colours use only their lower bits",
                hint="save the image with 8 bits",
            )
        pixels = _rgb(image, limits.kept_pixels)
        return pixels, image.getexif().get(ExifTags.Base.Orientation)


def _without_end(data: bytes, decoded: Callable[[bytes], Pixels]) -> Pixels:
    """A JPEG whose end is not marked, if nothing else of it is missing.

    libjpeg makes up what is missing from what follows, so other bytes there give other pixels;
    behind a complete image they are not looked at.
    """
    data = data.rstrip(_END_OF_JPEG[:1])
    pixels = decoded(data + _END_OF_JPEG)
    for filling in (b"\x55", b"\xaa"):
        if not np.array_equal(pixels, decoded(data + 64 * filling + _END_OF_JPEG)):
            raise OSError("image file is truncated")
    return pixels


def _refuse_canvas(data: bytes, name: str, limits: DecodeLimits) -> None:
    """Raise ImageError for a WebP that is too large: Pillow takes the memory when it opens one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    kind, head = data[12:16], data[20:30]
    width = height = 0
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        width, height = 1 + sides % 2**14, 1 + (sides >> 14) % 2**14
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") % 2**14 for at in (6, 8))
    _refuse_size(width, height, name, limits)
    _refuse_memory(_WEBP * width * height, name, limits)


def _refuse_bombs(image: Image.Image, stream: JpegStream, name: str, limits: DecodeLimits) -> None:
    """Raise ImageError if the header promises more than the limits allow."""
    _refuse_size(image.width, image.height, name, limits)
    pixels = image.width * image.height
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if stream.scans > limits.max_scans or stream.segments > _MOST_SEGMENTS:
            raise ImageError(
                f"{name}: a JPEG of more than {limits.max_scans} scans or "
                f"{_MOST_SEGMENTS} segments",
                hint="save the image again",
            )
        shrunk = 4 * pixels / _draft(image, limits) ** 2
        _refuse_memory(int(shrunk + stream.coefficients * pixels), name, limits)
    elif image.format != "WEBP":
        _refuse_memory(_NARROW.get(image.mode, 4) * pixels, name, limits)


def _refuse_size(width: int, height: int, name: str, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels or max(width, height) > _LONGEST:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the limit of {limits.max_pixels}"
            f", or of {_LONGEST} on a side",
            hint="shrink the image",
        )


def _refuse_memory(needed: int, name: str, limits: DecodeLimits) -> None:
    if needed > limits.max_memory:
        raise ImageError(
            f"{name}: to decode it takes {needed >> 20} MiB of memory, more than the limit of "
            f"{limits.max_memory >> 20}",
            hint="shrink the image, or save it as a JPEG that is not progressive",
        )


def _draft(image: Image.Image, limits: DecodeLimits) -> int:
    """By how much libjpeg is to shrink an image while it decodes it: 1, 2, 4 or 8."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    kept = limits.kept_pixels
    return next((by for by in (1, 2, 4) if _shrunk(image.size, by, kept)), 8)


def _shrunk(size: tuple[int, int], by: int, kept: int) -> bool:
    """Whether a size, shrunk by a whole number, is at most `kept` pixels."""
    return math.ceil(size[0] / by) * math.ceil(size[1] / by) <= kept


def _is_wide(image: Image.Image) -> bool:
    """Whether colours have 16 bits, of which Pillow reads the upper eight."""
    if image.mode.startswith("I"):
        return False
    arguments: list[object] = []
    for tile in getattr(image, "tile", ()):
        arguments += tile.args if isinstance(tile.args, tuple) else [tile.args]
    return any(
        argument > 255 if isinstance(argument, int) else str(argument).endswith(";16B")
        for argument in arguments
    )


def _brightest(image: Image.Image) -> list[int]:
    """The largest value of each band."""
    return [int(high) for _, high in np.reshape(image.getextrema(), (-1, 2))]


def _rgb(image: Image.Image, kept: int) -> Pixels:
    """A decoded image of any mode -> uint8 [H, W, 3] RGB, shrunk to `kept` pixels at most."""
    width, height = image.size
    by = next(by for by in count(1) if _shrunk(image.size, by, kept))
    full = 0
    if image.mode.startswith("I"):
        (high,) = _brightest(image)
        full = next((2**bits - 1 for bits in _DEPTHS if high < 2**bits), 2**16 - 1)
    pixels = np.empty((math.ceil(height / by), math.ceil(width / by), 3), np.uint8)
    rows = by * max(1, _STRIP // (width * by))
    for top in range(0, height, rows):
        strip = _strip(image.crop((0, top, width, min(top + rows, height))), full)
        done = top // by
        pixels[done : done + rows // by] = np.asarray(strip.reduce(by) if by > 1 else strip)
    return pixels


def _strip(strip: Image.Image, full: int) -> Image.Image:
    """Some rows of a decoded image, in RGB; `full` is the white of 16-bit grey."""
    if full:
        grey = np.clip(np.asarray(strip).astype(np.int64), 0, full)
        strip = Image.fromarray(((grey * 255 + full // 2) // full).astype(np.uint8))
    if strip.has_transparency_data:
        over = strip.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        strip = Image.alpha_composite(white, over)
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _upright(pixels: Pixels, orientation: object) -> Pixels:
    """The image [H, W, 3] that EXIF's orientation, 1 to 8, says it is; of no other value."""
    turned = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.transpose(1, 0, 2),
        6: lambda: np.rot90(pixels, -1),
        7: lambda: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(pixels),
    }
    turn = turned.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else turn().copy()
