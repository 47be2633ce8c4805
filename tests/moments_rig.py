"""A small head of statistics on a random projection, and people for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.backbones.adapter import PublicStatistics
from common.backbones.statistics import HeadParts, PublicMoments, StatisticsHead
from common.constants import MomentsConfig

FEATURES, MAPS, DIM = 6, 40, 5


def head(
    config: MomentsConfig | None = None, *, seed: int = 1, basis: bool = True
) -> StatisticsHead:
    """A head on a random projection, with the public basis of 80 images of 80 people or without."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(FEATURES, DIM)
    # Directions that fall off, as those of faces do.
    scales = torch.linspace(3.0, 0.3, FEATURES + MAPS)
    bank = torch.randn(80, FEATURES + MAPS, generator=generator) * scales
    public = PublicStatistics.of(projection, bank)
    condense = StatisticsHead(projection, HeadParts(public, None, config_of(0))).condense
    looks = [bank + 0.2 * torch.randn(bank.shape, generator=generator) * scales for _ in range(2)]
    with torch.no_grad():
        rows = [condense(one)[:, FEATURES:] for one in (bank, *looks)]
    moments = PublicMoments.of(rows[0], rows[1], rows[2])
    assert moments is not None
    if not basis:
        return StatisticsHead(projection, HeadParts(public, None, config or config_of(0))).eval()
    told = config or config_of(len(moments.prior))
    return StatisticsHead(projection, HeadParts(public, moments, told)).eval()


def config_of(directions: int) -> MomentsConfig:
    if not directions:
        return MomentsConfig(0, 0, 1.0, 0.0, 0.0, 1.0)
    return MomentsConfig(directions, 8, 0.25, 0.1, 0.1, 0.6)


def rows(count: int, images: int, seed: int) -> Tensor:
    """Condensed rows of some people, as the head takes them."""
    model, generator = head(), torch.Generator().manual_seed(seed)
    width = FEATURES + len(model.condense.directions)
    people = torch.randn(count, 1, width, generator=generator)
    return people + 0.5 * torch.randn(count, images, width, generator=generator)
