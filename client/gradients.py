"""Clipped sums of person gradients, by three engines that agree with each other.

Each takes the trainable part, a batch of persons, a person-separable loss and its public side, and
returns the `ClippedSum`. The loop is the definition; the others are faster for some models and are
held to it by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from common.errors import InputError
from common.losses import PersonBatch, PersonLoss, PublicSide
from common.mechanism import ClippedSum, check_clip, clip_by_person, clip_factors
from common.parameters import layout_of, trainable_parameters

# Above this many floats a chunk of per-person gradients no longer fits the cache and memory well.
_VMAP_FLOATS: Final = 2**25
_VMAP_PARAMETERS: Final = 20_000
_LINEAR_PERSONS: Final = 16


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
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, max_grad_norm: float
) -> ClippedSum:
    """One backward for a chunk of persons, for models that train linear layers only.

    Person p's gradient of a weight is sum_r d_r a_r^T over p's rows (own images and, if the loss
    has a gradient there, public ones), with layer inputs a and output gradients d. Needs
    `supports_book_keeping`. (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038.)
    """
    check_clip(max_grad_norm)
    total = torch.zeros(layout_of(model).dimension, dtype=torch.float64)
    for start in range(0, len(batch), _LINEAR_PERSONS):
        rows = slice(start, start + _LINEAR_PERSONS)
        chunk = PersonBatch(batch.inputs[rows], batch.present[rows], batch.codes[rows])
        total += _linear_chunk(model, chunk, loss, public, max_grad_norm)
    return ClippedSum(total, max_grad_norm)


def _linear_chunk(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, clip: float
) -> Tensor:
    persons = len(batch)
    own, embeddings = _recorded(model, batch.inputs)
    shared: list[_Record] = []
    others = public.values
    if not public.embedded:
        shared, others = _recorded(model, public.values, copies=persons)
    losses = loss(embeddings, batch.present, batch.codes, others)
    outputs = [record.output for record in (*own, *shared)]
    deltas = torch.autograd.grad(losses.sum(), outputs)

    squared = torch.zeros(persons, dtype=torch.float64)
    parts = []
    for number, record in enumerate(own):
        weight = _per_person(deltas[number], record.inputs)
        bias = deltas[number].sum(dim=1)
        if shared:
            delta = deltas[len(own) + number]
            weight = weight + _per_person(delta, shared[number].inputs)
            bias = bias + delta.sum(dim=1)
        for part in (weight, bias) if record.layer.bias is not None else (weight,):
            flat = part.double().flatten(1)
            squared += torch.linalg.vector_norm(flat, dim=1) ** 2
            parts.append(flat)
    factors = clip_factors(squared.sqrt(), clip)
    kept = (factors > 0)[:, None]
    return torch.cat([factors @ torch.where(kept, part, 0.0) for part in parts])


def _per_person(deltas: Tensor, inputs: Tensor) -> Tensor:
    """sum_r d_r a_r^T for each person, [P, D, F]: d [P, R, D] with a [P, R, F] or shared [R, F]."""
    if inputs.dim() == 3:
        return deltas.transpose(1, 2) @ inputs
    persons, rows, dim = deltas.shape
    columns = deltas.transpose(1, 2).reshape(persons * dim, rows)
    return (columns @ inputs).view(persons, dim, inputs.shape[-1])


@dataclass(frozen=True)
class _Record:
    """One trainable layer in one forward pass: inputs [P, R, F] or [R, F], output [P, R, D]."""

    layer: nn.Linear
    inputs: Tensor
    output: Tensor


def _recorded(
    model: nn.Module, rows: Tensor, copies: int | None = None
) -> tuple[list[_Record], Tensor]:
    """Run the model on rows and record its trainable linear layers, in order of their names.

    With `copies` the rows are shared by that many persons: they pass the first trainable layer
    once, and from its output on each person has a copy, so that gradients come out per person.
    """
    records: list[_Record] = []

    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if copies is not None and output.dim() == 2:
            output = output.detach().expand(copies, *output.shape).requires_grad_(True)
        records.append(_Record(layer, args[0].detach(), output))
        return output

    handles = [layer.register_forward_hook(hook) for layer in _trainable_linears(model).values()]
    try:
        embeddings: Tensor = model(rows)
    finally:
        for handle in handles:
            handle.remove()
    order = list(_trainable_linears(model).values())
    if len(records) != len(order):
        raise InputError("book-keeping needs every trainable layer to be used once")
    return sorted(records, key=lambda record: order.index(record.layer)), embeddings


def _trainable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }


def supports_book_keeping(model: nn.Module) -> bool:
    """True if exactly the weights and biases of some linear layers are trained."""
    owned = [id(p) for layer in _trainable_linears(model).values() for p in layer.parameters()]
    return [id(p) for p in trainable_parameters(model).values()] == owned


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


def engine_name(engine: GradientEngine) -> str:
    """Return the name of an engine as `ENGINES` has it."""
    return next(name for name, known in ENGINES.items() if known is engine)
