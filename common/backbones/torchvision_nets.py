"""Networks of torchvision made valid for privacy: group norm for batch norm, no dropout.

They start from random weights; a batch norm's statistics would couple persons, so pretrained
batch norm networks are not taken over. The classifier is replaced by one projection.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision.models as tv
from opacus.validators import ModuleValidator
from torch import nn

from common.backbones.base import Backbone
from common.face import ChipSpec

_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_DIM = 128


def _built(name: str, seed: int, parts: Callable[[], tuple[list[nn.Module], int, int]]) -> Backbone:
    """Build from (stages, feature dimension, index where the tail begins) with a local seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages, features, tail_from = parts()
        whole = ModuleValidator.fix(nn.Sequential(*stages))
        for module in whole.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return Backbone(
            name,
            chip=ChipSpec(112, "arcface"),
            stages=whole,
            projection=nn.Linear(features, _DIM),
            tail_from=tail_from,
            mean=_MEAN,
            std=_STD,
        )


def _pool(side: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())


def alexnet(seed: int) -> Backbone:
    """Krizhevsky et al. 2012 with average pooling to 3x3 for the two hidden linear layers."""

    def parts() -> tuple[list[nn.Module], int, int]:
        layers = list(tv.alexnet(weights=None).features)
        stages = [*layers, _pool(3)]
        return stages, 256 * 9, len(layers) - 3

    return _built("alexnet", seed, parts)


def vgg11(seed: int) -> Backbone:
    """Simonyan and Zisserman 2015, configuration A, with average pooling for the hidden layers."""

    def parts() -> tuple[list[nn.Module], int, int]:
        layers = list(tv.vgg11(weights=None).features)
        return [*layers, _pool()], 512, len(layers) - 5

    return _built("vgg11", seed, parts)


def googlenet(seed: int) -> Backbone:
    """Szegedy et al. 2015 without auxiliary classifiers."""

    def parts() -> tuple[list[nn.Module], int, int]:
        net = tv.googlenet(weights=None, aux_logits=False, transform_input=False, init_weights=True)
        skipped = {"avgpool", "dropout", "fc", "aux1", "aux2"}
        layers = [m for name, m in net.named_children() if name not in skipped and m is not None]
        return [*layers, _pool()], 1024, len(layers) - 1

    return _built("googlenet", seed, parts)


def _resnet(name: str, seed: int, make: Callable[..., nn.Module], features: int) -> Backbone:
    def parts() -> tuple[list[nn.Module], int, int]:
        layers = [m for key, m in make(weights=None).named_children() if key not in _RESNET_END]
        return [*layers, _pool()], features, len(layers) - 1

    return _built(name, seed, parts)


_RESNET_END = ("avgpool", "fc")


def resnet18(seed: int) -> Backbone:
    """He et al. 2016 with 18 layers."""
    return _resnet("resnet18", seed, tv.resnet18, 512)


def resnet50(seed: int) -> Backbone:
    """He et al. 2016 with 50 layers."""
    return _resnet("resnet50", seed, tv.resnet50, 2048)
