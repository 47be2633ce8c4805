"""What public images alone can teach: where private training starts, and what it must beat.

Each public person, their images and the mirror images of these together, takes part in the same
loss; nothing private is read, so nothing is clipped and no noise is added. A gain that this start
already has is not paid for by anyone's privacy, and the report states it apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.constants import LossConfig
from common.embedding import Rows
from common.losses import create_loss
from common.parameters import trainable_parameters
from common.persons import Persons
from common.randomness import experiment_generator
from common.recipe import PublicStart


@dataclass(frozen=True)
class PublicRows:
    """The public bank as the trainable part takes it.

    Attributes:
        seen, mirrored: one row an image, [N, ...], and its mirror image's.
        persons: whose they are, int64 [N], any numbering.
    """

    seen: Tensor
    mirrored: Tensor
    persons: NDArray[np.int64]

    def grouped(self, rows: Rows) -> Persons:
        """Return the public persons, each with all their rows and mirrored rows."""
        _, subjects = np.unique(np.concatenate([self.persons, self.persons]), return_inverse=True)
        order = np.argsort(subjects, kind="stable")
        both = torch.cat([self.seen, self.mirrored])[torch.from_numpy(order)]
        codes = [0] * (int(subjects.max()) + 1)
        return Persons.group(both, subjects[order].tolist(), codes, rows.prepare)


def train_on_public(rows: Rows, bank: PublicRows, recipe: PublicStart) -> None:
    """Train the trainable part in place; a bank of one person changes nothing.

    In each step a random part of the public persons gives the negatives and the others learn, so
    that no image is its own negative.
    """
    people = bank.grouped(rows)
    held_back = min(recipe.public_negatives, len(people) // 2)
    if held_back == 0:
        return
    model = rows.split.trainable
    loss = create_loss(LossConfig(temperature=recipe.temperature))
    optimizer = torch.optim.SGD(
        trainable_parameters(model).values(), recipe.learning_rate, momentum=recipe.momentum
    )
    rng = experiment_generator(0, "public start")
    for _ in range(recipe.steps):
        order = rng.permutation(len(people))
        negatives = people.batch(order[:held_back], 1, rng).inputs[:, 0]
        batch = people.batch(order[held_back:], recipe.images_per_person, rng)
        embeddings = model(batch.inputs.flatten(0, 1)).view(*batch.present.shape, -1)
        value = loss(embeddings, batch.present, batch.codes, model(negatives)).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        optimizer.step()
