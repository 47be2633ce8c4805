"""The clipped sum of persons' statistics: the release of the train set `statistics`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.backbones.statistics import StatisticsHead
from common.errors import InputError
from common.losses import PersonBatch, PersonLoss, PublicSide
from common.mechanism import ClippedSum, clip_by_person
from common.moments import contribution


def person_moments(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, max_grad_norm: float
) -> ClippedSum:
    """Sum of what each person tells, clipped by person, float64 [d]: a `GradientEngine`.

    A step goes against a gradient: a person's is minus their contribution, so that the mean step
    is the mean contribution. Loss and public side have no part in it. One person at a time, and of
    a person only the images that exist, so that nothing depends on who else is there.
    """
    if not isinstance(model, StatisticsHead):
        raise InputError("only the head of statistics tells moments")

    def told() -> Iterator[Tensor]:
        for index in range(len(batch)):
            one = batch.person(index)
            images = one.inputs[one.present]
            if len(images) == 0:
                continue
            with torch.no_grad():
                yield -contribution(model.shape, model.prior, *model.seen(images))

    return clip_by_person(told(), model.shape.layout.dimension, max_grad_norm)
