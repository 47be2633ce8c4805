"""Bytes in, chips out: every format, every fault, both templates, both detectors."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import dlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from common.detection import (
    CentreDetector,
    DlibDetector,
    Face,
    YuNetDetector,
    choose_face,
    dlib_landmarks,
)
from common.errors import InputError, NoFaceError
from common.face import (
    DLIB_POINTS_ON_ARCFACE,
    ChipSpec,
    extract_chip,
    grey_chips,
    ready_chip,
)
from simulations.people import generate

Pixels = NDArray[np.uint8]
YUNET = Path(__file__).resolve().parents[1].parent / "shared" / "weights" / "yunet.onnx"
DLIB = ChipSpec(150, "dlib")
ARCFACE = ChipSpec(112, "arcface")


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
