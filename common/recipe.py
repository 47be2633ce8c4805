"""The recommended constants of private training: one recipe a trainable set.

They were found on degraded LFW images, on the splits that docs/levers.md reports, and are never
tuned on a site's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.constants import MomentsConfig
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
    # One round of moments: what is not theirs (loss, temperature, negatives) is not used.
    "statistics": Recipe(48.0, 0.2, 32, 1, True, 1.0, 1.0, 0.0, 1.0),
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


# From so many declared persons on moments of pairs are worth their noise, and from so many numbers
# that can be told on a larger block of them off the diagonal. Beside no noise at all, all are.
_PERSONS_FOR_PAIRS, _NUMBERS_FOR_PAIRS, _NUMBERS_FOR_MORE = 300, 80, 160
_BLOCK, _LARGER_BLOCK = 24, 40
# Most persons' mean embedding is as long as the clip then, and noise is told beside it.
_MEAN, _COUNTER = 1.35, 0.2


def moments_for(directions: int, persons: float, numbers: float) -> MomentsConfig:
    """Return what a person tells in so many public directions, for a clip of 1.

    From `persons`, how many are declared in all, and `numbers`, how many can be told beside the
    noise (`server.moments.evidence`): public constants alone. Few persons tell their mean
    embedding. With more, an ordinary person's contribution is about as long
    as twice the clip, which bounds what an extraordinary one adds. docs/statistics.md has what was
    tried.
    """
    if not directions or persons < _PERSONS_FOR_PAIRS or numbers < _NUMBERS_FOR_PAIRS:
        return MomentsConfig(directions, 0, _MEAN, 0.0, 0.0, _COUNTER)
    block = _BLOCK if numbers < _NUMBERS_FOR_MORE else _LARGER_BLOCK
    if numbers == persons and persons >= 4 * directions:
        block = directions
    block = min(block, directions)
    scale = 2.0 / math.sqrt(block**2 + 2.5 * directions)
    return MomentsConfig(directions, block, 0.25, scale, scale, 0.6)
