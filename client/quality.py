"""Is this picture good enough to recognise someone by? Measures, limits and plain words.

Enrolment asks for good pictures, since a bad template harms every later comparison; a probe only
has to show a face. What is measured follows ISO/IEC 29794-5: size, sharpness, light, pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace

from common.detection import Detector, choose_face, dlib_landmarks
from common.errors import NoFaceError
from common.face import ChipSpec, chip_of_face
from common.upright import upright

_SIDE: Final = 112


@dataclass(frozen=True)
class Quality:
    """What was measured on one picture.

    Attributes:
        faces: how many faces of at least half the main one's size there are.
        eye_distance: between the centres of the eyes, in pixels of the picture.
        roll: angle of the line through the eyes, in degrees, 0 upright, after the picture was
            turned by quarters if it had to be. By dlib's landmarks: YuNet's own make 10 of 20.
        turn: how far the base of the nose is from the middle of the eyes along that line, in eye
            distances: 0 frontal, about 0.3 half turned away.
        drop: how far it is below that line, in eye distances: small looking down, large up.
        sharpness: variance of the Laplacian of the grey chip at 112 pixels (Pech-Pacheco 2000).
        brightness, contrast: mean and standard deviation of that grey chip, 0..255.
    """

    faces: int
    eye_distance: float
    roll: float
    turn: float
    drop: float
    sharpness: float
    brightness: float
    contrast: float


@dataclass(frozen=True)
class QualityLimits:
    """What a picture for enrolment must reach; docs/recognition.md says how they were chosen."""

    eye_distance: float = 24.0
    roll: float = 30.0
    turn: float = 0.30
    drop: tuple[float, float] = (0.45, 1.1)
    sharpness: float = 25.0
    brightness: tuple[float, float] = (40.0, 225.0)
    contrast: float = 15.0


@dataclass(frozen=True)
class Portrait:
    """The main face of a picture: its chip uint8 [S, S, 3], and how good it is."""

    chip: NDArray[np.uint8]
    quality: Quality


def portrait(
    image: NDArray[np.uint8], spec: ChipSpec, detector: Detector, *, name: str
) -> Portrait:
    """Find the main face of an image [H, W, 3] and measure it; none: NoFaceError with `name`."""
    seen = upright(image, detector)
    image, faces = seen.image, seen.faces
    face = choose_face(faces, image)
    if face is None:
        raise NoFaceError(f"{name}: no face found", hint="use a larger or more frontal face")
    chip = chip_of_face(image, face, spec)
    parts = dlib_landmarks(image, face).parts()
    five = np.array([(part.x, part.y) for part in parts], dtype=np.float64)
    # dlib's order: right of the image outer, inner; left outer, inner; nose.
    left, right, nose = five[2:4].mean(axis=0), five[:2].mean(axis=0), five[4]
    across = right - left
    distance = max(float(np.hypot(*across)), 1e-6)
    along = across / distance
    offset = (nose - (left + right) / 2) / distance
    small = Image.fromarray(chip).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float64)
    return Portrait(
        chip,
        Quality(
            faces=sum(2 * other.side >= face.side for other in faces),
            eye_distance=distance,
            roll=math.degrees(math.atan2(across[1], across[0])),
            turn=float(offset @ along),
            drop=float(offset @ np.array([-along[1], along[0]])),
            sharpness=float(laplace(grey).var()),
            brightness=float(grey.mean()),
            contrast=float(grey.std()),
        ),
    )


def faults(quality: Quality, limits: QualityLimits) -> tuple[str, ...]:
    """Say in plain words what keeps a picture from being enrolled; empty if nothing does."""
    low, high = limits.drop
    dark, bright = limits.brightness
    found = (
        (quality.faces > 1, "more than one face"),
        (quality.eye_distance < limits.eye_distance, "the face is too small: come closer"),
        (abs(quality.roll) > limits.roll, "the head is tilted"),
        (abs(quality.turn) > limits.turn, "the head is turned to the side"),
        (quality.drop < low, "the head is bowed"),
        (quality.drop > high, "the head is raised"),
        (quality.sharpness < limits.sharpness, "the picture is blurred"),
        (quality.brightness < dark, "the face is too dark"),
        (quality.brightness > bright, "the face is too bright"),
        (quality.contrast < limits.contrast, "the light is too flat"),
    )
    return tuple(words for wrong, words in found if wrong)
