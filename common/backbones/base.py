"""The shape of every backbone, and how it is split into what is frozen and what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.face import ChipSpec


class Backbone(nn.Module):
    """A face-embedding network: chips -> stages -> pooled features -> projection -> unit norm.

    Attributes:
        name: registry name.
        chip: how its input faces are cut and aligned.
        dim: embedding dimension D.
        features: pooled feature dimension F.
        stages: pixels [B, 3, S, S] -> pooled features [B, F]; an ordered sequence, so that it
            can be cut in two.
        projection: pooled features [B, F] -> raw embedding [B, D].
        tail_from: index of the first stage that `tail` trains.
        mean, std: per-channel constants of `preprocess`, in 0..255 units, shape [3].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        chip: ChipSpec,
        stages: nn.Sequential,
        projection: nn.Linear,
        tail_from: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.name = name
        self.chip = chip
        self.stages = stages
        self.projection = projection
        self.features = projection.in_features
        self.dim = projection.out_features
        self.tail_from = tail_from
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def preprocess(self, chips: Tensor) -> Tensor:
        """uint8 chips [B, S, S, 3] (RGB) -> normalised float32 pixels [B, 3, S, S]."""
        pixels = chips.permute(0, 3, 1, 2).to(torch.float32)
        return ((pixels - self.mean) / self.std).contiguous()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] -> unit-norm embeddings [B, D] of the public model as it is."""
        raw: Tensor = self.projection(self.stages(pixels))
        return F.normalize(raw, dim=-1)


@dataclass(frozen=True)
class Split:
    """A backbone cut for training: two parts run once an image, `trainable` every step.

    `frozen` maps pixels [B, 3, S, S] to rows, `condense` those to the smaller ones that
    `trainable` takes; `trainable` maps them to unit-norm embeddings [B, D]. Only parameters of
    `trainable` with `requires_grad` are trained and may ever leave a site (as noised deltas).
    """

    frozen: nn.Module
    trainable: nn.Module
    condense: nn.Module = field(default_factory=nn.Identity)
