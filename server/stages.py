"""What a model is worth on public test faces, whatever model it is, and which stage to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbones.split import HEADS
from common.embedding import Rows
from common.intervals import verification_of
from common.metrics import Verification
from common.paired import Measured, difference, measured
from server.public_faces import Model, SeenFaces
from server.report.utility import DetPoints, Released, Utility

_LOOKED_AT: Final = 64


class PublicTest:
    """Public test faces under any model: trainable parameters, or any function of the frozen rows.

    `untrained` is the trainable part before the training on public images; `judges` are other
    persons than those of the test, or None.
    """

    def __init__(
        self, rows: Rows, test: SeenFaces, judges: SeenFaces | None, untrained: nn.Module
    ) -> None:
        self._rows, self._test, self._judges = rows, test, judges
        self._untrained = Model.of(untrained, rows.prepare)
        self.before: Final = self._best_untrained()

    @property
    def judges(self) -> int:
        """How many persons there are to choose on."""
        return 0 if self._judges is None else self._judges.people

    def under(self, parameters: NDArray[np.float32]) -> Model:
        """Return the model of trainable parameters [d]."""
        rows = self._rows
        return Model.under(rows.split.trainable, torch.from_numpy(parameters), rows.prepare)

    def public_only(self, start: NDArray[np.float32]) -> Model | None:
        """Return the model at the start [d] of private training; None where that is untrained."""
        found, some = self.under(start), self._test.inputs[:_LOOKED_AT]
        return None if torch.equal(found.embed(some), self._untrained.embed(some)) else found

    def measure(self, model: Model) -> Measured:
        """Return a model's rates on the test persons, to be paired with those of others."""
        return self._test.measure(model)

    def measure_sites(self, models: Sequence[tuple[Model, int]]) -> Measured:
        """Return the mean rates of models of sites, each measured under its site's camera."""
        scores = [self._test.scores_in(camera, model) for model, camera in models]
        return measured(scores, [camera for _, camera in models])

    def rates_under(self, model: Model, camera: int) -> Verification:
        """Return a model's rates under one camera, without intervals."""
        return verification_of(self._test.scores_in(camera, model), ci=False)

    def rates(self, model: Model) -> tuple[float, float]:
        """Return both TMRs alone, the means over cameras: fast enough for every round."""
        return self._test.rates(model)

    def best(self, candidates: Sequence[tuple[str, Model]]) -> str:
        """Return which of several models to use, the first unless the judges tell it apart."""
        if self._judges is None:
            return candidates[0][0]
        return self._judges.best(dict(candidates))

    def recommended(self, public: Model | None, after: Model) -> Released:
        """Return the stage to use: a later one only where the judges tell that it is better."""
        stages: list[tuple[Released, Model]] = [("before", self.before)]
        if public is not None:
            stages.append(("public", public))
        stages.append(("after", after))
        chosen = self.best(stages)
        (found,) = [name for name, _ in stages if name == chosen]
        return found

    def utility(
        self, start: NDArray[np.float32], after: Model, measured: Measured | None = None
    ) -> Utility:
        """Return what training changed, from the start [d] of private training to its end.

        `measured` is what `measure` gives for `after`, where that is known already.
        """
        public = self.public_only(start)
        return utility_of(
            self.measure(self.before),
            None if public is None else self.measure(public),
            measured or self.measure(after),
            recommended=self.recommended(public, after),
            judges=self.judges,
        )

    def _best_untrained(self) -> Model:
        """Return the public model at its best: plain cosine, or half centred if that is better.

        Chosen on the judges. Where there are none, on the test persons: that favours `before`, so
        a gain is never overstated by it.
        """
        persons = self._test if self._judges is None else self._judges
        return max(self._public_model(), self._untrained, key=persons.quality)

    def _public_model(self) -> Model:
        """Return the public model as anyone would use it.

        A head's rows begin with the pooled features, so only the projection is left; the parts
        that `tail` and `full` train start as the public model itself.
        """
        backbone = self._rows.backbone
        if self._rows.train_set not in HEADS:
            return self._untrained

        def plain(rows: Tensor) -> Tensor:
            with torch.no_grad():
                raw = backbone.projection(rows[:, : backbone.features])
                return torch.nn.functional.normalize(raw, dim=-1)

        return Model(plain)


def utility_of(
    before: Measured,
    public_only: Measured | None,
    after: Measured,
    *,
    recommended: Released,
    judges: int,
) -> Utility:
    """Return what was measured on the same test persons, and what `after` adds to the better start.

    The better of both public stages on these very persons: a gain is never overstated by it.
    """
    start = before
    if public_only is not None and public_only.rates[-1] > before.rates[-1]:
        start = public_only
    return Utility(
        before=before.verification,
        public_only=None if public_only is None else public_only.verification,
        after=after.verification,
        det_before=DetPoints.of(before.det),
        det_after=DetPoints.of(after.det),
        det_public=None if public_only is None else DetPoints.of(public_only.det),
        difference=difference(after, start),
        recommended=recommended,
        judges=judges,
    )
