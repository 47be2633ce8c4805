"""The recommended constants of private training: one recipe a trainable set.

They were found on degraded LFW images, on the splits that docs/levers.md reports, and are never
tuned on a site's data.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.vocabulary import TrainSet


@dataclass(frozen=True)
class PublicStart:
    """Constants of the training on public images that comes before the private one."""

    steps: int
    temperature: float
    images_per_person: int
    public_negatives: int
    learning_rate: float
    momentum: float


@dataclass(frozen=True)
class Recipe:
    """Constants of the loss, the clip and both optimisers for one trainable set.

    `public_start` None: private training starts at the public model itself.
    """

    temperature: float
    margin: float
    images_per_person: int
    public_negatives: int
    public_gradient: bool
    max_grad_norm: float
    learning_rate: float
    momentum: float
    average_from: float
    public_start: PublicStart | None = None


_RECIPES: dict[TrainSet, Recipe] = {
    "adapter": Recipe(
        *(48.0, 0.2, 4, 100, True, 0.1, 0.2, 0.9, 1.0),
        public_start=PublicStart(40, 48.0, 4, 200, 0.3, 0.9),
    ),
    "tail": Recipe(48.0, 0.2, 4, 200, False, 0.5, 0.02, 0.9, 1.0),
    "full": Recipe(48.0, 0.2, 4, 100, False, 0.5, 0.05, 0.9, 1.0),
}


def recommended(train_set: TrainSet) -> Recipe:
    """Return the recipe of a trainable set."""
    return _RECIPES[train_set]
