"""The server's side of private statistics: the public head, what is told, and what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.split import split
from common.backbones.statistics import HeadParts, PublicMoments, StatisticsHead
from common.contract import Contract
from common.embedding import Rows
from common.moments import estimate
from common.parameters import assign
from common.recipe import moments_for, recommended
from common.terms import TrainingConfig
from server.public_faces import Model, SeenFaces
from server.public_start import PublicRows, train_on_public

# How much of the bank's mean is taken off an embedding; `PublicStatistics` has half.
_CENTRES: Final = (0.5, 0.0, 1.0)
_START_STEPS: Final = (10, 20, 40)


def with_moments(
    config: TrainingConfig, rows: Rows, bank: PublicRows, judges: SeenFaces | None
) -> Rows:
    """Return rows whose head starts from the best public model and tells what noise allows.

    How much of the bank's mean is taken off, how long the adapter is trained on the bank, and
    whether two-covariance scores stand beside cosines, is what serves the judges best. Without any
    it is the public model, half centred and untrained, with cosines alone.
    """
    heads = _public_heads(config, rows, bank, several=judges is not None)
    best = next(heads)
    if judges is not None:
        others = [(judges.quality(Model.of(head)), head) for head in heads]
        better = max(others, key=lambda other: other[0])[1]
        if judges.best({"first": Model.of(best), "better": Model.of(better)}) == "better":
            best = better
    parts = replace(rows.split, trainable=best, condense=best.condense)
    return replace(rows, split=parts)


def _public_heads(
    config: TrainingConfig, rows: Rows, bank: PublicRows, *, several: bool
) -> Iterator[StatisticsHead]:
    head = rows.split.trainable
    if not isinstance(head, StatisticsHead):
        raise TypeError("the rows are not cut for statistics")
    public = PublicStatistics.in_state(head.state_dict())
    basis = None
    if several and bank.views is not None:
        features = rows.backbone.features
        directions = (one[:, features:] for one in (bank.faces, *bank.views))
        basis = PublicMoments.of(*directions)
    weights = [head.adapter.weight.detach().clone()]
    if several:
        weights += _trained(config, rows, bank, public)
    centres = _CENTRES if several else _CENTRES[:1]
    for weight, share, moments in product(weights, centres, (None, basis) if basis else (None,)):
        centred = replace(public, center=public.center * 2 * share)
        yield _head(config, rows, bank, centred, weight, moments)


def _trained(
    config: TrainingConfig, rows: Rows, bank: PublicRows, public: PublicStatistics
) -> Iterator[Tensor]:
    """Tell the adapter's weight [D, R'] after some steps of training on the bank."""
    recipe = recommended("adapter").public_start
    if recipe is None:
        return
    parts = split(rows.backbone, "adapter", public, mirror=config.mirror)
    learner = parts.trainable
    if not isinstance(learner, AdapterHead):
        raise TypeError("the adapter has no adapter head")
    for step in train_on_public(Rows(rows.backbone, parts, "adapter"), bank, recipe):
        if step in _START_STEPS:
            yield learner.adapter.weight.detach().clone()


def _head(
    config: TrainingConfig,
    rows: Rows,
    bank: PublicRows,
    public: PublicStatistics,
    weight: Tensor,
    moments: PublicMoments | None,
) -> StatisticsHead:
    told = moments_for(0 if moments is None else len(moments.prior), *evidence(config))
    if config.recipe is not None and config.recipe.moments is not None:
        told = config.recipe.moments.of(told)
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights that are overwritten
        head = StatisticsHead(rows.backbone.projection, HeadParts(public, moments, told)).eval()
    with torch.no_grad():
        head.adapter.weight.copy_(weight)
        if moments is not None:
            _, embeddings = head.seen(bank.faces)
            persons = torch.from_numpy(bank.persons)
            different = persons[:, None] != persons[None, :]
            deviation = (embeddings @ embeddings.T)[different].std()
            head.deviation.copy_(deviation.clamp(min=1e-3))
    return head


def evidence(config: TrainingConfig) -> tuple[float, float]:
    """Return how many persons are declared, and how many numbers they can tell beside the noise.

    N persons tell a number with a variance of 1/N, and the noise adds sigma^2/N^2: beyond about
    N/sigma^2 numbers, noise is what is told. With noise of their own, n sites of P persons have
    n P of them and the noise of n: the ratio is that of one site.
    """
    sites = config.sites or config.minimum_sites
    persons = config.persons_per_site * sites
    noise = config.privacy().noise_multiplier
    together = persons if config.trust == "secagg" else config.persons_per_site
    return persons, min(persons, together / noise**2) if noise else persons


class Settling:
    """What a mean delta of moments says, by its known noise and as far as it helps the judges.

    The one round's mean delta becomes parameters of the head. Where nothing but the noised mean
    embedding was told, it is taken off, and beside two-covariance scores none of it is; the
    judges have more, less or nothing of all used where that is better by more than chance.
    """

    def __init__(self, head: StatisticsHead, contract: Contract, judges: SeenFaces | None) -> None:
        self._head, self._contract, self._judges = head, contract, judges

    def noise(self, sites: int) -> float:
        """Return the standard deviation of each number of the mean delta of so many sites."""
        privacy, masking = self._contract.privacy, self._contract.masking
        if masking is None:
            scale = privacy.noise_multiplier * privacy.max_grad_norm
        else:
            scale = masking.sigma * masking.encoding(privacy.max_grad_norm).scale
        return scale / privacy.public_denominator / math.sqrt(sites)

    def __call__(self, delta: NDArray[np.float32], sites: int) -> NDArray[np.float32]:
        """Return the head's parameters [d] that the mean delta [d] of so many sites says."""
        head, shape = self._head, self._head.shape
        found = estimate(shape, head.prior, torch.from_numpy(delta), self.noise(sites))
        named = {str(shares): _used(head, found, *shares).float() for shares in _shares(head)}
        chosen = next(iter(named))
        if self._judges is not None:
            before = head.told().float()
            models = {name: Model.under(head, parameters) for name, parameters in named.items()}
            chosen = self._judges.best(models)
            assign(head, before)
        result: NDArray[np.float32] = named[chosen].numpy()
        return result


def _shares(head: StatisticsHead) -> tuple[tuple[float, float, float], ...]:
    """How much of mean embedding, mean and moments of pairs could be used: first the expected."""
    if "pairs" not in head.shape.layout.names:
        return ((1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (0.0, 0.0, 0.0))
    return ((0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def _used(
    head: StatisticsHead, found: Tensor, embedding: float, persons: float, pairs: float
) -> Tensor:
    """Return an estimate [d] of which only shares are used."""
    parts = {name: part.clone() for name, part in head.shape.parts(found).items()}
    parts["embedding"] *= embedding
    parts["persons"] *= persons
    if "pairs" in parts:
        parts["pairs"] *= pairs
    return head.shape.joined(parts)
