"""Photographs that lie on their side or upside down are turned upright, or show no face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.quality import QualityLimits, faults, portrait
from common.detection import Detector, DlibDetector, Face, YuNetDetector
from common.errors import NoFaceError
from common.face import ChipSpec, extract_chip
from common.upright import upright
from simulations.people import generate

Pixels = NDArray[np.uint8]
SHARED = Path(__file__).resolve().parents[1].parent / "shared"
YUNET = SHARED / "weights" / "yunet.onnx"
LFW = SHARED / "data" / "lfw" / "images"
SPEC = ChipSpec(150, "dlib")
needs_lfw = pytest.mark.skipif(not LFW.is_dir(), reason="needs shared/data/lfw")


def detector(name: str) -> Detector:
    if name == "dlib":
        return DlibDetector()
    pytest.importorskip("cv2")
    if not YUNET.is_file():
        pytest.skip("needs shared/weights/yunet.onnx")
    return YuNetDetector(YUNET)


def people(count: int) -> list[Pixels]:
    first = sorted(LFW.glob("*/*_0001.jpg"))[::97]
    return [np.asarray(Image.open(path).convert("RGB")) for path in first[:count]]


@needs_lfw
@pytest.mark.parametrize("name", ["dlib", "yunet"])
def test_a_turned_photograph_gives_the_chip_of_the_upright_one_or_none(name: str) -> None:
    """Most passed the limits for enrolment, and the chips of different people were alike."""
    finder, equal = detector(name), 0
    photos = people(10)
    for photo in photos:
        chip = portrait(photo, SPEC, finder, name="a").chip
        for quarters in (1, 2, 3):
            turned = np.rot90(photo, quarters)
            try:
                seen = portrait(turned, SPEC, finder, name="a")
            except NoFaceError:
                with pytest.raises(NoFaceError):
                    extract_chip(turned, SPEC, finder, name="a")
                continue
            assert np.array_equal(seen.chip, chip)
            assert np.array_equal(extract_chip(turned, SPEC, finder, name="a"), chip)
            equal += 1
    assert equal >= 0.8 * 3 * len(photos)


def test_a_rendered_person_who_stands_on_their_head_is_turned_or_not_found() -> None:
    chips = generate(12, 1, 5, SPEC).chips
    found = 0
    for photo in (np.pad(chip, ((60, 60), (60, 60), (0, 0)), mode="edge") for chip in chips):
        for quarters in (1, 2, 3):
            seen = upright(np.rot90(photo, quarters), DlibDetector())
            assert not seen.faces or np.array_equal(seen.image, photo)
            found += bool(seen.faces)
    assert found > 0


class Scripted:
    """Scores an image by the brightness of its top left corner, whichever way up it is."""

    id, sure, turned = "scripted", 200.0, 100.0

    def detect(self, image: Pixels) -> tuple[Face, ...]:
        score = float(image[0, 0, 0])
        return (Face((0.0, 0.0, 1.0, 1.0), score),) if score else ()


def test_the_best_of_four_ways_up_wins_if_it_is_sure_enough() -> None:
    def best(*corners: int) -> tuple[int, ...]:
        """Corners clockwise from the top left; the score of what was chosen."""
        image = np.zeros((4, 4, 3), np.uint8)
        image[0, 0], image[0, 3], image[3, 3], image[3, 0] = corners
        return tuple(int(face.score) for face in upright(image, Scripted()).faces)

    assert best(200, 250, 0, 0) == (200,)  # settled: nothing else is tried
    assert best(150, 150, 0, 0) == (150,)
    assert best(90, 0, 0, 0) == (90,)
    assert best(90, 0, 180, 0) == (180,)
    assert best(90, 95, 0, 0) == ()  # another way up is likelier, but not sure
    assert best(0, 0, 0, 0) == ()


@needs_lfw
@pytest.mark.parametrize("name", ["dlib", "yunet"])
def test_the_tilt_is_measured_whichever_detector_found_the_face(name: str) -> None:
    for degrees in (-35, 20):
        for photo in people(3):
            image = Image.fromarray(photo).rotate(-degrees, Image.Resampling.BICUBIC)
            seen = portrait(np.asarray(image), SPEC, detector(name), name="a")
            assert seen.quality.roll == pytest.approx(degrees, abs=6)
            tilted = "the head is tilted" in faults(seen.quality, QualityLimits())
            assert tilted == (degrees == -35)
