"""What a site's own persons say, released to nobody: statistics without noise, for itself alone.

The site's own means and moments are mixed into those of a model, the public one's or a
federation's. How much of each is chosen by cross-validation over the site's persons, and "no
change" is among the candidates. It costs no privacy budget since nothing of it leaves the site;
whoever holds the result holds statistics of the site's persons, so it is kept like a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.statistics import HeadParts, StatisticsHead
from common.constants import MEAN_ONLY, MomentsConfig
from common.embedding import embed
from common.errors import InputError
from common.intervals import verification_of
from common.metrics import PairScores, all_pairs
from common.moments import contribution, estimate
from common.parameters import assign
from common.persons import Persons

FEWEST_PERSONS: Final = 8
_FOLDS: Final = 2
_MOST_IMAGES: Final = 64


@dataclass(frozen=True)
class Shares:
    """How much of a site's own statistics is used: each share in [0, 1].

    `embedding` is of the own mean embedding that is taken off (None: as the model has it), `mean`
    and `pairs` mix the mean in the basis and the moments of pairs with the model's.
    """

    embedding: float | None
    mean: float
    pairs: float


NO_CHANGE: Final = Shares(None, 0.0, 0.0)
_EMBEDDINGS: Final = (None, 0.5, 1.0)
_MEANS: Final = (0.0, 1.0)
_PAIRS: Final = (0.0, 0.15, 0.3, 0.5)


@dataclass(frozen=True)
class Adaptation:
    """A head with a site's own statistics in it, and how much of them that is."""

    head: StatisticsHead
    shares: Shares


def adaptable(trained: nn.Module) -> StatisticsHead | None:
    """Return a trained part as a head with a place for a site's statistics; None: it has none.

    An adapter has no basis that was made for moments: a site's mean embedding is all it takes.
    """
    if isinstance(trained, StatisticsHead):
        return trained
    if not isinstance(trained, AdapterHead):
        return None
    public = PublicStatistics.in_state(trained.state_dict())
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights that are overwritten
        head = StatisticsHead(trained.projection, HeadParts(public, None, MEAN_ONLY)).eval()
    head.adapter.load_state_dict(trained.adapter.state_dict())
    return head


def adapted(head: StatisticsHead, persons: Persons) -> Adaptation:
    """Return the head as it serves these persons best; with fewer than eight, as it is.

    Candidates are tried on persons whose images are not in the statistics that they try: two
    folds, each the other's test. Ties and anything worse leave the head unchanged. A person with a
    number that is not finite is left out.
    """
    model = _widened(head)
    usable = [p for p in range(len(persons)) if _finite(persons, p)]
    tested = [p for p in usable if _images(persons, p) > 1]
    if len(usable) < FEWEST_PERSONS or len(tested) < FEWEST_PERSONS // 2:
        return Adaptation(model, NO_CHANGE)
    order = np.random.default_rng(0).permutation(usable)
    folds = [order[fold::_FOLDS] for fold in range(_FOLDS)]
    qualities: dict[Shares, list[float]] = {shares: [] for shares in _candidates(model)}
    base = model.told()
    for fold in folds:
        others = np.setdiff1d(order, fold)
        own = own_statistics(model, persons, others)
        inputs, labels = _faces(persons, fold)
        seen = model.seen(inputs)
        for shares, found in qualities.items():
            assign(model, _mixed(model, base, own, shares).float())
            with torch.no_grad():
                found.append(_quality(model, model.templates(*seen), labels))
    assign(model, base.float())
    best = max(qualities, key=lambda shares: sum(qualities[shares]))  # the first among equals
    own = own_statistics(model, persons, order)
    assign(model, _mixed(model, base, own, best).float())
    return Adaptation(model, best)


def own_statistics(head: StatisticsHead, persons: Persons, chosen: NDArray[np.intp]) -> Tensor:
    """Return the statistics [d] of some persons, float64: neither clipped nor noised."""
    total = torch.zeros(head.shape.layout.dimension, dtype=torch.float64)
    for person in chosen.tolist():
        inputs, _ = _faces(persons, np.array([person]))
        with torch.no_grad():
            total += contribution(head.shape, head.prior, *head.seen(inputs))
    return estimate(head.shape, head.prior, total, 0.0)


def pairs_of(head: StatisticsHead, inputs: Tensor, labels: NDArray[np.int64]) -> PairScores:
    """Return the scores of all pairs of rows [N, ...] of `labels` [N] under a head."""
    templates = embed(head, inputs, lambda rows: rows)
    return all_pairs(templates.numpy(), labels, probe_order=head.probe_order)


def _candidates(head: StatisticsHead) -> Sequence[Shares]:
    if not len(head.prior):
        return [Shares(embedding, 0.0, 0.0) for embedding in _EMBEDDINGS]
    return [Shares(*shares) for shares in product(_EMBEDDINGS, _MEANS, _PAIRS)]


def _widened(head: StatisticsHead) -> StatisticsHead:
    """Return the same head with parameters for all moments: a site has no noise to save for."""
    size = len(head.prior)
    scale = 1.0 if size else 0.0
    wide = head.retold(MomentsConfig(size, size, 1.0, scale, scale, 1.0))
    told = head.shape.parts(head.told())
    parts = dict(wide.shape.parts(wide.told()))
    parts["embedding"] = told["persons"].clamp(0, 1) * told["embedding"]
    parts["persons"] = torch.ones_like(parts["persons"])
    if "mean" in told:
        parts["mean"] = told["persons"].clamp(0, 1) * told["mean"]
    if "within" in told:
        parts["pairs"] = told["pairs"].clamp(0, 1)
        for name in ("within", "between"):
            parts[name] = wide.shape.told(head.shape.matrix(told[name]))
    assign(wide, wide.shape.joined(parts).float())
    return wide


def _mixed(head: StatisticsHead, base: Tensor, own: Tensor, shares: Shares) -> Tensor:
    model, site = head.shape.parts(base), head.shape.parts(own)
    mixed = dict(model)
    if shares.embedding is not None:
        mixed["embedding"] = shares.embedding * site["embedding"]
    if shares.mean:
        mixed["mean"] = (1.0 - shares.mean) * model["mean"] + shares.mean * site["mean"]
    if shares.pairs:
        used = (1.0 - shares.pairs) * model["pairs"]
        for name in ("within", "between"):
            mixed[name] = used * model[name] + shares.pairs * site[name]
        mixed["pairs"] = torch.ones_like(model["pairs"])
    return head.shape.joined(mixed)


def _images(persons: Persons, person: int) -> int:
    return persons.offsets[person + 1] - persons.offsets[person]


def _finite(persons: Persons, person: int) -> bool:
    rows = persons.inputs[persons.offsets[person] : persons.offsets[person + 1]]
    return bool(torch.isfinite(rows).all()) if rows.is_floating_point() else True


def _faces(persons: Persons, chosen: NDArray[np.intp]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return rows and labels of some persons' images, at most `_MOST_IMAGES` of each."""
    rows = [
        range(persons.offsets[p], min(persons.offsets[p + 1], persons.offsets[p] + _MOST_IMAGES))
        for p in chosen.tolist()
    ]
    if not rows:
        raise InputError("no person to look at")
    labels = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
    flat = torch.tensor([row for one in rows for row in one], dtype=torch.int64)
    return persons.prepare(persons.inputs[flat]), labels.astype(np.int64)


def _quality(head: StatisticsHead, templates: Tensor, labels: NDArray[np.int64]) -> float:
    found = verification_of(
        all_pairs(templates.numpy(), labels, probe_order=head.probe_order), ci=False
    )
    return (found.tmr_at_fmr_1e2 + found.tmr_at_fmr_1e3) / 2
