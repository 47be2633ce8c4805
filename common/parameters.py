"""The trainable parameters of a model as one flat vector, and back, in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.layout import Layout


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with `requires_grad`, by name; none at all is an InputError."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise InputError("the model has no trainable parameter")
    return found


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of the model's trainable parameters."""
    found = trainable_parameters(model)
    return Layout(tuple(found), tuple(tuple(p.shape) for p in found.values()))


def flatten(model: nn.Module) -> Tensor:
    """Return a float32 copy [d] of the trainable parameters."""
    with torch.no_grad():
        return torch.cat([p.reshape(-1) for p in trainable_parameters(model).values()]).float()


def pieces(vector: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return views of a flat vector [d] by name and shape; a wrong length is an InputError."""
    if vector.shape != (layout.dimension,):
        raise InputError(f"expected a vector of {layout.dimension}, not {tuple(vector.shape)}")
    parts = torch.split(vector, list(layout.sizes))
    return {n: v.view(s) for n, v, s in zip(layout.names, parts, layout.shapes, strict=True)}


def assign(model: nn.Module, vector: Tensor) -> None:
    """Copy a flat vector [d] into the model's trainable parameters."""
    values = pieces(vector, layout_of(model))
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(values[name])
