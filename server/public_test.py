"""What a model is worth on public test faces: before training, at its public start, and after."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.split import split
from common.embedding import Rows, embed
from common.intervals import verification_of
from common.metrics import PairScores, all_pairs, det_curve
from common.parameters import assign
from server.report.run_record import DetPoints
from server.report.utility import Utility

_DET_POINTS: Final = 200


class PublicTest:
    """Public test faces, frozen rows computed once, under any parameters.

    `chips` are uint8 [N, S, S, 3], `persons` say whose they are, int64 [N], any numbering, and
    `untrained` are the trainable parameters [d] before the training on public images.
    """

    def __init__(
        self,
        rows: Rows,
        chips: Tensor,
        persons: NDArray[np.int64],
        untrained: NDArray[np.float32],
    ) -> None:
        self._rows, self._persons, self._untrained = rows, persons, untrained
        self._inputs = rows.of(chips)

    def under(self, parameters: NDArray[np.float32]) -> PairScores:
        """Return the scores of all pairs under trainable parameters [d]."""
        assign(self._rows.split.trainable, torch.from_numpy(parameters))
        return self._pairs(self._rows.embed(self._inputs))

    def before(self) -> PairScores:
        """Return the public model at its best: plain cosine, or half centred if that is better.

        Choosing on the test set favours `before`, so a gain is never overstated by this choice.
        """

        def quality(scores: PairScores) -> float:
            result = verification_of(scores, ci=False)
            return result.tmr_at_fmr_1e2 + result.tmr_at_fmr_1e3

        return max(self._pairs(self._public_model()), self.under(self._untrained), key=quality)

    def public_only(self, start: NDArray[np.float32]) -> PairScores | None:
        """Return the scores at the start [d] of private training; None where that is untrained."""
        return None if np.array_equal(start, self._untrained) else self.under(start)

    def _pairs(self, embeddings: Tensor) -> PairScores:
        return all_pairs(embeddings.numpy(), self._persons)

    def _public_model(self) -> Tensor:
        """Return embeddings [N, D] under the public model as anyone would use it.

        The adapter's rows begin with the pooled features, so only the projection is left; the parts
        that `tail` and `full` train start as the public model itself.
        """
        backbone = self._rows.backbone
        if self._rows.train_set != "adapter":
            parts = split(backbone, self._rows.train_set, None)
            return embed(parts.trainable, self._inputs, self._rows.prepare)
        with torch.no_grad():
            raw = backbone.projection(self._inputs[:, : backbone.features])
            return torch.nn.functional.normalize(raw, dim=-1)


def utility_of(before: PairScores, public_only: PairScores | None, after: PairScores) -> Utility:
    """Return the rates of three stages with 95% intervals over persons, and two DET curves."""
    return Utility(
        before=verification_of(before),
        public_only=None if public_only is None else verification_of(public_only),
        after=verification_of(after),
        det_before=DetPoints.of(det_curve(before, _DET_POINTS)),
        det_after=DetPoints.of(det_curve(after, _DET_POINTS)),
    )
