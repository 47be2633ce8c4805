"""Public faces that a server measures models on: whose they are, by which camera, how they score.

Test persons tell what is reported. *Judges* are other public persons, on whom models are chosen:
who reports the best of several on the persons it was chosen on plays it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbones.statistics import StatisticsHead
from common.embedding import Rows, embed
from common.intervals import verification_of
from common.metrics import PairScores, all_pairs
from common.paired import Measured, choose, measured
from common.parameters import assign
from common.randomness import experiment_generator

_JUDGES: Final = 1 / 3
_FEWEST_JUDGES: Final = 20


@dataclass(frozen=True)
class Model:
    """Rows of the frozen part [N, ...] -> embeddings [N, D], whatever stands behind it.

    `probe_order` are the places that bring an embedding to the probe's side; None: as it is.
    """

    embed: Callable[[Tensor], Tensor]
    probe_order: NDArray[np.int64] | None = None

    @staticmethod
    def of(module: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda rows: rows) -> Model:
        """Return the model of a trainable part as it is whenever the model is used."""
        order = module.probe_order if isinstance(module, StatisticsHead) else None
        return Model(lambda rows: embed(module, rows, prepare), order)

    @staticmethod
    def under(
        module: nn.Module,
        parameters: Tensor,
        prepare: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> Model:
        """Return the model of a trainable part under parameters [d]; each use leaves them in it."""
        model = Model.of(module, prepare)

        def embedded(rows: Tensor) -> Tensor:
            assign(module, parameters)
            return model.embed(rows)

        return Model(embedded, model.probe_order)


@dataclass(frozen=True)
class PublicFaces:
    """Public faces: whose they are, and which camera saw each; only images of one are compared.

    `chips` are uint8 [N, S, S, 3]; `persons` and `camera` int64 [N], any numbering.
    """

    chips: Tensor
    persons: NDArray[np.int64]
    camera: NDArray[np.int64]

    def of(self, persons: NDArray[np.int64]) -> PublicFaces:
        """Return the faces of some of the persons."""
        kept = np.flatnonzero(np.isin(self.persons, persons))
        return PublicFaces(
            self.chips[torch.from_numpy(kept)], self.persons[kept], self.camera[kept]
        )


def apart(faces: PublicFaces) -> tuple[PublicFaces, PublicFaces | None]:
    """Split public faces into those of test persons and of judges, a third, always alike.

    Too few persons for that all test, and there are no judges.
    """
    persons = np.unique(faces.persons)
    count = int(len(persons) * _JUDGES)
    if count < _FEWEST_JUDGES:
        return faces, None
    order = experiment_generator(0, "judges").permutation(persons)
    return faces.of(order[count:]), faces.of(order[:count])


class SeenFaces:
    """Public faces with their frozen rows, computed once, to be measured camera by camera."""

    def __init__(self, rows: Rows, faces: PublicFaces) -> None:
        self.inputs: Final = rows.of(faces.chips)
        self._persons, self._camera = faces.persons, faces.camera

    @cached_property
    def cameras(self) -> tuple[int, ...]:
        """The cameras that there are, rising."""
        return tuple(np.unique(self._camera).tolist())

    @property
    def people(self) -> int:
        """How many persons there are."""
        return len(np.unique(self._persons))

    def scores(self, model: Model) -> list[PairScores]:
        """Return the scores of all pairs, one set a camera."""
        return [self.scores_in(camera, model) for camera in self.cameras]

    def scores_in(self, camera: int, model: Model) -> PairScores:
        """Return the scores of all pairs that one camera saw."""
        kept = np.flatnonzero(self._camera == camera)
        embeddings = model.embed(self.inputs[torch.from_numpy(kept)]).numpy()
        return all_pairs(embeddings, self._persons[kept], probe_order=model.probe_order)

    def measure(self, model: Model) -> Measured:
        """Return the model's rates, to be paired with another's."""
        return measured(self.scores(model), self.cameras)

    def best(self, candidates: Mapping[str, Model]) -> str:
        """Return which model to use, the first unless a later one is better by more than chance."""
        return choose([(name, self.measure(model)) for name, model in candidates.items()])

    def rates(self, model: Model) -> tuple[float, float]:
        """Return both TMRs alone, the means over cameras: fast enough for every round."""
        found = [verification_of(each, ci=False) for each in self.scores(model)]
        wide = float(np.mean([each.tmr_at_fmr_1e2 for each in found]))
        return wide, float(np.mean([each.tmr_at_fmr_1e3 for each in found]))

    def quality(self, model: Model) -> float:
        """Return the mean of both TMRs: what choices go by."""
        return sum(self.rates(model)) / 2
