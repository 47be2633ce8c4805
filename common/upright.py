"""Which way up a picture is: photographs lie on their side or upside down, and say nothing.

Both detectors find faces in pictures that stand on their heads, always put the landmarks of a face
that stands upright there, and what is cut out is nobody: such chips of different people are alike.
Their scores tell: of the four ways to lay a picture, the right one scores highest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.detection import Detector, Face


@dataclass(frozen=True)
class UprightImage:
    """A picture as it has to be looked at, and the faces in it.

    Attributes:
        image: [H, W, 3] RGB, C-contiguous.
        faces: in pixels of `image`; none also where no way up is sure enough.
    """

    image: NDArray[np.uint8]
    faces: tuple[Face, ...]


def upright(image: NDArray[np.uint8], detector: Detector) -> UprightImage:
    """An image [H, W, 3], turned by quarters until its faces stand upright.

    A face that reaches the detector's `sure` settles it. Otherwise all four ways are tried and the
    best score wins, the image as it is if in doubt; but a turned one must reach `turned`, or there
    is no face: better none than one that may be upside down.
    """
    image = np.ascontiguousarray(image)
    faces = detector.detect(image)
    if _best(faces) >= detector.sure:
        return UprightImage(image, faces)
    chosen = UprightImage(image, faces)
    for quarters in (1, 2, 3):
        other = np.rot90(image, quarters).copy()  # dlib also minds the strides of a single column
        found = detector.detect(other)
        if _best(found) > _best(chosen.faces):
            chosen = UprightImage(other, found)
    if chosen.image is not image and _best(chosen.faces) < detector.turned:
        return UprightImage(image, ())
    return chosen


def _best(faces: tuple[Face, ...]) -> float:
    return max((face.score for face in faces), default=-np.inf)
