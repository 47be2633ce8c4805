"""Clipped sums of person gradients, by three engines that agree with each other.

Each takes the trainable part, a batch of persons, a person-separable loss and its public side, and
returns the `ClippedSum`. The loop is the definition; the others are faster for some models and are
held to it by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.book_keeping import book_keeping, supports_book_keeping
from client.moments import person_moments
from common.losses import PersonBatch, PersonLoss, PublicSide
from common.mechanism import ClippedSum, clip_by_person
from common.parameters import layout_of, trainable_parameters
from common.vocabulary import TrainSet

# Above this many floats a chunk of per-person gradients no longer fits the cache and memory well.
_VMAP_FLOATS: Final = 2**25
_VMAP_PARAMETERS: Final = 20_000
_VMAP_PERSONS: Final = 64


class GradientEngine(Protocol):
    """model, P persons, loss, its public side, C -> clipped sum over the P persons."""

    def __call__(
        self,
        model: nn.Module,
        batch: PersonBatch,
        loss: PersonLoss,
        public: PublicSide,
        max_grad_norm: float,
    ) -> ClippedSum: ...


def person_loop(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, max_grad_norm: float
) -> ClippedSum:
    """One person at a time: forward, backward, clip, add. Only images that exist are embedded."""
    parameters = list(trainable_parameters(model).values())
    others = public.values if public.embedded else model(public.values)  # [N, D]

    def gradients() -> Iterator[Tensor]:
        for index in range(len(batch)):
            one = batch.person(index)
            seen = model(one.inputs[one.present])  # [k, D], k <= K
            slots = seen.new_zeros(one.present.shape[1], seen.shape[1])
            embeddings = slots.index_put((one.present[0].nonzero()[:, 0],), seen)[None]
            value = loss(embeddings, one.present, one.codes, others).sum()
            found = torch.autograd.grad(value, parameters, retain_graph=not public.embedded)
            yield torch.cat([g.reshape(-1) for g in found])

    return clip_by_person(gradients(), layout_of(model).dimension, max_grad_norm)


def person_vmap(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, max_grad_norm: float
) -> ClippedSum:
    """All gradients of a chunk of persons at once, [chunk, d]: for small trainable sets."""
    parameters = {name: p.detach() for name, p in trainable_parameters(model).items()}
    dimension = layout_of(model).dimension

    def one_loss(
        values: dict[str, Tensor], inputs: Tensor, present: Tensor, code: Tensor
    ) -> Tensor:
        embeddings = functional_call(model, values, (inputs,))
        others = (
            public.values if public.embedded else functional_call(model, values, (public.values,))
        )
        return loss(embeddings[None], present[None], code[None], others).sum()

    per_person = vmap(grad(one_loss), in_dims=(None, 0, 0, 0), randomness="error")
    chunk = max(1, min(_VMAP_PERSONS, _VMAP_FLOATS // dimension))

    def gradients() -> Iterator[Tensor]:
        for start in range(0, len(batch), chunk):
            part = batch.part(start, chunk)
            found = per_person(parameters, part.inputs, part.present, part.codes)
            yield from torch.cat([found[name].flatten(1) for name in parameters], dim=1)

    return clip_by_person(gradients(), dimension, max_grad_norm)


def choose_engine(model: nn.Module, train_set: TrainSet) -> GradientEngine:
    """Return the engine that was measured fastest for this kind of model (docs/engines.md).

    Book-keeping's work grows with the square of a feature map's places: it is for the small maps
    at a network's end, not for `full`, which starts at the pixels.
    """
    if train_set == "statistics":
        return person_moments
    if train_set != "full" and supports_book_keeping(model):
        return book_keeping
    if layout_of(model).dimension <= _VMAP_PARAMETERS:
        return person_vmap
    return person_loop


ENGINES: Final[dict[str, GradientEngine]] = {
    "loop": person_loop,
    "vmap": person_vmap,
    "book-keeping": book_keeping,
}


def engine_name(engine: GradientEngine) -> str:
    """Return the name of an engine as `ENGINES` has it; that of statistics is `moments`."""
    if engine is person_moments:
        return "moments"
    return next(name for name, known in ENGINES.items() if known is engine)
