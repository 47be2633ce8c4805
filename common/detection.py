"""Find the faces of an image: dlib's HOG detector by default, YuNet through OpenCV by option.

A detector is a small frozen value: cheap to make, picklable, and named by an `id` that changes
whenever its answer could (so that cached chips of another detector are never taken for its own).
The models behind it are loaded once a process, on first use.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock, local
from typing import Any, Protocol

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.backbones.dlib_weights import LANDMARKS_FILE, packaged_file
from common.errors import InputError

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Face:
    """One detected face, in pixels of the image it was found in.

    Attributes:
        box: left, top, right, bottom of the square from the brows to the chin that dlib's shape
            predictor was trained on; it may reach over the border of the image.
        score: the detector's own confidence, higher is surer; not comparable across detectors.
        landmarks: centres of the eyes, tip of the nose and corners of the mouth, left of the
            image first (the order of ArcFace); None where the detector knows only boxes.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[Point, Point, Point, Point, Point] | None = None

    @property
    def side(self) -> float:
        """The side of a square as large as the box."""
        left, top, right, bottom = self.box
        return math.sqrt(max((right - left) * (bottom - top), 1.0))


class Detector(Protocol):
    """Anything that finds faces in an image; must be picklable, and safe to call from threads."""

    @property
    def id(self) -> str:
        """Name, version and every parameter that changes an answer."""
        ...

    @property
    def sure(self) -> float:
        """The score from which on a face stands upright (see `common.upright`)."""
        ...

    @property
    def turned(self) -> float:
        """The score that a face must reach for the image to be turned for it."""
        ...

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Image [H, W, 3] RGB -> its faces, in no particular order."""
        ...


@dataclass(frozen=True)
class DlibDetector:
    """dlib's frontal HOG detector; an image without a face is looked at again, less strictly.

    Attributes:
        tries: what is tried until a face is found: how often to double the image's size (HOG
            sees faces from 80 pixels) and the score from which on something is a face.
        max_side: larger images are shrunk to this many pixels on the longer side first.
        sure, turned: as the protocol says. Of 700 LFW and 400 FairFace images none that was turned
            scored above 0.32; of those as they are, 5% of LFW and half of FairFace score below 0.6.

    The default tries miss 8 of the 13,233 LFW images, where the first alone misses 59; in 331
    LFW images they put no box (at the original size) or one (doubled) where there is no face.
    """

    tries: tuple[tuple[int, float], ...] = ((0, 0.0), (0, -0.5), (1, -0.3))
    max_side: int = 1280
    sure: float = 0.6
    turned: float = 0.4

    @property
    def id(self) -> str:
        tries = ",".join(f"{doublings}:{score}" for doublings, score in self.tries)
        way_up = f"up{self.sure},{self.turned}"
        return f"dlib-hog-{dlib.__version__}-tries{tries}-side{self.max_side}-{way_up}"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Image [H, W, 3] RGB -> faces, without landmarks."""
        shrunk, (across, down) = _shrink(image, self.max_side)
        for doublings, score in self.tries:
            boxes, scores, _ = _dlib().hog.run(shrunk, doublings, score)
            if boxes:
                break
        corners = [(box.left(), box.top(), box.right(), box.bottom()) for box in boxes]
        return tuple(
            Face((left * across, top * down, right * across, bottom * down), float(score))
            for (left, top, right, bottom), score in zip(corners, scores, strict=True)
        )


@dataclass(frozen=True)
class YuNetDetector:
    """YuNet (Wu et al. 2023) from an ONNX file, run by OpenCV's FaceDetectorYN.

    It sees more than frontal faces: on 840 FairFace images it misses 1, `DlibDetector` 122.

    Attributes:
        path: the ONNX file.
        threshold: lowest score that counts as a face, in 0..1.
        max_side: larger images are shrunk to this many pixels on the longer side first.
        sure, turned: as the protocol says. Of 700 LFW and 400 FairFace images none that was turned
            scored above 0.90; of those as they are, a fifth scores below 0.92.
    """

    path: Path
    threshold: float = 0.6
    max_side: int = 640
    sure: float = 0.92
    turned: float = 0.9

    @property
    def id(self) -> str:
        way_up = f"up{self.sure},{self.turned}"
        return f"yunet-{_digest(self.path)}-score{self.threshold}-side{self.max_side}-{way_up}"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Image [H, W, 3] RGB -> faces with landmarks.

        Raises InputError if OpenCV is not installed or the file is not a YuNet model.
        """
        shrunk, (across, down) = _shrink(image, self.max_side)
        network, lock = _yunet(self.path, self.threshold)
        with lock:  # the network keeps the input size between two calls
            network.setInputSize((shrunk.shape[1], shrunk.shape[0]))
            _, rows = network.detect(np.ascontiguousarray(shrunk[:, :, ::-1]))
        if rows is None:
            return ()
        rows = rows.astype(np.float64) * np.array([across, down] * 7 + [1.0])
        return tuple(_yunet_face(row) for row in rows)


@dataclass(frozen=True)
class CentreDetector:
    """Takes a central square for the face: for protocols whose images are centred (LFW)."""

    fraction: float = 0.44
    sure: float = 0.0
    turned: float = 0.0

    @property
    def id(self) -> str:
        return f"centre-{self.fraction}"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """Image [H, W, 3] -> one face with score 0: `fraction` of the shorter side, centred."""
        height, width = image.shape[:2]
        half = self.fraction * min(height, width) / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
        return (Face(box, 0.0),)


def detector_of(yunet: Path | None) -> Detector:
    """The detector of that YuNet file, or dlib's where there is none."""
    return DlibDetector() if yunet is None else YuNetDetector(yunet)


def choose_face(faces: tuple[Face, ...], image: NDArray[np.uint8]) -> Face | None:
    """The face that an image is of: nearest to the centre, in units of its own size.

    Minimises |centre of box - centre of image| / sqrt(area of box), so that a small face in the
    background loses to a large one that is a little off the centre. None without faces.
    """
    height, width = image.shape[:2]

    def distance(face: Face) -> float:
        left, top, right, bottom = face.box
        away = np.hypot((left + right - width) / 2, (top + bottom - height) / 2)
        return float(away / face.side)

    return min(faces, key=distance, default=None)


def dlib_landmarks(image: NDArray[np.uint8], face: Face) -> Any:
    """dlib's five points on `face`: outer and inner corners of the eyes and base of the nose.

    Returns dlib's `full_object_detection`, points in the order of dlib's model: right of the
    image outer, inner; left outer, inner; nose.
    """
    left, top, right, bottom = (round(value) for value in face.box)
    return _dlib().five_points(image, dlib.rectangle(left, top, right, bottom))


def _shrink(
    image: NDArray[np.uint8], max_side: int
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The image at most `max_side` long, and the factors (x, y) back to the original."""
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image, (1.0, 1.0)
    factor = max_side / max(height, width)
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))
    return shrunk, (width / small[0], height / small[1])


def _yunet_face(row: NDArray[np.float64]) -> Face:
    """One row of YuNet (x, y, w, h, five points, score) -> Face.

    YuNet's box is upright and reaches higher than the square dlib wants. That square is centred
    on the mean of the five points; its offset and side, in units of the root of the box's area,
    are medians over the 13,160 LFW images in which both detectors find the same face.
    """
    _, _, width, height, *five, score = row.tolist()
    first, second, third, fourth, fifth = zip(five[::2], five[1::2], strict=True)
    unit = max(width * height, 1.0) ** 0.5
    x, y, half = sum(five[::2]) / 5, sum(five[1::2]) / 5 + 0.014 * unit, 0.963 * unit / 2
    box = (x - half, y - half, x + half, y + half)
    return Face(box, score, (first, second, third, fourth, fifth))


class _Dlib(local):
    """dlib's models, one set a thread: they keep work space, and crash when threads share them."""

    def __init__(self) -> None:
        self.hog: Any = dlib.get_frontal_face_detector()
        self.five_points: Any = dlib.shape_predictor(str(packaged_file(LANDMARKS_FILE)))


@lru_cache(maxsize=1)
def _dlib() -> _Dlib:
    return _Dlib()


@lru_cache(maxsize=4)
def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(
            f"cannot read the face detector {path}: {error.strerror}", hint="give YuNet's ONNX file"
        ) from error


@lru_cache(maxsize=4)
def _yunet(path: Path, threshold: float) -> tuple[Any, Lock]:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "YuNet needs OpenCV, which is not installed", hint="pip install 'veilface[site]'"
        ) from error
    _digest(path)
    log = cv2.utils.logging
    before = log.setLogLevel(log.LOG_LEVEL_ERROR)
    try:
        network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), threshold)
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        raise InputError(f"{path} is not a YuNet model", hint="give YuNet's ONNX file") from error
    finally:
        log.setLogLevel(before)
    return network, Lock()
