"""From settings and a public bank to a federation that is ready for its first round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.adapter import PublicStatistics
from common.backbones.base import Backbone
from common.backbones.split import HEADS, Known, frozen_part, split
from common.backbones.statistics import HeadParts, StatisticsHead
from common.backbones.weights import model_id
from common.cameras import jittered
from common.constants import MEAN_ONLY, LossConfig
from common.contract import Contract
from common.embedding import Progress, Rows, frozen_rows, silent
from common.parameters import flatten, layout_of
from common.randomness import experiment_generator
from common.terms import TrainingConfig
from common.vocabulary import TrainSet
from server.moments import Settling, with_moments
from server.optimizer import OptimizerConfig
from server.public_faces import SeenFaces
from server.public_start import PublicRows, start_on_public
from server.rounds import Federation

CODEBOOK_SIZE: Final = 1024


@dataclass(frozen=True)
class PublicBank:
    """Public faces: uint8 chips [N, S, S, 3], and whose they are, int64 [N], any numbering.

    `views` are two more looks at each of them, [N, S, S, 3] each, as the sites' cameras may have
    it; None: as `jittered` makes them, by no camera in particular.
    """

    chips: Tensor
    persons: NDArray[np.int64]
    views: tuple[Tensor, Tensor] | None = None


def cut(
    backbone: Backbone,
    train_set: TrainSet,
    bank: PublicBank,
    progress: Progress = silent,
    *,
    mirror: bool = False,
) -> tuple[Rows, PublicRows]:
    """Cut the backbone for training, and return the rows of the public bank with it.

    A head's statistics are those of the bank's chips as the frozen part sees them, or without
    `mirror` of them and their mirror images. One that is trained on `statistics` tells them from a
    public basis where the bank is large enough for one.
    """
    if train_set not in HEADS:
        rows = Rows(backbone, split(backbone, train_set, None), train_set)
        count, both = len(bank.chips), torch.cat([bank.chips, bank.chips.flip(2)])
        found = rows.of(both, progress)
        return rows, PublicRows(found[:count], found[count:], found[:count], bank.persons)
    tapped = frozen_part(backbone, train_set)
    sides = [bank.chips, bank.chips.flip(2)]
    seen, mirrored = (frozen_rows(backbone, tapped, side, progress) for side in sides)
    faces = (seen + mirrored) / 2 if mirror else seen
    public = PublicStatistics.of(
        backbone.projection, faces if mirror else torch.cat([seen, mirrored])
    )
    known: Known = public
    if train_set == "statistics":
        known = HeadParts(public, None, MEAN_ONLY)
    parts = split(backbone, train_set, known, mirror=mirror)
    with torch.no_grad():
        told = [parts.condense(raw) for raw in (seen, mirrored, faces)]
    found_rows = PublicRows(told[0], told[1], told[2], bank.persons)
    if train_set == "statistics":
        views = bank.views or _views(bank.chips)
        once = frozen_part(backbone, train_set, mirror=mirror)
        looks = [parts.condense(frozen_rows(backbone, once, view, progress)) for view in views]
        found_rows = replace(found_rows, views=(looks[0], looks[1]))
    return Rows(backbone, parts, train_set), found_rows


def _views(chips: Tensor) -> tuple[Tensor, Tensor]:
    rng = experiment_generator(0, "public views")
    return jittered(chips, rng), jittered(chips, rng)


def frozen_id(rows: Rows) -> str:
    """Return the digest of the frozen part, which every site must share."""
    return model_id(dict(rows.split.frozen.state_dict()))


def codebook(seed: int, dimension: int) -> Tensor:
    """Return the public codebook: unit rows [1024, D] from a public seed."""
    rng = experiment_generator(seed, "codebook")
    codes = torch.from_numpy(rng.normal(size=(CODEBOOK_SIZE, dimension))).float()
    return torch.nn.functional.normalize(codes, dim=1)


def prepare(
    config: TrainingConfig,
    run_id: str,
    rows: Rows,
    bank: PublicRows,
    judges: SeenFaces | None = None,
) -> tuple[Rows, Federation]:
    """Return the federation (contract, model, public bank, server optimiser), and its rows.

    Where the recipe says so, the model is trained on the public bank first: as far as that helps
    the `judges`, other public persons than those of the bank, and not at all without any.
    With one local step a site's delta is its noised mean gradient and the server's optimiser takes
    the step; with more, the site takes the steps and the server averages (McMahan et al. 2017).
    """
    recipe = config.effective
    if config.train_set == "statistics":
        rows = with_moments(config, rows, bank, judges)
    elif recipe.public_start is not None:
        start_on_public(rows, bank, recipe.public_start, judges)
    trainable = rows.split.trainable
    one_step = config.local_steps == 1
    contract = Contract(
        run_id=run_id,
        backbone=rows.backbone.name,
        train_set=config.train_set,
        frozen_id=frozen_id(rows),
        images_per_person=recipe.images_per_person,
        public_negatives=recipe.public_negatives,
        rounds=config.rounds,
        local_steps=config.local_steps,
        local_learning_rate=1.0 if one_step else recipe.learning_rate,
        local_momentum=0.0 if one_step else recipe.momentum,
        privacy=config.privacy(),
        loss=LossConfig(config.loss, recipe.temperature, recipe.margin, recipe.public_gradient),
        masking=config.masking(layout_of(trainable).dimension),
        moments=trainable.shape.config if isinstance(trainable, StatisticsHead) else None,
        mirror=config.mirror,
        recipe=config.recipe,
    )
    by_code = config.loss == "codebook"
    return rows, Federation(
        contract=contract,
        layout=layout_of(trainable),
        state=dict(trainable.state_dict()),
        public_inputs=codebook(config.seed, rows.backbone.dim) if by_code else bank.faces,
        initial=flatten(trainable).numpy(),
        optimizer=OptimizerConfig(
            "sgd",
            recipe.learning_rate if one_step else 1.0,
            momentum=recipe.momentum if one_step else 0.0,
            average_from=recipe.average_from,
        ),
        aggregator=config.aggregator,
        minimum_sites=config.minimum_sites,
        timeout=config.timeout,
        weights={},
        settle=Settling(trainable, contract, judges)
        if isinstance(trainable, StatisticsHead)
        else None,
    )
