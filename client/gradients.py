"""Clipped sums of person gradients, by three engines that agree with each other.

Each takes the trainable part, a batch of persons, a person-separable loss and the public
embeddings (constants, no gradient), and returns the `ClippedSum`. The loop is the definition; the
others are faster for some models and are held to it by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from common.losses import PersonBatch, PersonLoss
from common.mechanism import ClippedSum, check_clip, clip_by_person, clip_factors
from common.parameters import layout_of, trainable_parameters

# Above this many floats a chunk of per-person gradients no longer fits the cache and memory well.
_VMAP_FLOATS: Final = 2**25
_VMAP_PARAMETERS: Final = 20_000


class GradientEngine(Protocol):
    """model, P persons, loss, public embeddings [N, D], C -> clipped sum over the P persons."""

    def __call__(
        self,
        model: nn.Module,
        batch: PersonBatch,
        loss: PersonLoss,
        public: Tensor,
        max_grad_norm: float,
    ) -> ClippedSum: ...


def person_loop(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: Tensor, max_grad_norm: float
) -> ClippedSum:
    """One person at a time: forward, backward, clip, add. Only images that exist are embedded."""
    parameters = list(trainable_parameters(model).values())

    def gradients() -> Iterator[Tensor]:
        for index in range(len(batch)):
            one = batch.person(index)
            seen = model(one.inputs[one.present])  # [k, D], k <= K
            slots = seen.new_zeros(one.present.shape[1], seen.shape[1])
            embeddings = slots.index_put((one.present[0].nonzero()[:, 0],), seen)[None]
            value = loss(embeddings, one.present, one.codes, public).sum()
            found = torch.autograd.grad(value, parameters)
            yield torch.cat([g.reshape(-1) for g in found])

    return clip_by_person(gradients(), layout_of(model).dimension, max_grad_norm)


def person_vmap(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: Tensor, max_grad_norm: float
) -> ClippedSum:
    """All gradients of a chunk of persons at once, [chunk, d]: for small trainable sets."""
    parameters = {name: p.detach() for name, p in trainable_parameters(model).items()}
    dimension = layout_of(model).dimension

    def one_loss(
        values: dict[str, Tensor], inputs: Tensor, present: Tensor, code: Tensor
    ) -> Tensor:
        embeddings = functional_call(model, values, (inputs,))
        return loss(embeddings[None], present[None], code[None], public).sum()

    per_person = vmap(grad(one_loss), in_dims=(None, 0, 0, 0), randomness="error")
    chunk = max(1, _VMAP_FLOATS // dimension)

    def gradients() -> Iterator[Tensor]:
        for start in range(0, len(batch), chunk):
            rows = slice(start, start + chunk)
            found = per_person(
                parameters, batch.inputs[rows], batch.present[rows], batch.codes[rows]
            )
            yield from torch.cat([found[name].flatten(1) for name in parameters], dim=1)

    return clip_by_person(gradients(), dimension, max_grad_norm)


def linear_book_keeping(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: Tensor, max_grad_norm: float
) -> ClippedSum:
    """One backward for all persons, for models whose trainable parameters are linear weights.

    Person p's gradient of a linear layer's weight is sum_k d_k a_k^T, with inputs a and output
    gradients d of p's images, so its squared norm is the sum of (d d^T) * (a a^T) over K x K
    (Goodfellow 2015, arXiv:1510.01799; book-keeping: Bu et al. 2023, arXiv:2210.00038), and the
    clipped sum is one product. Needs `supports_book_keeping`.
    """
    check_clip(max_grad_norm)
    layers = _trainable_linears(model)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), output

        return layers[name].register_forward_hook(hook)

    handles = [keep(name) for name in layers]
    try:
        flat = model(batch.inputs.flatten(0, 1))  # [P K, D]
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    persons, k = batch.present.shape
    embeddings = flat.view(persons, k, flat.shape[-1])
    losses = loss(embeddings, batch.present, batch.codes, public)
    deltas = torch.autograd.grad(losses.sum(), list(outputs.values()))

    squared = torch.zeros(persons, dtype=torch.float64)
    a_of = {n: a.view(persons, k, a.shape[-1]).double() for n, a in inputs.items()}
    d_of = {
        n: d.view(persons, k, d.shape[-1]).double() for n, d in zip(outputs, deltas, strict=True)
    }
    for name, layer in layers.items():
        a, d = a_of[name], d_of[name]
        a_gram = a @ a.transpose(1, 2)  # [P, K, K]
        if layer.bias is not None and layer.bias.requires_grad:
            a_gram = a_gram + 1.0
        squared += ((d @ d.transpose(1, 2)) * a_gram).sum(dim=(1, 2))
    factors = clip_factors(squared.clamp(min=0).sqrt(), max_grad_norm)
    kept = (factors > 0)[:, None, None]

    total = []
    for name, layer in layers.items():
        a = torch.where(kept, a_of[name], 0.0).flatten(0, 1)
        d = torch.where(kept, d_of[name] * factors[:, None, None], 0.0).flatten(0, 1)
        total.append((d.T @ a).reshape(-1))
        if layer.bias is not None and layer.bias.requires_grad:
            total.append(d.sum(dim=0))
    return ClippedSum(torch.cat(total), max_grad_norm)


def _trainable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }


def supports_book_keeping(model: nn.Module) -> bool:
    """True if every trainable parameter is the weight or bias of a linear layer."""
    owned = {id(p) for layer in _trainable_linears(model).values() for p in layer.parameters()}
    return all(id(p) in owned for p in trainable_parameters(model).values())


def choose_engine(model: nn.Module) -> GradientEngine:
    """Return the engine that was measured fastest for this kind of model (docs/engines.md)."""
    if supports_book_keeping(model):
        return linear_book_keeping
    if layout_of(model).dimension <= _VMAP_PARAMETERS:
        return person_vmap
    return person_loop


ENGINES: Final[dict[str, GradientEngine]] = {
    "loop": person_loop,
    "vmap": person_vmap,
    "book-keeping": linear_book_keeping,
}
