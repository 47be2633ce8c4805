"""Synthetic people and their photographs, by seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.face import ChipSpec
from common.randomness import experiment_generator
from simulations.people.anatomy import Head, build_head
from simulations.people.camera import photograph
from simulations.people.rendering import paint
from simulations.people.traits import Identity, Scene, draw, draw_identity

DLIB_CHIP: Final = ChipSpec(150, "dlib")


@dataclass(frozen=True)
class People:
    """Aligned chips uint8 [N, S, S, 3], whose each is (int64 [N]), and SHA-256 of its bytes."""

    chips: NDArray[np.uint8]
    subjects: NDArray[np.int64]
    digests: tuple[str, ...]


def person(seed: int, index: int = 0) -> Identity:
    """The synthetic person number `index` of the population `seed`."""
    return draw_identity(experiment_generator(seed, "synthetic person", str(index)))


@lru_cache(maxsize=4)
def _head(identity: Identity) -> Head:
    return build_head(identity, experiment_generator(identity.key, "synthetic skin"))


def render(identity: Identity, image_seed: int, spec: ChipSpec = DLIB_CHIP) -> NDArray[np.uint8]:
    """Photograph a person: an aligned chip, uint8 RGB [S, S, 3].

    The image seed draws pose, light, expression, dress and camera; the same two give the same
    chip, on any machine. Raises InputError for a chip outside 32..1024 pixels.
    """
    if not 32 <= spec.size <= 1024:
        raise InputError(f"a chip has 32 to 1024 pixels a side, not {spec.size}")
    rng = experiment_generator(image_seed, "synthetic photograph", str(identity.key))
    scene = draw(Scene, rng)
    light = paint(identity, _head(identity), scene, spec, rng)
    return photograph(light, scene, spec.size, rng)


def generate(
    subjects: int, images_per_subject: int, seed: int, spec: ChipSpec = DLIB_CHIP
) -> People:
    """Photograph `subjects` people `images_per_subject` times each.

    The first persons of a larger population of the same seed are the same people, and the first
    photographs of a larger set are the same photographs. Raises InputError unless there is at
    least one of each and the chip has 32 to 1024 pixels a side.
    """
    if subjects < 1 or images_per_subject < 1:
        raise InputError(
            f"cannot draw {subjects} people with {images_per_subject} images each",
            hint="ask for at least one person and one image",
        )
    everyone = (person(seed, index) for index in range(subjects))
    chips = np.stack(
        [render(who, image, spec) for who in everyone for image in range(images_per_subject)]
    )
    digests = tuple(hashlib.sha256(chip.tobytes()).hexdigest() for chip in chips)
    return People(chips, np.repeat(np.arange(subjects), images_per_subject), digests)
