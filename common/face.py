"""Bytes to decoded, detected, aligned chip: the same for training, enrolment and probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ChipSpec:
    """How a backbone wants its faces: `size` x `size` RGB, aligned by `template`.

    `dlib` is dlib's five-point chip with padding 0.25; `arcface` is the five-point similarity
    transform of Deng et al. 2019 (ArcFace) on a 112-pixel square, scaled to `size`.
    """

    size: int
    template: Literal["dlib", "arcface"]
