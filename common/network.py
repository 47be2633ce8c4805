"""A network to evaluate or export: a public backbone, or what a run trained on top of one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.split import known_of, rejoin, split
from common.backbones.statistics import StatisticsHead
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

    @property
    def probe_order(self) -> NDArray[np.int64] | None:
        """Return the places that bring an embedding to the probe's side; None: as it is."""
        return None if (head := self._head) is None else head.probe_order

    @property
    def dim(self) -> int:
        """Return D, how many numbers an embedding has; with statistics more than the backbone's."""
        return self.backbone.dim if (head := self._head) is None else head.width

    def probes(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [N, D] -> the same on the probe's side: scores are products of the two."""
        order = self.probe_order
        return embeddings if order is None else np.ascontiguousarray(embeddings[:, order])

    @property
    def _head(self) -> StatisticsHead | None:
        last = self.module[-1] if isinstance(self.module, nn.Sequential) else self.module
        return last if isinstance(last, StatisticsHead) else None


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
    contract = from_json(Contract, saved.meta.get("contract", ""), where=f"contract in {path}")
    known = known_of(saved.train_set, saved.state, contract.moments)
    parts = split(backbone, saved.train_set, known, mirror=contract.mirror)
    load_into(parts.trainable, saved.state, str(path))
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
