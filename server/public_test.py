"""What a model is worth on public test faces, whatever model it is, and which stage to use.

Test persons tell what is reported. *Judges* are other public persons, on whom it is chosen which
stage is used: who reports the best of several on the persons it was chosen on plays it up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.split import split
from common.embedding import Rows, embed
from common.intervals import verification_of
from common.metrics import PairScores, all_pairs
from common.paired import Measured, choose, difference, measured
from common.parameters import assign
from common.randomness import experiment_generator
from server.report.utility import DetPoints, Released, Utility

# Rows of the frozen part [N, ...] -> embeddings [N, D], whatever stands behind it.
Model = Callable[[Tensor], Tensor]
_JUDGES: Final = 1 / 3
_FEWEST_JUDGES: Final = 20


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


class _Seen:
    """Public faces with their frozen rows, computed once, camera by camera."""

    def __init__(self, rows: Rows, faces: PublicFaces) -> None:
        self._inputs = rows.of(faces.chips)
        self._persons, self._camera = faces.persons, faces.camera
        self.cameras: tuple[int, ...] = tuple(np.unique(faces.camera).tolist())
        self.people = len(np.unique(faces.persons))

    def scores(self, model: Model) -> list[PairScores]:
        """Return the scores of all pairs, one set a camera."""
        return [self.scores_in(camera, model) for camera in self.cameras]

    def scores_in(self, camera: int, model: Model) -> PairScores:
        kept = np.flatnonzero(self._camera == camera)
        embeddings = model(self._inputs[torch.from_numpy(kept)])
        return all_pairs(embeddings.numpy(), self._persons[kept])

    def measure(self, model: Model) -> Measured:
        return measured(self.scores(model), self.cameras)


class PublicTest:
    """Public test faces under any model: trainable parameters, or any function of the frozen rows.

    `untrained` are the trainable parameters [d] before the training on public images.
    """

    def __init__(
        self,
        rows: Rows,
        test: PublicFaces,
        judges: PublicFaces | None,
        untrained: NDArray[np.float32],
    ) -> None:
        self._rows, self._untrained = rows, untrained
        self._test = _Seen(rows, test)
        self._judges = None if judges is None else _Seen(rows, judges)
        self.before: Final = self._best_untrained()

    @property
    def judges(self) -> int:
        """How many persons there are to choose on."""
        return 0 if self._judges is None else self._judges.people

    def under(self, parameters: NDArray[np.float32]) -> Model:
        """Return the model of trainable parameters [d]."""

        def model(rows: Tensor) -> Tensor:
            assign(self._rows.split.trainable, torch.from_numpy(parameters))
            return self._rows.embed(rows)

        return model

    def public_only(self, start: NDArray[np.float32]) -> Model | None:
        """Return the model at the start [d] of private training; None where that is untrained."""
        return None if np.array_equal(start, self._untrained) else self.under(start)

    def measure(self, model: Model) -> Measured:
        """Return a model's rates on the test persons, to be paired with those of others."""
        return self._test.measure(model)

    def measure_sites(self, models: Sequence[tuple[Model, int]]) -> Measured:
        """Return the mean rates of models of sites, each measured under its site's camera."""
        scores = [self._test.scores_in(camera, model) for model, camera in models]
        return measured(scores, [camera for _, camera in models])

    def rates(self, model: Model) -> tuple[float, float]:
        """Return both TMRs alone, the means over cameras: fast enough for every round."""
        found = [verification_of(each, ci=False) for each in self._test.scores(model)]
        wide = float(np.mean([each.tmr_at_fmr_1e2 for each in found]))
        return wide, float(np.mean([each.tmr_at_fmr_1e3 for each in found]))

    def best(self, candidates: Sequence[tuple[str, Model]]) -> str:
        """Return which of several models to use, the first unless the judges tell it apart."""
        if self._judges is None:
            return candidates[0][0]
        return choose([(name, self._judges.measure(model)) for name, model in candidates])

    def recommended(self, public: Model | None, after: Model) -> Released:
        """Return the stage to use: a later one only where the judges tell that it is better."""
        stages: list[tuple[Released, Model]] = [("before", self.before)]
        if public is not None:
            stages.append(("public", public))
        stages.append(("after", after))
        chosen = self.best(stages)
        (found,) = [name for name, _ in stages if name == chosen]
        return found

    def utility(self, start: NDArray[np.float32], after: Model) -> Utility:
        """Return what training changed, from the start [d] of private training to its end."""
        public = self.public_only(start)
        return utility_of(
            self.measure(self.before),
            None if public is None else self.measure(public),
            self.measure(after),
            recommended=self.recommended(public, after),
            judges=self.judges,
        )

    def _best_untrained(self) -> Model:
        """Return the public model at its best: plain cosine, or half centred if that is better.

        Chosen on the judges. Where there are none, on the test persons: that favours `before`, so
        a gain is never overstated by it.
        """
        persons = self._test if self._judges is None else self._judges

        def quality(model: Model) -> float:
            found = [verification_of(each, ci=False) for each in persons.scores(model)]
            return float(np.mean([each.tmr_at_fmr_1e2 + each.tmr_at_fmr_1e3 for each in found]))

        return max(self._public_model(), self.under(self._untrained), key=quality)

    def _public_model(self) -> Model:
        """Return the public model as anyone would use it.

        The adapter's rows begin with the pooled features, so only the projection is left; the parts
        that `tail` and `full` train start as the public model itself.
        """
        backbone = self._rows.backbone
        if self._rows.train_set != "adapter":
            parts = split(backbone, self._rows.train_set, None)
            return lambda rows: embed(parts.trainable, rows, self._rows.prepare)

        def plain(rows: Tensor) -> Tensor:
            with torch.no_grad():
                raw = backbone.projection(rows[:, : backbone.features])
                return torch.nn.functional.normalize(raw, dim=-1)

        return plain


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
