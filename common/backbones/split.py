"""Cut a backbone into what is frozen and what is trained, and put it together again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import AdapterHead
from common.backbones.base import Backbone, Split, TrainSet
from common.errors import InputError


class UnitHead(nn.Module):
    """The end of a trained network: stages, projection, unit norm."""

    def __init__(self, stages: nn.Sequential, projection: nn.Linear) -> None:
        super().__init__()
        self.stages = stages
        self.projection = projection

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.projection(self.stages(inputs)), dim=-1)


def frozen_part(backbone: Backbone, train_set: TrainSet) -> nn.Module:
    """Return what runs once an image: all stages, those before the tail, or nothing."""
    cut = {"adapter": len(backbone.stages), "tail": backbone.tail_from, "full": 0}[train_set]
    part = copy.deepcopy(backbone.stages[:cut]) if cut else nn.Identity()
    return part.eval().requires_grad_(False)


def split(backbone: Backbone, train_set: TrainSet, public_features: Tensor | None) -> Split:
    """Return a copy of the backbone cut for training; the backbone itself is never changed.

    `public_features` [N, F] are the pooled features of the public bank; the adapter needs them for
    its statistics, the other sets ignore them.
    """
    frozen = frozen_part(backbone, train_set)
    if train_set == "adapter":
        if public_features is None:
            raise InputError("the adapter needs the features of the public bank")
        # Its layers draw initial weights that are overwritten: the global generator stays.
        with torch.random.fork_rng(devices=[]):
            head = AdapterHead(backbone.projection, public_features)
        return Split(frozen, head.eval())
    cut = backbone.tail_from if train_set == "tail" else 0
    stages = copy.deepcopy(backbone.stages[cut:])
    tail = UnitHead(stages, copy.deepcopy(backbone.projection))
    return Split(frozen, tail.eval().requires_grad_(True))


def rejoin(parts: Split) -> nn.Module:
    """Return the whole network: pixels [B, 3, S, S] -> unit-norm embeddings [B, D]."""
    return nn.Sequential(parts.frozen, parts.trainable)
