"""The public constants of a loss and of the mechanism, and within which bounds they hold.

A contract states them, and what trains is given them; to read and check them needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import InputError

_SMALLEST = 1e-6


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its constants: `temperature` multiplies cosines, `margin` is in cosines.

    `public_gradient` lets the gradient flow through the public embeddings. Without it an anchor
    is pushed away from negatives that do not yield, and on LFW training does harm
    (docs/levers.md); with it a person costs as much as its own and the public images together.
    """

    name: str = "public-negatives"
    temperature: float = 48.0
    margin: float = 0.2
    public_gradient: bool = True


def check_clip(max_grad_norm: float) -> None:
    """Raise InputError unless C lies in [1e-6, 1e6]: beyond, floats round by more than they say."""
    if not _SMALLEST <= max_grad_norm <= 1 / _SMALLEST:
        raise InputError(f"max_grad_norm must lie between 1e-6 and 1e6, not {max_grad_norm}")


def check_denominator(public_denominator: float) -> None:
    """Raise InputError unless the denominator lies in [1e-6, 1e12]."""
    if not _SMALLEST <= public_denominator <= 1e12:
        raise InputError(f"public_denominator must lie in [1e-6, 1e12], not {public_denominator}")
