"""Faces from one update: gradient inversion (Geiping et al. 2020, arXiv:2003.14053).

The attacker knows the model, the public bank, the loss and how many images one person has, sees the
update of a site where that person is alone, and searches images whose gradient points the same way:
it minimises 1 - cosine + weight * total variation by signed Adam steps (eq. 4 and section 3). That
is more than any server has at a real site. `full` trains from the pixels; the adapter's gradient
concerns frozen features, and the search goes through the frozen part.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from client.gradients import choose_engine
from client.trainer import RoundKeys, train_round
from common.backbones.base import Backbone
from common.embedding import Rows
from common.losses import create_loss
from common.parameters import assign, trainable_parameters
from common.persons import Persons
from server.rounds import Federation
from simulations.attacks.pipeline import Draws

IMAGES: Final = 2  # the fewest with which a person has a gradient, and so the easiest to invert
_COARSE: Final = 28  # a search on this grid, drawn smoothly, is Geiping's prior at its strongest
_RATE: Final = 0.02


@dataclass(frozen=True)
class Target:
    """What is attacked: a federation, its model cut by `rows`, and one person's chips
    uint8 [2, S, S, 3]."""

    federation: Federation
    rows: Rows
    chips: Tensor


@dataclass(frozen=True)
class Likeness:
    """How near reconstructions are to the truth, means over the images.

    Attributes:
        psnr: peak signal to noise ratio in dB.
        ssim: structural similarity of grey pictures (Wang et al. 2004, eq. 13), 1 is equal.
        cosine: of face embeddings by a network that was not attacked.
    """

    psnr: float
    ssim: float
    cosine: float


def one_update(target: Target, draws: Draws, site: int) -> NDArray[np.float32]:
    """Return what the loop releases in round 1 at a site where this person is alone."""
    federation, rows = target.federation, target.rows
    key, contract = draws.round_key(site), federation.contract
    alone = Persons.group(rows.of(target.chips), [0] * IMAGES, [0], rows.prepare)
    return train_round(
        rows.split.trainable,
        federation.initial,
        alone,
        federation.public_inputs[: contract.public_negatives],
        contract,
        RoundKeys.derive(key(contract, 1), private=key.private),
        choose_engine(rows.split.trainable, contract.train_set),
    )


def invert(
    target: Target,
    delta: NDArray[np.float32],
    steps: int,
    variation: float,
    rng: np.random.Generator,
) -> Tensor:
    """Return the images [2, 3, S, S] in [0, 1] whose gradient is most like the update's."""
    federation, backbone = target.federation, target.rows.backbone
    model = target.rows.split.trainable
    assign(model, torch.from_numpy(federation.initial))
    values: dict[str, Tensor] = {**trainable_parameters(model)}
    front = _front(target.rows)
    contract, size = federation.contract, target.chips.shape[1]
    loss = create_loss(contract.loss)
    public = target.rows.prepare(federation.public_inputs[: contract.public_negatives])
    seen = F.normalize(-torch.from_numpy(delta), dim=0)
    present, code = torch.ones(1, IMAGES, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        constant = model(public)
    start = 0.5 + 0.1 * torch.from_numpy(rng.standard_normal((IMAGES, 3, _COARSE, _COARSE)))
    coarse = start.float().requires_grad_(True)
    search = torch.optim.Adam([coarse], lr=_RATE)
    milestones = [steps * 3 // 8, steps * 5 // 8, steps * 7 // 8]
    plan = torch.optim.lr_scheduler.MultiStepLR(search, milestones, gamma=0.1)
    best, least = coarse.detach().clone(), float("inf")
    for _ in range(steps):
        images = _fine(coarse, size)
        own = functional_call(model, values, (front(_pixels(images, backbone)),))
        through = contract.loss.public_gradient
        others = functional_call(model, values, (public,)) if through else constant
        value = loss(own[None], present, code, others).sum()
        found = torch.autograd.grad(value, list(values.values()), create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in found])
        away = 1.0 - F.normalize(flat, dim=0) @ seen
        (slope,) = torch.autograd.grad(away + variation * _variation(images), coarse)
        if float(away.detach()) < least:
            best, least = coarse.detach().clone(), float(away.detach())
        coarse.grad = slope.sign()
        search.step()
        plan.step()
        with torch.no_grad():
            coarse.clamp_(0.0, 1.0)
    return _fine(best, size)


@dataclass(frozen=True)
class Judge:
    """Compares faces by a network that was not attacked, embeddings less those of the public."""

    backbone: Backbone
    centre: Tensor

    @staticmethod
    def of(backbone: Backbone, public: Tensor) -> Judge:
        """`public` are other people's images [N, 3, S, S] in [0, 1]."""
        return Judge(backbone, _faces(backbone, public).mean(dim=0))

    def compare(self, truth: Tensor, drawn: Tensor) -> Likeness:
        """Compare images [2, 3, S, S] in [0, 1], in the order that fits: a gradient has none."""
        found = []
        for order in itertools.permutations(range(len(drawn))):
            moved = drawn[list(order)]
            error = (truth - moved).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
            pairs = zip(_grey(truth), _grey(moved), strict=True)
            one, two = (_faces(self.backbone, images) - self.centre for images in (truth, moved))
            found.append(
                Likeness(
                    float((-10.0 * error.log10()).mean()),
                    float(np.mean([ssim(a, b) for a, b in pairs])),
                    float(F.cosine_similarity(one, two).mean()),
                )
            )
        return max(found, key=lambda each: each.ssim)


def ssim(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Structural similarity of two grey pictures [S, S] in [0, 1]; Gaussian window of 1.5 pixels.

    Wang et al. 2004, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(values, 1.5, truncate=3.5))

    mean_1, mean_2 = local(one), local(two)
    var_1 = local(one * one) - mean_1**2
    var_2 = local(two * two) - mean_2**2
    shared = local(one * two) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + 1e-4) * (2 * shared + 9e-4)
    below = (mean_1**2 + mean_2**2 + 1e-4) * (var_1 + var_2 + 9e-4)
    return float((above / below).mean())


def unit_pixels(chips: Tensor) -> Tensor:
    """uint8 chips [N, S, S, 3] -> [N, 3, S, S] in [0, 1]."""
    return chips.permute(0, 3, 1, 2).float() / 255.0


def _front(rows: Rows) -> nn.Module:
    if rows.train_set == "full":
        return nn.Identity()
    return nn.Sequential(rows.split.frozen, rows.split.condense)


def _pixels(images: Tensor, backbone: Backbone) -> Tensor:
    """As `Backbone.preprocess`, from [0, 1] and with a gradient."""
    return (255.0 * images - backbone.mean) / backbone.std


def _fine(coarse: Tensor, size: int) -> Tensor:
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def _variation(images: Tensor) -> Tensor:
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()


def _grey(images: Tensor) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = images.mean(dim=1).double().numpy()
    return grey


def _faces(judge: Backbone, images: Tensor) -> Tensor:
    sized = F.interpolate(images, size=(judge.chip.size,) * 2, mode="bilinear", antialias=True)
    with torch.no_grad():
        embedded: Tensor = judge(_pixels(sized, judge))
    return embedded
