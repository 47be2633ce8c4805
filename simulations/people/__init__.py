"""Embedded default data: synthetic people, no real person's biometrics, nothing to download.

`generate(subjects, images_per_subject, seed, spec)` draws people and photographs them;
`person(seed, index)` and `render(identity, image_seed, spec)` are its two steps.
"""

from __future__ import annotations

from simulations.people.dataset import DLIB_CHIP, People, generate, person, render
from simulations.people.traits import Identity

__all__ = ["DLIB_CHIP", "Identity", "People", "generate", "person", "render"]
