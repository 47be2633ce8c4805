"""A residual linear adapter on frozen features: the smallest thing worth training.

    z = normalize( (W h - m / 2) / s + A x ),   x = S (f - mean)

h are the pooled features and W the public projection; m and s are the mean and the mean norm of
W h over the public bank. f is an earlier feature map, seen as one vector; S takes it to its leading
principal directions in the bank, each scaled by the square root of its singular value, so that
noise in A, the same in each direction, disturbs little where faces vary little. Only A is trained:
few parameters mean little noise. A = 0 is the public model, half centred.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError

DIRECTIONS: Final = 256
_NAMES: Final = ("center", "scale", "condense.mean", "condense.directions")


@dataclass(frozen=True)
class PublicStatistics:
    """What the adapter knows of the public bank; all of it is public.

    Attributes:
        center, scale: half the mean [D] and the mean norm [] of the bank's projected features.
        mean, directions: of the bank's flattened maps, [M] and [R, M]; R <= 256.
    """

    center: Tensor
    scale: Tensor
    mean: Tensor
    directions: Tensor

    @staticmethod
    def of(projection: nn.Linear, rows: Tensor) -> PublicStatistics:
        """Compute them from the bank's rows [N, F + M], N >= 2, as the frozen part gives them.

        A bank of another shape, not finite, or of N equal rows, has no such statistics: InputError.
        """
        _check(rows, projection.in_features)
        with torch.no_grad():
            raw = projection(rows[:, : projection.in_features])
            maps = rows[:, projection.in_features :]
            mean = maps.mean(dim=0)
            return PublicStatistics(
                raw.mean(dim=0) / 2,
                raw.norm(dim=1).mean().clamp(min=1e-12),
                mean,
                _directions(maps - mean),
            )

    @staticmethod
    def in_state(state: Mapping[str, Tensor]) -> PublicStatistics:
        """Return the statistics in an adapter's state dict; missing ones are an InputError."""
        missing = [name for name in _NAMES if name not in state]
        if missing:
            raise InputError(f"this is not the state of an adapter: {missing[0]} is missing")
        return PublicStatistics(*(state[name] for name in _NAMES))


class Condenser(nn.Module):
    """Frozen rows [B, F + M] -> rows [B, F + R] for the adapter; once for each image."""

    mean: Tensor
    directions: Tensor

    def __init__(self, features: int, statistics: PublicStatistics) -> None:
        super().__init__()
        self._features = features
        self.register_buffer("mean", statistics.mean.clone())
        self.register_buffer("directions", statistics.directions.clone())

    def forward(self, rows: Tensor) -> Tensor:
        pooled, maps = rows[:, : self._features], rows[:, self._features :]
        return torch.cat([pooled, (maps - self.mean) @ self.directions.T], dim=1)


class AdapterHead(nn.Module):
    """Condensed rows [..., F + R] -> unit-norm embeddings [..., D]; `adapter.weight` [D, R] trains.

    All other tensors are public: the frozen projection and statistics of the public bank.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, projection: nn.Linear, statistics: PublicStatistics) -> None:
        super().__init__()
        self.projection = nn.Linear(
            projection.in_features, projection.out_features, bias=projection.bias is not None
        )
        self.projection.load_state_dict(projection.state_dict())
        self.projection.requires_grad_(False)
        self.condense = Condenser(projection.in_features, statistics)
        self.register_buffer("center", statistics.center.clone())
        self.register_buffer("scale", statistics.scale.clone())
        self.adapter = nn.Linear(len(statistics.directions), projection.out_features, bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, rows: Tensor) -> Tensor:
        features = self.projection.in_features
        public = (self.projection(rows[..., :features]) - self.center) / self.scale
        learned: Tensor = self.adapter(rows[..., features:])
        return F.normalize(public + learned, dim=-1)


def _directions(centred: Tensor) -> Tensor:
    """The R <= 256 leading principal directions of rows [N, M], stretched, [R, M].

    Direction j is scaled by the square root of its singular value, all together so that rows have
    mean norm 1. From the smaller N x N matrix of inner products, in float64.
    """
    exact = centred.double()
    squares, left = torch.linalg.eigh(exact @ exact.T)  # ascending
    keep = squares > squares[-1] * 1e-10
    squares, left = squares[keep][-DIRECTIONS:].flip(0), left[:, keep][:, -DIRECTIONS:].flip(1)
    singular = squares.sqrt()
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    left = left * left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()
    stretched = (left.T @ exact) / singular[:, None] * singular.sqrt()[:, None]
    norm = (exact @ stretched.T).norm(dim=1).mean().clamp(min=1e-12)
    directions: Tensor = stretched / norm
    return directions.float()


def _check(rows: Tensor, features: int) -> None:
    if rows.dim() != 2 or len(rows) < 2:
        raise InputError("the adapter needs the features of at least two public images")
    if rows.shape[1] <= features:
        raise InputError(
            f"the public features have {rows.shape[1]} numbers an image, not more than {features}",
            hint="compute them with the same backbone",
        )
    if not torch.isfinite(rows).all():
        raise InputError("the public features hold a NaN or an infinity")
    if torch.equal(rows, rows[:1].expand_as(rows)):
        raise InputError(
            "the public images are all alike", hint="give a bank of different people's faces"
        )
