"""Cut a backbone into what is frozen and what is trained, and put it together again."""

from __future__ import annotations

import copy
import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.base import Backbone, Split
from common.errors import InputError
from common.vocabulary import TrainSet

_CELLS: Final = 4


class UnitHead(nn.Module):
    """The end of a trained network: stages, projection, unit norm."""

    def __init__(self, stages: nn.Sequential, projection: nn.Linear) -> None:
        super().__init__()
        self.stages = stages
        self.projection = projection

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.projection(self.stages(inputs)), dim=-1)


class TappedStages(nn.Module):
    """Pixels [B, 3, S, S] -> rows [B, F + M]: pooled features, then the map before the tail.

    A map of more than 4 x 4 places is averaged down to that many, and then seen as one vector.
    """

    def __init__(self, stages: nn.Sequential, tap: int) -> None:
        super().__init__()
        self.before = stages[:tap]
        self.after = stages[tap:]

    def forward(self, pixels: Tensor) -> Tensor:
        tapped = self.before(pixels)
        seen = tapped
        if tapped.dim() == 4:
            kernel = [math.ceil(side / _CELLS) for side in tapped.shape[2:]]
            seen = tapped if kernel == [1, 1] else F.avg_pool2d(tapped, kernel, ceil_mode=True)
        return torch.cat([self.after(tapped), seen.flatten(1)], dim=1)


def frozen_part(backbone: Backbone, train_set: TrainSet) -> nn.Module:
    """Return what runs once an image: all stages, those before the tail, or nothing."""
    if train_set == "full":
        return nn.Identity()
    part: nn.Module
    if train_set == "adapter":
        part = TappedStages(copy.deepcopy(backbone.stages), backbone.tail_from)
    else:
        part = copy.deepcopy(backbone.stages[: backbone.tail_from])
    return part.eval().requires_grad_(False)


def split(backbone: Backbone, train_set: TrainSet, statistics: PublicStatistics | None) -> Split:
    """Return a copy of the backbone cut for training; the backbone itself is never changed.

    The adapter needs the public bank's statistics; the other sets ignore them.
    """
    frozen = frozen_part(backbone, train_set)
    if train_set == "adapter":
        if statistics is None:
            raise InputError("the adapter needs the features of the public bank")
        # Its layers draw initial weights that are overwritten: the global generator stays.
        with torch.random.fork_rng(devices=[]):
            head = AdapterHead(backbone.projection, statistics).eval()
        return Split(frozen, head, head.condense)
    cut = backbone.tail_from if train_set == "tail" else 0
    stages = copy.deepcopy(backbone.stages[cut:])
    tail = UnitHead(stages, copy.deepcopy(backbone.projection))
    return Split(frozen, tail.eval().requires_grad_(True))


def rejoin(parts: Split) -> nn.Module:
    """Return the whole network: pixels [B, 3, S, S] -> unit-norm embeddings [B, D]."""
    return nn.Sequential(parts.frozen, parts.condense, parts.trainable)
