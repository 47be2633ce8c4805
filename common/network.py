"""A network to evaluate or export: a public backbone, or what a run trained on top of one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from common.backbones.adapter import PublicStatistics
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.split import rejoin, split
from common.backbones.weights import load_into, load_model, model_id
from common.config import from_json
from common.contract import Contract
from common.errors import InputError, WeightsError


@dataclass(frozen=True)
class Network:
    """Pixels [B, 3, S, S] -> unit-norm embeddings [B, D] by `module`; pixels by `backbone`.

    `backbone` says how chips are cut and preprocessed; `name` is for people.
    """

    name: str
    backbone: Backbone
    module: nn.Module


DEFAULT = "dlib-resnet"  # the only one that comes with weights
_LOG: Final = logging.getLogger("veilface.network")


def open_network(backbone: str | None, weights: Path | None, model: Path | None) -> Network:
    """What `--backbone`, `--weights` and `--model` name together; the default is `DEFAULT`."""
    if model is None:
        return public_network(backbone or DEFAULT, weights)
    if backbone is not None:
        raise InputError("--model names its backbone itself: leave out --backbone")
    return trained_network(model, weights)


def public_network(name: str, weights: Path | None) -> Network:
    """The backbone of that name, with its own or the given weights."""
    backbone = create(name, weights=weights)
    if weights is None and name != DEFAULT:
        _LOG.warning("%s has random weights and tells nobody apart: give --weights", name)
    return Network(name, backbone, backbone)


def trained_network(path: Path, weights: Path | None) -> Network:
    """The network of a run's model file.

    Only the trained part lies in it: where the run started from a weights file, that file is
    needed again; where it started from random weights, their seed stands in the file. Raises
    WeightsError unless the frozen part is the one the model was trained on.
    """
    saved = load_model(path)
    backbone = create(saved.backbone, weights=weights, seed=_seed(saved.meta, path))
    adapter = saved.train_set == "adapter"
    statistics = PublicStatistics.in_state(saved.state) if adapter else None
    parts = split(backbone, saved.train_set, statistics)
    load_into(parts.trainable, saved.state, str(path))
    contract = from_json(Contract, saved.meta.get("contract", ""), where=f"contract in {path}")
    if model_id(parts.frozen.state_dict()) != contract.frozen_id:
        raise WeightsError(
            f"{path} was trained on other {saved.backbone} weights",
            hint="give the run's weights file with --weights",
        )
    return Network(
        f"{saved.backbone} {saved.train_set} of {contract.run_id}", backbone, rejoin(parts).eval()
    )


def _seed(meta: Mapping[str, str], path: Path) -> int:
    text = meta.get("backbone_seed", "0")
    if not text.isdecimal():
        raise WeightsError(f"{path} names the seed {text[:40]!r}, which is no number")
    return int(text)
