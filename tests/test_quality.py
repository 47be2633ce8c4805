"""Quality: real pictures pass, spoilt ones are told what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from client.quality import QualityLimits, faults, portrait
from common.detection import DlibDetector
from common.errors import NoFaceError
from common.face import ChipSpec

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"
SPEC, LIMITS = ChipSpec(150, "dlib"), QualityLimits()
needs_lfw = pytest.mark.skipif(not LFW.is_dir(), reason="LFW is not in ../shared")


@pytest.fixture(scope="module")
def good() -> Image.Image:
    return Image.open(LFW / "Abdoulaye_Wade" / "Abdoulaye_Wade_0001.jpg").convert("RGB")


def found(image: Image.Image) -> tuple[str, ...]:
    return faults(portrait(np.asarray(image), SPEC, DlibDetector(), name="x").quality, LIMITS)


@needs_lfw
def test_nine_of_ten_press_photographs_pass() -> None:
    people = [folder for folder in sorted(LFW.iterdir()) if folder.is_dir()][::120]
    passed = [not found(Image.open(next(person.iterdir())).convert("RGB")) for person in people]
    assert sum(passed) >= 0.85 * len(passed)


Spoil = Callable[[Image.Image], Image.Image]


def two_faces(image: Image.Image) -> Image.Image:
    double = Image.new("RGB", (2 * image.width, image.height))
    double.paste(image, (0, 0))
    double.paste(image, (image.width, 0))
    return double


SPOILT: list[tuple[Spoil, str]] = [
    (lambda image: image.filter(ImageFilter.GaussianBlur(3)), "blurred"),
    (lambda image: image.resize((100, 100)), "too small"),
    (lambda image: image.point(lambda v: v * 0.15), "too dark"),
    (two_faces, "more than one face"),
    (lambda image: image.point(lambda v: 120 + (v - 120) * 0.15), "too flat"),
]


@needs_lfw
@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_a_spoilt_picture_is_told_what_is_wrong(
    good: Image.Image, spoil: Spoil, words: str
) -> None:
    assert not found(good)
    assert any(words in fault for fault in found(spoil(good)))


@needs_lfw
def test_a_tilted_head_is_measured_in_degrees(good: Image.Image) -> None:
    def roll(image: Image.Image) -> float:
        return portrait(np.asarray(image), SPEC, DlibDetector(), name="x").quality.roll

    turned = good.rotate(15, resample=Image.Resampling.BICUBIC)
    assert roll(turned) - roll(good) == pytest.approx(-15, abs=6)


def test_a_picture_without_a_face_is_named() -> None:
    grey: NDArray[np.uint8] = np.full((200, 200, 3), 90, np.uint8)
    with pytest.raises(NoFaceError, match=r"wall\.png: no face found"):
        portrait(grey, SPEC, DlibDetector(), name="wall.png")
