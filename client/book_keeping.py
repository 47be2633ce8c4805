"""One backward for a chunk of persons: layer inputs and output gradients tell norms and sums.

Person p's gradient of a layer's weight is sum_r d_r a_r^T over p's rows r, with layer inputs a_r
and output gradients d_r; a convolution is a linear layer on its patches. Its squared norm is
sum_rs (a_r . a_s)(d_r . d_s), and the clipped sum over persons is one matrix product. (Goodfellow
2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.constants import check_clip
from common.errors import InputError
from common.losses import PersonBatch, PersonLoss, PublicSide
from common.mechanism import ClippedSum, clip_factors
from common.parameters import layout_of, trainable_parameters

# Persons at once: intermediate results must stay in the cache (docs/engines.md). Every chunk is
# filled up to the same size (`PersonBatch.part` says why).
_PERSONS: Final = 64
_PERSONS_WITH_PUBLIC_ROWS: Final = 16
# A norm from inner products loses what cancels: float64 rounds at 1e-16 of (sum_r |a_r||d_r|)^2.
# Adding this fraction of it to the squared norm makes the norm an upper bound, whatever a person's
# images are, and costs an ordinary person nothing that could be measured.
_ROUNDING: Final = 1e-12


def book_keeping(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, max_grad_norm: float
) -> ClippedSum:
    """Clipped sum over the persons of a batch; the model must pass `supports_book_keeping`.

    Public inputs through which the gradient flows are rows of every person: shared ones up to the
    first trained layer if only linear layers are trained, else copies.
    """
    check_clip(max_grad_norm)
    total = torch.zeros(layout_of(model).dimension, dtype=torch.float64)
    chunk = _PERSONS if public.embedded else _PERSONS_WITH_PUBLIC_ROWS
    for start in range(0, len(batch), chunk):
        total += _chunk(model, batch.part(start, chunk), loss, public, max_grad_norm)
    return ClippedSum(total, max_grad_norm)


def supports_book_keeping(model: nn.Module) -> bool:
    """True if exactly the weights and biases of linear layers and full convolutions are trained."""
    layers = _trained_layers(model)
    owned = [id(p) for layer in layers.values() for p in layer.parameters()]
    return [id(p) for p in trainable_parameters(model).values()] == owned


def _chunk(
    model: nn.Module, batch: PersonBatch, loss: PersonLoss, public: PublicSide, clip: float
) -> Tensor:
    persons, images = batch.present.shape
    rows, others, shared = batch.inputs, public.values, list[_Record]()
    linear = all(isinstance(layer, nn.Linear) for layer in _trained_layers(model).values())
    if not public.embedded and not linear:
        rows = torch.cat([rows, others.expand(persons, *others.shape)], dim=1)  # [P, K + N, ...]
    own, seen = _recorded(model, rows.flatten(0, 1))
    seen = seen.view(persons, rows.shape[1], -1)
    if not public.embedded:
        if linear:
            shared, others = _recorded(model, others, copies=persons)
        else:
            others = seen[:, images:]
    losses = loss(seen[:, :images], batch.present, batch.codes, others)
    outputs = [record.output for record in (*own, *shared)]
    deltas = torch.autograd.grad(losses.sum(), outputs)
    layers: list[_RowGradients | _WholeGradients] = []
    for number, record in enumerate(own):
        if shared:
            public_delta = deltas[len(own) + number]
            layers.append(
                _WholeGradients.of(record, deltas[number], shared[number], public_delta, persons)
            )
        else:
            layers.append(_RowGradients.of(record, deltas[number], persons))
    squared = torch.stack([layer.squared_norms() for layer in layers]).sum(dim=0)  # [P]
    factors = clip_factors(squared.sqrt(), clip)
    return torch.cat([layer.clipped(factors) for layer in layers])


@dataclass(frozen=True)
class _RowGradients:
    """A layer's gradients as rows: a [P, R, F] and d [P, R, D] in float64, never multiplied out."""

    layer: nn.Linear | nn.Conv2d
    inputs: Tensor
    deltas: Tensor
    window: tuple[slice, slice]

    @staticmethod
    def of(record: _Record, delta: Tensor, persons: int) -> _RowGradients:
        inputs, window = record.inputs, (slice(None), slice(None))
        if isinstance(record.layer, nn.Conv2d):
            inputs, window = _patches(record.layer, inputs)
            delta = delta.flatten(2).transpose(1, 2)  # [B, D, h, w] -> [B, L, D]
        return _RowGradients(
            record.layer,
            inputs.reshape(persons, -1, inputs.shape[-1]).double(),
            delta.reshape(persons, -1, delta.shape[-1]).double(),
            window,
        )

    def squared_norms(self) -> Tensor:
        alike = self.inputs @ self.inputs.transpose(1, 2)  # [P, R, R]
        if self.layer.bias is not None:
            alike = alike + 1.0  # a bias is a weight whose input is 1
        moved = self.deltas @ self.deltas.transpose(1, 2)
        exact = (alike * moved).sum(dim=(1, 2))
        longest = (_diagonal(alike) * _diagonal(moved)).sqrt().sum(dim=1) ** 2
        return exact.clamp(min=0.0) + _ROUNDING * longest

    def clipped(self, factors: Tensor) -> Tensor:
        kept = (factors > 0)[:, None, None]  # 0 * NaN is NaN: a broken person's rows are zeroed
        deltas = torch.where(kept, self.deltas * factors[:, None, None], 0.0).flatten(0, 1)
        inputs = self.inputs if kept.all() else torch.where(kept, self.inputs, 0.0)
        weight = deltas.T @ inputs.flatten(0, 1)
        if weight.numel() < self.layer.weight.numel():
            seen = weight
            weight = torch.zeros_like(self.layer.weight, dtype=torch.float64)
            inside = weight[:, :, *self.window]
            inside.copy_(seen.view_as(inside))
        parts = [weight.flatten()]
        return torch.cat([*parts, deltas.sum(dim=0)] if self.layer.bias is not None else parts)


@dataclass(frozen=True)
class _WholeGradients:
    """A linear layer's gradients multiplied out, float64 [P, d]: own rows and public ones."""

    values: Tensor

    @staticmethod
    def of(
        own: _Record, delta: Tensor, shared: _Record, public_delta: Tensor, persons: int
    ) -> _WholeGradients:
        inputs = own.inputs.view(persons, -1, own.inputs.shape[-1])
        delta = delta.view(persons, -1, delta.shape[-1])
        weight = delta.transpose(1, 2) @ inputs + _public_rows(public_delta, shared.inputs)
        parts = [weight.flatten(1)]
        if own.layer.bias is not None:
            parts.append(delta.sum(dim=1) + public_delta.sum(dim=1))
        return _WholeGradients(torch.cat(parts, dim=1).double())

    def squared_norms(self) -> Tensor:
        return self.values.square().sum(dim=1)

    def clipped(self, factors: Tensor) -> Tensor:
        return factors @ torch.where((factors > 0)[:, None], self.values, 0.0)


def _public_rows(deltas: Tensor, inputs: Tensor) -> Tensor:
    """sum_r d_r a_r^T for each person, [P, D, F]: d [P, R, D] with a [P, R, F] or shared [R, F]."""
    if inputs.dim() == 3:
        return deltas.transpose(1, 2) @ inputs
    persons, rows, dim = deltas.shape
    columns = deltas.transpose(1, 2).reshape(persons * dim, rows)
    return (columns @ inputs).view(persons, dim, inputs.shape[-1])


def _diagonal(square: Tensor) -> Tensor:
    values: Tensor = torch.diagonal(square, dim1=1, dim2=2)
    return values


@dataclass(frozen=True)
class _Record:
    """One trained layer in one forward pass: its inputs [B, ...] and its output [B, ...]."""

    layer: nn.Linear | nn.Conv2d
    inputs: Tensor
    output: Tensor


def _patches(layer: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, tuple[slice, slice]]:
    """What a convolution's weight multiplies, float64 [B, L, F], and the part of the kernel it is.

    Kernel rows and columns that lie in the padding at every place are left out: on a 1x1 map that
    is eight ninths of a 3x3 kernel.
    """
    assert not isinstance(layer.padding, str)
    (up, left), (tall, wide) = layer.padding, layer.kernel_size
    window = (
        _touched(inputs.shape[2], tall, layer.stride[0], up),
        _touched(inputs.shape[3], wide, layer.stride[1], left),
    )
    padded = F.pad(inputs, (left, left, up, up))
    places = padded.unfold(2, tall, layer.stride[0]).unfold(3, wide, layer.stride[1])
    rows = places[..., *window].permute(0, 2, 3, 1, 4, 5)  # [B, h, w, C, kernel]
    rows = rows.to(torch.float64, memory_format=torch.contiguous_format)
    return rows.flatten(3).flatten(1, 2), window


def _touched(size: int, kernel: int, stride: int, padding: int) -> slice:
    """The offsets of a kernel that meet the map, not only its padding, at some place."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    offsets = [i for i in range(kernel) if any(0 <= start + i < size for start in starts)]
    return slice(offsets[0], offsets[-1] + 1)


def _recorded(
    model: nn.Module, rows: Tensor, copies: int | None = None
) -> tuple[list[_Record], Tensor]:
    """Run the model on rows and record its trained layers, in order of their names.

    With `copies` the rows are shared by that many persons: they pass the first trained layer
    once, and from its output on each person has a copy, so that gradients come out per person.
    """
    records: list[_Record] = []

    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        if copies is not None and not records:
            output = output.detach().expand(copies, *output.shape).requires_grad_(True)
        records.append(_Record(layer, args[0].detach(), output))
        return output

    order = list(_trained_layers(model).values())
    handles = [layer.register_forward_hook(hook) for layer in order]
    try:
        embeddings: Tensor = model(rows)
    finally:
        for handle in handles:
            handle.remove()
    if len(records) != len(order):
        raise InputError("book-keeping needs every trained layer to be used once")
    return sorted(records, key=lambda record: order.index(record.layer)), embeddings


def _trained_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if (isinstance(layer, nn.Linear) or _is_full_convolution(layer))
        and layer.weight.requires_grad
    }


def _is_full_convolution(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.dilation == (1, 1)
        and not isinstance(layer.padding, str)
    )
