"""The recommended constants of private training: one recipe, chosen on public grounds.

They were found on degraded LFW images (docs/levers.md) and are never tuned on a site's data.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.backbones.base import TrainSet


@dataclass(frozen=True)
class Recipe:
    """Constants of the loss, the clip and both optimisers for one trainable set."""

    temperature: float
    margin: float
    images_per_person: int
    public_negatives: int
    public_gradient: bool
    max_grad_norm: float
    learning_rate: float
    momentum: float
    average_from: float


_RECIPES: dict[TrainSet, Recipe] = {
    "adapter": Recipe(40.0, 0.2, 4, 100, True, 0.5, 0.07, 0.9, 1.0),
    "tail": Recipe(48.0, 0.2, 4, 200, False, 0.5, 0.05, 0.9, 1.0),
    "full": Recipe(48.0, 0.2, 4, 100, False, 0.5, 0.05, 0.9, 1.0),
}


def recommended(train_set: TrainSet) -> Recipe:
    """Return the recipe of a trainable set."""
    return _RECIPES[train_set]
