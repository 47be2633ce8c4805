"""Every model that a site could use, measured on the site's own faces, for the site alone.

Adaptation sees other persons than those on whom it is measured: each fold of persons is the test
of what was adapted on the others, and all stages are measured on the same folds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.adaptation import FEWEST_PERSONS, adaptable, adapted, pairs_of
from common.backbones.statistics import StatisticsHead
from common.embedding import frozen_rows
from common.errors import InputError
from common.metrics import PairScores, all_pairs
from common.network import Network
from common.paired import Difference, Measured, difference, measured
from common.parameters import trainable_parameters
from common.persons import Persons
from common.wording import STAGES, compared

FOLDS: Final = 2


@dataclass(frozen=True, eq=False)
class OwnFaces:
    """What each stage reaches on a site's own persons; it names none of them.

    `stages` has `before` and `after`, and `public`, `alone` and `after_own` where there are such.
    """

    persons: int
    images: int
    stages: Mapping[str, Measured]

    @property
    def best_public(self) -> str:
        """Return which of `before` and `public` verifies better here, `before` among equals."""
        return max(
            (name for name in ("before", "public") if name in self.stages),
            key=lambda name: self.stages[name].rates[-1],
        )

    def federated_from(self, stage: str) -> Difference:
        """Return what the federated model's rates are more than those of a stage."""
        return difference(self.stages["after"], self.stages[stage])

    def verdicts(self) -> Iterator[str]:
        """Yield how federated stands beside the better public stage, and beside alone."""
        for stage in (self.best_public, "alone"):
            if stage in self.stages:
                yield self._told(stage)

    def warnings(self) -> Iterator[str]:
        """Yield where federated is surely worse than what costs no budget."""
        for stage in dict.fromkeys(("before", self.best_public, "alone")):
            if stage in self.stages and self.federated_from(stage).verdict == "worse":
                yield self._told(stage)

    def to_json(self) -> dict[str, object]:
        """The object that `veilface site evaluate --json` prints; null where there is no stage."""
        found = {name: each.verification.to_json() for name, each in self.stages.items()}
        gain = self.federated_from(self.best_public)
        beside = self.federated_from("alone") if "alone" in self.stages else None
        return {
            "persons": self.persons,
            "images": self.images,
            "folds": FOLDS,
            "stages": {name: found.get(name) for name in STAGES},
            "best_public": self.best_public,
            "verdict": gain.verdict,
            "difference": gain.to_json(),
            "verdict_alone": beside.verdict if beside else None,
            "difference_alone": beside.to_json() if beside else None,
        }

    def _told(self, stage: str) -> str:
        found, other = self.federated_from(stage), STAGES[stage]
        head = {
            "helped": f"Federated is better than {other}",
            "no-difference": f"Federated and {other} make no difference that can be told",
            "worse": f"Federated is worse than {other}",
        }[found.verdict]
        return f"{head}. {compared(found, other)}"


def on_own_faces(
    trained: Network,
    public: Network | None,
    chips: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> OwnFaces:
    """Measure all stages on chips [N, S, S, 3] of the persons `labels` [N], which rise.

    Without a public model, the public part of the trained one stands for it. Raises InputError
    for fewer persons with two images than two folds can be adapted on, and for a public model
    whose chips are cut otherwise.
    """
    if public is not None and public.backbone.chip != trained.backbone.chip:
        raise InputError("the public model is for another backbone than the trained one")
    folds = _folds(labels)
    pictures = torch.from_numpy(chips)
    plain = Network("before", trained.backbone, trained.backbone)
    stages = {"before": measured(_as_it_is(plain, pictures, labels, folds))}
    start = trained if public is None else public
    if (head := _head(start)) is not None:
        rows = _rows(start, pictures)
        if public is None:
            head = _untold(head)
        stages["public"] = measured([pairs_of(head, rows[f], labels[f]) for f in folds])
        stages["alone"] = measured(_adapted(head, rows, labels, folds))
    elif public is not None:
        stages["public"] = measured(_as_it_is(public, pictures, labels, folds))
    stages["after"] = measured(_as_it_is(trained, pictures, labels, folds))
    if (head := _head(trained)) is not None:
        rows = _rows(trained, pictures)
        stages["after_own"] = measured(_adapted(head, rows, labels, folds))
    return OwnFaces(len(np.unique(labels)), len(labels), stages)


def _folds(labels: NDArray[np.int64]) -> Sequence[NDArray[np.intp]]:
    """Rows of each fold's persons; those with two images are dealt first, so that all have some."""
    persons, images = np.unique(labels, return_counts=True)
    paired = int(np.count_nonzero(images > 1))
    if paired < FOLDS * FEWEST_PERSONS:
        raise InputError(
            f"{paired} persons with two usable images are too few to hold some of them out: "
            f"it takes {FOLDS * FEWEST_PERSONS}"
        )
    order = np.random.default_rng(0).permutation(len(persons))
    order = order[np.argsort(images[order] < 2, kind="stable")]
    return [np.flatnonzero(np.isin(labels, persons[order[i::FOLDS]])) for i in range(FOLDS)]


def _as_it_is(
    network: Network,
    chips: Tensor,
    labels: NDArray[np.int64],
    folds: Sequence[NDArray[np.intp]],
) -> list[PairScores]:
    seen = frozen_rows(network.backbone, network.module, chips).numpy()
    return [all_pairs(seen[f], labels[f], probe_order=network.probe_order) for f in folds]


def _adapted(
    head: StatisticsHead,
    rows: Tensor,
    labels: NDArray[np.int64],
    folds: Sequence[NDArray[np.intp]],
) -> list[PairScores]:
    """Return the scores of each fold under what all persons of the other folds say."""
    found = []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(labels)), fold)
        persons, subjects = np.unique(labels[others], return_inverse=True)
        theirs = Persons.group(rows[others], subjects.tolist(), [0] * len(persons))
        found.append(pairs_of(adapted(head, theirs).head, rows[fold], labels[fold]))
    return found


def _head(network: Network) -> StatisticsHead | None:
    last = network.module[-1] if isinstance(network.module, nn.Sequential) else network.module
    return adaptable(last)


def _rows(network: Network, chips: Tensor) -> Tensor:
    """Return what the frozen part makes of chips: the input of the head, which comes last."""
    return frozen_rows(
        network.backbone, nn.Sequential(*list(network.module.children())[:-1]), chips
    )


def _untold(head: StatisticsHead) -> StatisticsHead:
    """Return the head as it is before any site has told anything."""
    public = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in trainable_parameters(public).values():
            parameter.zero_()
    return public
