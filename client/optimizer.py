"""Opacus' DPOptimizer for persons: the clip is done per person, the noise comes from our door."""

from __future__ import annotations

from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from common.errors import InputError, Refused
from common.mechanism import ClippedSum, add_noise
from common.parameters import layout_of, pieces, trainable_parameters
from common.randomness import KeyStream


class PersonOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Clip, noise, scale, step, as in Opacus, with three of its parts replaced.

    The clip arrives as a `ClippedSum` over persons (`step_with`); the noise is drawn from the
    site's cryptographic stream, not from a torch generator; the denominator is a public constant,
    not the number of samples. A plain `step()` is refused: it would have no clipped sum.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        public_denominator: float,
        stream: KeyStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._model = model
        self._layout = layout_of(model)
        self._denominator = public_denominator
        self._stream = stream
        self._pending: ClippedSum | None = None

    def step_with(self, clipped: ClippedSum) -> None:
        """Take one step from a clipped sum; a sum clipped to another norm is refused."""
        if clipped.l2_sensitivity != self.max_grad_norm:
            raise InputError(
                f"a sum clipped to {clipped.l2_sensitivity}, noise for {self.max_grad_norm}"
            )
        self._pending = clipped
        self.step()
        self.zero_grad(set_to_none=True)

    def pre_step(self, closure: Any = None) -> bool:
        """Noise and scale the pending sum into `grad`; the only path from a sum to a step."""
        if self._pending is None:
            raise Refused("no clipped sum to step with", hint="use step_with")
        clipped, self._pending = self._pending, None
        noised = add_noise(clipped, self.noise_multiplier, self._stream)
        mean = pieces(noised.mean(self._denominator), self._layout)
        for name, parameter in trainable_parameters(self._model).items():
            parameter.grad = mean[name].to(parameter.dtype)
        if self.step_hook:
            self.step_hook(self)
        return True
