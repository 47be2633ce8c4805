"""Chips to rows of the trainable part, and rows to embeddings, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.backbones.base import Backbone, Split
from common.vocabulary import TrainSet

Progress = Callable[[int, int], None]
# One thread a batch, each batch small enough for its core's cache, channels last: measured on two
# cores, MobileFaceNet takes a third of plain batches of 64; threads inside an operation would wait
# for one another, and with other work on the machine take five times as long.
_BATCH = 16
_LAYOUT = torch.channels_last


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Rows:
    """How a split backbone stores and uses images: frozen features, or chips if nothing is frozen.

    With train set `full` a row is the uint8 chip itself and `prepare` makes pixels of it; else a
    row is what the frozen part made of it, condensed, and `prepare` returns it as it is.
    """

    backbone: Backbone
    split: Split
    train_set: TrainSet

    def of(self, chips: Tensor, progress: Progress = silent) -> Tensor:
        """uint8 chips [N, S, S, 3] -> rows [N, ...], each image once, no gradient."""
        if self.train_set == "full":
            return chips
        once = nn.Sequential(self.split.frozen, self.split.condense)
        return frozen_rows(self.backbone, once, chips, progress)

    def prepare(self, rows: Tensor) -> Tensor:
        """Rows -> the trainable part's input."""
        return self.backbone.preprocess(rows) if self.train_set == "full" else rows

    def embed(self, rows: Tensor) -> Tensor:
        """Rows [N, ...] -> unit-norm embeddings [N, D] under the current parameters."""
        return embed(self.split.trainable, rows, self.prepare)


def frozen_rows(
    backbone: Backbone,
    frozen: nn.Module,
    chips: Tensor,
    progress: Progress = silent,
    *,
    alike: bool = True,
) -> Tensor:
    """uint8 chips [N, S, S, 3] -> the frozen module's output [N, ...], no gradient.

    Any module that takes the backbone's pixels: its frozen part, or the whole network. With
    `alike`, the last batch is filled up with black chips: in training, the rounding of an image's
    row must not depend on how many images there are. Without it, one image costs one.
    """
    module = _laid_out(frozen)

    def run(start: int) -> Tensor:
        with torch.no_grad():
            batch = chips[start : start + _BATCH]
            size = len(batch)
            if alike:
                batch = torch.cat([batch, chips.new_zeros(_BATCH - size, *chips.shape[1:])])
            pixels = backbone.preprocess(batch)
            rows: Tensor = module(pixels.contiguous(memory_format=_LAYOUT))
        return rows[:size]

    parts = []
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number, part in enumerate(pool.map(run, range(0, max(len(chips), 1), _BATCH)), start=1):
            parts.append(part)
            progress(min(number * _BATCH, len(chips)), len(chips))
    return torch.cat(parts)


def embed(
    model: nn.Module, rows: Tensor, prepare: Callable[[Tensor], Tensor], batch: int = 256
) -> Tensor:
    """Return model(prepare(rows)) in batches, without gradient, [N, D]."""
    with torch.no_grad():
        parts = [model(prepare(rows[i : i + batch])) for i in range(0, max(len(rows), 1), batch)]
    return torch.cat(parts)


def _laid_out(module: nn.Module) -> nn.Module:
    """Lay weights out for `_LAYOUT`, once: threads that share a network must find it unchanged."""
    weights = (weight for weight in module.parameters() if weight.dim() == 4)
    if all(weight.is_contiguous(memory_format=_LAYOUT) for weight in weights):
        return module
    return module.to(memory_format=_LAYOUT)
