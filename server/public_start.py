"""What public images alone can teach: where private training starts, and what it must beat.

Each public person, their images and the mirror images of these together, takes part in the same
loss; nothing private is read, so nothing is clipped and no noise is added. A gain that this start
already has is not paid for by anyone's privacy, and the report states it apart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

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
from server.public_faces import Model, SeenFaces

_LOOK: Final = 5


@dataclass(frozen=True)
class PublicRows:
    """The public bank as the trainable part takes it.

    Attributes:
        seen, mirrored: one row an image, [N, ...], and its mirror image's.
        faces: the rows as the model sees a face, [N, ...]: means of both with mirror averaging.
        persons: whose they are, int64 [N], any numbering.
        views: rows of two more looks at each image, for the train set `statistics`.
    """

    seen: Tensor
    mirrored: Tensor
    faces: Tensor
    persons: NDArray[np.int64]
    views: tuple[Tensor, Tensor] | None = None

    def grouped(self, rows: Rows) -> Persons:
        """Return the public persons, each with all their rows and mirrored rows."""
        _, subjects = np.unique(np.concatenate([self.persons, self.persons]), return_inverse=True)
        order = np.argsort(subjects, kind="stable")
        both = torch.cat([self.seen, self.mirrored])[torch.from_numpy(order)]
        codes = [0] * (int(subjects.max()) + 1)
        return Persons.group(both, subjects[order].tolist(), codes, rows.prepare)


def start_on_public(
    rows: Rows, bank: PublicRows, recipe: PublicStart, judges: SeenFaces | None
) -> None:
    """Train the trainable part in place as far as it helps the judges; without any, not at all.

    Candidates are the model after every `_LOOK` steps; the best of them is kept where it is better
    than the untrained model by more than chance.
    """
    if judges is None:
        return
    trained = rows.split.trainable
    parameters = trainable_parameters(trained).values()
    model = Model.of(trained, rows.prepare)
    untrained = copy.deepcopy(trained)
    best, kept = -1.0, [p.detach().clone() for p in parameters]
    for step in train_on_public(rows, bank, recipe):
        if step % _LOOK and step != recipe.steps:
            continue
        if (quality := judges.quality(model)) > best:
            best, kept = quality, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    stages = {"untrained": Model.of(untrained, rows.prepare), "trained": model}
    if judges.best(stages) == "untrained":
        trained.load_state_dict(untrained.state_dict())


def train_on_public(rows: Rows, bank: PublicRows, recipe: PublicStart) -> Iterator[int]:
    """Train the trainable part in place, and tell each step done; a bank of one person has none.

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
    for step in range(1, recipe.steps + 1):
        order = rng.permutation(len(people))
        negatives = people.batch(order[:held_back], 1, rng).inputs[:, 0]
        batch = people.batch(order[held_back:], recipe.images_per_person, rng)
        embeddings = model(batch.inputs.flatten(0, 1)).view(*batch.present.shape, -1)
        value = loss(embeddings, batch.present, batch.codes, model(negatives)).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        optimizer.step()
        yield step
