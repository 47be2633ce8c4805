"""Bytes in, pixels out: every format, every fault, every way to hide what decoding costs."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from common.decoding import DecodeLimits, decode_image
from common.errors import ImageError

Pixels = NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "PPM", "WEBP")
SMALL = DecodeLimits(max_bytes=100_000, max_pixels=10_000)


def encoded(pixels: Pixels, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def picture() -> Pixels:
    """A smooth picture [40, 60, 3] without any symmetry."""
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_the_same_upright_rgb_pixels(picture: Pixels, form: str) -> None:
    options: dict[str, dict[str, object]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    found = decode_image(encoded(picture, form, **options.get(form, {})), name="a")
    assert found.shape == picture.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - picture).max() <= (3 if form == "JPEG" else 0)


def test_a_grey_pgm_becomes_three_equal_channels(picture: Pixels) -> None:
    found = decode_image(encoded(picture[..., 0], "PPM"), name="a.pgm")
    assert np.array_equal(found, np.repeat(picture[..., :1], 3, axis=-1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(picture: Pixels, orientation: int) -> None:
    turned = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(turned), "PNG", exif=exif)
    assert np.array_equal(decode_image(data, name="a"), picture)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    wide = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for form in ("PNG", "PPM"):
        found = decode_image(saved(Image.fromarray(wide), form), name="a")
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette_cmyk_and_one_bit_become_rgb(picture: Pixels) -> None:
    image = Image.fromarray(picture)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(decode_image(saved(palette), name="a"), np.array(palette.convert("RGB")))
    cmyk = decode_image(saved(image.convert("CMYK"), "JPEG", quality=100), name="a")
    assert np.abs(cmyk.astype(int) - picture).max() <= 8
    assert set(np.unique(decode_image(saved(image.convert("1")), name="a"))) == {0, 255}


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    assert (decode_image(saved(clear), name="a") == 255).all()
    assert (decode_image(saved(half), name="a") == 127).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    assert (decode_image(saved(palette, transparency=0), name="a") == 255).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (200, 20)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    assert (decode_image(saved(frames[0], form, **options), name="a") == 200).all()


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_image_is_named(picture: Pixels, form: str) -> None:
    data = encoded(picture, form)
    for length in (0, 1, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageError, match=r"holiday\.img"):
            decode_image(data[:length], name="holiday.img")


def test_a_jpeg_that_lacks_its_last_two_bytes_is_a_picture_and_no_shorter_one_is(
    picture: Pixels,
) -> None:
    for progressive in (False, True):
        data = encoded(picture, "JPEG", quality=95, progressive=progressive)
        assert data.endswith(b"\xff\xd9")
        whole = decode_image(data, name="a")
        for missing in (1, 2):
            assert np.array_equal(decode_image(data[:-missing], name="a"), whole)
        for missing in (*range(4, 40), len(data) // 2):
            with pytest.raises(ImageError, match="not a readable"):
                decode_image(data[:-missing], name="a")


def test_a_motion_photo_is_its_still(picture: Pixels) -> None:
    """Phones append a film, in which FF DA stands more than a hundred times by chance."""
    still = encoded(picture, "JPEG")
    film = np.random.default_rng(1).bytes(2**20) + 101 * b"\xff\xda"
    assert np.array_equal(decode_image(still + film, name="a"), decode_image(still, name="a"))


def test_scans_do_not_hide_behind_a_thumbnail_or_a_false_end(picture: Pixels) -> None:
    progressive = encoded(picture, "JPEG", progressive=True)
    hidden = b"\xff\xe1\x00\x06\xff\xd9\xff\xd9"  # an end of image within a segment
    for data in (progressive, progressive[:2] + hidden + progressive[2:]):
        with pytest.raises(ImageError, match="scans"):
            decode_image(data, name="a", limits=DecodeLimits(max_scans=2))
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 2 * 200) + 200 * b"\xff\xda"
    data = progressive[:2] + thumbnail + progressive[2:]
    assert decode_image(data, name="a").shape == picture.shape
    segments = progressive[:2] + 10_001 * b"\xff\xe5\x00\x02" + progressive[2:]
    with pytest.raises(ImageError, match="segments"):
        decode_image(segments, name="a")


def test_an_orientation_that_stands_in_xmp_alone_is_undone(picture: Pixels) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    turned = np.ascontiguousarray(np.rot90(picture, 1))
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for data in (
        encoded(turned, "JPEG", quality=100, subsampling=0, xmp=xmp),
        encoded(turned, "PNG", pnginfo=text),
        encoded(turned, "WEBP", lossless=True, xmp=xmp),
    ):
        found = decode_image(data, name="a")
        assert found.shape == picture.shape
        assert np.abs(found.astype(int) - picture).max() <= 3


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_the_bits_that_a_camera_filled_of_sixteen_are_scaled(bits: int) -> None:
    full = 2**bits - 1
    for form in ("PNG", "PPM"):
        wide = Image.fromarray(np.array([[0, full // 3, full]], np.uint16))
        assert decode_image(saved(wide, form), name="a")[0, :, 0].tolist() == [0, 85, 255]


def test_colours_of_twelve_bits_in_sixteen_are_refused_with_the_reason() -> None:
    """Pillow reads the upper eight bits: four of twelve would be left."""

    def png(samples: NDArray[np.uint16]) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
        head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )

    ramp = np.linspace(0, 4095, 8 * 8 * 3).astype(np.uint16).reshape(8, 8, 3)
    with pytest.raises(ImageError, match="16-bit colours use only their lower bits"):
        decode_image(png(ramp), name="a")
    assert decode_image(png(ramp * 16), name="a").max() == 255


def test_a_library_that_wants_truncated_images_does_not_get_them_here(
    picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(picture, "PNG")
    with pytest.raises(ImageError):
        decode_image(data[: len(data) // 2], name="a")


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "ICO"])
def test_other_formats_are_refused(picture: Pixels, form: str) -> None:
    with pytest.raises(ImageError, match="not a readable"):
        decode_image(encoded(picture, form), name="a")


def test_images_over_a_limit_are_refused(picture: Pixels) -> None:
    data = encoded(picture, "PNG")
    with pytest.raises(ImageError, match="bytes are more"):
        decode_image(data, name="a", limits=DecodeLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageError, match="60 x 40 pixels are more"):
        decode_image(data, name="a", limits=DecodeLimits(max_pixels=60 * 40 - 1))
    progressive = encoded(picture, "JPEG", progressive=True)
    with pytest.raises(ImageError, match="scans"):
        decode_image(progressive, name="a", limits=DecodeLimits(max_scans=2))
    assert decode_image(progressive, name="a").shape == picture.shape


def _peak_of(data: bytes) -> tuple[str, int]:
    """What a fresh process says of decoding `data`, and the MiB that it took for it."""
    script = (
        "import resource, sys\n"
        "from common.decoding import decode_image\n"
        "from common.errors import ImageError\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "data = sys.stdin.buffer.read()\n"
        "before = peak()\n"
        "try: said = str(decode_image(data, name='a').shape)\n"
        "except ImageError as error: said = str(error)\n"
        "print(f'{peak() - before}\\n{said}')"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    cost, _, said = done.stdout.decode().strip().partition("\n")
    return said, int(cost)


def test_no_picture_of_any_kind_takes_more_than_its_bound() -> None:
    """They cost 2 GiB and more: an alpha channel, 16 bits and a rotation were full-size copies."""
    side, turned = 7990, Image.Exif()
    turned[0x0112] = 6
    clear = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    grey = Image.new("L", (side, side), 90)
    progressive = saved(grey, "JPEG", progressive=True, exif=turned)
    for data, words in (
        (saved(clear, "WEBP", lossless=True, method=0, exif=turned), "MiB of memory"),
        (saved(clear, exif=turned, compress_level=1), "(3995, 3995, 3)"),
        (saved(Image.new("I;16", (side, side)), exif=turned, compress_level=1), "(3995, 3995, 3)"),
        (progressive, "(3995, 3995, 3)"),
    ):
        said, cost = _peak_of(data)
        assert words in said
        assert cost < 400


def test_a_jpeg_whose_scans_fill_the_memory_is_refused(picture: Pixels) -> None:
    """libjpeg keeps the coefficients of all scans: six bytes a pixel without subsampling."""
    tight = DecodeLimits(max_memory=9 * 60 * 40)
    plain = encoded(picture, "JPEG", subsampling=0)
    assert decode_image(plain, name="a", limits=tight).shape == picture.shape
    with pytest.raises(ImageError, match="memory"):
        decode_image(
            encoded(picture, "JPEG", subsampling=0, progressive=True), name="a", limits=tight
        )
    sparse = encoded(picture, "JPEG", subsampling=2, progressive=True)
    assert decode_image(sparse, name="a", limits=tight).shape == picture.shape


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_larger_than_is_kept_is_shrunk_and_stays_the_same_picture(form: str) -> None:
    rows, columns = np.mgrid[0:301, 0:500]
    large = np.stack([rows // 2, columns // 2, (rows + columns) // 4], axis=-1).astype(np.uint8)
    found = decode_image(encoded(large, form), name="a", limits=DecodeLimits(kept_pixels=40_000))
    assert found.shape == (151, 250, 3)
    assert np.abs(found[:150].astype(int) - large[:300:2, ::2]).mean() < 3


def test_a_decompression_bomb_costs_no_memory() -> None:
    bomb = bytearray(saved(Image.new("1", (1, 1))))
    bomb[16:24] = struct.pack(">II", 9_000, 9_000)  # width and height, then their checksum
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(bytes(bomb), name="bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), form=st.sampled_from(FORMATS), shade=st.integers(0, 255))
def test_mutated_bytes_give_an_image_error_or_an_image_within_limits(
    data: st.DataObject, form: str, shade: int
) -> None:
    pixels = np.full((17, 23, 3), shade, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = bytearray(encoded(pixels, form, **({} if form == "PPM" else {"exif": exif})))
    places = st.integers(0, len(raw) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        raw[place] = value
    cut = data.draw(st.one_of(st.just(len(raw)), places))
    try:
        found = decode_image(bytes(raw[:cut]), name="x", limits=SMALL)
    except ImageError as error:
        assert str(error).startswith("x: ")
    else:
        assert found.dtype == np.uint8
        assert found.shape[2] == 3
        assert 0 < found.shape[0] * found.shape[1] <= SMALL.max_pixels
