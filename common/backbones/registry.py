"""The backbones by name; a family is imported only when one of its own is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from common.backbones.base import Backbone
from common.backbones.dlib_resnet import dlib_resnet
from common.backbones.weights import load_into, read_state
from common.errors import InputError

_FAMILIES: Final = {
    "mobilefacenet": "mobilefacenet",
    "lenet": "lenet",
    "alexnet": "torchvision_nets",
    "vgg11": "torchvision_nets",
    "googlenet": "torchvision_nets",
    "resnet18": "torchvision_nets",
    "resnet50": "torchvision_nets",
}
BACKBONES: Final = ("dlib-resnet", *_FAMILIES)


def create(name: str, *, weights: Path | None = None, seed: int = 0) -> Backbone:
    """Return a backbone in evaluation mode.

    `dlib-resnet` is pretrained; the others start from random weights drawn from `seed`, unless
    `weights` names a file. Unknown name: InputError.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone {name!r}", hint=f"one of {', '.join(BACKBONES)}")
    if name == "dlib-resnet":
        backbone = dlib_resnet()
    else:
        family = import_module(f"common.backbones.{_FAMILIES[name]}")
        backbone = getattr(family, name)(seed)
    if weights is not None:
        state = read_state(weights)
        if name == "mobilefacenet":
            state = family.folded_state(state, str(weights))
        load_into(backbone, state, str(weights))
    return backbone.eval()
