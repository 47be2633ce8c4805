"""Person-separable losses: each person's loss depends on that person and on public data only.

A loss takes a batch of persons and public embeddings and returns one loss a person; the gradient
of entry p must not depend on any other private person. That is what makes the clip bound the
influence of a person, and `tests/test_losses.py` checks it on crafted neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from common.constants import LossConfig
from common.errors import InputError


@dataclass(frozen=True)
class PersonBatch:
    """P persons with up to K images each.

    Attributes:
        inputs: what the trainable part takes, [P, K, ...]; absent images are zero.
        present: which images exist, bool [P, K].
        codes: each person's row in the public codebook, int64 [P].
    """

    inputs: Tensor
    present: Tensor
    codes: Tensor

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def part(self, start: int, persons: int) -> PersonBatch:
        """Return `persons` persons from `start` on, filled up with absent ones at the end.

        Always the same shape: the rounding of a matrix product depends on its shape, and a
        person's gradient must not depend on how many others there are, not even in its last bit.
        """
        rows = slice(start, start + persons)
        missing = persons - len(self.codes[rows])

        def filled(values: Tensor) -> Tensor:
            if missing == 0:
                return values[rows]
            return torch.cat([values[rows], values.new_zeros(missing, *values.shape[1:])])

        return PersonBatch(filled(self.inputs), filled(self.present), filled(self.codes))

    def person(self, index: int) -> PersonBatch:
        """Return the batch of one person, [1, K, ...]."""
        rows = slice(index, index + 1)
        return PersonBatch(self.inputs[rows], self.present[rows], self.codes[rows])


@dataclass(frozen=True)
class PublicSide:
    """The public part of a loss in one step: nothing in it depends on a private person.

    Either `values` are unit embeddings [N, D], constants of the step (`embedded`), or they are
    inputs [N, ...] of the trainable part, embedded inside each person's loss, so that the gradient
    flows through them too.
    """

    values: Tensor
    embedded: bool


class PersonLoss(Protocol):
    """embeddings [P, K, D], present [P, K], codes [P], public [N, D] or [P, N, D] -> losses [P]."""

    def __call__(
        self, embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor
    ) -> Tensor: ...


def _pair_mean(pair_losses: Tensor, present: Tensor) -> Tensor:
    """Mean of [P, K, K] over a person's ordered pairs of two different images; 0 if none."""
    k = present.shape[1]
    off_diagonal = ~torch.eye(k, dtype=torch.bool, device=present.device)
    pairs = present[:, :, None] & present[:, None, :] & off_diagonal  # [P, K, K]
    # `where` before the sum: an absent image must not bring in a NaN through 0 * NaN.
    total = torch.where(pairs, pair_losses, torch.zeros_like(pair_losses)).sum(dim=(1, 2))
    return total / pairs.sum(dim=(1, 2)).clamp(min=1)


def public_negatives(config: LossConfig) -> PersonLoss:
    """InfoNCE (van den Oord et al. 2018, eq. 4) with positives of one's own, negatives public.

    l_ap = -log( e^{t s_ap} / (e^{t s_ap} + sum_n e^{t s_an}) ), the mean over ordered pairs (a, p)
    of the person's images. A person with one image has no pair and a zero gradient.
    """

    def loss(embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor) -> Tensor:
        positive = config.temperature * embeddings @ embeddings.transpose(1, 2)  # [P, K, K]
        negative = config.temperature * embeddings @ public.transpose(-1, -2)  # [P, K, N]
        against = torch.logsumexp(negative, dim=2, keepdim=True)  # [P, K, 1]
        return _pair_mean(F.softplus(against - positive), present)

    return loss


def triplet(config: LossConfig) -> PersonLoss:
    """Triplet loss (Schroff et al. 2015, eq. 1) in cosines, semi-hard negative from the public.

    For each ordered pair (a, p): the most similar public face that is less similar than p, or the
    most similar of all if none is; relu(s_an - s_ap + margin). One image: zero gradient.
    """

    def loss(embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor) -> Tensor:
        positive = embeddings @ embeddings.transpose(1, 2)  # [P, K, K]
        negative = embeddings @ public.transpose(-1, -2)  # [P, K, N]
        below = negative[:, :, None, :] < positive[:, :, :, None]  # [P, K, K, N]
        semi_hard = torch.where(below, negative[:, :, None, :], -2.0).amax(dim=3)
        hardest = negative.amax(dim=2)[:, :, None].expand_as(semi_hard)
        chosen = torch.where(below.any(dim=3), semi_hard, hardest)
        return _pair_mean(F.relu(chosen - positive + config.margin), present)

    return loss


def codebook(config: LossConfig) -> PersonLoss:
    """Softmax with cosine margin (CosFace, Wang et al. 2018, eq. 4) over a fixed public codebook.

    `public` are unit codes [N, D]; person p's target is row `codes[p]`, a keyed pseudo-random
    function of the person alone, so who else is enrolled does not matter. Works from one image.
    """

    def loss(embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor) -> Tensor:
        rows = torch.arange(public.shape[-2], device=codes.device)
        target = (codes[:, None] == rows).to(embeddings.dtype)[:, None, :]  # [P, 1, N]
        logits = config.temperature * (
            embeddings @ public.transpose(-1, -2) - config.margin * target
        )
        nll = torch.logsumexp(logits, dim=2) - (logits * target).sum(dim=2)  # [P, K]
        total = torch.where(present, nll, torch.zeros_like(nll)).sum(dim=1)
        return total / present.sum(dim=1).clamp(min=1)

    return loss


LOSSES: Final[dict[str, Callable[[LossConfig], PersonLoss]]] = {
    "public-negatives": public_negatives,
    "triplet": triplet,
    "codebook": codebook,
}


def create_loss(config: LossConfig) -> PersonLoss:
    """Return the loss that `config` names; unknown name: InputError."""
    if config.name not in LOSSES:
        raise InputError(f"unknown loss {config.name!r}", hint=f"one of {', '.join(LOSSES)}")
    return LOSSES[config.name](config)
