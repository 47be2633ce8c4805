"""A detector that some pictures break, as a fault in a decoder or detector would."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.detection import CentreDetector, Face

DEADLY: Final = {"kills": (255, 0, 0), "floods": (0, 255, 0), "breaks": (0, 0, 255)}


@dataclass(frozen=True)
class DeadlyDetector:
    """Finds a face in the centre, unless the picture has the colour of a deadly one."""

    id: str = "deadly"
    sure: float = 0.0
    turned: float = 0.0

    def detect(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        colour = tuple(image[0, 0].tolist())
        if colour == DEADLY["kills"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if colour == DEADLY["floods"]:
            np.ones(2**30)  # 8 GiB
        if colour == DEADLY["breaks"]:
            raise RuntimeError("an assertion of a library failed")
        return CentreDetector().detect(image)
