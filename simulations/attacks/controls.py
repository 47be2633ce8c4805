"""Broken builds of the real thing, to show that an audit can fail.

Each replaces one function, in this process and inside a `with` block only, by one that
has a mistake that people make; everything else that runs is the real thing. No production code
knows of them.

    noise-off        the sum is released as it is; contract and ledger still state the noise
    noise-half       noise of half the stated standard deviation
    clip-off         a person's gradient enters as large as it is
    per-image-clip   each image is clipped by itself, so a person of K images counts K times
    transform-off    the vault's secret rotation is the identity
    masks-off        secure aggregation without its masks
    masks-reused     one mask for all rounds
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import book_keeping as book_keeping_module
from client import gradients
from client import optimizer as optimizer_module
from client.gradients import GradientEngine
from client.vault import transform
from common import mechanism
from common.errors import InputError
from common.losses import PersonBatch, PersonLoss, PublicSide
from common.masking import masks
from common.masking import site as masking_site
from common.mechanism import ClippedSum, NoisedSum
from common.randomness import KEY_BYTES, KeyStream

_ENGINES: Final = ("person_loop", "person_vmap", "book_keeping")


@contextmanager
def broken_build(name: str | None) -> Iterator[None]:
    """Run the block with the named mistake in the loop; None is the right build."""
    if name is not None and name not in CONTROLS:
        raise InputError(f"unknown control {name!r}", hint=f"one of {', '.join(CONTROLS)}")
    with ExitStack() as patches:
        if name is not None:
            CONTROLS[name](patches)
        yield


def _noise_scaled(factor: float) -> Callable[[ExitStack], None]:
    right = mechanism.add_noise

    def too_little(clipped: ClippedSum, noise_multiplier: float, stream: KeyStream) -> NoisedSum:
        released = right(clipped, factor * noise_multiplier, stream)
        return dataclasses.replace(released, noise_multiplier=noise_multiplier, private=True)

    def install(patches: ExitStack) -> None:
        patches.enter_context(patch.object(optimizer_module, "add_noise", too_little))

    return install


def _clip_off(patches: ExitStack) -> None:
    def unclipped(norms: Tensor, max_grad_norm: float) -> Tensor:
        return torch.isfinite(norms).to(torch.float64)

    for module in (mechanism, book_keeping_module):
        patches.enter_context(patch.object(module, "clip_factors", unclipped))


def _per_image(engine: GradientEngine) -> GradientEngine:
    """As the engine, but each image with its next one is taken for a person of its own."""

    def clipped_by_image(
        model: nn.Module,
        batch: PersonBatch,
        loss: PersonLoss,
        public: PublicSide,
        max_grad_norm: float,
    ) -> ClippedSum:
        images = batch.present.shape[1]
        total = torch.zeros((), dtype=torch.float64)
        for image in range(images):
            kept = torch.zeros(images, dtype=torch.bool)
            kept[[image, (image + 1) % images]] = True
            one = PersonBatch(batch.inputs, batch.present & kept, batch.codes)
            total = total + engine(model, one, loss, public, max_grad_norm).value
        return ClippedSum(total, max_grad_norm)

    return clipped_by_image


def _clip_by_image(patches: ExitStack) -> None:
    for name in _ENGINES:
        wrong = _per_image(getattr(gradients, name))
        patches.enter_context(patch.object(gradients, name, wrong))


def _transform_off(patches: ExitStack) -> None:
    def identity(seed: bytes, model_id: str, dim: int) -> NDArray[np.float64]:
        return np.eye(dim)

    patches.enter_context(patch.object(transform, "orthogonal", identity))


def _masks(replacement: Callable[..., None]) -> Callable[[ExitStack], None]:
    def install(patches: ExitStack) -> None:
        patches.enter_context(patch.object(masking_site, "add_mask", replacement))

    return install


def _no_mask(total: NDArray[np.uint32], seed: bytes, *, negative: bool) -> None:
    """Leave the vector as it is."""


def _same_mask(total: NDArray[np.uint32], seed: bytes, *, negative: bool) -> None:
    masks.add_mask(total, bytes(KEY_BYTES), negative=negative)


CONTROLS: Final[dict[str, Callable[[ExitStack], None]]] = {
    "noise-off": _noise_scaled(0.0),
    "noise-half": _noise_scaled(0.5),
    "clip-off": _clip_off,
    "per-image-clip": _clip_by_image,
    "transform-off": _transform_off,
    "masks-off": _masks(_no_mask),
    "masks-reused": _masks(_same_mask),
}
