"""From settings and a public bank to a federation that is ready for its first round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.adapter import PublicStatistics
from common.backbones.base import Backbone
from common.backbones.split import frozen_part, split
from common.backbones.weights import model_id
from common.constants import LossConfig
from common.contract import Contract
from common.embedding import Progress, Rows, frozen_rows, silent
from common.parameters import flatten, layout_of
from common.randomness import experiment_generator
from common.recipe import recommended
from common.terms import TrainingConfig
from common.vocabulary import TrainSet
from server.optimizer import OptimizerConfig
from server.public_start import PublicRows, train_on_public
from server.rounds import Federation

CODEBOOK_SIZE: Final = 1024


@dataclass(frozen=True)
class PublicBank:
    """Public faces: uint8 chips [N, S, S, 3], and whose they are, int64 [N], any numbering."""

    chips: Tensor
    persons: NDArray[np.int64]


def cut(
    backbone: Backbone, train_set: TrainSet, bank: PublicBank, progress: Progress = silent
) -> tuple[Rows, PublicRows]:
    """Cut the backbone for training, and return the rows of the public bank with it.

    The adapter's statistics are those of the bank's chips and their mirror images.
    """
    count = len(bank.chips)
    both = torch.cat([bank.chips, bank.chips.flip(2)])
    if train_set == "adapter":
        raw = frozen_rows(backbone, frozen_part(backbone, train_set), both, progress)
        parts = split(backbone, train_set, PublicStatistics.of(backbone.projection, raw))
        rows = Rows(backbone, parts, train_set)
        with torch.no_grad():
            found = parts.condense(raw)
    else:
        rows = Rows(backbone, split(backbone, train_set, None), train_set)
        found = rows.of(both, progress)
    return rows, PublicRows(found[:count], found[count:], bank.persons)


def frozen_id(rows: Rows) -> str:
    """Return the digest of the frozen part, which every site must share."""
    return model_id(dict(rows.split.frozen.state_dict()))


def codebook(seed: int, dimension: int) -> Tensor:
    """Return the public codebook: unit rows [1024, D] from a public seed."""
    rng = experiment_generator(seed, "codebook")
    codes = torch.from_numpy(rng.normal(size=(CODEBOOK_SIZE, dimension))).float()
    return torch.nn.functional.normalize(codes, dim=1)


def prepare(config: TrainingConfig, run_id: str, rows: Rows, bank: PublicRows) -> Federation:
    """Return the federation: contract, model, public bank and server optimiser.

    Where the recipe says so, the model is trained on the public bank first.
    With one local step a site's delta is its noised mean gradient and the server's optimiser takes
    the step; with more, the site takes the steps and the server averages (McMahan et al. 2017).
    """
    recipe, trainable = recommended(config.train_set), rows.split.trainable
    if recipe.public_start is not None:
        train_on_public(rows, bank, recipe.public_start)
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
    )
    by_code = config.loss == "codebook"
    return Federation(
        contract=contract,
        layout=layout_of(trainable),
        state=dict(trainable.state_dict()),
        public_inputs=codebook(config.seed, rows.backbone.dim) if by_code else bank.seen,
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
    )
