"""A small convolutional network after LeCun et al. 1998, for quick runs and tests."""

from __future__ import annotations

from torch import nn

from common.backbones.base import Backbone
from common.face import ChipSpec


def lenet() -> Backbone:
    """Return a randomly initialised network: 128-d, 112-pixel chips, about 0.1 M parameters."""
    stages = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(32, 64, 5), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten()),
    )
    return Backbone(
        "lenet",
        chip=ChipSpec(112, "arcface"),
        stages=stages,
        projection=nn.Linear(64 * 9, 128),
        tail_from=2,
        mean=(127.5, 127.5, 127.5),
        std=(128.0, 128.0, 128.0),
    )
