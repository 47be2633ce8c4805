"""Bytes in, chips out: every format, every fault, both templates, both detectors."""

from __future__ import annotations

import importlib
import io
import resource
import struct
import sys
import zlib
from pathlib import Path

import dlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from common.detection import (
    CentreDetector,
    DlibDetector,
    Face,
    YuNetDetector,
    choose_face,
    dlib_landmarks,
)
from common.errors import ImageError, InputError, NoFaceError
from common.face import (
    DLIB_POINTS_ON_ARCFACE,
    ChipSpec,
    DecodeLimits,
    decode_image,
    extract_chip,
    grey_chips,
    ready_chip,
)
from simulations.people import generate

Pixels = NDArray[np.uint8]
YUNET = Path(__file__).resolve().parents[1].parent / "shared" / "weights" / "yunet.onnx"
DLIB = ChipSpec(150, "dlib")
ARCFACE = ChipSpec(112, "arcface")
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


@pytest.fixture(scope="module")
def portraits() -> list[Pixels]:
    """Photographs [270, 270, 3] of four synthetic people whose faces are found."""
    chips = generate(6, 1, 5, DLIB).chips
    photographs = [np.pad(chip, ((60, 60), (60, 60), (0, 0)), mode="edge") for chip in chips]
    return [photo for photo in photographs if DlibDetector().detect(photo)][:4]


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


def test_a_dlib_chip_is_exactly_dlibs_own(portraits: list[Pixels]) -> None:
    for photo in portraits:
        (box,) = dlib.get_frontal_face_detector()(photo)
        points = dlib_landmarks(photo, Face((box.left(), box.top(), box.right(), box.bottom()), 1))
        own = dlib.get_face_chip(photo, points, 150, 0.25)
        assert np.array_equal(extract_chip(photo, DLIB, DlibDetector(), name="a"), own)


@pytest.mark.parametrize("size", [112, 224])
def test_an_arcface_chip_has_the_eyes_and_nose_in_place(portraits: list[Pixels], size: int) -> None:
    for photo in portraits:
        chip = extract_chip(photo, ChipSpec(size, "arcface"), DlibDetector(), name="a")
        assert chip.shape == (size, size, 3)
        box = tuple(size * share for share in (0.17, 0.28, 0.83, 0.94))
        parts = dlib_landmarks(chip, Face((box[0], box[1], box[2], box[3]), 1)).parts()
        found = np.array([(part.x, part.y) for part in parts]) * 112 / size
        assert np.abs(found - np.array(DLIB_POINTS_ON_ARCFACE)).mean() < 3.5


@pytest.mark.skipif(not YUNET.is_file(), reason="needs shared/weights/yunet.onnx")
def test_yunet_gives_nearly_the_same_chips_as_dlib(portraits: list[Pixels]) -> None:
    pytest.importorskip("cv2")
    yunet = YuNetDetector(YUNET)
    for spec in (DLIB, ARCFACE):
        for photo in portraits:
            ours = extract_chip(photo, spec, yunet, name="a").astype(int)
            dlibs = extract_chip(photo, spec, DlibDetector(), name="a")
            shifted = np.abs(np.roll(ours, spec.size // 4, axis=1) - dlibs).mean()
            assert np.abs(ours - dlibs).mean() < shifted / 2


@pytest.mark.skipif(not YUNET.is_file(), reason="needs shared/weights/yunet.onnx")
def test_large_images_give_boxes_in_their_own_pixels(portraits: list[Pixels]) -> None:
    pytest.importorskip("cv2")
    large = np.asarray(Image.fromarray(portraits[0]).resize((810, 810)))
    for detector in (DlibDetector(max_side=270), YuNetDetector(YUNET, max_side=270)):
        face = choose_face(detector.detect(large), large)
        assert face is not None
        assert face.box[2] - face.box[0] > 250
        assert 300 < (face.box[0] + face.box[2]) / 2 < 510


def test_an_image_without_a_face_is_named() -> None:
    with pytest.raises(NoFaceError, match=r"wall\.png"):
        extract_chip(np.full((200, 200, 3), 127, np.uint8), DLIB, DlibDetector(), name="wall.png")


def test_the_face_nearest_to_the_centre_by_its_own_size_is_chosen() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    large = Face((60.0, 40.0, 180.0, 160.0), 0.1)
    small = Face((70.0, 90.0, 90.0, 110.0), 0.9)
    aside = Face((0.0, 0.0, 120.0, 120.0), 0.9)
    assert choose_face((aside, small, large), image) is large
    assert choose_face((), image) is None


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 9))
def test_any_image_has_a_central_chip(height: int, width: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for spec in (DLIB, ARCFACE):
        chip = extract_chip(noise, spec, CentreDetector(), name="a")
        assert chip.shape == (spec.size, spec.size, 3)
    with pytest.raises(NoFaceError):
        extract_chip(noise, DLIB, DlibDetector(tries=((0, 0.0),)), name="a")


def test_a_ready_chip_is_only_resized_if_needed(picture: Pixels) -> None:
    exact = np.ascontiguousarray(picture[:, 10:50])
    assert np.array_equal(ready_chip(picture, ChipSpec(40, "dlib")), exact)
    blocks = exact.reshape(20, 2, 20, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(ready_chip(exact, ChipSpec(20, "dlib")) - blocks).max() <= 1
    assert ready_chip(exact, DLIB).shape == (150, 150, 3)


def test_grey_chips_are_pillows_luma(picture: Pixels) -> None:
    luma = np.asarray(Image.fromarray(picture).convert("L"))
    assert np.array_equal(grey_chips(picture[None])[0], np.repeat(luma[..., None], 3, axis=-1))


def test_a_detectors_id_tells_its_parameters_apart() -> None:
    ids = {DlibDetector().id, DlibDetector(max_side=99).id, DlibDetector(tries=((0, 0.0),)).id}
    assert len(ids | {CentreDetector().id}) == 4


def test_yunet_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InputError, match="cannot read"):
        _ = YuNetDetector(tmp_path / "none.onnx").id
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"not a network")
    if importlib.util.find_spec("cv2"):
        with pytest.raises(InputError, match="not a YuNet model"):
            YuNetDetector(wrong).detect(image)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="OpenCV"):
        YuNetDetector(wrong).detect(image)
