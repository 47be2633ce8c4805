"""Recognition by statistics: two-covariance scores beside cosines, from moments that were released.

Of an image, x are the leading principal directions of its feature map and z its unit embedding, as
the adapter has them. In the public basis y = B x the prior within-person covariance is I and the
prior between-person one diag(prior). With W = I + within, S = diag(prior) + between, and y centred
by `mean`, faces of one person are compared by the likelihood ratio of the two-covariance model
(Ioffe 2006; Bruemmer and de Villiers 2010; length normalisation: Garcia-Romero and Espy-Wilson
2011), beside the cosine of z centred by `embedding`. Zero parameters are the public model.

A template is one unit vector t of R + D + 4 numbers, and the score of two of them is t . P t', P
exchanging the last four in pairs: the terms of the ratio that belong to one image alone, and what
brings it to length one, meet the other's constant (see `Scorer`). It is symmetric, and a plain
inner product once a probe is brought to its side, so that search and vault need know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import AdapterHead, PublicStatistics
from common.constants import MomentsConfig
from common.errors import InputError
from common.moments import Shape

MOST_DIRECTIONS: Final = 192
_IMAGES_A_DIRECTION: Final = 4
_FEWEST_DIRECTIONS: Final = 16
# The prior within-person covariance: of jittered views, of the bank, and of nothing in particular.
_PRIOR_SHARE: Final = 0.4
_PRIOR_MIX: Final = (0.25, 0.5, 0.25)
_LEAST_BETWEEN: Final = 0.02
_PUBLIC_COSINE, _PRIVATE_COSINE = 2.0, 1.0


@dataclass(frozen=True)
class PublicMoments:
    """What the statistics know of the public bank besides `PublicStatistics`; all of it is public.

    Attributes:
        basis: B, float32 [R, R], for the adapter's first R directions.
        prior: between-person variances in the basis, [R], positive and falling.
        deviation: standard deviation [] of the bank's cosines between persons.
    """

    basis: Tensor
    prior: Tensor
    deviation: Tensor

    @staticmethod
    def of(rows: Tensor, first: Tensor, second: Tensor) -> PublicMoments | None:
        """Compute them from the bank: directions [N, R'] of its faces, and of two looks at each.

        None for a bank of fewer than 64 images, which has no covariance worth the name.
        `deviation` is left at one: it depends on the embeddings.
        """
        size = min(MOST_DIRECTIONS, rows.shape[1], len(rows) // _IMAGES_A_DIRECTION)
        if size < _FEWEST_DIRECTIONS:
            return None
        seen = rows[:, :size].double()
        # The adapter stretches directions by the root of their singular values: undone here.
        stretch = seen.square().sum(dim=0).clamp(min=1e-30) ** (1 / 6)
        x, apart = seen / stretch, (first - second)[:, :size].double() / stretch / 2**0.5
        total = torch.cov(x.T, correction=0)
        views = apart.T @ apart / len(apart)
        spread, identity = total.trace(), torch.eye(size, dtype=torch.float64)
        within = torch.zeros_like(total)
        for share, part in zip(_PRIOR_MIX, (views, total, identity), strict=True):
            within += _PRIOR_SHARE * spread * share * part / part.trace().clamp(min=1e-30)
        white, values = _whitened(within, total)
        return PublicMoments(
            (white / stretch).float(),
            (values - 1.0).clamp(min=_LEAST_BETWEEN).float(),
            torch.ones(()),
        )

    @staticmethod
    def in_state(state: Mapping[str, Tensor]) -> PublicMoments | None:
        """Return those in a head's state dict, None where it has no directions; else InputError."""
        names = ("basis", "prior", "deviation")
        missing = [name for name in names if name not in state]
        if missing:
            raise InputError(f"this is not the state of statistics: {missing[0]} is missing")
        return PublicMoments(*(state[name] for name in names)) if len(state["prior"]) else None


@dataclass(frozen=True)
class HeadParts:
    """What a `StatisticsHead` is made of besides the backbone's projection."""

    public: PublicStatistics
    moments: PublicMoments | None
    config: MomentsConfig


def _whitened(within: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [R, R] with A within A^T = I and A total A^T = diag(values), values falling."""
    values, vectors = torch.linalg.eigh(within)
    white = (vectors / values.clamp(min=1e-30).sqrt()).T
    values, vectors = torch.linalg.eigh(white @ total @ white.T)
    order = values.argsort(descending=True)
    found = vectors[:, order].T @ white
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    found = found * found.gather(1, found.abs().argmax(dim=1, keepdim=True)).sign()
    return found, values[order]


class Scorer(nn.Module):
    """y [B, R] and unit z [B, D] -> templates [B, R + D + 4] of length one, under fixed statistics.

    In the basis where W is I and S is diag(b), v = T (y - mean) scaled to length sqrt(sum(1 + b)),

        ratio(v, v') = sum k v v' - (u + u') / 2,  u = sum q v^2,
        k = b / ((1 + b)^2 - b^2),  q = b k / (1 + b)

    and the score is ratio / its deviation + w cos / its deviation. With r the numbers of which the
    products are taken, t = [r, -u / (2 c), c, rest, 0] / M: c a constant, `rest` what is missing
    to length M. Against the other's [r', c, -u' / (2 c), 0, rest'] / M it gives the score / M^2.
    """

    transform: Tensor
    mean: Tensor
    embedding: Tensor
    gains: Tensor
    own: Tensor
    constants: Tensor

    def __init__(
        self, within: Tensor, between: Tensor, mean: Tensor, embedding: Tensor, cosine: float
    ) -> None:
        """Take W and S [R, R], both means, and what a cosine of one is worth."""
        super().__init__()
        size = len(within)
        floor = 0.1 * within.diagonal().median()
        kept = _floored(within, float(floor))
        kept = 0.9 * kept + 0.1 * kept.trace() / size * torch.eye(size, dtype=kept.dtype)
        transform, b = _whitened(kept, _floored(between, 1e-3))
        b = b.clamp(min=0.0)
        k = b / (1.0 + 2.0 * b)
        q = b * k / (1.0 + b)
        square = float((1.0 + b).sum())
        deviation = float(((k.square() + q.square()) * (1.0 + b).square()).sum().sqrt())
        own = q / deviation
        half = 0.5 * float((own * (1.0 + b)).sum())
        constant = max(half, 1e-6) ** 0.5
        furthest = float(k.max()) * square / deviation + cosine + constant**2
        furthest += (float(own.max()) * square / (2.0 * constant)) ** 2
        self.register_buffer("transform", transform.float())
        self.register_buffer("mean", mean.float())
        self.register_buffer("embedding", embedding.float())
        self.register_buffer("gains", (k / deviation).sqrt().float())
        self.register_buffer("own", own.float())
        self.register_buffer(
            "constants", torch.tensor([square**0.5, cosine**0.5, constant, furthest**0.5]).float()
        )

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        length, weight, constant, furthest = self.constants
        v = F.normalize((y - self.mean) @ self.transform.T, dim=-1) * length
        centred = F.normalize(z - self.embedding, dim=-1)
        alone = -(v.square() @ self.own) / (2.0 * constant)
        told = torch.cat(
            [
                v * self.gains,
                weight * centred,
                alone[..., None],
                constant.expand_as(alone[..., None]),
            ],
            dim=-1,
        )
        missing = (furthest.square() - told.square().sum(dim=-1, keepdim=True)).clamp(min=0.0)
        found = torch.cat([told, missing.sqrt(), torch.zeros_like(missing)], dim=-1)
        templates: Tensor = found / furthest
        return templates


class Centred(nn.Module):
    """Unit z [B, D] -> z centred by `embedding` and of length one again: no basis, no ratio."""

    embedding: Tensor

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding.float())

    def forward(self, z: Tensor) -> Tensor:
        return F.normalize(z - self.embedding, dim=-1)


def _floored(matrix: Tensor, least: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    floored: Tensor = (vectors * values.clamp(min=max(least, 1e-9))) @ vectors.T
    return floored


class StatisticsHead(AdapterHead):
    """Condensed rows [..., F + R'] -> templates; its parameters are a release (`common.moments`).

    The adapter's own weight is public here and is not trained. What a template is depends on the
    shape alone: without directions it is the centred embedding, [D], and else [R + D + 4].
    """

    basis: Tensor
    prior: Tensor
    deviation: Tensor

    def __init__(self, projection: nn.Linear, parts: HeadParts) -> None:
        moments, config = parts.moments, parts.config
        super().__init__(projection, parts.public)
        self.requires_grad_(False)
        if (0 if moments is None else len(moments.prior)) != config.directions:
            raise InputError("the public basis has other directions than the moments")
        self.shape = Shape(config, projection.out_features)
        empty = torch.zeros(0)
        known = moments or PublicMoments(empty.view(0, 0), empty, torch.ones(()))
        self.register_buffer("basis", known.basis.clone())
        self.register_buffer("prior", known.prior.clone())
        self.register_buffer("deviation", known.deviation.clone())
        for name, size in zip(self.shape.layout.names, self.shape.layout.shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.zeros(size)))
        self._scored: tuple[tuple[int, ...], nn.Module] | None = None

    def forward(self, rows: Tensor) -> Tensor:
        return self.templates(*self.seen(rows))

    def seen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [..., F + R'] -> y [..., R] and public unit embeddings z [..., D]."""
        features, size = self.projection.in_features, len(self.prior)
        return rows[..., features : features + size] @ self.basis.T, super().forward(rows)

    def templates(self, y: Tensor, z: Tensor) -> Tensor:
        """What `seen` gives -> templates under the parameters as they are now."""
        scorer = self.scorer()
        found: Tensor = scorer(z) if isinstance(scorer, Centred) else scorer(y, z)
        return found

    @property
    def width(self) -> int:
        """Return how many numbers a template has."""
        size = len(self.prior)
        return size + self.shape.embedding + 4 if size else self.shape.embedding

    @property
    def probe_order(self) -> NDArray[np.int64] | None:
        """Return the places that bring a template to the probe's side; None: as it is."""
        order: NDArray[np.int64] | None = None
        if len(self.prior):
            order = probe_order(self.width).numpy()
        return order

    def told(self) -> Tensor:
        """Return the parameters as one vector [d], float64, without a gradient."""
        named = (getattr(self, name) for name in self.shape.layout.names)
        return torch.cat([value.detach().double().reshape(-1) for value in named])

    def retold(self, config: MomentsConfig) -> StatisticsHead:
        """Return a head with the same public part, and zero parameters of other moments."""
        state = self.state_dict()
        parts = HeadParts(PublicStatistics.in_state(state), PublicMoments.in_state(state), config)
        with torch.random.fork_rng(devices=[]):
            head = StatisticsHead(self.projection, parts).eval()
        head.adapter.load_state_dict(self.adapter.state_dict())
        return head

    def scorer(self) -> nn.Module:
        """Return what scores under the parameters; worked out once until they change."""
        known = (*self.parameters(), *self.buffers())
        versions = tuple(value for tensor in known for value in (id(tensor), tensor._version))
        if self._scored is None or self._scored[0] != versions:
            # Not a submodule: it follows from the parameters, and a model file holds only those.
            self._scored = (versions, self._worked_out())
        return self._scored[1]

    def _worked_out(self) -> nn.Module:
        told = {name: getattr(self, name).detach().double() for name in self.shape.layout.names}
        embedding = told["persons"].clamp(0, 1) * told["embedding"]
        if not len(self.prior):
            return Centred(embedding)
        size = len(self.prior)
        within = torch.eye(size, dtype=torch.float64)
        between = torch.diag(self.prior.double())
        mean = torch.zeros(size, dtype=torch.float64)
        used = 0.0
        if "mean" in told:
            mean = told["persons"].clamp(0, 1) * told["mean"]
        if "within" in told:
            used = float(told["pairs"].clamp(0, 1))
            within = within + used * self.shape.matrix(told["within"])
            between = between + used * self.shape.matrix(told["between"])
        worth = used * _PRIVATE_COSINE + (1.0 - used) * _PUBLIC_COSINE
        return Scorer(within, between, mean, embedding, worth / float(self.deviation))


class FixedHead(nn.Module):
    """A `StatisticsHead` with what follows from its parameters worked out: for export.

    Condensed rows -> templates, and the same on the probe's side: the score is t . p'.
    """

    basis: Tensor
    order: Tensor

    def __init__(self, head: StatisticsHead) -> None:
        super().__init__()
        public = AdapterHead(head.projection, PublicStatistics.in_state(head.state_dict()))
        public.adapter.load_state_dict(head.adapter.state_dict())
        self.public, self.scorer = public.requires_grad_(False), head.scorer()
        self.register_buffer("basis", head.basis.clone())
        size, width = len(head.prior), head.shape.embedding
        order = probe_order(size + width + 4) if size else torch.arange(width)
        self.register_buffer("order", order)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = self.public(rows)
        if isinstance(self.scorer, Centred):
            templates = self.scorer(z)
        else:
            features, size = self.public.projection.in_features, len(self.basis)
            templates = self.scorer(rows[..., features : features + size] @ self.basis.T, z)
        return templates, templates[..., self.order]


def probe_order(size: int) -> Tensor:
    """Return the places [T] that bring a template of `Scorer` to the probe's side."""
    return torch.tensor([*range(size - 4), size - 3, size - 4, size - 1, size - 2])
