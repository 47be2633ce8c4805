"""The backbones by name; a family is imported only when one of its own is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.backbones.base import Backbone
from common.backbones.weights import load_into, read_state
from common.errors import InputError
from common.vocabulary import BACKBONES, TORCHVISION


def create(name: str, *, weights: Path | None = None, seed: int = 0) -> Backbone:
    """Return a backbone in evaluation mode.

    `dlib-resnet` is pretrained; the others start from random weights drawn from `seed`, unless
    `weights` names a file: a backbone's own state dict, the published MobileFaceNet, or a
    torchvision state dict. Batch norms in a file are folded. torch's global generators stay as
    they were. Unknown name: InputError; a file that does not fit: WeightsError.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone {name!r}", hint=f"one of {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if weights is None:
            return _initial(name).eval()
        return _loaded(name, read_state(weights), str(weights)).eval()


def _initial(name: str) -> Backbone:
    if name == "dlib-resnet":
        from common.backbones.dlib_resnet import dlib_resnet

        return dlib_resnet()
    if name == "mobilefacenet":
        from common.backbones.mobilefacenet import mobilefacenet

        return mobilefacenet()
    if name == "lenet":
        from common.backbones.lenet import lenet

        return lenet()
    from common.backbones.torchvision_nets import torchvision_net

    return torchvision_net(name)


def _loaded(name: str, state: Mapping[str, Tensor], source: str) -> Backbone:
    if name in TORCHVISION and not any(key.startswith("stages.") for key in state):
        from common.backbones.torchvision_nets import from_torchvision

        return from_torchvision(name, state, source)
    if name == "mobilefacenet":
        from common.backbones.mobilefacenet import folded_state

        state = folded_state(state, source)
    backbone = _initial(name)
    load_into(backbone, state, source)
    return backbone
