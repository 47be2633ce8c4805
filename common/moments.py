"""What a person contributes to private statistics, and what the noised sums say about everyone.

One vector a person, in a public basis in which the prior within-person covariance is I and the
prior between-person covariance is diag(prior):

    c_p = [ a z_p,  b D^-1/2 m_p,  f (W_p - I),  f/2 D^-1/2 (B_p - diag(prior)) D^-1/2,  counters ]

z_p is the mean of the person's unit embeddings, m_p the mean of their y, W_p = scatter / (n - 1)
and B_p = m_p m_p^T - W_p / n for n images, D = 1 + prior, f = sqrt 2 off the diagonal and 1 on it
(so that the norm of a symmetric matrix is that of its entries). Nothing in it depends on another
person, so `common.mechanism.clip_by_person` bounds it as it bounds a gradient. Moments of pairs
are told in all directions on the diagonal, and off it for the leading ones only: how many is a
public constant, since noise grows with the count of numbers and not with what they say.

In a contribution `persons` and `pairs` count those of whom it tells; in a model they are how much
of the means and of the moments of pairs is used, in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from common.constants import MomentsConfig
from common.errors import InputError
from common.layout import Layout

# Bands of the larger index, within which entries are shrunk alike: later directions say less.
_BANDS: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192)
# Counters below so many standard deviations of their noise say nothing of how many there are.
_LOST: Final = 2.0


@dataclass(frozen=True)
class Shape:
    """Which numbers a contribution has: public constants, and the embedding's dimension D."""

    config: MomentsConfig
    embedding: int

    @property
    def entries(self) -> int:
        """Return how many entries of a symmetric matrix are told: diagonal, and leading block."""
        return self.config.directions + self.config.block * (self.config.block - 1) // 2

    @property
    def layout(self) -> Layout:
        """Return the contribution as named arrays; parts of scale zero are left out."""
        config, directions = self.config, self.config.directions
        told = {"embedding": (self.embedding,)}
        if config.mean_scale:
            told["mean"] = (directions,)
        if config.pair_scale:
            told |= {"within": (self.entries,), "between": (self.entries,)}
        told["persons"] = (1,)
        if config.pair_scale:
            told["pairs"] = (1,)
        return Layout(tuple(told), tuple(told.values()))

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a contribution [d] by name."""
        layout = self.layout
        if vector.shape != (layout.dimension,):
            raise InputError(f"a contribution of {layout.dimension} numbers has {len(vector)}")
        return dict(zip(layout.names, torch.split(vector, list(layout.sizes)), strict=True))

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the vector [d] of its parts."""
        return torch.cat([parts[name] for name in self.layout.names])

    def places(self) -> tuple[Tensor, Tensor]:
        """Return row and column of each told entry, int64 [entries]: the diagonal comes first."""
        block = torch.triu_indices(self.config.block, self.config.block, offset=1)
        diagonal = torch.arange(self.config.directions)
        return torch.cat([diagonal, block[0]]), torch.cat([diagonal, block[1]])

    def told(self, matrix: Tensor) -> Tensor:
        """Symmetric [R, R] -> its told entries, those off the diagonal times sqrt 2."""
        rows, columns = self.places()
        return matrix[rows, columns] * _weights(rows, columns).to(matrix.dtype)

    def matrix(self, told: Tensor) -> Tensor:
        """Told entries -> symmetric [R, R], zero where nothing is told."""
        rows, columns = self.places()
        values = told / _weights(rows, columns).to(told.dtype)
        full = told.new_zeros(self.config.directions, self.config.directions)
        full[rows, columns] = values
        full[columns, rows] = values
        return full


def _weights(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.where(rows == columns, 1.0, math.sqrt(2.0)).double()


def contribution(shape: Shape, prior: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return a person's c_p, float64 [d], not clipped.

    `y` [n, R] and `z` [n, D] are the person's images in the public basis and their unit
    embeddings, n >= 1. One image tells the means and nothing of pairs; an image with a NaN or an
    infinity makes the whole contribution one, which the clip takes for zero.
    """
    config, exact, count = shape.config, y.double(), len(y)
    one = torch.ones(1, dtype=torch.float64)
    parts = {
        "embedding": config.embedding_scale * z.double().mean(dim=0),
        "persons": config.counter_scale * one,
    }
    spread = torch.rsqrt(1.0 + prior.double())
    mean = exact.mean(dim=0)
    if config.mean_scale:
        parts["mean"] = config.mean_scale * spread * mean
    if config.pair_scale:
        within = between = torch.zeros(shape.entries, dtype=torch.float64)
        if count > 1:
            scatter = (exact - mean).T @ (exact - mean) / (count - 1)
            own = torch.outer(mean, mean) - scatter / count - torch.diag(prior.double())
            within = shape.told(scatter - torch.eye(len(prior), dtype=torch.float64))
            between = shape.told(own * torch.outer(spread, spread)) / 2
        parts["within"], parts["between"] = config.pair_scale * within, config.pair_scale * between
        parts["pairs"] = (config.counter_scale if count > 1 else 0.0) * one
    return shape.joined(parts)


def estimate(shape: Shape, prior: Tensor, sums: Tensor, noise: float) -> Tensor:
    """Return the statistics [d], float64, that a sum of clipped contributions [d] says.

    `sums` and `noise`, the standard deviation of every number's noise, are on any common scale:
    both are divided by the noised counters, which were clipped with the rest. Each part is shrunk
    towards zero, to v max(0, 1 - n s^2 / |v|^2) for n numbers of noise s (James and Stein 1961,
    the positive part): means as a whole, matrices by bands of the larger index, diagonal apart.
    What is left are changes to what the public bank says: all zeros where noise is all there is.
    `persons` and `pairs` are 1 where something is told, and 0 where their counter is lost.
    """
    config, parts = shape.config, shape.parts(sums.double())
    found = {name: torch.zeros_like(part) for name, part in parts.items()}

    def counted(counter: str) -> float:
        told = counter in parts and float(parts[counter]) > _LOST * noise
        return float(parts[counter]) / config.counter_scale if told else 0.0

    if persons := counted("persons"):
        found["persons"] += 1.0
        for name, scale in (("embedding", config.embedding_scale), ("mean", config.mean_scale)):
            if name in parts:
                share = scale * persons
                found[name] = parts[name] / share * _kept(parts[name], noise)
    root = torch.sqrt(1.0 + prior.double())
    if "mean" in parts:
        found["mean"] = found["mean"] * root
    if pairs := counted("pairs"):
        found["pairs"] += 1.0
        for name, scale in (("within", config.pair_scale), ("between", config.pair_scale / 2)):
            found[name] = _by_band(shape, parts[name], noise) / (scale * pairs)
        rows, columns = shape.places()
        found["between"] = found["between"] * root[rows] * root[columns]
        if "mean" in parts:  # the second moment is about zero: without the square of the mean
            found["between"] -= shape.told(torch.outer(found["mean"], found["mean"]))
    return shape.joined(found)


def _by_band(shape: Shape, values: Tensor, noise: float) -> Tensor:
    rows, columns = shape.places()
    band = torch.bucketize(torch.maximum(rows, columns), torch.tensor(_BANDS), right=True)
    group = 2 * band + (rows == columns)
    result = torch.zeros_like(values)
    for one in sorted(set(group.tolist())):
        chosen = group == one
        result[chosen] = values[chosen] * _kept(values[chosen], noise)
    return result


def _kept(values: Tensor, noise: float) -> float:
    square = float(values.square().sum())
    return max(0.0, 1.0 - len(values) * noise**2 / square) if square > 0.0 else 0.0
