"""The public constants of a loss and of the mechanism, and within which bounds they hold.

A contract states them, and what trains is given them; to read and check them needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import InputError

_SMALLEST = 1e-6
_MOST_DIRECTIONS = 1024
LEAST_DELTA: Final = 1e-10  # below, the audit's own accountant (`server.audit`) resolves nothing


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


@dataclass(frozen=True)
class MomentsConfig:
    """Which statistics of a person are told, and how large each is beside the others.

    All of it is chosen from public constants alone: declared persons and noise. `directions` is
    the public basis's R; off their diagonal, moments of pairs are told for `block` directions. A
    scale of 0 leaves a part out: `mean_scale` that of the mean in the basis, `pair_scale` that of
    within- and between-person moments. `counter_scale` is that of the counters of persons.
    """

    directions: int
    block: int
    embedding_scale: float
    mean_scale: float
    pair_scale: float
    counter_scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.block <= self.directions <= _MOST_DIRECTIONS:
            raise InputError(
                f"moments of {self.directions} directions, {self.block} of them in the block",
                hint=f"at most {_MOST_DIRECTIONS}, and the block lies within them",
            )
        scales = (self.embedding_scale, self.counter_scale, self.mean_scale, self.pair_scale)
        if not all(0.0 <= scale <= 1 / _SMALLEST for scale in scales) or 0.0 in scales[:2]:
            raise InputError(f"scales of moments must be positive and finite: {scales}")
        if not self.directions and (self.mean_scale or self.pair_scale):
            raise InputError("moments need directions in which they are told")


# Of a person nothing but the mean embedding, in no basis.
MEAN_ONLY: Final = MomentsConfig(0, 0, 1.0, 0.0, 0.0, 1.0)


def check_delta(delta: float, sample_rate: float = 1.0, *, name: str = "delta") -> None:
    """Raise InputError unless delta lies in [1e-10, 1), and below the rate of sampled steps.

    At the sample rate and above, delta alone allows that whoever is drawn is shown as they are:
    epsilon can then be 0 with next to no noise.
    """
    if not 0.0 < delta < 1.0:
        raise InputError(f"{name} must lie strictly between 0 and 1, not {delta}")
    if delta < LEAST_DELTA:
        raise InputError(
            f"{name} {delta:g} is below {LEAST_DELTA:g}: no audit could recompute its epsilon",
            hint="well below one in the number of persons is enough",
        )
    if sample_rate < 1.0 and delta >= sample_rate:
        raise InputError(
            f"{name} {delta:g} is not below the sample rate {sample_rate:g}: it allows that who is "
            "drawn in a step has no protection at all, whatever epsilon says",
            hint="choose a delta well below one in the number of persons",
        )


def check_clip(max_grad_norm: float) -> None:
    """Raise InputError unless C lies in [1e-6, 1e6]: beyond, floats round by more than they say."""
    if not _SMALLEST <= max_grad_norm <= 1 / _SMALLEST:
        raise InputError(f"max_grad_norm must lie between 1e-6 and 1e6, not {max_grad_norm}")


def check_denominator(public_denominator: float) -> None:
    """Raise InputError unless the denominator lies in [1e-6, 1e12]."""
    if not _SMALLEST <= public_denominator <= 1e12:
        raise InputError(f"public_denominator must lie in [1e-6, 1e12], not {public_denominator}")
