"""Cut a backbone into what is frozen and what is trained, and put it together again."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.base import Backbone, Split
from common.backbones.statistics import HeadParts, PublicMoments, StatisticsHead
from common.constants import MomentsConfig
from common.errors import InputError
from common.vocabulary import TrainSet

_CELLS: Final = 4
HEADS: Final[tuple[TrainSet, ...]] = ("statistics", "adapter")


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


class Mirrored(nn.Module):
    """Pixels [B, 3, S, S] -> the mean of what a module makes of them and of their mirror image."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        seen: Tensor = self.module(pixels)
        mirrored: Tensor = self.module(pixels.flip(3))
        return (seen + mirrored) / 2


def frozen_part(backbone: Backbone, train_set: TrainSet, *, mirror: bool = False) -> nn.Module:
    """Return what runs once an image: all stages, those before the tail, or nothing.

    With `mirror`, which heads on pooled features can have, it runs on both of image and mirror.
    """
    if mirror and train_set not in HEADS:
        raise InputError(f"mirror averaging is for {' and '.join(HEADS)}, not for {train_set}")
    if train_set == "full":
        return nn.Identity()
    part: nn.Module
    if train_set in HEADS:
        part = TappedStages(copy.deepcopy(backbone.stages), backbone.tail_from)
    else:
        part = copy.deepcopy(backbone.stages[: backbone.tail_from])
    if mirror:
        part = Mirrored(part)
    return part.eval().requires_grad_(False)


Known = PublicStatistics | HeadParts | None


def known_of(
    train_set: TrainSet, state: Mapping[str, Tensor], moments: MomentsConfig | None
) -> Known:
    """Return what a head in this state was built from; None for what has no public statistics."""
    if train_set not in HEADS:
        return None
    statistics = PublicStatistics.in_state(state)
    if train_set == "adapter":
        return statistics
    if moments is None:
        raise InputError("statistics without the constants of their moments")
    return HeadParts(statistics, PublicMoments.in_state(state), moments)


def split(backbone: Backbone, train_set: TrainSet, known: Known, *, mirror: bool = False) -> Split:
    """Return a copy of the backbone cut for training; the backbone itself is never changed.

    Heads need what is known of the public bank (see `known_of`); the other sets ignore it.
    """
    frozen = frozen_part(backbone, train_set, mirror=mirror)
    if train_set in HEADS:
        # Its layers draw initial weights that are overwritten: the global generator stays.
        with torch.random.fork_rng(devices=[]):
            head = _head(backbone, train_set, known).eval()
        return Split(frozen, head, head.condense)
    cut = backbone.tail_from if train_set == "tail" else 0
    stages = copy.deepcopy(backbone.stages[cut:])
    tail = UnitHead(stages, copy.deepcopy(backbone.projection))
    return Split(frozen, tail.eval().requires_grad_(True))


def _head(backbone: Backbone, train_set: TrainSet, known: Known) -> AdapterHead:
    if train_set == "statistics" and isinstance(known, HeadParts):
        return StatisticsHead(backbone.projection, known)
    if train_set == "adapter" and isinstance(known, PublicStatistics):
        return AdapterHead(backbone.projection, known)
    raise InputError(f"{train_set} needs the features of the public bank")


def rejoin(parts: Split) -> nn.Module:
    """Return the whole network: pixels [B, 3, S, S] -> unit-norm embeddings [B, D]."""
    return nn.Sequential(parts.frozen, parts.condense, parts.trainable)
